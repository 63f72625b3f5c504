"""The microbenchmarks: what they count, what they write, and that one command does it all."""

import csv
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from small_disk import MakeDisk

import tolktrain_kernels.bench.__main__ as bench
from tolktrain_kernels.bench import pooling, pooling_check
from tolktrain_kernels.bench.measure import Plan, Row, compiled, copy_rate, measure
from tolktrain_kernels.bench.pooling import Shape, least_bytes
from tolktrain_kernels.bench.reference_pooling import published_pooling
from tolktrain_kernels.bench.report import Compilation, Numeric, write_report
from tolktrain_kernels.layer_pooling import pool_layers

QUICK = Plan("cpu", quick=True, copy_rate=1e9)


def row(provider: str, milliseconds: float, mode: str = "both") -> Row:
    return Row("pooling", provider, mode, "3 x 8, 4 tokens", "bfloat16", 1.0, milliseconds, 9.0, 1000, 0.25, 3 << 20)


def test_the_published_form_equals_the_pooling() -> None:
    case = pooling_check.Case("both", 4, 24, (5, 2), torch.float32)
    made, _ = pooling_check.make_case(case)
    for one, other in zip(published_pooling(made[:4], *made[4:]), pool_layers(made[:4], *made[4:]), strict=True):
        torch.testing.assert_close(one, other)


def test_least_bytes_are_those_of_the_floor() -> None:
    shape = Shape(24, 2048, 16384)
    states = 24 * 16384 * 2048 * 2
    assert least_bytes("forward", shape, 2) / states == pytest.approx(1.125)
    assert least_bytes("backward", shape, 2) / states == pytest.approx(2.0833, abs=1e-4)
    assert least_bytes("both", shape, 2) == least_bytes("forward", shape, 2) + least_bytes("backward", shape, 2)


def test_a_measurement_relates_time_to_the_copy_rate() -> None:
    calls: list[int] = []
    found = measure(
        QUICK, lambda: calls.append(0), kernel="k", provider="p", mode="both", shape="s", dtype="d", least=2_000_000
    )
    assert len(calls) >= 4
    assert found.ms_20 <= found.ms_50 <= found.ms_80
    assert found.copy_share == pytest.approx(2.0 / found.ms_50)
    assert found.peak_bytes == 0
    assert copy_rate("cpu", quick=True) > 0


def test_the_peak_on_the_cpu_is_that_of_the_worst_moment() -> None:
    kept = torch.zeros(1 << 18)  # there before

    def run() -> torch.Tensor:
        first, second = torch.zeros(1 << 18), torch.zeros(1 << 18)
        del first
        third = torch.zeros(1 << 16) + kept[: 1 << 16]  # with its summand
        return second + third.sum()

    found = measure(QUICK, run, kernel="k", provider="p", mode="both", shape="s", dtype="d", least=1)
    # Two of 1 MiB at first; last, the second, the third, its sum and the result.
    assert found.peak_bytes == (2 << 20) + (1 << 18) + 4


def test_every_provider_is_measured_in_every_mode() -> None:
    shape = Shape(3, 16, 8)
    found = [
        row
        for name, pool in pooling._providers("cpu").items()
        for row in pooling.measure_provider(QUICK, name, pool, shape, torch.bfloat16)
    ]
    assert [row.provider for row in found[::3]] == ["published", "list"]
    assert {row.mode for row in found} == {"forward", "backward", "both"}


def test_report(tmp_path: Path) -> None:
    rows = [row("published", 8.0), row("ours", 2.0), row("published", 3.0, "forward")]
    numerics = [Numeric("a", "pooled", 1e-7, 2e-7, True), Numeric("a", "gradient of w", 1e-3, 2e-7, False)]
    compilations = [Compilation("forward", "sm_90", 96, 0, 5), Compilation("backward", "sm_80", 64, 16, 5)]
    notes = {"pooling": "What to know.", "loss": "What nobody asks."}
    written = write_report(tmp_path / "made", {"device": "this one"}, rows, numerics, compilations, notes)
    names = [path.name for path in written]
    tables, plots = ["times.csv", "numerics.csv", "compilation.csv"], ["pooling-both.png", "pooling-forward.png"]
    assert names == [*tables, *plots, "README.md"]
    with written[0].open(newline="") as file:
        entries = list(csv.DictReader(file))
    assert (
        entries[1]["provider"] == "ours" and float(entries[1]["ms_50"]) == 2.0 and entries[1]["peak_bytes"] == "3145728"
    )
    text = written[-1].read_text()
    assert "- device: this one" in text
    assert "## Pooling\n\nWhat to know.\n" in text and "What nobody asks" not in text
    assert "| 3 x 8, 4 tokens | bfloat16 | both | ours | 2 (1 - 9) | 4.0 | 25% | 3 |" in text
    assert "| a | gradient of w | 1.0e-03 | 2.0e-07 | NO |" in text
    assert "maximum registers per thread: 96" in text and "backward (sm_80, 16 bytes)" in text
    assert all(path.stat().st_size > 1000 for path in written[3:5])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what a machine without a GPU does")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is missing")
@pytest.mark.slow
def test_one_command_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = pooling.builds()
    monkeypatch.setattr(pooling, "CPU_SHAPES", (Shape(3, 16, 256),))
    monkeypatch.setattr(pooling, "builds", lambda: every[:1])
    monkeypatch.chdir(tmp_path)
    assert bench.main(["--quick", "--only", "pooling"]) == 0
    assert "No GPU" in capsys.readouterr().out
    (folder,) = (tmp_path / "docs" / "benchmarks").iterdir()
    assert {"times.csv", "numerics.csv", "pooling-both.png", "README.md"} <= set(os.listdir(folder))


@pytest.mark.slow
def test_wrong_numbers_and_spills_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pooling, "rows", lambda plan: [row("published", 8.0)])
    monkeypatch.setattr(bench, "_numerics", lambda *_: [Numeric("a", "pooled", 1e-2, 1e-7, False)])
    monkeypatch.setattr(bench, "_compilations", lambda *_: [Compilation("forward", "sm_90", 255, 8, 5)])
    assert bench.main(["--quick", "--output", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "failed: a, pooled: error 1.0e-02" in errors and "failed: forward spills on sm_90" in errors


def test_every_shape_is_compiled() -> None:
    """PyTorch gives up after eight variants of a function."""
    run = compiled(lambda tensors, factor: [tensor.sin() * factor for tensor in tensors], backend="eager")
    for length in range(2, 14):
        tensor = torch.ones(length)
        torch._dynamo.utils.counters.clear()
        torch.testing.assert_close(run([tensor], 2)[0], tensor.sin() * 2)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        run([tensor], 2)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_full_disk_keeps_the_last_report(make_disk: MakeDisk) -> None:
    disk = make_disk(512)

    def write(milliseconds: float) -> None:
        write_report(disk.path, {"device": "this one"}, [row("ours", milliseconds)], [], [])

    write(8.0)
    disk.refuses(lambda: write(2.0), "", leaving_kib=12)
    assert sorted(path.name for path in disk.path.iterdir()) == ["README.md", "pooling-both.png", "times.csv"]
