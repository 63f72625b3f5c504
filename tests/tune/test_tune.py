"""`tolktrain tune` on two processes: killed, continued, and its answer trained with."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from warm import Warm, wait_for_all

from tolktrain import cli

pytestmark = pytest.mark.slow

QUICKSTART = str(Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml")
TINY = [
    *("model.backbone.hidden_size=64", "model.backbone.num_layers=2", "model.backbone.num_attention_heads=4"),
    *("model.backbone.num_key_value_heads=2", "model.backbone.ffn_hidden_size=96", "train.sequence_length=64"),
    *("train.cpu_threads=1", "train.micro_batch_size=2", "evaluation.after_training=false"),
]
SECONDS = 600.0  # on a busy machine


def command(folder: Path, *arguments: str) -> list[str]:
    options = ["--stage", "joint", "--processes", "2", "--steps", "2", "--warmup", "1", "--output", str(folder)]
    return ["tune", QUICKSTART, *options, *arguments, *TINY]


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "tune.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ranks(folder: Path) -> list[int]:
    """Processes of trials."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"bench" in words and any(word.startswith(str(folder).encode()) for word in words):
                found.append(int(entry.name))
    return found


def kill_in_the_second_trial(folder: Path) -> None:
    """Start a search of real processes, and kill it while the ranks of its second trial run."""
    search = subprocess.Popen([sys.executable, "-m", "tolktrain", *command(folder, "--trials", "6")])
    deadline = time.monotonic() + SECONDS
    try:
        while not (lines(folder) and len(ranks(folder)) == 2) and time.monotonic() < deadline:
            assert search.poll() is None, "it has ended by itself"
            time.sleep(0.05)
    finally:
        search.kill()
        search.wait()
    while ranks(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(lines(folder)) == 1 and not ranks(folder)


def test_a_killed_search_continues_and_its_answer_trains(
    warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tune"
    kill_in_the_second_trial(folder)
    [first] = lines(folder)
    with (folder / "tune.jsonl").open("a") as journal:
        journal.write('{"key": "torn')
    monkeypatch.setattr(sys, "executable", str(warm.python_for_launchers() / "python"))
    assert cli.main(command(folder, "--trials", "6")) == 0
    shown = capsys.readouterr().out
    assert "measured before" in shown and "noise" in shown
    trials = lines(folder)
    assert trials[0] == first and len({trial["key"] for trial in trials}) == len(trials)
    assert {trial["outcome"]["status"] for trial in trials} == {"ok"}
    # Every layout computes the same: data, tensor and pipeline ranks, with each ZeRO stage.
    layouts = {
        tuple(
            trial["setting"][f"{branch}_size"] for branch in ("parallel.tensor_parallel", "parallel.pipeline_parallel")
        )
        for trial in trials
    }
    assert layouts >= {("1", "1"), ("1", "2")}
    assert {trial["setting"]["deepspeed.zero_stage"] for trial in trials} == {"0", "1", "2", "3"}
    losses = [trial["outcome"]["first_loss"] for trial in trials]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    check_answer(folder, trials)
    train(warm, folder, tmp_path)


def check_answer(folder: Path, trials: list[dict[str, Any]]) -> None:
    """The answer is the fastest of all that were measured; each is known by its name and DeepSpeed's entries."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        own = (trial["name"], json.dumps(trial["deepspeed"], sort_keys=True))
        seconds.setdefault(own, []).extend(trial["outcome"]["seconds"])
    name, entries = min(seconds, key=lambda own: statistics.median(seconds[own]))
    assert len(seconds[name, entries]) == 4, "it was measured twice"
    tuned = folder / "tuned"
    assert (tuned / "override.yaml").read_text().startswith(f"# {name}\n")
    assert json.loads((tuned / "deepspeed.json").read_text()) == json.loads(entries)
    calibration = json.loads((folder / "calibration.json").read_text())
    assert calibration["world_size"] == 2 and len(calibration["measurements"]) == len(seconds)
    page = (folder / "report.html").read_text()
    assert name in page and "zero3-offload.json" in page and "Content-Security-Policy" in page


def train(warm: Warm, folder: Path, place: Path) -> None:
    """Two steps with the override, on the ranks that it was tuned for."""
    override = str(folder / "tuned" / "override.yaml")
    overrides = ["train.max_steps=2", "health.enabled=false", f"run.dir={place}", "run.name=answer"]
    started = warm.start_ranks(2, "-m", "tolktrain", "train", override, *overrides, environ=dict(os.environ))
    assert wait_for_all(started, SECONDS) == [0, 0], started[0].errors
    metrics = [json.loads(line) for line in (place / "answer" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "seconds_per_step" in line] == [1, 2]
