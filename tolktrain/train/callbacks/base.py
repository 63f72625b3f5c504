"""A callback that does nothing."""

from tolktrain.train.loop import StageRun


class NoCallback:
    """Base of callbacks that need only some of the hooks of `tolktrain.train.loop.Callback`."""

    def on_stage_start(self, run: StageRun) -> None:
        """Nothing."""

    def on_step(self, run: StageRun) -> None:
        """Nothing."""

    def on_interrupt(self, run: StageRun) -> None:
        """Nothing."""

    def on_rollback(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
