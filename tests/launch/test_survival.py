"""One run through everything that happens to long runs, compared with one to which nothing happened."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from long_runs import LongRun, text_of, wait_until
from minislurm import Cluster, Job, running_cluster
from small_runs import read_metrics, write_sets
from warm import Warm

from tolktrain.checkpoint.store import read_moments, read_parameters, step_name

pytestmark = pytest.mark.slow

EVERY = 3  # steps between checkpoints, and between validations
OVERRIDES = [
    *("parallel.tensor_parallel_size=2", f"checkpoint.every_steps={EVERY}"),
    *(f"train.validation.every_steps={EVERY}", "train.validation.sequences=4"),
    # Where a gradient is next to nothing, Adam would otherwise turn its rounding into an update of full size.
    "train.optimizer.eps=1e-5",
]


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A cluster whose nodes may be crashed."""
    with running_cluster() as cluster:
        yield cluster


class Disturbed:
    """The run, its present job, and how often it was launched."""

    def __init__(self, cluster: Cluster, run: LongRun) -> None:
        self.cluster = cluster
        self.run = run
        self.number = run.submit(2)
        self.launched = 1
        self.step = run.wait_for_step(self.number, 1, self.launched)

    def goes_on(self) -> None:
        """Wait until it has been launched again and is beyond where it was."""
        self.launched += 1
        self.step = self.run.wait_for_step(self.number, self.step + EVERY, self.launched)

    def signalled(self) -> None:
        self.cluster.run("scancel", "--batch", "--signal=USR1", str(self.number)).check_returncode()

    def preempted(self) -> None:
        urgent = self.cluster.submit(
            "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 600"
        )
        wait_until(lambda: self.cluster.job(urgent).state == "RUNNING", lambda: self.run.text)
        assert self.cluster.job(self.number).state == "PENDING"
        self.cluster.run("scancel", str(urgent)).check_returncode()

    def refuses_a_second_job(self) -> None:
        output = self.run.output.with_name("second")
        with self.run.held(self.number):
            second = self.run.submit(1, "parallel.tensor_parallel_size=1", tasks=1, output=output)
            watching = "to see whether another training of this run lives"
            wait_until(lambda: watching in text_of(output), lambda: text_of(output))
        assert self.cluster.end_of(second) == Job("FAILED", "2:0", num_restarts=0), output.read_text()
        assert "another training of this run is active" in output.read_text()
        self.run.wait_for_step(self.number, self.run.step + 1, self.launched)

    def loses_a_node_in_mid_step(self) -> None:
        self._hold(2, saving=False)
        count = self.run.text.count("error: the process ended")
        self.cluster.crash("node2")
        # The ranks that are left say so; Slurm learns it later.
        wait_until(lambda: self.run.text.count("error: the process ended") > count, lambda: self.run.text)
        self.cluster.boot("node2")

    def loses_a_node_in_mid_save(self) -> None:
        """It is the node of the batch script and of rank 0."""
        self._hold(0, saving=True)
        self.cluster.crash("node1")
        assert self.run.unfinished_saves()
        self.cluster.boot("node1")

    def loses_a_rank(self) -> None:
        before = len(self.run.text)
        self.run.rank(self.number, 3).kill()
        job = self.cluster.end_of(self.number)
        assert (job.state, job.exit_code) == ("FAILED", "137:0"), self.run.text
        message = r"rank 3: error: the process ended without a report, killed .*\(node2, pipeline 0, tensor 1, data 1\)"
        assert len(re.findall(message, self.run.text[before:])) == 1, self.run.text
        self.number = self.run.submit(2)

    def reaches_its_time_limit(self) -> None:
        # In less than the 5 minutes of --signal, so that Slurm signals it when it looks next.
        elapsed = self.cluster.run("squeue", "--noheader", "--format=%M", f"--jobs={self.number}").stdout
        minutes = int(elapsed.split(":")[0])
        with self.run.held(self.number) as ranks:
            self._set_limit(minutes + 3)
            wait_until(lambda: all(rank.is_signalled(signal.SIGUSR1) for rank in ranks), lambda: self.run.text)
        wait_until(lambda: self.cluster.job(self.number).state == "PENDING", lambda: self.run.text)
        self._set_limit(600)

    def cancelled(self, *overrides: str) -> None:
        self.cluster.run("scancel", str(self.number)).check_returncode()
        assert self.cluster.end_of(self.number).state == "CANCELLED"
        self.number = self.run.submit(2, *overrides)

    def _set_limit(self, minutes: int) -> None:
        self.cluster.run("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes}").check_returncode()

    def _hold(self, rank: int, saving: bool) -> None:
        """Let time stand still for a rank while a checkpoint is, or is not, being written."""
        processes = self.run.rank(self.number, rank)

        def held() -> bool:
            if bool(self.run.unfinished_saves()) != saving:
                return False
            processes.pause()
            time.sleep(0.2)
            if bool(self.run.unfinished_saves()) == saving:
                return True
            processes.go_on()
            return False

        wait_until(held, lambda: self.run.text, interval=0.0005)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs and their data sets."""
    folder = tmp_path_factory.mktemp("survival")
    write_sets(folder / "sets")
    return folder


@pytest.fixture(scope="module")
def disturbed(warm: Warm, own_cluster: Cluster, folder: Path) -> Disturbed:
    """A run that is going on before and after each test, whatever the test does to it."""
    return Disturbed(own_cluster, LongRun(warm, own_cluster, folder / "disturbed", folder / "sets", 4, *OVERRIDES))


def test_a_signalled_run_goes_on(disturbed: Disturbed) -> None:
    disturbed.signalled()
    disturbed.goes_on()


def test_a_preempted_run_goes_on(disturbed: Disturbed) -> None:
    disturbed.preempted()
    disturbed.goes_on()


def test_a_second_job_on_the_same_folder_is_refused(disturbed: Disturbed) -> None:
    disturbed.refuses_a_second_job()


def test_a_run_that_lost_a_node_in_mid_step_goes_on(disturbed: Disturbed) -> None:
    disturbed.loses_a_node_in_mid_step()
    disturbed.goes_on()


def test_a_run_that_lost_a_node_in_mid_save_goes_on(disturbed: Disturbed) -> None:
    disturbed.loses_a_node_in_mid_save()
    disturbed.goes_on()


def test_a_run_whose_rank_was_killed_goes_on(disturbed: Disturbed) -> None:
    disturbed.loses_a_rank()
    disturbed.goes_on()


def test_a_run_at_its_time_limit_goes_on(disturbed: Disturbed) -> None:
    disturbed.reaches_its_time_limit()
    disturbed.goes_on()


@pytest.fixture(scope="module")
def last(own_cluster: Cluster, disturbed: Disturbed) -> int:
    """The step at which the disturbed run has ended, cancelled and submitted again after all else."""
    last = (disturbed.run.step // EVERY + 3) * EVERY
    disturbed.cancelled(f"train.max_steps={last}")
    assert own_cluster.end_of(disturbed.number) == Job("COMPLETED", "0:0", num_restarts=0), disturbed.run.text
    return last


@pytest.fixture(scope="module")
def calm(warm: Warm, own_cluster: Cluster, folder: Path, last: int) -> LongRun:
    """The same run in the same layout, undisturbed, and for some steps longer."""
    calm = LongRun(warm, own_cluster, folder / "calm", folder / "sets", 4, *OVERRIDES)
    number = calm.submit(2, f"train.max_steps={last + EVERY}")
    assert own_cluster.end_of(number) == Job("COMPLETED", "0:0", num_restarts=0), calm.text
    return calm


def test_a_cancelled_run_goes_on_to_its_end(disturbed: Disturbed, last: int) -> None:
    assert disturbed.run.step == last


def test_what_happened_has_left_no_trace(disturbed: Disturbed, last: int, calm: LongRun) -> None:
    """Metrics and state equal those of the calm run, bit for bit."""
    expected = [line for line in read_metrics(calm.path) if line["step"] <= last]
    assert expected[-1]["step"] == last
    assert [line for line in read_metrics(disturbed.run.path) if line["step"] <= last] == expected
    folders = [run.path / "checkpoints" / step_name(last) for run in (disturbed.run, calm)]
    ours, theirs = ((read_parameters(folder), *read_moments(folder)) for folder in folders)
    for tensors, others in zip(ours, theirs, strict=True):
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_it_goes_on_in_another_layout(own_cluster: Cluster, disturbed: Disturbed, last: int, calm: LongRun) -> None:
    """On one node, as a pipeline without tensor parallelism."""
    run = disturbed.run
    pipeline = ["parallel.tensor_parallel_size=1", "parallel.pipeline_parallel_size=2"]
    number = run.submit(1, f"train.max_steps={last + EVERY}", *pipeline, tasks=2)
    assert own_cluster.end_of(number) == Job("COMPLETED", "0:0", num_restarts=0), run.text
    assert "layout: 2 processes on cpu: tensor 1, pipeline 2, data 1" in run.text
    assert_same_losses(run.path, calm.path, after=last)


def assert_same_losses(run: Path, calm: Path, after: int) -> None:
    """Losses of the steps after step `after`, and of their validation, agree to 1e-5."""
    ours, theirs = ([line for line in read_metrics(path) if line["step"] > after] for path in (run, calm))
    assert len({line["step"] for line in theirs}) == EVERY < len(theirs)
    for line, expected in zip(ours, theirs, strict=True):
        assert (line["step"], line.keys()) == (expected["step"], expected.keys())
        for key in (key for key in line if "loss" in key and expected[key] is not None):
            assert line[key] == pytest.approx(expected[key], rel=1e-5), (line["step"], key)
