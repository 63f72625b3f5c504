"""Tells the heartbeat how far training is."""

from tolktrain.cluster.heartbeat import Heartbeat
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.loop import StageRun


class HeartbeatNotes(NoCallback):
    """On rank 0: step, stage, loss, pace and the slowest rank, as metrics.jsonl has them."""

    def __init__(self, heartbeat: Heartbeat, metrics: MetricsLog) -> None:
        self._heartbeat = heartbeat
        self._metrics = metrics

    def on_step(self, run: StageRun) -> None:
        """Note the step's line."""
        line = self._metrics.recent[0]
        told = {key: line[key] for key in ("loss", "tokens_per_second", "skipped")}
        slowest = {key: value for key, value in line.items() if key.startswith("slowest_")}
        self._heartbeat.note_step(run.step, run.plan.name, **told, **slowest)
