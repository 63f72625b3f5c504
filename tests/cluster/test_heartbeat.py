"""heartbeat.json continues, is correct, and does not affect training."""

import json
import logging
import math
import os
import re
import subprocess
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tolktrain.cluster import heartbeat as heartbeat_module
from tolktrain.cluster.heartbeat import Heartbeat
from tolktrain.cluster.progress import Progress


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "heartbeat.json").read_text())
    return content


def wait_for(folder: Path, **expected: Any) -> dict[str, Any]:
    """The first file that says so."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (folder / "heartbeat.json").exists() and expected.items() <= read(folder).items():
            return read(folder)
        time.sleep(0.01)
    raise AssertionError(f"{read(folder)} never says {expected}")


def test_it_tells_what_training_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    progress = Progress()
    heartbeat = Heartbeat(tmp_path / "heartbeat.json", progress, 0.02, {"world_size": 4})
    heartbeat.start()
    first = wait_for(tmp_path, state="starting", doing="starting", slurm_job_id="1234", slurm_restart_count=2)
    assert first["last_step_time"] == first["started"] and first["world_size"] == 4
    progress.at_step("joint", 8, "waiting for data")
    heartbeat.note_step(7, "text", loss=math.nan, tokens_per_second=2.5)
    found = wait_for(tmp_path, state="training", step=7, stage="text", loss=None, tokens_per_second=2.5)
    assert found["doing"] == "stage 'joint', step 8, waiting for data"
    progress.at("saving a checkpoint")
    wait_for(tmp_path, state="saving")
    heartbeat.end("stopped", "SIGUSR1")
    assert {"state": "stopped", "reason": "SIGUSR1", "step": 7}.items() <= read(tmp_path).items()
    heartbeat.end("failed", "too late")
    assert read(tmp_path)["state"] == "stopped"
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat.json"]


def test_an_end_in_the_middle_of_a_beat_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk is slow to take a beat, and training ends meanwhile."""
    replace, beating, ended = os.replace, threading.Event(), threading.Event()

    def slowly(source: Path, target: Path) -> None:
        beating.set()
        assert ended.wait(300)
        replace(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    heartbeat = Heartbeat(tmp_path / "heartbeat.json", Progress(), 0.02, {})
    heartbeat.start()
    assert beating.wait(300)
    ending = threading.Thread(target=heartbeat.end, args=("done",))
    ending.start()
    assert heartbeat._closed.wait(300)
    ended.set()
    ending.join(300)
    assert read(tmp_path)["state"] == "done"


def test_a_process_that_lives_but_is_stuck_shows(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat.json", Progress(), 0.02, {})
    heartbeat.note_step(3, "text")
    heartbeat.start()
    stuck = wait_for(tmp_path, step=3)
    deadline = time.monotonic() + 300
    while read(tmp_path)["time"] == stuck["time"] and time.monotonic() < deadline:
        time.sleep(0.05)
    heartbeat.end("done")
    assert read(tmp_path)["time"] > stuck["time"]
    assert read(tmp_path)["last_step_time"] == stuck["last_step_time"]


def test_a_full_disk_is_told_once_and_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "absent"
    heartbeat = Heartbeat(folder / "heartbeat.json", Progress(), 0.01, {})
    with caplog.at_level(logging.WARNING):
        heartbeat.start()
        time.sleep(0.2)
        folder.mkdir()  # and the disk has room again
        wait_for(folder, state="starting")
        heartbeat.end("done")
    assert read(folder)["state"] == "done"
    assert caplog.text.count("cannot be written and becomes stale") == 1


@pytest.mark.parametrize(
    ("state", "heard", "stepped", "alarms"),
    [
        ("training", 10, 20, False),
        ("training", 500, 500, True),
        ("training", 10, 4000, True),
        ("saving", 10, 20, False),
        ("done", 5000, 5000, False),
        ("failed", 500, 500, True),
    ],
)
def test_the_documented_alarm(tmp_path: Path, state: str, heard: int, stepped: int, alarms: bool) -> None:
    def ago(seconds: int) -> str:
        return datetime.fromtimestamp(time.time() - seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    heartbeat = Heartbeat(tmp_path / "heartbeat.json", Progress(), 10.0, {})
    heartbeat.start()
    heartbeat.end("done")
    file = tmp_path / "heartbeat.json"
    written = file.read_text().replace('"done"', f'"{state}"')
    for name, seconds in (("time", heard), ("last_step_time", stepped)):
        written = re.sub(f'"{name}": ".*"', f'"{name}": "{ago(seconds)}"', written)
    file.write_text(written)
    command = "\n".join(re.findall(r"^    (.*)$", heartbeat_module.__doc__ or "", re.MULTILINE))
    done = subprocess.run(
        ["bash", "-c", command.replace("runs/NAME/heartbeat.json", str(file))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == (f"alarm: {file}\n" if alarms else "") and done.stderr == ""
