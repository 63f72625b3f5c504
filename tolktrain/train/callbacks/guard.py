"""Ends a run that has broken down."""

import logging

from tolktrain.config.errors import UserError
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.loop import StageRun

MOST_SKIPPED_IN_A_ROW = 20

logger = logging.getLogger(__name__)


class DivergenceGuard(NoCallback):
    """Ends the run when steps are skipped, because their gradients are not finite, again and again."""

    def __init__(self, most_in_a_row: int = MOST_SKIPPED_IN_A_ROW) -> None:
        self._most_in_a_row = most_in_a_row
        self._in_a_row = 0

    def on_step(self, run: StageRun) -> None:
        """Count the step if it was skipped. Raises UserError at the last of too many."""
        assert run.result is not None
        if not run.result.skipped:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        logger.warning("step %d skipped: its gradients are not finite", run.step)
        if self._in_a_row >= self._most_in_a_row:
            raise UserError(
                f"training has diverged: the gradients of {self._in_a_row} steps in a row, up to step {run.step} of the"
                f" stage {run.plan.name!r}, were not finite; lower its learning rate or train.optimizer.clip_grad_norm,"
                " or lengthen its warm-up, and go on from the last checkpoint"
            )
