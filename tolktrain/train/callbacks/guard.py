"""Detects divergence during training."""

import logging
from pathlib import Path

import torch
import torch.distributed as dist

from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.config import Config
from tolktrain.parallel.layout import Layout
from tolktrain.runs.metrics import lines_of_stage
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.loop import StageRun
from tolktrain.train.rollback.divergence import DivergenceDetector, Incident

logger = logging.getLogger(__name__)


class DivergenceGuard(NoCallback):
    """Ends a stage on all ranks if too many consecutive steps are skipped, or the loss stays above the recent ones.

    Rank 0 decides from the lines of metrics.jsonl only, so that its state is the same after a restart.
    """

    def __init__(
        self, config: Config, run_dir: Path, metrics: MetricsLog, saver: CheckpointSaver, layout: Layout
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._metrics = metrics
        self._saver = saver
        self._layout = layout
        self._detector = DivergenceDetector(config.train.guard)

    def on_stage_start(self, run: StageRun) -> None:
        """Process the earlier steps of the stage."""
        self._detector = DivergenceDetector(self._config.train.guard)
        if self._layout.rank == 0:
            for line in lines_of_stage(self._run_dir, run.plan.name):
                self._detector.after(line)
        self._spare()

    def on_step(self, run: StageRun) -> None:
        """Process the step, and stop all ranks if training has diverged."""
        assert run.result is not None
        if run.result.skipped:
            logger.warning("step %d skipped: its loss or gradients are not finite", run.step)
        incident = self._detector.after(self._metrics.recent[0]) if self._layout.rank == 0 else None
        self._spare()
        if self._agreed(incident is not None):
            run.incident = self._shared(incident)

    def _agreed(self, diverged: bool) -> bool:
        """Rank 0's decision, because the last digits of the loss may differ between ranks."""
        if self._layout.world_size == 1:
            return diverged
        decision = torch.tensor(int(diverged))
        dist.broadcast(decision, src=0)
        return bool(decision.item())

    def _shared(self, incident: Incident | None) -> Incident:
        shared = [incident]
        if self._layout.world_size > 1:
            dist.broadcast_object_list(shared, src=0)
        assert shared[0] is not None
        return shared[0]

    def _spare(self) -> None:
        """While steps are bad, keep the checkpoints before them for a rollback, even beyond the retention rules."""
        first_bad = self._detector.first_bad
        self._saver.spared = None if first_bad is None else first_bad - 1
