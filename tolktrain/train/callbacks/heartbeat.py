"""The heartbeat of a run, with the progress of training."""

import contextlib
from collections.abc import Iterator

from tolktrain.cluster.heartbeat import Heartbeat
from tolktrain.cluster.progress import Progress
from tolktrain.cluster.signals import EXIT_PREEMPTED, StopRaised
from tolktrain.config import Config
from tolktrain.parallel.layout import Layout
from tolktrain.runs.paths import RunPaths
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.callbacks.trackers import MetricsLog
from tolktrain.train.loop import StageRun
from tolktrain.train.open_run import OpenRun


class HeartbeatNotes(NoCallback):
    """On rank 0, adds step, stage, loss, throughput and the slowest rank from metrics.jsonl to the heartbeat."""

    def __init__(self, heartbeat: Heartbeat, metrics: MetricsLog) -> None:
        self._heartbeat = heartbeat
        self._metrics = metrics

    def on_step(self, run: StageRun) -> None:
        """Note the step's line."""
        line = self._metrics.recent[0]
        values = {key: line[key] for key in ("loss", "tokens_per_second", "skipped")}
        slowest = {key: value for key, value in line.items() if key.startswith("slowest_")}
        self._heartbeat.note_step(run.step, run.plan.name, **values, **slowest)


@contextlib.contextmanager
def beating(config: Config, layout: Layout, progress: Progress, directory: OpenRun) -> Iterator[Heartbeat]:
    """The run's heartbeat while its training starts and runs; rank 0's is written."""
    facts = {"world_size": layout.world_size, "layout": layout.describe()}
    seconds = config.logging.heartbeat_seconds
    heartbeat = Heartbeat(
        RunPaths(directory.path).heartbeat, progress, seconds, facts, lambda: directory.fence.lost() is None
    )
    heartbeat.note(step=directory.position.step)
    progress.on_end = lambda reason, code: heartbeat.end("stopped" if code == EXIT_PREEMPTED else "failed", reason)
    if layout.rank == 0:
        heartbeat.start()
    try:
        yield heartbeat
    except StopRaised:
        heartbeat.end("stopped", "start it again to continue")
        raise
    except BaseException as error:
        heartbeat.end("failed", f"{type(error).__name__}: {error}")
        raise
