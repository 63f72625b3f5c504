"""Real runs that are signalled, hang or have a slow rank: what is written about it, and how they end."""

import contextlib
import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from launched import launch_two
from ports import free_port
from small_runs import read_metrics, small_config, write_config
from warm import Warm

from tolktrain.train.run import train

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("disturbed_rank.py")
OVERRIDES = ["train.micro_batch_size=2", "train.validation.sets=[]"]
LEFT = r"left \d+\.\d s after (SIG\w+): \d+\.\d s to the end of the step, \d+\.\d s to save"


def heartbeat(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "heartbeat.json").read_text())
    return content


def log(run_dir: Path, rank: int) -> str:
    return (run_dir / "logs" / f"rank-{rank:05d}.log").read_text()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "small"


@pytest.mark.parametrize("place", ["building the model", "setting up the stage 'text'"])
def test_a_signal_to_one_rank_while_it_starts(
    warm: Warm, tmp_path: Path, sets: Path, run_dir: Path, place: str
) -> None:
    """All leave before the first step; the same command begins where this one would have."""
    config = write_config(tmp_path, sets)
    codes, errors = launch_two(warm, SCRIPT, f"signal at {place}", str(config), *OVERRIDES, folder=tmp_path)
    assert codes == [75, 75], errors
    assert not list(run_dir.glob("checkpoints/step-*")) and "Traceback" not in errors[0] + errors[1]
    if place == "building the model":
        text = "rank 1: SIGUSR1 at building the model: stopped without a new checkpoint; the same command continues\n"
        assert text in errors[0]
    else:
        assert "warning: SIGUSR1: stopping before the next step" in errors[0]
        assert read_metrics(run_dir) == []
        assert re.search(LEFT, log(run_dir, 0))
        assert {"state": "stopped", "step": 0}.items() <= heartbeat(run_dir).items()
    assert train(small_config(tmp_path, sets, "train.max_steps=1")) == 0
    assert [line["step"] for line in read_metrics(run_dir)] == [1]


def test_a_signal_while_a_rank_waits_for_data(warm: Warm, tmp_path: Path, sets: Path, run_dir: Path) -> None:
    """The ranks cannot agree to stop, because one of them waits and the others are in a step."""
    config = write_config(tmp_path, sets)
    codes, errors = launch_two(warm, SCRIPT, "hang with a signal", str(config), *OVERRIDES, folder=tmp_path)
    assert codes == [75, 75], errors
    assert errors[0].splitlines()[-1] == (
        "rank 1: SIGTERM at stage 'text', step 3, waiting for data: stopped without a new checkpoint; the same command"
        " continues"
    )
    assert heartbeat(run_dir)["state"] == "stopped" and "Traceback" not in errors[0] + errors[1]
    assert train(small_config(tmp_path, sets, "train.max_steps=3", "train.validation.sets=[]")) == 0
    assert [line["step"] for line in read_metrics(run_dir)] == [1, 2, 3]


def test_a_signal_while_a_rank_waits_for_the_others_to_start(warm: Warm, tmp_path: Path, sets: Path) -> None:
    """Rank 1 never starts."""
    config = write_config(tmp_path, sets)
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    group |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "TOLKTRAIN_JOB_SECRET": "0" * 64}
    arguments = ["signal at joining the other processes", str(config), *OVERRIDES]
    rank = warm.start(SCRIPT, *arguments, folder=tmp_path, environ={**os.environ, **group})
    assert rank.wait(240) == 75, rank.errors
    assert "SIGUSR1 at joining the other processes: stopped without a new checkpoint" in rank.errors
    assert "Traceback" not in rank.errors and not (tmp_path / "runs").exists()


def test_a_hang_in_a_data_read(warm: Warm, tmp_path: Path, sets: Path, run_dir: Path) -> None:
    config = write_config(tmp_path, sets)
    codes, (first, second) = launch_two(warm, SCRIPT, "hang", str(config), *OVERRIDES, folder=tmp_path)
    assert codes == [1, 1], first + second
    assert first.count("error: ") == 1 and "error: " not in second
    assert first.startswith("rank 1: error: no progress for") and "step 3, waiting for data" in first
    for rank in range(2):
        assert "thread 'MainThread':" in log(run_dir, rank) and "last collectives of each process group" in log(
            run_dir, rank
        )
    assert "NOT left" in log(run_dir, 0) and "NOT left" not in log(run_dir, 1)
    assert "time.sleep(10_000)" in log(run_dir, 1)
    found = heartbeat(run_dir)
    assert (found["state"], found["step"]) == ("failed", 2) and found["reason"].startswith("rank 1: error: no progress")


