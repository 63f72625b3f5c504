"""Temporary files of a training process are gone when it has ended, or at the next start after it was killed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ports import free_port
from small_runs import write_config, write_sets
from warm import Warm, WarmProcess

pytestmark = pytest.mark.slow

LONG = ["train.max_steps=100000", "train.stages.0.tokens=1000000000", "evaluation.after_training=false"]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    write_sets(tmp_path / "sets")
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def start(warm: Warm, scratch: Path, *arguments: str, **environ: str) -> WarmProcess:
    config = write_config(scratch.parent, scratch.parent / "sets")
    variables = {**os.environ, "TMPDIR": str(scratch), **environ}
    return warm.start("-m", "tolktrain", "train", config, *arguments, environ=variables)


def wait_until(condition: Callable[[], bool], process: WarmProcess) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)


def steps(scratch: Path) -> int:
    metrics = scratch.parent / "runs" / "small" / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def test_a_run_that_is_stopped_and_one_that_is_killed(warm: Warm, scratch: Path) -> None:
    process = start(warm, scratch, *LONG)
    try:
        wait_until(lambda: steps(scratch) >= 1, process)
        assert len(list(scratch.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 75 and not list(scratch.iterdir())
        process, before = start(warm, scratch, *LONG), steps(scratch)
        wait_until(lambda: steps(scratch) > before, process)
        process.kill()
        process.wait()
        (left,) = scratch.iterdir()
        process, before = start(warm, scratch, *LONG), steps(scratch)
        wait_until(lambda: steps(scratch) > before, process)
        assert left not in scratch.iterdir()
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 75 and not list(scratch.iterdir())
    finally:
        process.kill()


def test_ranks_that_end_because_one_was_killed(warm: Warm, scratch: Path) -> None:
    """They do not leave through Python's own exit."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "2"}
    ranks = [start(warm, scratch, *LONG, **group, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    try:
        wait_until(lambda: steps(scratch) >= 1, ranks[0])
        assert len(list(scratch.iterdir())) == 2
        ranks[1].kill()
        assert ranks[0].wait(240) == 1
        (left,) = scratch.iterdir()
        assert (left / ".in-use").read_text() == str(ranks[1].pid)
    finally:
        for rank in ranks:
            rank.kill()
