"""`sbatch --array ... launch/prepare.sbatch`: several machines, one of which is asked to stop before its time is up."""

import sys
import time
from pathlib import Path

import pytest
import yaml
from minislurm import Cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "prepare"))  # for `recordings`

from recordings import configuration, corpus, files_of, write_corpus, write_text_tokenizer

from tolktrain.cli import main

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "prepare.sbatch"
TASKS = ["--array=0-2", "--cpus-per-task=1"]


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of many small parts, and what one process makes of it. Tests must not change it."""
    folder = tmp_path_factory.mktemp("songs")
    write_corpus(folder, corpus(num_sources=12, per_source=10))
    write_text_tokenizer(folder / "text_tokenizer")
    assert main(["prepare", str(write_configuration(folder, folder, "alone"))]) == 0
    return folder


def write_configuration(songs: Path, folder: Path, name: str) -> Path:
    settings = configuration(songs, songs / "manifest.jsonl", folder / name, parts={"items": 1}, processes=1)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def wait_until_gone(cluster: Cluster, number: int) -> None:
    deadline = time.monotonic() + 300
    while cluster.run("squeue", "--noheader", "--jobs", str(number)).stdout.strip():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_array_makes_the_same_set_although_a_task_is_stopped(cluster: Cluster, songs: Path, tmp_path: Path) -> None:
    config = write_configuration(songs, tmp_path, "output")
    number = cluster.submit(*TASKS, f"--output={tmp_path}/log-%a", str(SCRIPT), str(config))
    deadline = time.monotonic() + 300
    # Parts of the middle task: 1, 4, 7, ...
    while not (tmp_path / "output" / "parts" / "000001.json").exists():
        assert time.monotonic() < deadline, [path.read_text() for path in tmp_path.glob("log-*")]
        time.sleep(0.02)
    done = cluster.run("scancel", "--batch", "--signal=USR1", f"{number}_1")
    assert done.returncode == 0, done.stderr
    wait_until_gone(cluster, number)
    logs = {path.name: path.read_text() for path in sorted(tmp_path.glob("log-*"))}
    assert "stopped by SIGUSR1; the same command continues with the parts that are left" in logs["log-1"], logs
    assert sum("120 of 120 entries used" in log for log in logs.values()) >= 1, logs
    assert files_of(tmp_path / "output") == files_of(songs / "alone")


def test_bad_input_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.submit("--cpus-per-task=1", f"--output={tmp_path}/log", str(SCRIPT), "nowhere.yaml")
    job = cluster.end_of(number)
    assert (job.state, job.exit_code, job.num_restarts) == ("FAILED", "2:0", 0)
    assert "nowhere.yaml does not exist" in (tmp_path / "log").read_text()
