"""`tolktrain train` on sick machines: refused with one message, or started with the option."""

from pathlib import Path

import pytest
from launched import launch_two
from small_runs import read_metrics, write_config
from warm import Warm

from tolktrain import cli
from tolktrain.cluster.health.probes import Probes

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "sick_rank.py"
OVERRIDES = ["train.micro_batch_size=2", "train.validation.sets=[]", "train.max_steps=1"]


def test_a_sick_node_is_refused_with_one_message_before_a_folder_exists(warm: Warm, tmp_path: Path, sets: Path) -> None:
    config = write_config(tmp_path, sets)
    codes, errors = launch_two(warm, SCRIPT, str(config), *OVERRIDES)
    assert codes == [2, 2], errors  # not 75: nothing is requeued
    speaker, *outcomes = "".join(errors).splitlines()  # any rank may speak for all
    assert speaker.partition(": ")[2] == (
        "error: node1, rank 1 (CPU) computes wrongly: 1 of 65,536 elements of a known product of matrices"
    )
    assert outcomes == [
        "leave out node1 (sbatch --exclude=node1) and have it repaired, or start with --skip-health-check",
    ]
    assert not (tmp_path / "runs").exists()


def contents(run_dir: Path) -> dict[Path, bytes]:
    """All but what every start writes."""
    files = [
        file
        for file in run_dir.rglob("*")
        if file.is_file() and not {"logs", "lease", "heartbeat.json"} & set(file.parts)
    ]
    return {file: file.read_bytes() for file in files}


def test_a_full_disk_leaves_the_folder_of_a_run_as_it_was(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path, sets))
    arguments = ["train", config, "train.validation.sets=[]"]
    assert cli.main([*arguments, "train.max_steps=1"]) == 0
    assert "machines:" not in capsys.readouterr().out  # of one process on a CPU its figures tell nobody anything
    run_dir = tmp_path / "runs" / "small"
    log = run_dir / "logs" / "rank-00000.log"
    assert "machines: 1 rank, checked in " in log.read_text()
    before = contents(run_dir)
    full = Probes(space=lambda folder: (1000, 10**6))
    monkeypatch.setattr("tolktrain.cluster.health.check.Probes", lambda: full)
    assert cli.main([*arguments, "train.max_steps=2", "checkpoint.keep_last=1"]) == 2
    error = capsys.readouterr().err
    assert f"run.dir: {run_dir} has 0.977 KiB free" in error and "but one more checkpoint of " in error
    assert contents(run_dir) == before
    assert cli.main([*arguments, "train.max_steps=2", "--skip-health-check"]) == 0
    assert "machines: not checked" in log.read_text()
    assert read_metrics(run_dir)[-1]["step"] == 2


def test_the_check_can_be_configured_away(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the configuration, and for a run that was started with the check."""
    full = Probes(space=lambda folder: (1000, 10**6))
    monkeypatch.setattr("tolktrain.cluster.health.check.Probes", lambda: full)
    arguments = ["train", str(write_config(tmp_path, sets)), "train.validation.sets=[]", "train.max_steps=1"]
    assert cli.main(arguments) == 2
    assert "but two checkpoints of " in capsys.readouterr().err
    assert cli.main([*arguments, "health.enabled=false"]) == 0
