"""Training steps at real size on a null GPU: what scripts of this folder share."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))  # for `packing`

from packing import cut_into_documents, random_starts

from nullgpu.counters import counters, no_waiting
from tolktrain.benchmark.synthetic import Speech, random_batches, units_per_word
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.data.batch import Batch
from tolktrain.model.loss import StepResult
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.determinism import set_determinism
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.optimizer import learning_rates_at
from tolktrain.train.resolved import ResolvedSettings

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/bench/smoltolk-150m.yaml"
SPEECH_SHARE = 0.46  # of the positions, as `tolktrain bench` has it


class Rehearsal:
    """An engine at real size, whose forward and backward passes must not wait for the device."""

    def __init__(self, *overrides: str, accumulation: int = 1) -> None:
        """An engine of the configuration with overrides. `accumulation`: micro batches of a step."""
        config = load_config(CONFIG, overrides)
        set_determinism(config.train)
        parallel = config.parallel
        self.layout: Layout = initialize(
            parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.sequence_parallel
        )
        size = config.train.micro_batch_size * accumulation * self.layout.data_size
        self.config: Config = config.model_copy(
            update={"train": config.train.model_copy(update={"global_batch_size": size})}
        )
        self._accumulation = accumulation
        builder = ModelBuilder.of(self.config)
        self.architecture = builder.architecture
        bounds = None
        if builder.cut is not None:
            first = self.layout.pipeline_rank
            bounds = range(*builder.cut.bounds[first : first + 2])
        model = SmolTolk(self.architecture, None, self.layout, bounds)  # without values: those on the device are zero
        self._stage = self.config.train.stages[-1]
        settings = ResolvedSettings.of(self.config, self.architecture, self.layout)
        self.kernels = settings.kernels.kernels
        self.engine: Engine = builder.start(model, self._stage, self.layout, settings)
        inner = self.engine._step_runner.engine
        self.may_wait = False  # in forward and backward passes
        if builder.cut is None:
            for name in ("forward", "backward"):
                setattr(inner, name, self._guarded(getattr(inner, name)))
        else:
            steps = dict(inner._INSTRUCTION_MAP)  # by the class of the instruction
            passes = [kind for kind in steps if kind.__name__ in ("ForwardPass", "BackwardPass")]
            inner._INSTRUCTION_MAP = steps | {kind: self._guarded(steps[kind]) for kind in passes}
            assert len(passes) == 2

    def batches(self, seed: int = 0, documents: bool = False) -> list[Batch]:
        """Micro batches of one step, pinned as the loader's are."""
        train, interleaving = self.config.train, self.config.data.interleaving
        units = units_per_word(SPEECH_SHARE, interleaving, self.architecture.num_codebooks)
        made = random_batches(
            self._accumulation,
            train.micro_batch_size,
            train.sequence_length,
            self.architecture.text_vocab_size,
            Speech(self.architecture.num_units, self.architecture.num_codebooks, units),
            interleaving,
            seed,
        )
        if documents:
            made = [cut_into_documents(batch, random_starts(batch, seed)) for batch in made]
        return [batch.pin_memory() for batch in made]

    def step(self, batches: Sequence[Batch]) -> StepResult:
        """A training step."""
        return self.engine.train_step(batches, learning_rates_at(self._stage, 0, self._stage.tokens))

    def counted_step(self, batches: Sequence[Batch]) -> dict[str, int]:
        """How a training step has changed the counters."""
        before = counters().values()
        self.step(batches)
        return {name: value - before[name] for name, value in counters().values().items()}

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with nullcontext() if self.may_wait else no_waiting():
                return function(*args, **kwargs)

        return call
