"""One command line under torchrun, under srun on two nodes and through the launch script: the same run.

The ranks of the script's job are processes with imports of their own, which the archive of an environment needs; those
of the other launchers are forked. Under torchrun such processes train in tests/train/test_distributed.py.
"""

import re
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
from long_runs import SCRIPT
from minislurm import Cluster, Job
from small_runs import assert_close, read_metrics, small_config, write_config, write_sets
from warm import Warm

from tolktrain.checkpoint.store import CheckpointStore, read_parameters
from tolktrain.train.run import train

pytestmark = pytest.mark.slow

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
    latest, other_latest = (CheckpointStore(folder / "checkpoints").latest() for folder in (run, expected))
    assert latest is not None and other_latest is not None and latest.name == other_latest.name == "step-00000004"
    parameters, others = read_parameters(latest), read_parameters(other_latest)
    assert parameters.keys() == others.keys()
    # The mean, since Adam turns the rounding of gradients near zero into updates of any size.
    assert all((value - others[name]).abs().mean() < 1e-5 for name, value in parameters.items())
    assert len(list((run / "logs").iterdir())) == num_ranks


def test_torchrun(warm: Warm, tmp_path: Path, sets: Path, alone: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "--no-python"]
    python = str(warm.python_for_launchers() / "python")
    command = [python, "-m", "tolktrain", "train", str(write_config(tmp_path, sets)), *LAYOUT]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_run(tmp_path / "runs" / "small", alone)


def test_srun_on_two_nodes(warm: Warm, cluster: Cluster, tmp_path: Path, sets: Path, alone: Path) -> None:
    """Each with an address of its own, and a tensor group on each: a pipeline over the network between them."""
    command = ["python", "-m", "tolktrain", "train", str(write_config(tmp_path, sets)), *LAYOUT]
    with_forks = replace(cluster, programs=warm.python_for_launchers())
    done = with_forks.run("srun", "--nodes=2", "--ntasks-per-node=2", *command, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tensor 2 (sequence parallel), pipeline 2, data 1" in done.stdout
    assert_same_run(tmp_path / "runs" / "small", alone)


def pack_environment(folder: Path) -> Path:
    """An archive of an environment with this one's packages, whose interpreter says where it lies."""
    venv, archive = folder / "venv", folder / "env.tar.gz"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    (site / "base.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (site / "sitecustomize.py").write_text("import os, sys\nos.write(2, f'runs in {sys.prefix}\\n'.encode())\n")
    subprocess.run(["bash", SCRIPT.with_name("env_archive.sh"), "make", venv, archive], check=True)
    return archive


def test_the_launch_script_with_an_environment_unpacked_on_each_node(
    cluster: Cluster, tmp_path: Path, sets: Path, alone: Path
) -> None:
    """Nothing but the environment, for the next job, is left on the nodes. One rank on each, as each imports all."""
    output = tmp_path / "output"
    number = cluster.submit(
        *(*TWO_NODES, "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={output}"),
        *(f"--export=ALL,TOLKTRAIN_ENV_ARCHIVE={pack_environment(tmp_path)}", str(SCRIPT)),
        *(str(write_config(tmp_path, sets)), STEPS, "parallel.pipeline_parallel_size=2"),
    )
    assert cluster.end_of(number) == Job("COMPLETED", "0:0", num_restarts=0), output.read_text()
    assert_same_run(tmp_path / "runs" / "small", alone, num_ranks=2)
    for node in ("node1", "node2"):
        (home,) = cluster.on(node, "ls", "/dev/shm/tmp").stdout.split()
        assert re.fullmatch(r"tolktrain-env-\d+", home)
        listed = cluster.on(node, "ls", f"/dev/shm/tmp/{home}").stdout.split()
        (name,) = set(listed) - {"lock"}
        assert f"runs in /dev/shm/tmp/{home}/{name}\n" in output.read_text()
    assert output.read_text().count("runs in ") >= 2 + 2, "one unpacks on each node, then there are two ranks"
    shared = cluster.on("node1", "ls", "/dev/shm").stdout.split()
    assert all(name == "tmp" or name.endswith(".lock") for name in shared), shared


def test_a_chain_of_jobs_with_other_layouts(
    warm: Warm, cluster: Cluster, tmp_path: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two stages on two nodes, the third on one of them as a pipeline: the run of one process that does all three."""
    alone = tmp_path_factory.mktemp("alone")
    assert train(small_config(alone, sets)) == 0
    output = tmp_path / "output"
    chain = ["bash", str(SCRIPT.with_name("chain.sh")), str(write_config(tmp_path, sets)), f"--output={output}"]
    chain += ["--gpus-per-node=0", "--cpus-per-task=1", "--job-name=chained"]
    chain += ["--", "adapter", "--nodes=2", "--ntasks-per-node=1"]
    chain += ["--", "joint", "--nodes=1", "--ntasks-per-node=2", "parallel.pipeline_parallel_size=2"]
    done = replace(cluster, programs=warm.python_for_launchers()).run(*chain)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (int(number) for number in re.findall(r"^job (\d+): to the end of stage", done.stdout, re.M))
    assert cluster.end_of(second) == Job("COMPLETED", "0:0", num_restarts=0), output.read_text()
    assert cluster.job(first).state == "COMPLETED" and "trained: 7 steps" in output.read_text()
    lines, expected = (read_metrics(run) for run in (tmp_path / "runs" / "chained", alone / "runs" / "small"))
    for line, other in zip(lines, expected, strict=True):
        assert_close(line, other, rel=1e-5)
