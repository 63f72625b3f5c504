"""Detects steps from which nothing is learned."""

import logging

import torch
import torch.distributed as dist

from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.parallel.layout import Layout
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.learning import nothing_scored, zero_loss
from tolktrain.train.loop import StageRun

logger = logging.getLogger(__name__)


class LearningCheck(NoCallback):
    """Reports steps without a scored position, and steps whose loss is exactly 0.

    The first step of a run ends it, before anything is kept of the update. Later ones are counted, and reported when
    their number has doubled and at the end of the stage.
    """

    def __init__(self, config: Config, layout: Layout) -> None:
        self._config = config
        self._layout = layout
        self._count = self._reported = 0

    def on_stage_start(self, run: StageRun) -> None:
        """Count the steps of this stage, in this start."""
        self._count = self._reported = 0

    def on_step(self, run: StageRun) -> None:
        """Check the result of the step. Raises UserError on all ranks if it is the first of the run."""
        assert run.result is not None
        counts, stage = run.result.counts, run.plan.config
        is_zero = counts.num_scored > 0 and run.result.text_nll + run.result.speech_nll == 0.0
        if run.step == 1 and self._agreed(is_zero):
            raise UserError(zero_loss(stage))
        is_idle = is_zero or not counts.num_scored
        self._count += is_idle
        due = is_idle and self._count >= 2 * self._reported
        if due or (run.at_last_step and self._count > self._reported):
            self._reported = self._count
            problem = nothing_scored(stage, self._config) if not counts.num_scored else zero_loss(stage)
            logger.warning("step %d, %d such steps of the stage so far: %s", run.step, self._count, problem)

    def _agreed(self, is_zero: bool) -> bool:
        """Rank 0's decision, because the last digits of the loss may differ between ranks."""
        if self._layout.world_size == 1:
            return is_zero
        decision = torch.tensor(int(is_zero))
        dist.broadcast(decision, src=0)
        return bool(decision.item())
