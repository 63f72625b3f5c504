"""Saves checkpoints."""

import hashlib
import json
import logging
import math
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from tolktrain import __version__
from tolktrain.checkpoint.random_states import capture_random_states
from tolktrain.checkpoint.slices import Snapshot
from tolktrain.runs.metrics import Line
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.loop import StageRun
from tolktrain.train.reference import STATE_KEY
from tolktrain.train.stage_runner import RunContext

logger = logging.getLogger(__name__)


class Checkpointing(NoCallback):
    """Saves every `checkpoint.every_steps`, at the end of a stage, at the end of the run, and before a stop.

    For the periodic checkpoints, training waits only for a copy in memory, and for the previous checkpoint if that is
    not written yet.
    """

    def __init__(self, context: RunContext, metrics: MetricsLog, measured: Line | None = None) -> None:
        """`measured` is the last value of each loss, from the checkpoint that training continues from."""
        self._context = context
        self._saver = context.saver
        self._metrics = metrics
        self._config = context.config
        self._measured: Line = dict(measured or {})
        self._memory: Snapshot | None = None  # of this stage's engine, used again
        self._saved_step = 0

    def on_stage_start(self, run: StageRun) -> None:
        """Allocate the memory for saving in the background, because the first allocation is slower than a copy.

        This also detects a model that cannot be saved before its first step.
        """
        self._saved_step = run.step  # a stage begins, or continues, at a checkpoint
        self._memory = None  # that of the last stage's model
        if self._config.checkpoint.background:
            run.progress.at("taking memory for checkpoints")
            self._memory = run.engine.snapshot()

    def on_step(self, run: StageRun) -> None:
        """Save if a checkpoint is due. Raises the exception of a failed background save."""
        for line in self._metrics.recent:
            self._measured |= {k: v for k, v in line.items() if _is_loss(k) and v is not None and math.isfinite(v)}
        self._saver.poll()
        if run.step % self._config.checkpoint.every_steps == 0 or run.at_last_step:
            self._save(run)

    def on_interrupt(self, run: StageRun) -> None:
        """Save the steps since the last checkpoint."""
        if run.step > self._saved_step:
            self._save(run)

    def on_rollback(self, step: int) -> None:
        """Restore the measured losses of that step."""
        self._memory = None
        self._measured = dict(self._saver.state_of(step).get("metrics", {})) if step else {}

    def close(self) -> None:
        """Wait for a running save."""
        self._saver.close()

    def _save(self, run: StageRun) -> None:
        started = time.perf_counter()
        run.progress.at("waiting until the last checkpoint is written")
        self._saver.wait()
        waited = time.perf_counter()
        run.progress.at("copying the checkpoint")
        background = self._config.checkpoint.background and not run.at_last_step
        snapshot = run.engine.snapshot(self._memory)
        state = self._state(run)
        copied = time.perf_counter()
        if not background:
            run.progress.at("saving a checkpoint")
        self._saved_step = run.step
        self._saver.save(run.step, snapshot, state, background=background, before_publishing=self._metrics.sync)
        if run.at_last_step:
            self._memory = None  # before the next model is built
        logger.info(
            "checkpoint of step %d: training paused for %.3f s (%.3f s for the last one, %.3f s to copy %.1f MB)",
            run.step,
            time.perf_counter() - started,
            waited - started,
            copied - waited,
            snapshot.num_bytes / 1e6,
        )

    def _state(self, run: StageRun) -> dict[str, Any]:
        train, layout, identity = self._config.train, self._context.layout, self._context.data_identity
        configuration = self._config.model_dump(mode="json")
        return {
            "step": run.step,
            "stage": run.plan.index,
            "stage_name": run.plan.name,
            "step_in_stage": run.step_in_stage,
            "stage_complete": run.stage_complete,
            "tokens": run.step * train.tokens_per_step,
            "adam_updates": run.engine.num_updates,
            # The data position is a function of the step and of rollbacks.jsonl; the count is for readers.
            "data": {"sequences": run.step_in_stage * train.global_batch_size, "identity": asdict(identity)},
            "metrics": dict(self._measured),
            "random_states": capture_random_states(),
            "layout": {
                "tensor": layout.tensor_size,
                "pipeline": layout.pipeline_size,
                "data": layout.data_size,
                "zero_stage": self._context.settings.deepspeed.zero_stage,
            },
            "versions": {"tolktrain": __version__, "torch": torch.__version__, "deepspeed": version("deepspeed")},
            "architecture": self._context.model_builder.architecture.to_dict(),
            "tokenizers": dict(self._context.vocabulary.tokenizers),
            **({} if run.engine.reference is None else {STATE_KEY: run.engine.reference.digest}),
            "configuration_sha256": hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest(),
        }


def _is_loss(key: str) -> bool:
    return key.split(".")[-1] in ("loss", "text_loss", "speech_loss")
