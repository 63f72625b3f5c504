"""Measures checkpoints on this machine: how long training pauses for one, and how much memory resuming needs.

Usage, from the root of the repository:
    torchrun --standalone --nproc-per-node N docs/measure/checkpoints.py write FOLDER [key=value ...]
    torchrun --standalone --nproc-per-node M docs/measure/checkpoints.py read FOLDER [key=value ...]

The model has the shape of configs/bench/cpu.yaml, enlarged to 100M parameters, float32; its data is synthetic.
`write` repeats SETS times: STEPS steps without a checkpoint, then steps while one is written in the background. It
prints the pause (until the next step may begin), the duration of steps during the writing, and the duration of the
writing, during training and alone. `read` restores the model and its optimizer on any layout (such as
parallel.tensor_parallel_size=2), and prints the peak memory of this and what the rank holds afterwards.
"""

import argparse
import gc
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tolktrain.benchmark.synthetic import Speech, random_batches, units_per_word
from tolktrain.checkpoint.retention import Retention
from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.checkpoint.slices import Snapshot
from tolktrain.checkpoint.store import CheckpointStore, read_state
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.cluster.threads import guarded
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.data.batch import Batch
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.optimizer import LearningRates
from tolktrain.train.process import set_threads
from tolktrain.train.resolved import ResolvedSettings
from tolktrain.train.resume import Position

SETS, STEPS = 5, 2
RATES = LearningRates(1e-4, 1e-4)
SHAPE = (
    "model.backbone={hidden_size: 768, num_layers: 12, num_attention_heads: 12, num_key_value_heads: 4,"
    " ffn_hidden_size: 2048, text_vocab_size: 8192}",
    "train.sequence_length=128",
    "train.global_batch_size=1",
    "train.micro_batch_size=1",
)


def configured(overrides: list[str]) -> tuple[Config, Layout]:
    """The configuration, with its processes joined."""
    root = Path(__file__).resolve().parents[2]
    config = load_config(root / "configs" / "bench" / "cpu.yaml", [*SHAPE, *overrides])
    ProcessEnvironment.detect().export()
    parallel = config.parallel
    layout = initialize(parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.sequence_parallel)
    set_threads(layout, config.train.cpu_threads)
    return config, layout


def make_batches(config: Config, layout: Layout, text_vocab_size: int) -> list[Batch]:
    """This rank's micro batches of a step."""
    train, speech = config.train, config.model.speech
    units = units_per_word(0.46, config.data.interleaving, speech.num_codebooks)
    batches = random_batches(
        train.global_batch_size // train.micro_batch_size,
        train.micro_batch_size,
        train.sequence_length,
        text_vocab_size,
        Speech(speech.num_units, speech.num_codebooks, units),
        config.data.interleaving,
        seed=0,
    )
    return list(batches)[layout.data_rank :: layout.data_size]


def write(folder: Path, overrides: list[str]) -> None:
    """Time steps and checkpoints."""
    config, layout = configured(overrides)
    model_builder = ModelBuilder.of(config)
    settings = ResolvedSettings.of(config, model_builder.architecture, layout)
    engine = model_builder.start(model_builder.build(layout, None, settings), config.train.stages[-1], layout, settings)
    batches = make_batches(config, layout, model_builder.architecture.text_vocab_size)
    store = CheckpointStore(folder / "checkpoints")
    if layout.rank == 0:
        store.prepare()
    group = dist.new_group(backend="gloo") if layout.world_size > 1 else None
    saver = CheckpointSaver(store, Retention(last=1), rank=layout.rank, group=group)
    state = {"stage": 0, "stage_complete": False, "architecture": model_builder.architecture.to_dict()}
    times = Times(engine, batches, saver)
    memory = times.save(0, None, state)  # memory is touched for the first time
    saver.wait()
    plain: list[float] = []
    for number in range(SETS):
        plain += [times.step() for _ in range(STEPS)]
        times.save(number + 1, memory, {**state, "step": number + 1, "adam_updates": engine.num_updates})
        while saver.is_saving:
            times.while_writing.append(times.step())
        saver.wait()
    alone: list[float] = []
    for number in range(SETS):
        started = time.perf_counter()
        saver.save(SETS + number + 1, memory, {**state, "step": SETS + number + 1, "adam_updates": engine.num_updates})
        alone.append(time.perf_counter() - started)
    if layout.rank == 0:
        times.print_results(plain, alone, memory, layout)


