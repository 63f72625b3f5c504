"""Saves checkpoints."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

import torch

from tolktrain import __version__
from tolktrain.checkpoint.random_states import capture_random_states
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.config import Config
from tolktrain.model.architecture import Architecture
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.loop import StageRun


class Checkpointing(NoCallback):
    """Saves every `checkpoint.every_steps`, at the end of a stage, at the end of the run, and before a stop."""

    def __init__(self, store: CheckpointStore, metrics: MetricsLog, config: Config, architecture: Architecture) -> None:
        self._store = store
        self._metrics = metrics
        self._config = config
        self._architecture = architecture

    def on_step(self, run: StageRun) -> None:
        """Save if it is time to."""
        if run.step % self._config.checkpoint.every_steps == 0 or run.at_last_step:
            run.progress.at("saving a checkpoint")
            self._metrics.sync()
            self._store.save(run.step, run.engine.snapshot(), run.engine.shares, self._state(run))

    def _state(self, run: StageRun) -> dict[str, Any]:
        train = self._config.train
        configuration = self._config.model_dump(mode="json")
        return {
            "step": run.step,
            "stage": run.plan.index,
            "stage_name": run.plan.name,
            "step_in_stage": run.step_in_stage,
            "stage_complete": run.stage_complete,
            "tokens": run.step * train.global_batch_size * train.sequence_length,
            "adam_updates": run.engine.num_updates,
            # The data position is a function of the step; the count is for readers.
            "data": {"step": run.step_in_stage, "sequences": run.step_in_stage * train.global_batch_size},
            "random_states": capture_random_states(),
            "versions": {"tolktrain": __version__, "torch": torch.__version__, "deepspeed": version("deepspeed")},
            "architecture": self._architecture.to_dict(),
            "configuration_sha256": hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest(),
        }
