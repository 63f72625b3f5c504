"""Memory that `plan` computes against a null GPU's allocator, and the option `--rehearse`."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from grid import BENCH, SIZES, Row, compare, grid

from tolktrain.cli import main
from tolktrain.errors import UserError
from tolktrain.plan import rehearse
from tolktrain.plan.rehearse import check_null_gpu

GIB = 2**30
NAMES = (
    "ZeRO 1",
    "ZeRO 3",
    "ZeRO 2, recomputed",
    "ZeRO 1, micro batch 1",
    "adapter, ZeRO 1",
    "tensor 2, ZeRO 1",
    "pipeline 2",
)


@pytest.mark.slow
def test_computed_memory_is_the_allocators_or_a_little_more() -> None:
    """One rank of eight for each layout, both stages of the pipeline, in one process."""
    try:
        check_null_gpu()
    except UserError as error:
        pytest.skip(str(error))
    layouts = [layout for layout in grid("smoltolk-150m.yaml", *SIZES["150m"]) if layout.name in NAMES]
    assert len(layouts) == len(NAMES)
    rows = list(compare(layouts))
    assert len(rows) == len(NAMES) + 1
    wrong = [row.cells() for row in rows if not 0 <= row.error < 0.1 or row.rehearsed["failure"]]
    assert not wrong, "\n".join(wrong)
    _check_collectives({row.layout.name: row for row in rows})


def _check_collectives(rows: Mapping[str, Row]) -> None:
    """ZeRO 1 reduces all gradients in bf16 and gathers all parameters once; the pipeline sends; tensor ranks gather."""
    first = rows["ZeRO 1"].rehearsed
    reduced, gathered = (first["collective_bytes"][name] for name in ("reduce_scatter_base", "allgather_base"))
    assert reduced == pytest.approx(gathered, rel=0.01)
    assert rows["pipeline 2"].rehearsed["collectives"].keys() > {"send", "recv"}
    assert rows["tensor 2, ZeRO 1"].rehearsed["collectives"]["allgather_base"] > 20


OPERATION = {
    "part": "linears",
    "direction": "forward",
    "work": {"kind": "product", "bytes": 1e8, "flops": 1e12, "width": 576.0, "launches": 1.0},
}


class Recorded:
    """Answers in the place of the process."""

    def __init__(self, allocated: int, failure: str = "") -> None:
        self.cases: list[Mapping[str, Any]] = []
        self.memory_gib = 0.0
        self._found = {
            "allocated": allocated,
            "held": GIB,
            "reserved": allocated + GIB,
            "collectives": {"allreduce": 3},
            "collective_bytes": {"allreduce": 5 * GIB},
            "failure": failure,
            "operations": [] if failure else [{**OPERATION, "count": 500}],
        }

    def __call__(self, cases: Sequence[Mapping[str, Any]], memory_gib: float) -> Iterator[Mapping[str, Any]]:
        """What every case finds."""
        self.cases, self.memory_gib = list(cases), memory_gib
        yield from [self._found] * len(cases)


def planned(monkeypatch: pytest.MonkeyPatch, recorded: Recorded, *arguments: str) -> int:
    monkeypatch.setattr(rehearse, "run_cases", recorded)
    monkeypatch.setattr("tolktrain.plan.rehearse.check_null_gpu", lambda: None)
    return main(["plan", str(BENCH / "smoltolk-150m.yaml"), *arguments])


def test_the_best_layouts_are_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded, file = Recorded(10 * GIB), tmp_path / "plan.json"
    assert planned(monkeypatch, recorded, "--gpus=8,512", "--rehearse", "2", f"--json={file}") == 0
    shown = capsys.readouterr().out
    assert "rehearsed on a null GPU: layouts of 8 GPUs" in shown and "layouts of 512 GPUs" in shown
    assert "3 all-reduce (5.00 GiB)" in shown and "10.00" in shown
    assert "with the rehearsed operations, a step of stage joint takes" in shown
    assert "TFLOP" in shown and "500.00" in shown
    written = json.loads(file.read_text())["plans"]
    for plan in written:
        assert all(item["rehearsed_operations"]["launches"] == 500 for item in plan["rehearsals"])
        assert all(item["rehearsed_step_seconds"] > 0 for item in plan["rehearsals"])
        layouts = dict.fromkeys(item["layout"] for item in plan["rehearsals"])
        assert list(layouts) == [job["layout"] for job in plan["layouts"][:2]]
        assert all(item["rehearsed_gib"]["reserved"] == 11.0 for item in plan["rehearsals"])
    assert [case["world_size"] for case in recorded.cases].count(512) >= 2
    assert all(case["accumulation"] <= 2 for case in recorded.cases)
    assert recorded.memory_gib == pytest.approx(79.2 - 2.2)


def test_a_key_is_no_number_of_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(BENCH / "smoltolk-150m.yaml"), "--rehearse", "train.micro_batch_size=1"])
    assert ended.value.code == 2 and "write --rehearse=1 before key=value" in capsys.readouterr().err


def test_a_layout_that_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned(monkeypatch, Recorded(10 * GIB, "CUDA out of memory."), "--gpus=8", "--rehearse") == 0
    assert "rank 0 ran out of memory: CUDA out of memory." in capsys.readouterr().out


def test_both_ends_of_a_pipeline_are_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(10 * GIB)
    assert planned(monkeypatch, recorded, "--gpus=1024", "--rehearse") == 0  # more ranks than sequences
    assert [case["rank"] for case in recorded.cases] == [0, 512]
    assert "parallel.pipeline_parallel_size=2" in recorded.cases[0]["overrides"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda patch: patch.setattr(sys, "platform", "darwin"), "needs Linux, this is darwin"),
        (lambda patch: patch.setattr(rehearse, "_tool", lambda: Path("/nowhere/run.py")), "clone the repository"),
        (lambda patch: patch.setenv("PATH", "/nowhere"), "gcc and nm is not installed"),
    ],
)
def test_machines_that_cannot_rehearse_are_refused(
    change: Any, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(monkeypatch)
    assert main(["plan", str(BENCH / "smoltolk-150m.yaml"), "--rehearse"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --rehearse") and message in error
