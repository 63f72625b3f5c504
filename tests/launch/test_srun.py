"""One command line under torchrun, under srun on two nodes and through the launch script: the same run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from minislurm import FINISHED, Cluster, Job

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))  # for `small_runs`

from small_runs import assert_close, read_metrics, small_config, write_config, write_sets

from tolktrain.checkpoint.store import CheckpointStore, read_parameters
from tolktrain.train.run import train

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "pretrain.sbatch"
STEPS = "train.max_steps=4"
LAYOUT = [
    *("parallel.tensor_parallel_size=2", "parallel.pipeline_parallel_size=2", "parallel.sequence_parallel=true"),
    *("deepspeed.zero_stage=1", STEPS),
]
TWO_NODES = ["--nodes=2", "--gpus-per-node=0"]  # the tests need no GPU


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the data sets. Tests must not change it."""
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """Folder of the run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert train(small_config(folder, sets, STEPS)) == 0
    return folder / "runs" / "small"


def assert_same_run(run: Path, expected: Path, num_ranks: int = 4) -> None:
    """A run of `num_ranks` is complete and equals that of one process."""
    for line, other in zip(read_metrics(run), read_metrics(expected), strict=True):
        assert_close(line, other, rel=1e-5)
    newest, other_newest = (CheckpointStore(folder, 20).newest() for folder in (run, expected))
    assert newest is not None and other_newest is not None and newest.name == other_newest.name == "step-00000004"
    parameters, others = read_parameters(newest), read_parameters(other_newest)
    assert parameters.keys() == others.keys()
    # The mean, since Adam turns the rounding of gradients near zero into updates of any size.
    assert all((value - others[name]).abs().mean() < 1e-5 for name, value in parameters.items())
    assert len(list((run / "logs").iterdir())) == num_ranks


def test_torchrun(tmp_path: Path, sets: Path, alone: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    command = ["-m", "tolktrain", "train", str(write_config(tmp_path, sets)), *LAYOUT]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_run(tmp_path / "runs" / "small", alone)


def test_srun_on_two_nodes(cluster: Cluster, tmp_path: Path, sets: Path, alone: Path) -> None:
    """Each with an address of its own, and a tensor group on each: a pipeline over the network between them."""
    command = ["python", "-m", "tolktrain", "train", str(write_config(tmp_path, sets)), *LAYOUT]
    done = cluster.run("srun", "--nodes=2", "--ntasks-per-node=2", *command, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tensor 2 (sequence parallel), pipeline 2, data 1" in done.stdout
    assert_same_run(tmp_path / "runs" / "small", alone)


def test_the_launch_script(cluster: Cluster, tmp_path: Path, sets: Path, alone: Path) -> None:
    output = tmp_path / "output"
    config = str(write_config(tmp_path, sets))
    number = cluster.submit(*TWO_NODES, "--ntasks-per-node=2", f"--output={output}", str(SCRIPT), config, *LAYOUT)
    assert cluster.end_of(number) == Job("COMPLETED", "0:0", num_restarts=0), output.read_text()
    assert_same_run(tmp_path / "runs" / "small", alone)


def test_what_the_launch_script_asks_for_is_granted(cluster: Cluster) -> None:
    done = cluster.run("sbatch", "--test-only", "--nodes=2", str(SCRIPT), "configs/smoltolk-2b.yaml")
    assert "using 128 processors on nodes node[1-2]" in done.stderr, done.stderr


def test_a_job_is_requeued_goes_on_and_ends_when_a_rank_is_killed(cluster: Cluster, tmp_path: Path, sets: Path) -> None:
    """The ranks lie on different nodes."""
    run = EndlessRun(tmp_path, sets)
    number = cluster.submit(*TWO_NODES, "--ntasks-per-node=1", f"--output={run.output}", *run.command)
    before = run.wait_for_step(cluster, number, 1)
    cluster.run("scancel", "--batch", "--signal=USR1", str(number))
    run.wait_for_step(cluster, number, before + 10, launched=2)
    os.kill(run.rank(1), signal.SIGKILL)
    job, text = cluster.end_of(number), run.output.read_text()
    assert job == Job("FAILED", "137:0", num_restarts=1), text
    assert "with a checkpoint; the same command goes on from there" in text
    assert text.count("rank 1: error: the process has ended without a word, killed (kill -9") == 1, text
    assert "(node2, pipeline 0, tensor 0, data 1)" in text


class EndlessRun:
    """A run of two ranks that takes longer than any test."""

    def __init__(self, folder: Path, sets: Path) -> None:
        self.output = folder / "output"
        self._run = folder / "runs" / "small"
        self._config = write_config(folder, sets)
        tree = yaml.safe_load(self._config.read_text())
        tree["train"]["stages"][0]["tokens"] = 10**9
        self._config.write_text(yaml.safe_dump(tree))
        quick = ["train.validation.sets=[]", "checkpoint.every_steps=1000000"]
        self.command = [str(SCRIPT), str(self._config), *quick]

    def wait_for_step(self, cluster: Cluster, number: int, step: int, launched: int = 1) -> int:
        """Wait until the job was launched so often and has come so far; returns the newest step in its metrics."""
        deadline = time.monotonic() + 240
        while True:
            text = self.output.read_text() if self.output.exists() else ""
            _, *launches = text.split("layout: 2 processes")
            if len(launches) == launched and "  step " in launches[-1]:
                newest: int = read_metrics(self._run)[-1]["step"]
                if newest >= step:
                    return newest
            assert cluster.job(number).state not in FINISHED and time.monotonic() < deadline, text
            time.sleep(0.1)

    def rank(self, number: int) -> int:
        """Process id of a rank as this machine sees it."""
        found: dict[int, int] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
                environ = (folder / "environ").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if str(self._config).encode() in arguments and f"SLURM_PROCID={number}".encode() in environ:
                found[int(folder.name)] = parent
        # Not its loader's processes, nor the batch script and srun, whose parents are of other kinds.
        ranks = [pid for pid, parent in found.items() if parent not in found]
        assert len(ranks) == 1, found
        return ranks[0]
