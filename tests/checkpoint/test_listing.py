"""The table of checkpoints tells sound ones from others."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tolktrain import cli
from tolktrain.checkpoint.manifest import DamagedCheckpointError, digest_files, write_manifest
from tolktrain.errors import UserError
from tolktrain.files.terminal import Console
from tolktrain.report.checkpoints import show_checkpoints
from tolktrain.runs.listing import choose_checkpoint, list_checkpoints

STATE = {
    "step": 20,
    "stage_name": "joint",
    "metrics": {"loss": 1.25},
    "layout": {"tensor": 2, "pipeline": 1, "data": 4, "zero_stage": 3},
}


def write(run_dir: Path, name: str, state: object) -> Path:
    """A checkpoint folder of 1000 bytes of tensors, by hand."""
    folder = run_dir / "checkpoints" / name
    (folder / "parameters").mkdir(parents=True)
    (folder / "parameters" / "shard.safetensors").write_bytes(os.urandom(1000))
    (folder / "state.json").write_text(json.dumps(state))
    write_manifest(folder, digest_files(folder, ["parameters/shard.safetensors", "state.json"]))
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with two sound checkpoints, one with a flipped bit, one cut off, one set aside, and one unfinished."""
    run_dir = tmp_path / "run"
    for name, state in (("step-00000003", {}), ("step-00000020", STATE), ("step-00000030", []), ("step-00000040", {})):
        write(run_dir, name, state)
    write(run_dir, "step-00000050.damaged", {})
    write(run_dir, ".tmp-7-step-00000060", {})
    shard = run_dir / "checkpoints" / "step-00000030" / "parameters" / "shard.safetensors"
    content = bytearray(shard.read_bytes())
    content[500] ^= 1
    shard.write_bytes(content)
    os.truncate(run_dir / "checkpoints" / "step-00000040" / "parameters" / "shard.safetensors", 10)
    (run_dir / "checkpoints" / "latest").write_text("step-00000020\n")
    (run_dir / "config.yaml").write_text("{}")
    return run_dir


def test_conditions(run_dir: Path) -> None:
    quick, thorough = ([entry for entry in list_checkpoints(run_dir, checksums)] for checksums in (False, True))
    assert [entry.step for entry in quick] == [3, 20, 30, 40, 50, 60]
    conditions = ["complete", "complete", "complete", "damaged", "renamed", "unfinished"]
    assert [entry.condition for entry in quick] == conditions
    assert [entry.condition for entry in thorough] == ["verified", "verified", "damaged", *conditions[3:]]
    assert "step-00000030/parameters/shard.safetensors: its content has changed" in thorough[2].problem
    assert "step-00000040/parameters/shard.safetensors: has 10 bytes, but 1000 were written" in quick[3].problem
    assert [entry.is_latest for entry in quick] == [False, True, False, False, False, False]
    assert quick[1].num_bytes == sum(path.stat().st_size for path in quick[1].folder.rglob("*") if path.is_file())


def test_the_table(run_dir: Path) -> None:
    with open(run_dir / "table", "w") as file:
        console = Console(file=file, width=160)
        assert not show_checkpoints(run_dir, True, console)
    lines = (run_dir / "table").read_text().splitlines()
    row = next(line for line in lines if "joint" in line)
    assert [cell.strip() for cell in re.split("[│┃]", row)[1:-1]][4:] == [
        "tensor 2, data 4, ZeRO 3",
        "1.2500",
        "verified (latest)",
    ]
    assert sum("shard.safetensors: " in line for line in lines) == 2
    files = [path for path in (run_dir / "checkpoints").rglob("*") if path.is_file() and path.name != "latest"]
    total = sum(path.stat().st_size for path in files)
    assert lines[-1] == f"6 in {run_dir / 'checkpoints'}, {total / 1000:.3g} kB in all"


def test_exit_codes(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoints", str(run_dir)]) == 0
    assert cli.main(["checkpoints", str(run_dir), "--verify"]) == 1
    assert "step-00000030/parameters/shard.safetensors: its content has changed" in capsys.readouterr().out
    for arguments, message in (
        ([str(tmp_path)], "not a run directory"),
        ([str(run_dir), "run.seed=1"], "would have no effect: checkpoints uses"),
    ):
        assert cli.main(["checkpoints", *arguments]) == 2
        assert message in capsys.readouterr().err
    (run_dir / "checkpoints").rename(run_dir / "elsewhere")
    assert cli.main(["checkpoints", str(run_dir)]) == 2 and "has no checkpoints" in capsys.readouterr().err


def test_the_newest_sound_one_is_found(run_dir: Path) -> None:
    passed_over: list[str] = []
    assert choose_checkpoint(run_dir, warn=passed_over.append).name == "step-00000020"
    assert [re.findall(r"step-0*(\d+)/", text)[0] for text in passed_over] == ["40", "30"]
    assert choose_checkpoint(run_dir, 3).name == "step-00000003"
    with pytest.raises(DamagedCheckpointError, match="step-00000030/parameters/shard.safetensors"):
        choose_checkpoint(run_dir, 30)
    with pytest.raises(UserError, match="no checkpoint of step 50; it has 3, 20, 30, 40"):
        choose_checkpoint(run_dir, 50)


@pytest.mark.parametrize("damage", ["no state", "another version", "no manifest"])
def test_whatever_is_there_is_listed(run_dir: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_dir / "checkpoints" / "step-00000020"
    changes: dict[str, Callable[[], object]] = {
        "no state": lambda: (folder / "state.json").write_text("half"),
        "another version": lambda: monkeypatch.setattr("tolktrain.checkpoint.manifest.FORMAT_VERSION", 9),
        "no manifest": lambda: (folder / "manifest.json").unlink(),
    }
    changes[damage]()
    entry = list_checkpoints(run_dir)[1]
    assert entry.condition == "damaged" and "step-00000020" in entry.problem
    assert entry.stage == ("-" if damage == "no state" else "joint")
