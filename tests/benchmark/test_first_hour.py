"""The first hour on a GPU: order, time, and what is left after failures and kills."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tolktrain.benchmark.first_hour.pieces import CPU_PIECES, GPU_PIECES, MACHINE, Piece
from tolktrain.benchmark.first_hour.predictions import calibration
from tolktrain.benchmark.first_hour.results import Results
from tolktrain.benchmark.first_hour.schedule import DONE, FAILED, NOT_RUN, STOPPED, Outcome, run_pieces
from tolktrain.benchmark.first_hour.summary import summary
from tolktrain.cluster.accelerators import accelerator_of
from tolktrain.cluster.device_models import SUSTAINED, WIDTHS
from tolktrain.errors import UserError

ESSENTIAL = [piece.name for piece in (MACHINE, *GPU_PIECES) if piece.essential]


@dataclass
class FakeMachine:
    """Pieces take a multiple of their estimates, steps another one, or as long as they may."""

    factor: float = 1.0
    hanging: tuple[str, ...] = ()
    steps: float | None = None
    now: float = 1000.0

    def run(self, piece: Piece, limit: float) -> Outcome:
        factor = self.steps if self.steps is not None and piece.name.startswith("step-") else self.factor
        needed = 1e9 if piece.name in self.hanging else factor * piece.estimate
        self.now += min(needed, limit)
        return Outcome(DONE if needed <= limit else STOPPED, min(needed, limit))

    def hour(self, minutes: float) -> tuple[list[str], dict[str, Outcome]]:
        """Names in the order in which they were run, and all outcomes."""
        order: list[str] = []

        def record(piece: Piece, outcome: Outcome) -> None:
            if outcome.status != NOT_RUN:
                order.append(piece.name)

        end = self.now + 60 * minutes
        outcomes = run_pieces((MACHINE, *GPU_PIECES), self.run, record, end, lambda: self.now)
        assert self.now <= end
        assert set(outcomes) == {MACHINE.name, *(piece.name for piece in GPU_PIECES)}
        return order, outcomes


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.3])
def test_eight_minutes_give_numerics_and_three_steps(factor: float) -> None:
    order, outcomes = FakeMachine(factor).hour(8)
    assert [name for name in order if name in ESSENTIAL] == ESSENTIAL
    assert all(outcomes[name].status == DONE for name in ESSENTIAL)
    assert outcomes["tune"].status == NOT_RUN
    assert "needs about 300 s" in outcomes["tune"].error


def test_pieces_that_hang_leave_the_others_their_time() -> None:
    hanging = ("numerics-pooling", "model", "step-150m")
    _, outcomes = FakeMachine(hanging=hanging).hour(8)
    for name in ESSENTIAL:
        assert outcomes[name].status == (STOPPED if name in hanging else DONE), name


def test_what_is_not_essential_leaves_more_than_the_estimates_of_steps() -> None:
    """The first pieces are so fast that the kernels come before the steps, and hang."""
    order, outcomes = FakeMachine(0.3, ("pooling", "adapter"), steps=1.4).hour(8)
    assert order.index("pooling") < order.index("step-150m")
    assert outcomes["pooling"].status == STOPPED
    assert all(outcomes[name].status == DONE for name in ESSENTIAL)


def test_an_hour_runs_in_the_order_of_value() -> None:
    """With time for all of them, none is put off."""
    order, outcomes = FakeMachine(0.5).hour(90)
    assert order == [MACHINE.name, *(piece.name for piece in GPU_PIECES)]
    assert all(outcome.status == DONE for outcome in outcomes.values())


def test_what_was_put_off_is_taken_up_when_time_is_left() -> None:
    """Kernels have their place before the steps, but the steps' time is kept until they have run."""
    order, _ = FakeMachine(0.9).hour(8)
    assert "pooling" in order
    assert order.index("pooling") > order.index("step-150m")


def test_the_names_of_pieces_have_work() -> None:
    from tolktrain.benchmark.first_hour.measurements import WORK

    assert set(WORK) == {piece.name for piece in (MACHINE, *GPU_PIECES, *CPU_PIECES)}


def test_a_step_that_does_not_fit_is_tried_with_half_the_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    from tolktrain.benchmark.first_hour import measurements

    tried: list[str] = []

    def record_step(context: object, model: str, config: str, overrides: list[str], options: object) -> None:
        tried.append(overrides[-1])
        if len(tried) == 1:
            raise UserError("the step does not fit into the memory of a small GPU")

    monkeypatch.chdir(repository)
    monkeypatch.setattr(measurements, "_record_step", record_step)
    context = measurements.Context("step-150m", Results(tmp_path), tmp_path, repository, ("train.micro_batch_size=8",))
    measurements.work(context)
    assert tried == ["train.micro_batch_size=8", "train.micro_batch_size=4"]
    assert [record["kind"] for record in Results(tmp_path).read()] == ["note"]


