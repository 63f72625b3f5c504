"""The verb `plan` from the command line to its files."""

import json
import shlex
from pathlib import Path

import pytest

from tolktrain.cli import main
from tolktrain.cluster.device_models import SUSTAINED

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BENCH = str(CONFIGS / "bench" / "smoltolk-2b.yaml")


def test_the_verb_answers_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"--json={tmp_path / 'plan.json'}", f"--picture={tmp_path / 'plan.png'}"]
    assert main(["plan", BENCH, "--gpus", "8,64", "--price", "2", *files]) == 0
    shown = capsys.readouterr().out
    assert "8 GPUs (1 node of 8)" in shown and "64 GPUs (8 nodes of 8)" in shown
    assert "submit: sbatch --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 launch/pretrain.sbatch" in shown
    # configs/bench has shapes instead of weights.
    assert f"{BENCH} has a backbone's shape and no weights; " in shown and "configs/smoltolk-2b.yaml has both" in shown
    assert "launch/pretrain.sbatch configs/smoltolk-2b.yaml" in shown.replace(f"{CONFIGS.parent}/", "")
    assert "% slower:" in shown and "assumed:" in shown
    written = json.loads((tmp_path / "plan.json").read_text())
    assert [item["gpus"] for item in written["plans"]] == [8, 64]
    best = written["plans"][0]["layouts"][0]
    assert best["cost"] == pytest.approx(2 * best["gpu_hours"])
    parts = best["memory_gib"]
    assert parts["total"] == pytest.approx(sum(size for name, size in parts.items() if name != "total"))
    for stage in best["stages"]:
        seconds = dict(stage["seconds"])
        assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    computing = sum(stage["steps"] * stage["seconds"]["total"] for stage in best["stages"])
    total = computing + best["checkpoint_seconds"] + best["restart_seconds"]
    assert best["days"] == pytest.approx(total / 86_400)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_measured_rates_replace_assumed_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = tmp_path / "rates.json"
    half = {"copy": SUSTAINED.copy / 2, "attention": 0.1, "products": [0.3 * value for value in SUSTAINED.products]}
    rates.write_text(json.dumps(half))
    assert main(["plan", BENCH, "--gpus=8", f"--json={tmp_path / 'a.json'}"]) == 0
    assert main(["plan", BENCH, "--gpus=8", f"--json={tmp_path / 'b.json'}", f"--calibration={rates}"]) == 0
    assert "measured: copy, attention, products" in capsys.readouterr().out
    before, after = (
        json.loads((tmp_path / f"{name}.json").read_text())["plans"][0]["layouts"][0]["stages"][-1]["seconds"]
        for name in ("a", "b")
    )
    # Gaps between launches stay.
    assert after["elementwise"] == pytest.approx(2 * before["elementwise"], rel=0.02)
    assert after["products"] > 2 * before["products"]
    assert after["attention"] > before["attention"]


def test_the_command_starts_a_rank_for_each_gpu_and_survives_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    """Nodes of 4; the header of the script has 8 tasks on a node."""
    weights, sets = "checkpoint.init_from=runs/other", "data.sets.libriheavy={path: /data/a b}"
    assert main(["plan", BENCH, "--gpus=4", "--gpus-per-node=4", weights, sets]) == 0
    shown = capsys.readouterr().out
    (line,) = (line for line in shown.splitlines() if line.startswith("submit: "))
    words = shlex.split(line)
    assert words[2:5] == ["--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=4"]
    assert words[7:9] == [weights, sets]
    assert "no weights" not in shown


def test_sizes_without_a_layout_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", BENCH, "--gpus=7"]) == 0
    shown = capsys.readouterr().out
    assert "no layout is accepted:\n  t 1, p 1, ZeRO 1 is refused:" in shown
    assert "submit: " not in shown and "measure the first two" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([BENCH, "--gpus=12"], "does not fill nodes of 8; use 8 or 16"),
        ([BENCH, "--gpus=0"], "expected numbers from 1 to"),
        ([BENCH, "--gpus=a"], "expected whole numbers by commas"),
        ([BENCH, "--device=h101"], "use one of a100-40, a100, "),
        ([BENCH, "train.precision=fp32"], "set train.precision=bf16"),
        ([BENCH, "--picture=plan.jpg"], "must end in .png or .svg"),
        ([str(CONFIGS / "smoltolk-2b.yaml")], "plan configs/bench/smoltolk-2b.yaml, which has its shape"),
        ([str(CONFIGS / "smoltolk-2b.yaml"), "model.backbone=a/b"], "as configs/bench/smoltolk-150m.yaml does"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"speed": 1}', '{"copy": "fast"}', '{"products": [1]}', '{"attention": 0}', '{"rates": 1}']
)
def test_bad_calibrations_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text(text)
    assert main(["plan", BENCH, "--calibration", str(rates)]) == 2
    assert str(rates) in capsys.readouterr().err
