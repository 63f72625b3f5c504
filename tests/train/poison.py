"""Runs that diverge on batches that spoil the loss, recognized by their content, and the same runs without those."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import small_runs
import yaml
from filelock import FileLock

from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.data.batch import Batch
from tolktrain.data.loader import StageLoader
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import LossSums, StepResult
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.train import stage_runner
from tolktrain.train.batch_consistency import batch_checksum
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.optimizer import LearningRates

TEXT, JOINT = 0, 1
STEPS = (2, 12)  # of the two stages
LAST = sum(STEPS)
ROW = {(JOINT, step): math.nan for step in (6, 7, 8)}  # data steps; training comes to them in its steps 9 to 11
LEFT_OUT = {(JOINT, step) for step in (5, 6, 7, 8)}  # with the one before

Steps = Iterable[tuple[int, int]]
"""Pairs of a stage and a step of its data, both from 0."""


def make_config(folder: Path, sets: Path, *overrides: str) -> Config:
    """Two stages; a run goes back after three skipped steps, and leaves out one step of data more."""
    with FileLock(folder / "small.lock"):  # all ranks write the same file
        path = small_runs.write_config(folder, sets)
        tree: dict[str, Any] = yaml.safe_load(path.read_text())
        tree["train"]["stages"] = [stage for stage in tree["train"]["stages"] if stage["name"] != "adapter"]
        for stage, steps in zip(tree["train"]["stages"], STEPS, strict=True):
            stage["tokens"] = steps * small_runs.TOKENS_PER_STEP
        tree["train"]["validation"]["sets"] = []
        tree["train"]["guard"] = {"max_skipped_in_a_row": 3, "spike_sigma": None, "skip_before": 1, "max_rollbacks": 2}
        path.write_text(yaml.safe_dump(tree))
        return load_config(path, overrides)


def checksums(config: Config, steps: Steps, data_rank: int = 0, data_size: int = 1) -> set[int]:
    """What tells this data rank's share of the given batches."""
    return set(located(config, steps, data_rank, data_size).values())


def located(config: Config, steps: Steps, data_rank: int = 0, data_size: int = 1) -> dict[tuple[int, int], int]:
    """The same by stage and step."""
    wanted = sorted(steps)
    found = {}
    for index in {stage for stage, _ in wanted}:
        loader = StageLoader(
            config,
            config.train.stages[index].mixture,
            small_runs.VOCABULARY,
            seed=config.run.seed + 1_000_003 * index,
            data_rank=data_rank,
            data_size=data_size,
        )
        with loader:
            for step in range(1 + max(step for stage, step in wanted if stage == index)):
                checksum = batch_checksum(next(loader))
                found |= {(index, step): checksum} if (index, step) in wanted else {}
    assert len(set(found.values())) == len(wanted)
    return found


@contextmanager
def spoiling(factors: dict[int, float]) -> Iterator[None]:
    """Multiplies the loss of some batches, by checksum."""
    train_step, forward = Engine.train_step, SmolTolk.forward
    factor = [1.0]

    def spoiled_step(self: Engine, batches: list[Batch], learning_rates: LearningRates, **options: bool) -> StepResult:
        factor[0] = factors.get(batch_checksum(batches), 1.0)
        try:
            return train_step(self, batches, learning_rates, **options)
        finally:
            factor[0] = 1.0

    def spoiled_forward(self: SmolTolk, inputs: ModelInputs) -> LossSums:
        sums: Any = forward(self, inputs)
        return LossSums(*(part * factor[0] for part in sums)) if factor[0] != 1.0 else sums

    with patch.object(Engine, "train_step", spoiled_step), patch.object(SmolTolk, "forward", spoiled_forward):
        yield


@contextmanager
def without(left_out: set[int]) -> Iterator[None]:
    """Runs never get these batches: they are read and thrown away."""

    class Leaving(StageLoader):
        def __next__(self) -> list[Batch]:
            while batch_checksum(batches := super().__next__()) in left_out:
                pass
            return batches

    with patch.object(stage_runner, "StageLoader", Leaving):
        yield
