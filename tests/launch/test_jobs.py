"""Arrays, chains and early signals on a real Slurm, with a stand-in for the training, which takes a moment to start."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from long_runs import NO_GPUS, SCRIPT, text_of, wait_until
from minislurm import Cluster, Job

CHAIN = SCRIPT.with_name("chain.sh")
ONE_TASK = ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", NO_GPUS]
STAND_IN = f"""#!{sys.executable} -S
import os, signal, sys, time
words = " ".join(sys.argv[1:])
if "tolktrain config" in words:
    sys.exit()
restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
print("starting", words, restarts, flush=True)
time.sleep(1)
signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))
while not restarts and "wait=1" in words:
    time.sleep(0.05)
print("trained", words, restarts, flush=True)
sys.exit("fail=1" in words)
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a `python` that only waits, or fails, as its overrides say."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "python").write_text(STAND_IN)
    (folder / "python").chmod(0o755)
    return folder


def run(cluster: Cluster, stand_in: Path, *command: str) -> list[int]:
    """Submit; returns the numbers of the jobs."""
    done = cluster.run("sh", "-c", f'PATH={stand_in}:$PATH; exec "$@"', "sh", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return [
        int(line.split(":")[0].removeprefix("job "))
        for line in done.stdout.splitlines()
        if ": to" in line or line.isdigit()
    ]


def chain(output: Path, *groups: str) -> list[str]:
    return ["bash", str(CHAIN), "a.yaml", *ONE_TASK, f"--output={output}", *groups]


@dataclass(frozen=True)
class Stopped:
    """A job, an array and a chain, each of which was signalled once. All write to files of a folder."""

    folder: Path
    job: int
    array: int
    chain: tuple[int, int]

    def output(self, name: str) -> str:
        """What one of them has written."""
        return text_of(self.folder / name)

    def num_starts(self, *names: str) -> int:
        """How often they have begun to start ranks."""
        return sum(self.output(name).count("starting") for name in names)


TASKS = ("output-1", "output-2", "output-3")  # of the array


@pytest.fixture(scope="module")
def stopped(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, stand_in: Path) -> Stopped:
    """Together, since Slurm holds what is requeued for seconds before it starts again."""
    folder = tmp_path_factory.mktemp("stopped")
    sbatch = ("sbatch", "--parsable", *ONE_TASK)

    def stop(number: int | str, output: Path) -> None:
        """Before the ranks have a handler, if they have just begun to start."""
        wait_until(lambda: "starting" in text_of(output), lambda: str(cluster.run("squeue")), 0.01)
        cluster.run("scancel", "--batch", "--signal=USR1", str(number)).check_returncode()

    (job,) = run(cluster, stand_in, *sbatch, f"--output={folder}/job", str(SCRIPT), "a.yaml", "wait=1")
    stop(job, folder / "job")
    groups = ["--job-name=long", "seed='a b'", "--", "text", "wait=1", "--", "joint", "--ntasks-per-node=2", "x=2"]
    first, second = run(cluster, stand_in, *chain(folder / "chain", *groups))
    stop(first, folder / "chain")
    (folder / "rates.txt").write_text("rate=1 wait=1\nrate=2\nrate=3 wait=1\n")
    (array,) = run(
        *(cluster, stand_in, *sbatch, "--array=1-3", f"--output={folder}/output-%a"),
        *(str(SCRIPT), "--sweep", f"{folder}/rates.txt", "a.yaml"),
    )
    stopped = Stopped(folder, job, array, (first, second))
    wait_until(
        lambda: stopped.num_starts(*TASKS) == 3 and "trained" in stopped.output(TASKS[1]),
        lambda: str([stopped.output(name) for name in TASKS]),
    )
    assert cluster.run("scontrol", "show", "job", "-o", f"{array}_3").stdout.startswith(f"JobId={array} ")
    stop(f"{array}_3", folder / TASKS[2])
    return stopped


@pytest.mark.slow
def test_a_signal_while_the_ranks_start_is_not_lost(cluster: Cluster, stopped: Stopped) -> None:
    """It would end a rank that has no handler yet, and the job would have failed."""
    assert cluster.end_of(stopped.job) == Job("COMPLETED", "0:0", num_restarts=1), stopped.output("job")


@pytest.mark.slow
def test_a_sweep_whose_last_task_is_stopped(cluster: Cluster, stopped: Stopped) -> None:
    """The number of that task is the array's: to requeue by it would start all tasks again."""
    wait_until(lambda: "trained" in stopped.output(TASKS[2]), lambda: stopped.output(TASKS[2]))
    assert [stopped.num_starts(name) for name in TASKS] == [1, 1, 2]
    assert "trained" not in stopped.output(TASKS[0])
    assert "-m tolktrain train a.yaml rate=2 run.name='rates-2' 0" in stopped.output(TASKS[1])
    cluster.run("scancel", str(stopped.array)).check_returncode()


@pytest.mark.slow
def test_a_chain_waits_for_a_job_that_is_requeued(cluster: Cluster, stopped: Stopped) -> None:
    first, second = stopped.chain
    assert cluster.end_of(second) == Job("COMPLETED", "0:0", num_restarts=0), stopped.output("chain")
    assert cluster.job(first) == Job("COMPLETED", "0:0", num_restarts=1)
    trained = [line for line in stopped.output("chain").splitlines() if line.startswith("trained")]
    common = "trained -m tolktrain train a.yaml seed='a b'"
    early = "evaluation.after_training=false wait=1 train.last_stage=text run.name='long'"
    assert trained == [f"{common} {early} 1", *[f"{common} x=2 train.last_stage=joint run.name='long' 0"] * 2]


def test_a_chain_ends_where_a_job_fails(cluster: Cluster, tmp_path: Path, stand_in: Path) -> None:
    first, second = run(cluster, stand_in, *chain(tmp_path / "output", "--", "text", "fail=1", "--", "joint"))
    assert cluster.end_of(first).state == "FAILED"
    assert cluster.end_of(second).state == "CANCELLED"
    assert "joint" not in (tmp_path / "output").read_text()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "no stage is named; usage: "),
        (["stray", "--", "text"], "stray is neither an option of sbatch, such as --nodes=4, nor an override"),
        (["--", "text", "-N", "4"], "-N is neither an option of sbatch"),
        (["--"], "the name of a stage must follow --"),
        (["--", "a=1"], "the name of a stage must follow --"),
        (["--array=1-2", "--", "text"], "--array=1-2: the jobs of a chain are no arrays"),
        (["--", "text", "run.name=x"], "run.name=x belongs before the first --"),
        (["--", "text", "--job-name=x"], "--job-name=x belongs before the first --"),
        (["--", "text", "--", "joint", "--nodes=9"], "job 2 (joint): allocation failure: Requested node"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_bad_chains(cluster: Cluster, tmp_path: Path, stand_in: Path, groups: list[str], message: str) -> None:
    before = cluster.run("squeue", "--all", "--states=all", "--format=%A").stdout
    command = chain(tmp_path / "output", *groups)
    done = cluster.run("sh", "-c", f'PATH={stand_in}:$PATH; exec "$@"', "sh", *command)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert cluster.run("squeue", "--all", "--states=all", "--format=%A").stdout == before


def test_a_chain_of_unknown_stages(cluster: Cluster, tmp_path: Path) -> None:
    """Found by the trainer's own look at the configuration."""
    config = SCRIPT.parents[1] / "configs" / "quickstart.yaml"
    done = cluster.run("bash", str(CHAIN), str(config), "--", "text", "--", "singing")
    assert done.returncode == 2 and "train.last_stage 'singing' is not the name of a stage" in done.stderr, done.stderr
    assert "job 2 (singing): see above; nothing was submitted" in done.stderr


VARIANTS = {
    "pretrain": ["--nodes=2", str(SCRIPT), "configs/smoltolk-2b.yaml"],
    "sweep": ["--array=1-4", "--nodes=2", str(SCRIPT), "--sweep", "rates.txt", "configs/smoltolk-150m.yaml"],
    "chained": ["--nodes=2", "--dependency=afterok:1", "--kill-on-invalid-dep=yes", str(SCRIPT), "configs/a.yaml"],
    "prepare": ["--array=0-3", str(SCRIPT.with_name("prepare.sbatch")), "configs/prepare/librispeech.yaml"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_scripts_ask_for_is_granted(cluster: Cluster, name: str) -> None:
    done = cluster.run("sbatch", "--test-only", *VARIANTS[name])
    processors = 16 if name == "prepare" else 128
    assert done.returncode == 0 and f"using {processors} processors on nodes node" in done.stderr, done.stderr


@pytest.mark.parametrize("size", [["--nodes=1", "--ntasks=2"], ["--nodes=2"], ["--nodes=1", "--ntasks-per-node=2"]])
def test_the_shell_of_salloc_is_referred_to_srun(cluster: Cluster, size: list[str]) -> None:
    """It would train alone on nodes that are reserved for more."""
    done = cluster.run("salloc", *size, "python", "-m", "tolktrain", "train", "absent.yaml")
    assert done.returncode == 2 and "start all ranks with srun python -m tolktrain train" in done.stderr, done.stderr
    assert "has 2 tasks on" in done.stderr
    alone = ["srun", "--nodes=1", "--ntasks=1", "python", "-m", "tolktrain", "train", "absent.yaml"]
    done = cluster.run("salloc", *size, *alone)
    assert "absent.yaml does not exist" in done.stderr, done.stderr
