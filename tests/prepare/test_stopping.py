"""A preparation that is asked to stop ends soon, wherever it is, and continues to the same bytes."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from recordings import configuration, corpus, files_of, write_corpus, write_text_tokenizer
from warm import Warm

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("stuck_prepare.py")
TIMEOUT_SECONDS = 300  # of a test: the process has ten, and machines are slow at times


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a corpus with its text tokenizer. Tests must not change it."""
    folder = tmp_path_factory.mktemp("songs")
    write_corpus(folder, corpus())
    write_text_tokenizer(folder / "text_tokenizer")
    return folder


def command_for(folder: Path, songs: Path) -> list[str]:
    """The command that prepares the songs into `folder`/output."""
    file = folder / "prepare.yaml"
    file.write_text(yaml.safe_dump(configuration(songs, songs / "manifest.jsonl", folder / "output")))
    return [sys.executable, "-m", "tolktrain", "prepare", str(file)]


@pytest.fixture(scope="module")
def whole(warm: Warm, songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus prepared without a disturbance."""
    folder = tmp_path_factory.mktemp("whole")
    do(warm, command_for(folder, songs))
    return folder / "output"


def do(warm: Warm, command: list[str]) -> None:
    """Until it has ended as it should; in a process whose imports a warm one has made."""
    process = warm.start(*command[1:])
    assert process.wait(600) == 0, process.errors


class RealProcess:
    """A new interpreter in a session of its own; like a warm process otherwise."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._output, self._errors = folder / "real.out", folder / "real.err"
        command = [sys.executable, *arguments]
        with open(self._output, "wb") as output, open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(command, stdout=output, stderr=errors, start_new_session=True)
        self.pid, self.poll, self.wait = self._process.pid, self._process.poll, self._process.wait
        self.send_signal = self._process.send_signal

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()


def _is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def group_of(process: int) -> list[int]:
    """Processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == process and not _is_gone(int(path.name)):
                found.append(int(path.name))
        except ProcessLookupError:
            continue
    return found


@pytest.mark.parametrize(
    ("place", "way", "number"),
    [
        ("manifest", "waiting", signal.SIGTERM),
        ("manifest", "in C", signal.SIGUSR1),
        ("fit", "busy", signal.SIGINT),
        ("part", "in C", signal.SIGTERM),
        ("last step", "swallowing", signal.SIGTERM),
    ],
)
def test_it_ends_wherever_it_is(
    warm: Warm, songs: Path, whole: Path, tmp_path: Path, place: str, way: str, number: signal.Signals
) -> None:
    if place == "fit":
        shutil.copytree(songs, tmp_path / "songs", ignore=shutil.ignore_patterns("units"))
    corpus_folder = tmp_path / "songs" if place == "fit" else songs
    command = command_for(tmp_path, corpus_folder)
    marker = tmp_path / "stuck"
    # A process that hangs does not hold up this one.
    ends_by_itself = way in ("waiting", "busy") or place == "part"
    stuck = [str(PROGRAM), place, way, str(marker), *command[-2:], *([] if ends_by_itself else ["1"])]
    # Where its own processes get the signal too, it is a real one, with a real forkserver.
    process = RealProcess(stuck, tmp_path) if place == "part" else warm.start(*stuck, new_session=True)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None and marker.exists(), process.errors
    time.sleep(0.2)  # for the call in C that follows
    process.send_signal(number)
    try:
        assert process.wait(TIMEOUT_SECONDS) == 75, process.errors
        assert "Traceback" not in process.errors
        assert (f"stopped by {number.name}; the same command continues" in process.output) == ends_by_itself
        assert ("still busy" in process.errors) != ends_by_itself
        while (left := group_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, "processes outlive the one that started them"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "output" / "summary.json").exists()
    if place == "manifest":
        assert not (tmp_path / "output").exists()
        return
    do(warm, command)
    if place == "fit":
        assert files_of(tmp_path / "songs" / "units") == files_of(songs / "units")
        assert files_of(tmp_path / "output" / "train") == files_of(whole / "train")
    else:
        assert files_of(tmp_path / "output") == files_of(whole)


def test_at_random_instants(warm: Warm, songs: Path, whole: Path, tmp_path: Path) -> None:
    """TERM to the whole group, as a batch system sends it."""
    command = command_for(tmp_path, songs)
    rng, codes = random.Random(0), []
    for is_second in (False, True):
        before = len(list(tmp_path.glob("output/parts/*")))
        # The first one may still be importing.
        process = warm.start(*command[1:], new_session=True) if is_second else RealProcess(command[1:], tmp_path)
        # The second one has made a part, so it has its handlers, however long it takes to start.
        while is_second and process.poll() is None and len(list(tmp_path.glob("output/parts/*"))) <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1 if is_second else 3))
        with contextlib.suppress(ProcessLookupError):  # it has done all
            os.killpg(process.pid, signal.SIGTERM)
        codes.append(process.wait(TIMEOUT_SECONDS))
        # Before the handlers are there, TERM has the meaning that the system gives it.
        assert codes[-1] in (0, 75) or codes == [-signal.SIGTERM], process.errors
    do(warm, command)
    assert 75 in codes and files_of(tmp_path / "output") == files_of(whole)
