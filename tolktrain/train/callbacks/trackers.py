"""Writes metrics to metrics.jsonl, TensorBoard and Weights & Biases."""

import contextlib
import io
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.files.writing import AppendedFile, replace_file
from tolktrain.libraries.imports import deferred
from tolktrain.runs.metrics import Line, MetricsFile
from tolktrain.runs.paths import RunPaths
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.loop import StageRun
from tolktrain.train.step_metrics import step_line
from tolktrain.train.utilization import Utilization, global_counts

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A destination of metrics."""

    def write(self, line: Line) -> None:
        """Write the numbers of a line, which has a step."""

    def close(self) -> None:
        """Flush and close."""


class MetricsLog(NoCallback):
    """Writes all metrics of training, on rank 0 only."""

    def __init__(self, config: Config, run_dir: Path, step: int, rank: int, utilization: Utilization) -> None:
        """`step` is where training begins; trackers discard earlier entries after it."""
        self._config = config
        self._run_dir = run_dir
        self._utilization = utilization
        self._entropy_weight = config.model.speech.entropy_weight
        self._tokens_per_step = config.train.global_batch_size * config.train.sequence_length
        self._rank = rank
        self._file: MetricsFile | None = None
        self._trackers: list[Tracker] = []
        self._warned_of: set[type[Tracker]] = set()  # trackers whose failure was reported
        self.recent: list[Line] = []  # lines since the last step, for whoever shows them
        self._open(step)

    def on_step(self, run: StageRun) -> None:
        """Write the line of the step."""
        assert run.result is not None
        self.recent.clear()
        counts = global_counts(run.counts, run.result.counts, self._tokens_per_step)
        mfu = self._utilization.mfu(counts, run.plan.config.trainable, run.seconds)
        arguments = (self._tokens_per_step, run.seconds, run.learning_rates, run.result, self._entropy_weight, mfu)
        self.write(step_line(run.step, run.plan.name, *arguments) | run.notes)

    def on_rollback(self, step: int) -> None:
        """Reopen all trackers: metrics.jsonl was replaced by a file without the lines after `step`."""
        self.close()
        self._open(step)

    def write(self, line: Line) -> None:
        """Write a line with a step to all places."""
        self.recent.append(line)
        if self._file is not None:
            self._file.write(line)
        for tracker in self._trackers:
            with self._surviving(tracker):
                tracker.write(line)

    def sync(self) -> None:
        """Wait until metrics.jsonl is on disk."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Close all places."""
        for tracker in self._trackers:
            with self._surviving(tracker):
                tracker.close()
        if self._file is not None:
            self._file.close()

    @contextlib.contextmanager
    def _surviving(self, tracker: Tracker) -> Iterator[None]:
        """Tell of a disk that refuses curves, once: metrics.jsonl has the numbers, and training does not need them."""
        try:
            yield
        except OSError as error:
            kind = type(tracker)
            if kind not in self._warned_of:
                self._warned_of.add(kind)
                logger.warning("%s; training continues, without these curves until it can be written", error)

    def _open(self, step: int) -> None:
        self.recent.clear()
        if self._rank == 0:
            self._file = MetricsFile(self._run_dir)
            self._trackers = _open_trackers(self._config, self._run_dir, step)


class TensorBoard:
    """Event files in the run directory tensorboard/.

    Not by `SummaryWriter`: its thread ends at the first write that a full disk refuses, with a traceback, half a record
    in the file, and an error that comes out of `close` at the end of a run that has succeeded.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        """Nothing is written yet, nor the library imported: training is to start first."""
        folder = RunPaths(run_dir).tensorboard
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._file = AppendedFile(folder / name)
        self._step = step
        self._is_begun = False

    def write(self, line: Line) -> None:
        """Each number is a curve."""
        summary = {"value": [{"tag": k.replace(".", "/"), "simple_value": v} for k, v in _numbers(line).items()]}
        head = b"" if self._is_begun else self._head()
        self._file.append(head + _record(step=line["step"], summary=summary))
        self._is_begun = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _head(self) -> bytes:
        # Events after the step that a run continues from belong to steps that are run again.
        start = {"step": self._step + 1, "session_log": {"status": "START"}}
        return _record(file_version="brain.Event:2") + _record(**start)


def _record(**fields: Any) -> bytes:
    """An event in the framing of event files."""
    with deferred("boto3", "fsspec"):  # for event files in buckets
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(Event(wall_time=time.time(), **fields).SerializeToString())
    return buffer.getvalue()


class WeightsAndBiases:
    """A run on Weights & Biases, the same one after a resume."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                "logging.wandb_project needs the package wandb: pip install wandb, or remove the entry"
            ) from None
        identity = run_dir / "wandb-id"
        if not identity.exists():
            replace_file(identity, uuid.uuid4().hex)
        self._run: Any = wandb.init(
            project=config.logging.wandb_project,
            name=config.run.name,
            id=identity.read_text().strip(),
            resume="allow",
            dir=str(run_dir),
            config=config.model_dump(mode="json"),
        )

    def write(self, line: Line) -> None:
        """Each number is a curve."""
        self._run.log(_numbers(line), step=line["step"])

    def close(self) -> None:
        """Finish the run's upload."""
        self._run.finish()


def _open_trackers(config: Config, run_dir: Path, step: int) -> list[Tracker]:
    trackers: list[Tracker] = []
    if config.logging.tensorboard:
        trackers.append(TensorBoard(run_dir, step))
    if config.logging.wandb_project is not None:
        trackers.append(WeightsAndBiases(config, run_dir))
    return trackers


def _numbers(line: Line) -> dict[str, float]:
    return {k: v for k, v in line.items() if isinstance(v, (int, float)) and not isinstance(v, bool) and k != "step"}
