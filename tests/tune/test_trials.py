"""Trials: their processes end together, and every end is a result."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from predictors import CPU, predictor_of
from warm import Warm

from tolktrain.benchmark.memory_limit import OUT_OF_MEMORY
from tolktrain.errors import UserError
from tolktrain.plan.candidates import Cluster
from tolktrain.tune.journal import Journal
from tolktrain.tune.launch import Ended, Launcher
from tolktrain.tune.setting import Outcome, Setting
from tolktrain.tune.trials import BenchMachine, TrialOptions, read_outcome

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OK = Outcome("ok", 64, (0.5, 0.25), 2.5, 1.0, None, 0.5, trial_seconds=3.0, date="2026-11-30")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is only not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 300
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 300
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.read_text()


def test_ranks_get_their_numbers_and_their_output_is_kept(tmp_path: Path) -> None:
    ended = Launcher(2).run(["sh", "-c", "echo $RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT"], tmp_path, 60)
    assert ended.codes == (0, 0) and not ended.is_late
    first, second = ((tmp_path / f"rank-{rank}.log").read_text() for rank in range(2))
    assert first.startswith("0 of 2 at 127.0.0.1:") and second == first.replace("0 of 2", "1 of 2")


@pytest.mark.parametrize(("given", "threads"), [(None, "1"), ("3", "3")])
def test_a_single_process_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, threads: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "7")
    monkeypatch.delenv("OMP_NUM_THREADS") if given is None else monkeypatch.setenv("OMP_NUM_THREADS", given)
    Launcher(1).run(
        ["sh", "-c", "echo rank ${RANK-none} of ${WORLD_SIZE-none}, $OMP_NUM_THREADS threads"], tmp_path, 60
    )
    assert (tmp_path / "rank-0.log").read_text() == f"rank none of none, {threads} threads\n"


def test_after_the_limit_all_are_killed_with_what_they_have_started(tmp_path: Path) -> None:
    command = ["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/$RANK.child; sleep 600"]
    ended = Launcher(2).run(command, tmp_path, 5.0)
    assert ended.is_late and ended.codes == (None, None)
    wait_until_gone([int((tmp_path / f"{rank}.child").read_text()) for rank in range(2)])
    assert read_outcome(tmp_path, ended, "").status == "time-out"


def test_what_does_not_end_when_asked_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tolktrain.tune.launch._ENDING_SECONDS", 0.3)
    command = ["sh", "-c", f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 1; done"]
    assert Launcher(1).run(command, tmp_path, 5.0).is_late
    wait_until_gone([int((tmp_path / "pid").read_text())])


def test_srun_is_asked_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntrap 'echo asked > {tmp_path}/asked; exit 143' TERM\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert Launcher(2, by_slurm=True).run(["true"], tmp_path, 5.0).is_late
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_failed_rank_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tolktrain.tune.launch._GRACE_SECONDS", 0.2)
    command = ["sh", "-c", '[ "$RANK" = 1 ] && { echo "rank 1: error: no such layer"; exit 2; }; sleep 600']
    ended = Launcher(2).run(command, tmp_path, 600)
    assert ended.codes == (None, 2) and not ended.is_late
    outcome = read_outcome(tmp_path, ended, "")
    assert (outcome.status, outcome.message) == ("failed", "rank 1: error: no such layer")


def test_a_killed_search_leaves_no_rank(tmp_path: Path) -> None:
    rank = f"echo $$ > {tmp_path}/$RANK.pid; exec sleep 600"
    code = (
        "from pathlib import Path; from tolktrain.tune.launch import Launcher;"
        f"Launcher(2).run(['sh', '-c', {rank!r}], Path({str(tmp_path)!r}), 600)"
    )
    search = subprocess.Popen([sys.executable, "-c", code])
    try:
        pids = [int(wait_for(tmp_path / f"{rank}.pid")) for rank in range(2)]
        assert all(map(is_alive, pids))
    finally:
        search.kill()
        search.wait()
    wait_until_gone(pids)


SRUN = """#!/bin/sh
echo "$@" > {folder}/arguments
echo "port $MASTER_PORT" >> {folder}/arguments
exit 137
"""


def test_in_a_slurm_allocation_srun_starts_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text(SRUN.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "20001")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    ended = Launcher(16, num_nodes=2, by_slurm=True).run(["python", "-m", "x"], tmp_path, 100, number=1)
    arguments, port = (tmp_path / "arguments").read_text().splitlines()
    options = "--overlap --nodes=2 --ntasks=16 --kill-on-bad-exit=1 --time=3 --distribution=block --cpus-per-task=6"
    assert (arguments, port) == (f"{options} python -m x", f"port {10_000 + 98}")
    assert read_outcome(tmp_path, ended, "").status == "out of memory"  # a task was killed by signal 9


def test_every_end_is_a_result(tmp_path: Path) -> None:
    assert read_outcome(tmp_path, Ended((-signal.SIGKILL, None), False, 1.0), "").status == "out of memory"
    assert read_outcome(tmp_path, Ended((0, 0), False, 1.0), "").message == "no output"
    (tmp_path / OUT_OF_MEMORY).write_text(json.dumps({"rank": 1, "message": "CUDA out of memory"}))
    found = read_outcome(tmp_path, Ended((None, 2), False, 1.25), "today")
    assert found == Outcome("out of memory", message="rank 1: CUDA out of memory", trial_seconds=1.25, date="today")


def test_the_journal_keeps_outcomes_and_drops_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "tune.jsonl"
    journal = Journal(path)
    journal.add("a", {"name": "first"}, OK)
    journal.add("b", {}, Outcome("out of memory", message="rank 0: all"))
    journal.close()
    whole = path.read_bytes()
    for torn in (b"", b'{"key": "c", "outco', whole[:-1].splitlines()[0]):
        path.write_bytes(whole + torn)
        journal = Journal(path)
        assert len(journal) == 2 and journal.get("a") == OK and journal.get("c") is None
        assert journal.get("b") == Outcome("out of memory", message="rank 0: all")
        journal.close()
        assert path.read_bytes() == whole
    journal = Journal(path)
    journal.add("c", {}, OK)
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(UserError, match="another search writes to it"):
        Journal(path)
    journal.close()


SMALLEST = Setting(tensor=1, pipeline=1, zero_stage=1, micro_batch_size=1)


class Ends(Launcher):
    """Ends every trial at its limit, or with a code."""

    def __init__(self, code: int | None) -> None:
        super().__init__(1)
        self._code = code

    def run(self, command: Sequence[str], folder: Path, limit_seconds: float, number: int = 0) -> Ended:
        """The end of it."""
        return Ended((self._code,), self._code is None, limit_seconds + 0.1)


Told = list[tuple[str, float, bool]]


def machine_of(code: int | None, limit: float, journal: Journal, folder: Path, told: Told) -> BenchMachine:
    """A machine whose trials end in that way."""
    return BenchMachine(
        TrialOptions("cpu.yaml", (), "joint", 1, 0.46, limit, None),
        predictor_of("cpu", Cluster(1, 1), CPU),
        Ends(code),
        journal,
        folder / "trials",
        {},
        5,
        1.0,
        lambda setting, steps, outcome, known: told.append((outcome.status, outcome.trial_seconds, known)),
    )


def test_a_time_out_is_known_for_its_limit_only(tmp_path: Path) -> None:
    """With a higher limit, the trial is made again; its last outcome is the one that is kept."""
    journal, told = Journal(tmp_path / "tune.jsonl"), Told()
    for limit in (60.0, 60.0, 90.0, 30.0):
        machine_of(None, limit, journal, tmp_path, told).measure(SMALLEST, 2, 0)
    journal.close()
    late = "time-out"
    assert told == [(late, 60.1, False), (late, 60.1, True), (late, 90.1, False), (late, 90.1, True)]
    journal = Journal(tmp_path / "tune.jsonl")
    assert len(journal) == 1
    journal.close()


def test_a_failed_trial_is_made_again_once_per_start(tmp_path: Path) -> None:
    """A port that was taken meanwhile must not rule a setting out for ever."""
    journal, told = Journal(tmp_path / "tune.jsonl"), Told()
    for _ in range(2):
        machine = machine_of(1, 60.0, journal, tmp_path, told)
        for _ in range(2):
            machine.measure(SMALLEST, 2, 0)
    journal.close()
    assert [(status, known) for status, _, known in told] == [("failed", False), ("failed", True)] * 2


@pytest.mark.parametrize("damaged", ["{}", "[]", "3", '{"key": "a", "outcome": {"seconds": 3}}', "\x00"])
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "tune.jsonl"
    path.write_text(f"{damaged}\n")
    with pytest.raises(UserError, match=r"tune\.jsonl: line 1 is no trial"):
        Journal(path)


@pytest.mark.slow
def test_a_rank_with_too_little_memory_leaves_a_note(warm: Warm, tmp_path: Path) -> None:
    """Real allocations fail under a real limit."""
    command = ("-m", "tolktrain", "bench", CONFIGS / "bench" / "cpu.yaml", "--output", tmp_path, "--steps", "1")
    done = warm.run(*command, "--memory-limit", "1.2", "train.cpu_threads=1", "train.micro_batch_size=8")
    assert done.returncode == 2 and "lower train.micro_batch_size" in done.stderr
    outcome = read_outcome(tmp_path, Ended((done.returncode,), False, 1.0), "")
    assert outcome.status == "out of memory" and outcome.message.startswith("rank 0: ")