class Times:
    """Seconds of steps and saves."""

    def __init__(self, engine: Engine, batches: list[Batch], saver: CheckpointSaver) -> None:
        self._engine = engine
        self._batches = batches
        self._saver = saver
        self.pauses: list[float] = []
        self.writing: list[float] = []
        self.while_writing: list[float] = []  # steps during which a checkpoint is written, at least in part

    def step(self) -> float:
        """Of one step."""
        started = time.perf_counter()
        self._engine.train_step(self._batches, RATES)
        return time.perf_counter() - started

    def save(self, step: int, memory: Snapshot | None, state: dict[str, object]) -> Snapshot:
        """Begin a checkpoint, and notice when it is written."""
        started = time.perf_counter()
        snapshot = self._engine.snapshot(memory)
        self._saver.save(step, snapshot, state, background=True)
        if memory is not None:
            self.pauses.append(time.perf_counter() - started)
            begun = time.perf_counter()
            guarded("measure-writing", lambda: self._watch(begun)).start()
        return snapshot

    def _watch(self, started: float) -> None:
        while self._saver.is_saving:
            time.sleep(0.005)
        self.writing.append(time.perf_counter() - started)

    def print_results(self, plain: list[float], alone: list[float], memory: Snapshot, layout: Layout) -> None:
        """Print the figures."""
        time.sleep(0.1)
        pause, writing, step = (statistics.median(values) for values in (self.pauses, self.writing, plain))
        undisturbed = statistics.median(alone)
        print(f"{layout.describe()}; {memory.num_bytes / 1e6:,.0f} MB on rank 0")
        print(f"step                        {step:.3f} s (median of {len(plain)})")
        writing = self.while_writing
        print(f"step during writing         {statistics.median(writing):.3f} s (median of {len(writing)})")
        print(f"pause of training           {pause:.3f} s ({_all(self.pauses)})")
        print(f"writing during training     {writing:.3f} s ({_all(self.writing)})")
        print(f"writing alone               {undisturbed:.3f} s ({_all(alone)})")
        shares = [f"{100 * pause / seconds:.1f} %" for seconds in (writing, undisturbed)]
        print(f"pause / writing             {shares[0]} during training, {shares[1]} alone")


def _all(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def read(folder: Path, overrides: list[str]) -> None:
    """Resume, and watch the memory."""
    config, layout = configured(overrides)
    latest = CheckpointStore(folder / "checkpoints").latest()
    assert latest is not None
    position = Position(latest, read_state(latest))
    model_builder = ModelBuilder.of(config)
    warm_up(config, layout)
    stage = config.train.stages[-1]
    settings = ResolvedSettings.of(config, model_builder.architecture, layout)

    def resume() -> Engine:
        model = model_builder.build(layout, latest, settings)
        return model_builder.start(model, stage, layout, settings, position, is_inside=True)

    engine, before, peak, after = watched(resume)
    figures = torch.tensor([peak - before, after - before], dtype=torch.float64)
    everyone = [torch.empty_like(figures) for _ in range(layout.world_size)]
    dist.all_gather(everyone, figures)
    if layout.rank == 0:
        print(layout.describe())
        for rank, (most, held) in enumerate(value.tolist() for value in everyone):
            print(f"rank {rank}: holds {held / 1e6:,.0f} MB; resuming took at most {most / 1e6:,.0f} MB")
            print(f"rank {rank}: {most / held:.2f} times what it holds")
    engine.close()


def warm_up(config: Config, layout: Layout) -> None:
    """Allocations that libraries make once."""
    small = config.model_copy(update={"model": config.model.model_copy(update={"backbone": _tiny(config)})})
    model_builder = ModelBuilder.of(small)
    settings = ResolvedSettings.of(small, model_builder.architecture, layout)
    model_builder.start(model_builder.build(layout, None, settings), small.train.stages[-1], layout, settings).close()


def _tiny(config: Config) -> object:
    backbone = config.model.backbone
    assert not isinstance(backbone, str)
    return backbone.model_copy(update={"hidden_size": 96, "ffn_hidden_size": 64, "num_layers": 4})


def watched(work: Callable[[], Engine]) -> tuple[Engine, int, int, int]:
    """What is made, and this process's own memory in bytes before, at most, and after."""
    gc.collect()
    before, peak, done = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, own_memory())

    thread = guarded("measure-memory", watch)
    thread.start()
    made = work()
    done.set()
    thread.join()
    gc.collect()
    return made, before, max(peak, own_memory()), own_memory()


def own_memory() -> int:
    """Bytes, without files that are mapped."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise AssertionError


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "read"])
    parser.add_argument("folder", type=Path, nargs="?", help="as of a run; a temporary one if not given")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        {"write": write, "read": read}[parsed.what](parsed.folder or Path(temporary), parsed.overrides)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