# Stand-ins for the pieces; the second one never ends, and has been ended with its parent.
PROGRAM = """
import os, sys
import tolktrain.benchmark.first_hour.__main__ as hour
from tolktrain.benchmark.first_hour.pieces import Piece

CHILD = '''
import os, sys, time
from pathlib import Path
from tolktrain.benchmark.first_hour.results import Results
from tolktrain.cluster.signals import be_killed_with_parent
name, folder, parent = sys.argv[1:]
be_killed_with_parent(int(parent))
results = Results(Path(folder))
if name == "machine":
    results.add("device", name, type="cuda", name="a stand-in")
elif name == "broken":
    print("the reason")
    sys.exit(3)
else:
    Path(folder, "pid").write_text(str(os.getpid()))
    results.add("numeric", name, case=f"case of {name}", tensor="w", ours=float("nan"), eager=1e-7, is_within=False)
    time.sleep(600 if name == "endless" else 0)
'''
hour.piece_command = lambda piece, folder, _: [sys.executable, "-c", CHILD, piece.name, str(folder), str(os.getpid())]
hour.GPU_PIECES = tuple(Piece(name, name, 1, 60) for name in ("broken", "first", "endless", "last"))
sys.exit(hour.main(sys.argv[1:]))
"""


def start(folder: Path, minutes: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, "--out", str(folder), "--minutes", str(minutes)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def wait_for(text: str, path: Path) -> None:
    end = time.monotonic() + 300
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_kill_leaves_results_and_ends_the_piece(tmp_path: Path) -> None:
    process = start(tmp_path, 60)
    page = tmp_path / "summary.md"
    wait_for("case of endless", page)
    process.kill()
    process.wait()
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 300
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)
    shown = page.read_text()
    assert "| case of first | w |  | 1e-07 | 0 of 1 |" in shown
    assert "the reason" in shown
    outcomes = {r["piece"]: r["status"] for r in Results(tmp_path).read() if r["kind"] == "outcome"}
    assert outcomes == {"machine": DONE, "broken": FAILED, "first": DONE}
    # A second start does not repeat what is done, and stops the endless piece in time.
    again = start(tmp_path, 0.2)
    assert again.wait(300) == 1
    records = Results(tmp_path).read()
    started = [record["piece"] for record in records if record["kind"] == "start"]
    assert started.count("first") == 1
    assert started.count("broken") == 2
    assert records[-1]["status"] == NOT_RUN or records[-2]["status"] == STOPPED


def test_a_request_to_end_ends_the_piece(tmp_path: Path) -> None:
    process = start(tmp_path, 60)
    wait_for("case of endless", tmp_path / "results.jsonl")
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_line_that_a_kill_has_cut_is_left_out(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add("note", "a", text="whole")
    with results.path.open("a") as file:
        file.write('{"kind": "note", "piece"')
    results.add("note", "b", value=float("inf"))
    assert [(record["piece"], record.get("text"), record.get("value")) for record in results.read()] == [
        ("a", "whole", None),
        ("b", None, None),
    ]


def test_a_repeated_piece_replaces_what_it_had_measured() -> None:
    def number(case: str) -> dict[str, object]:
        return {
            "kind": "numeric",
            "piece": "n",
            "case": case,
            "tensor": "w",
            "ours": 1.0,
            "eager": 1.0,
            "is_within": True,
        }

    start = {"kind": "start", "piece": "n"}
    page = summary([start, number("old"), start, number("new")])
    assert "new" in page
    assert "old" not in page


def test_measured_rates_are_a_calibration(tmp_path: Path) -> None:
    """Fractions are of the data sheet's figures; widths that were not measured keep what trainings sustain."""
    from tolktrain.plan.assumptions import Assumptions, read_calibration

    device = accelerator_of("NVIDIA H100 80GB HBM3")
    assert device is not None
    peak = device.peak_flops

    def rate(what: str, provider: str, mode: str, width: int, fraction: float) -> dict[str, object]:
        names = {"kind": "rate", "what": what, "provider": provider, "mode": mode, "width": width, "shape": "s"}
        return {**names, "flops_per_second": fraction * peak}

    records = [
        rate("product", "PyTorch", "output", 576, 0.4),
        rate("product", "PyTorch", "weight gradient", 576, 0.6),
        rate("attention", "chosen by PyTorch", "forward", 64, 0.3),
        rate("attention", "flash", "forward", 64, 0.2),
        {"kind": "copy", "bytes_per_second": 0.9 * device.memory_bandwidth},
    ]
    values = calibration(records, device)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(values))
    known = read_calibration(path, Assumptions())
    assert set(known.replaced) == {"products", "attention", "copy"} == set(known.rates)
    rates = known.assumed.rates
    assert (rates.products[WIDTHS.index(576)], rates.attention, rates.copy) == (0.5, 0.3, 0.9)
    wide = WIDTHS.index(2048)
    assert rates.products[wide] == pytest.approx(SUSTAINED.products[wide] * device.sustained, rel=1e-3)
