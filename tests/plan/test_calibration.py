"""Measured steps correct the predicted time."""

import json
from pathlib import Path
from typing import Any

import pytest

from tolktrain.benchmark.count.run import read_measured
from tolktrain.cli import main
from tolktrain.cluster.device_models import PROCESSOR
from tolktrain.errors import UserError
from tolktrain.plan.assumptions import Assumptions, cpu_assumptions, read_calibration

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "bench"
H100 = "NVIDIA H100 80GB HBM3"


def measurements(device: str, *pairs: tuple[float, float]) -> dict[str, Any]:
    """Predicted and measured tokens per second, in the form that `tune` writes."""
    entries = [
        {
            "config": "configs/bench/smoltolk-2b.yaml",
            "stage": "joint",
            "layout": {"tensor": 1, "pipeline": 1, "data": 8, "zero_stage": 1},
            "micro_batch_size": 8,
            "tokens_per_second": measured,
            "predicted_tokens_per_second": predicted,
            "peak_memory_bytes": None,
            "predicted_memory_bytes": 10**10,
        }
        for predicted, measured in pairs
    ]
    head = {"format": 1, "device": device, "world_size": 8, "versions": {"torch": "2.10.0"}}
    return {**head, "measurements": entries, "time_factor": 5.0}


def test_the_factor_is_the_geometric_mean(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(measurements(H100, (200.0, 100.0), (300.0, 37.5))))
    known = read_calibration(file, Assumptions())
    assert known.assumed.time_factor == pytest.approx(4.0)  # of 2 and 8
    assert known.device == H100 and "x 4.00 (2.00 to 8.00)" in known.measured[0]
    file.write_text(json.dumps(measurements(H100)))
    assert read_calibration(file, Assumptions()).assumed.time_factor == 5.0


def test_all_seconds_of_a_step_are_multiplied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, config = tmp_path / "calibration.json", str(CONFIGS / "smoltolk-150m.yaml")
    file.write_text(json.dumps(measurements(H100, (200.0, 100.0))))
    outputs = []
    for number, more in enumerate(([], [f"--calibration={file}"])):
        json_file = tmp_path / f"{number}.json"
        assert main(["plan", config, "--gpus=8", f"--json={json_file}", *more]) == 0
        outputs.append(json.loads(json_file.read_text())["plans"][0]["layouts"][0])
    assert "measured: time x 2.00" in capsys.readouterr().out
    before, after = (output["stages"][0]["seconds"] for output in outputs)
    assert after == pytest.approx({name: 2 * seconds for name, seconds in before.items()})
    assert outputs[0]["memory_gib"] == outputs[1]["memory_gib"]


def test_a_processor_is_planned_with_its_own_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, config = tmp_path / "calibration.json", str(CONFIGS / "cpu.yaml")
    file.write_text(json.dumps(measurements("AMD EPYC 7B13 (CPU)", (100.0, 80.0))))
    assert read_calibration(file, cpu_assumptions()).assumed.rates is PROCESSOR
    assert main(["plan", config, "--gpus=2", "--device=cpu", f"--calibration={file}"]) == 0
    assert "float32 needs up to twice as much" in capsys.readouterr().out
    assert main(["plan", str(CONFIGS / "smoltolk-150m.yaml"), "--gpus=8", f"--calibration={file}"]) == 2
    assert "its device, AMD EPYC 7B13 (CPU), is cpu, but --device is h100" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"device": None},
        {"measurements": {}},
        {"measurements": [1]},
        {"measurements": [{"tokens_per_second": 0.0, "predicted_tokens_per_second": 1.0}]},
        {"measurements": [{"tokens_per_second": 1.0}]},
        {"measurements": [], "time_factor": -1.0},
    ],
)
def test_damaged_files_are_refused(changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({**measurements(H100, (200.0, 100.0)), **changes}))
    assert main(["plan", str(CONFIGS / "smoltolk-150m.yaml"), f"--calibration={file}"]) == 2
    assert str(file) in capsys.readouterr().err


def test_counts_need_rates(tmp_path: Path) -> None:
    """A factor of the whole step says nothing of its parts."""
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(measurements(H100, (200.0, 100.0))))
    with pytest.raises(UserError, match="measured steps.*--count needs measured rates"):
        read_measured(file)
    file.write_text(json.dumps({"copy": 0.8}))
    assert read_measured(file) == {"copy": 0.8}
