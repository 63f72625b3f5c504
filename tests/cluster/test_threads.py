"""Every thread that works in the background: whatever ends it, it is said what and why, under the right name."""

import ast
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from played_ranks import KEY, Crowd

from tolktrain.checkpoint.retention import Retention
from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.cluster.heartbeat import Heartbeat
from tolktrain.cluster.progress import Progress
from tolktrain.cluster.threads import guarded
from tolktrain.cluster.watch import hub as hub_module
from tolktrain.cluster.watch.failures import Cause
from tolktrain.cluster.watch.hub import Hub, Limits, briefly
from tolktrain.prepare.recordings import audio_stream
from tolktrain.runs.lease import Lease, LostLeaseError
from tolktrain.runs.uploads import Uploads

ROOT = Path(__file__).resolve().parents[2]
FAULT = "the memory is full"


def fail(*_: Any, **__: Any) -> Any:
    raise MemoryError(FAULT)


@pytest.fixture(autouse=True)
def no_unhandled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Python itself has to say of a thread comes under no name that anybody knows."""
    found: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(args.exc_value))
    yield
    assert found == []


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_thread_is_made_without_a_handler() -> None:
    """In all of the package: threads and timers come from `guarded` alone."""
    made = []
    for file in [*ROOT.glob("tolktrain/**/*.py"), *ROOT.glob("kernels/**/*.py"), *ROOT.glob("docs/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.func if isinstance(node, ast.Call) else None
            called = name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""
            if called in ("Thread", "Timer", "start_new_thread"):
                made.append(str(file.relative_to(ROOT)))
    assert made == ["tolktrain/cluster/threads.py"]


@pytest.mark.parametrize("error", [ValueError("a\nb"), SystemExit(3), KeyboardInterrupt()])
def test_a_thread_that_fails_is_logged_by_name(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        raise error

    thread = guarded("bookkeeping", work)
    thread.start()
    thread.join()
    [record] = caplog.records
    assert record.levelno == logging.ERROR and record.exc_info is not None and record.exc_info[1] is error
    words = ": a b" if isinstance(error, ValueError) else ": 3" if isinstance(error, SystemExit) else ""
    assert record.getMessage() == f"the background thread 'bookkeeping' has failed: {type(error).__name__}{words}"


def test_or_hands_its_failure_over(caplog: pytest.LogCaptureFixture) -> None:
    found: list[BaseException] = []
    thread = guarded("bookkeeping", fail, found.append)
    thread.start()
    thread.join()
    assert [str(error) for error in found] == [FAULT] and not caplog.records


def test_what_is_done_briefly(caplog: pytest.LogCaptureFixture) -> None:
    briefly("writing", fail)
    assert f"the background thread 'writing' has failed: MemoryError: {FAULT}" in caplog.text


def test_the_watchdogs_own_thread_ends_the_job_with_the_right_cause(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    causes: list[Cause] = []
    hub = Hub(Limits(4), KEY, causes.append)
    hub.start()
    crowd = Crowd(hub.port, range(4))
    crowd.join()
    monkeypatch.setattr(hub_module.failures, "find_silent", fail)
    crowd.play(lambda: all(rank.end for rank in crowd.ranks.values()))
    [said] = {str(rank.end) for rank in crowd.ranks.values()}
    assert said.startswith(f"rank 0: error: the watchdog failed: MemoryError: {FAULT}\nTraceback ")
    assert "tolktrain/cluster/watch/hub.py" in said and not caplog.records
    wait_for(lambda: causes)
    assert [cause.message for cause in causes] == [said] and causes[0].code == 1
    crowd.hang_up()
    hub.close()
    assert capfd.readouterr().err == f"{said}\n"


def test_one_connection_that_cannot_be_served_is_that_connections_affair(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Whatever goes wrong with its message."""
    hub = Hub(Limits(3), KEY)
    hub.start()
    crowd = Crowd(hub.port, range(3))
    crowd.join()
    real = hub_module.messages.state_of

    def state_of(content: Any, rank: int) -> Any:
        return fail() if rank == 2 else real(content, rank)

    monkeypatch.setattr(hub_module.messages, "state_of", state_of)
    crowd.say(lambda rank: rank.state())
    others = [crowd.ranks[0], crowd.ranks[1]]
    crowd.play(lambda: all(rank.end for rank in others))
    assert all(
        f"rank 2: error: its connection to rank 0 was closed for MemoryError: {FAULT}" in str(r.end) for r in others
    )
    crowd.hang_up()
    hub.close()


def test_the_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat.json", Progress(), 0.01, {})
    monkeypatch.setattr(heartbeat, "_content", fail)
    heartbeat.start()
    wait_for(lambda: f"the background thread 'heartbeat' has failed: MemoryError: {FAULT}" in caplog.text)
    heartbeat.end("done")


def test_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Training ends at its next look: nobody renews the lease any more, so another start would take it."""
    with Lease.take(tmp_path, report=print, lease_seconds=0.2) as lease:
        monkeypatch.setattr(lease, "_write", fail)
        wait_for(lambda: lease.lost)
        with pytest.raises(
            LostLeaseError, match=f"no longer renewed, since that failed .MemoryError: {FAULT}.*must not"
        ):
            lease.check()
    wait_for(lambda: f"the background thread 'lease' has failed: MemoryError: {FAULT}" in caplog.text)


def test_a_save_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first line, too: the main thread raises it at its next look."""
    store = CheckpointStore(tmp_path / "checkpoints")
    saver = CheckpointSaver(store, Retention(last=1), rank=0, group=None)
    monkeypatch.setattr(os, "setpriority", fail)
    saver.save(1, {}, {}, background=True)  # type: ignore[arg-type]
    with pytest.raises(MemoryError, match=FAULT):
        saver.wait()
    saver.poll()


class Unnamed:
    """A storage whose address raises, so that even the warning about a failure fails."""

    @property
    def address(self) -> str:
        """Of the bucket."""
        raise MemoryError(FAULT)

    def read(self, name: str, limit: int = 0) -> bytes:
        """Fails."""
        raise OSError("unreachable")


def test_uploads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for ever, and the next checkpoint is tried."""
    uploads = Uploads(Unnamed())  # type: ignore[arg-type]
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    for number in (1, 2):
        uploads.submit(folder)
        assert uploads.wait(300)
        wait_for(lambda n=number: caplog.text.count("the background thread 'uploads' has failed: MemoryError") == n)
    assert uploads.close(20)


def test_an_audio_file_that_cannot_be_read_to_its_end_is_not_taken_for_a_short_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is fed to the decoder through a pipe, which looks the same at its end."""
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / "long.mp3"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 600_000).astype(np.float32), 16_000, format="MP3")

    def opened(name: Any) -> Any:
        return _Failing(open(name, "rb"))

    content = path.read_bytes()
    begin = content.index(content[:2], 100)  # without its first frame, which tells how long it is
    monkeypatch.setattr(audio_stream, "_stream_bytes", lambda path: (begin, None))
    monkeypatch.setattr(audio_stream, "open_regular", opened)
    with pytest.raises(OSError, match="a bad block"):
        stream = audio_stream.AudioStream(str(path), "MP3")
        try:
            while len(stream.read(16_000)):
                pass
        finally:
            stream.close()


class _Failing:
    """A file whose second block cannot be read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._reads = 0

    def __enter__(self) -> "_Failing":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def seek(self, place: int) -> None:
        self._file.seek(place)

    def read(self, size: int) -> bytes:
        self._reads += 1
        if self._reads > 1:
            raise OSError(5, "a bad block")
        return bytes(self._file.read(size))
