"""What the terminal shows."""

import io
import json
from pathlib import Path

import pytest
from synthetic_run import benchmarks

from tolktrain.files.terminal import Console
from tolktrain.report.page import render
from tolktrain.report.rundata import read_run
from tolktrain.report.summary import print_summary


def _summary(run_dir: Path, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(run_dir, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_losses_choices_targets_and_files(full_run: Path) -> None:
    lines = _summary(full_run).splitlines()
    text = "\n".join(lines)
    assert any("interleaved, speech" in line and "1.710" in line and "0.74" in line for line in lines)
    assert any("speech → text" in line and "70.5 %" in line and "63.7 – 76.7 %" in line for line in lines)
    assert "Targets: 6 of 8 reached" in text and "✗ speech → speech: 52.0 %" in text
    for name in ("evaluation.json", "metrics.jsonl", "samples"):
        assert any(line.rstrip().endswith(str(full_run / name)) for line in lines)


def test_benchmarks(full_run: Path) -> None:
    assert "Benchmarks" not in _summary(full_run)
    (full_run / "benchmarks.json").write_text(json.dumps(benchmarks()))
    text = _summary(full_run, 140)
    assert "whole_mean_closing_eos" in text and "41.0 – 83.8" in text and "sblimp: 2 missing" in text
    assert str(full_run / "benchmarks.json") in text


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off(full_run: Path, width: int) -> None:
    text = _summary(full_run, width)
    assert "…" not in text
    assert "heldout_stories" in text and "heldout_voices" in text


def test_unfinished_run(bare_run: Path) -> None:
    text = _summary(bare_run)
    assert "`tolktrain evaluate CONFIG`" in text and "`tolktrain generate CONFIG`" in text
    assert "evaluation.json" not in text


def test_memory_of_the_gpu(full_run: Path) -> None:
    """What is reserved must fit, so it is shown with what was allocated."""
    assert "GPU memory" not in _summary(full_run) + render(read_run(full_run))
    metrics = full_run / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row, reserved in zip(rows[-2:], (73.25, 71.0), strict=True):
        row |= {"memory_gib": reserved - 5, "memory_reserved_gib": reserved}
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "GPU memory of rank 0: 68.2 GiB allocated, 73.2 GiB reserved" in _summary(full_run)
    page = render(read_run(full_run))
    assert "73.2 GiB" in page and "68.2 GiB of it allocated" in page
