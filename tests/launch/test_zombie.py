"""A node that Slurm has lost, but on which the ranks still train: two writers on one run's folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from long_runs import LongRun, Rank, wait_until
from minislurm import Cluster, Job, running_cluster
from small_runs import read_metrics, write_sets
from warm import Warm

from tolktrain.checkpoint.store import read_moments, read_parameters, step_name

pytestmark = pytest.mark.slow

EVERY = 3  # steps between checkpoints, and between validations
OVERRIDES = [
    *("train.validation.sequences=4", f"train.validation.every_steps={EVERY}", f"checkpoint.every_steps={EVERY}"),
]


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A cluster whose nodes may be lost."""
    with running_cluster() as cluster:
        yield cluster


def lose_sight_of(cluster: Cluster, node: str) -> None:
    """Slurm's daemon on a node dies, and Slurm gives the node up; jobs' processes live on there."""
    cluster.on(node, "sh", "-c", f"kill -KILL $(cat {cluster.folder}/pid/slurmd.{node})").check_returncode()
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost").check_returncode()


def has_ended(rank: Rank) -> bool:
    return not Path(f"/proc/{rank.pids[0]}").exists()


def test_a_requeued_job_takes_over_from_ranks_that_still_train(
    warm: Warm, own_cluster: Cluster, tmp_path: Path
) -> None:
    write_sets(tmp_path / "sets")
    run = LongRun(warm, own_cluster, tmp_path / "run", tmp_path / "sets", 2, *OVERRIDES)
    number = run.submit(1)
    step = run.wait_for_step(number, EVERY, launched=1)
    node = own_cluster.run("squeue", "--noheader", "--format=%N", f"--jobs={number}").stdout.strip()
    late = [run.rank(number, rank) for rank in (0, 1)]

    lose_sight_of(own_cluster, node)
    # Slurm takes its time; they would do hundreds of steps in it, which all come again below.
    for rank in late:
        rank.pause()
    wait_until(lambda: run.has_ranks(number, restarts=1), lambda: run.text)
    for rank in late:
        rank.go_on()
    run.wait_for_step(number, step + 3 * EVERY, launched=2)
    assert own_cluster.job(number).num_restarts == 1
    wait_until(lambda: all(map(has_ended, late)), lambda: run.text)
    # Their srun has gone with the node, and with it their terminal.
    log = (run.path / "logs" / "rank-00000.log").read_text()
    assert "another training has taken this run over" in log, log

    last = (run.step // EVERY + 3) * EVERY
    own_cluster.run("scancel", str(number)).check_returncode()
    assert own_cluster.end_of(number).state == "CANCELLED"
    number = run.submit(1, f"train.max_steps={last}")
    assert own_cluster.end_of(number) == Job("COMPLETED", "0:0", num_restarts=0), run.text

    calm = LongRun(warm, own_cluster, tmp_path / "calm", tmp_path / "sets", 2, *OVERRIDES)
    number = calm.submit(1, f"train.max_steps={last}")
    assert own_cluster.end_of(number) == Job("COMPLETED", "0:0", num_restarts=0), calm.text
    assert read_metrics(run.path) == read_metrics(calm.path)
    folders = [path / "checkpoints" / step_name(last) for path in (run.path, calm.path)]
    ours, theirs = ((read_parameters(folder), *read_moments(folder)) for folder in folders)
    for tensors, others in zip(ours, theirs, strict=True):
        assert all(torch.equal(tensors[name], others[name]) for name in others)
    assert not list(run.path.rglob(".tmp-*"))