def test_a_slow_rank_is_named(warm: Warm, tmp_path: Path, sets: Path, run_dir: Path) -> None:
    """Rank 1 computes slowly in steps 1 to 6, rank 0 waits for its data from step 7 on."""
    config = write_config(tmp_path, sets)
    codes, errors = launch_two(
        warm, SCRIPT, "slow", str(config), *OVERRIDES, "logging.straggler_steps=1", folder=tmp_path
    )
    assert codes == [0, 0], errors
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    # The first step of each stage is not judged.
    assert [line["step"] for line in lines if "slowest_rank" in line] == [2, 3, 5, 6, 7, 9, 10, 11, 12]
    judged = {line["step"]: line for line in lines if "slowest_rank" in line}
    for step, line in judged.items():
        rank, part = (1, "computing") if step <= 6 else (0, "waiting for data")
        assert (line["slowest_rank"], line["slowest_part"]) == (rank, part)
        assert line["slowest_factor"] > 1.3 and line["slowest_node"] == socket.gethostname()
    warnings = [line for line in errors[0].splitlines() if "is slow and holds the others up" in line]
    assert [re.sub(r" on .*", "", line) for line in warnings] == ["warning: step 5: rank 1", "warning: step 10: rank 0"]
    assert "by computing" in warnings[0] and "by waiting for data" in warnings[1]
    assert {"state": "done", "slowest_rank": 0, "step": 12, "world_size": 2}.items() <= heartbeat(run_dir).items()


def children(pid: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in thread.read_text().split()]
    return found


class Trained:
    """`tolktrain train` with loader processes, in a process group of its own."""

    def __init__(self, warm: Warm, config: Path, folder: Path) -> None:
        command = ("-m", "tolktrain", "train", config, "data.num_workers=2")
        self.process = warm.start(*command, folder=folder, log=folder / "log", new_session=True)

    def wait_for_loaders(self) -> list[int]:
        """Pids of the loader processes, once they are there."""
        deadline = time.monotonic() + 300
        while self.process.poll() is None and time.monotonic() < deadline:
            found = [pid for pid in children(self.process.pid) if self._is_fork(pid)]
            if len(found) == 2:
                return found
            time.sleep(0.005)
        raise AssertionError(self.process.output)

    def _is_fork(self, pid: int) -> bool:
        own = Path(f"/proc/{self.process.pid}/cmdline").read_bytes()
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes() == own
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """To the whole group, as Slurm does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_storm_of_signals_over_rank_and_loader_processes(
    warm: Warm, tmp_path: Path, sets: Path, run_dir: Path, uninterrupted: Path, steps: int
) -> None:
    """From the birth of the loader processes, or from the first step, until the process ends; the run continues as if
    undisturbed."""
    trained = Trained(warm, write_config(tmp_path, sets), tmp_path)
    trained.wait_for_loaders()
    while len(read_metrics(run_dir)) < steps:
        assert trained.process.poll() is None, trained.process.output
        time.sleep(0.003)
    while trained.process.poll() is None:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            trained.signal(number)
            time.sleep(0.003)
    output = trained.process.output
    assert trained.process.wait() == 75, output
    left = re.search(LEFT, output)
    assert "Traceback" not in output and left, output
    done = [int(line["step"]) for line in read_metrics(run_dir)[-1:]]
    assert len(done) >= steps
    latest = run_dir / "checkpoints" / "latest"
    assert [latest.read_text()] == [f"step-{step:08d}\n" for step in done] if done else not latest.exists()
    assert heartbeat(run_dir)["state"] == "stopped" and heartbeat(run_dir)["leaving"]["signal"] == left[1]
    assert train(small_config(tmp_path, sets)) == 0
    assert read_metrics(run_dir) == read_metrics(uninterrupted)


def test_loader_processes_end_with_a_rank_that_is_killed(warm: Warm, tmp_path: Path, sets: Path) -> None:
    trained = Trained(warm, write_config(tmp_path, sets), tmp_path)
    loaders = trained.wait_for_loaders()
    time.sleep(0.2)  # past their first lines
    trained.process.kill()
    trained.process.wait(300)
    deadline = time.monotonic() + 300
    while any(_lives(pid) for pid in loaders) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in loaders if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
