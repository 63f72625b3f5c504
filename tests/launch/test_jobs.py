"""Arrays, chains and early signals on a real Slurm, with a stand-in for the training, which takes a moment to start."""

import sys
from pathlib import Path

import pytest
from long_runs import NO_GPUS, SCRIPT, wait_until
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


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Folder with a `python` that only waits, or fails, as its overrides say."""
    folder = tmp_path / "bin"
    folder.mkdir()
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


@pytest.mark.slow
def test_a_signal_while_the_ranks_start_is_not_lost(cluster: Cluster, tmp_path: Path, stand_in: Path) -> None:
    """It would end a rank that has no handler yet, and the job would have failed."""
    output = tmp_path / "output"
    (number,) = run(
        cluster, stand_in, "sbatch", "--parsable", *ONE_TASK, f"--output={output}", str(SCRIPT), "a.yaml", "wait=1"
    )
    wait_until(lambda: output.exists() and "starting" in output.read_text(), lambda: str(cluster.job(number)), 0.01)
    cluster.run("scancel", "--batch", "--signal=USR1", str(number)).check_returncode()
    assert cluster.end_of(number) == Job("COMPLETED", "0:0", num_restarts=1), output.read_text()


@pytest.mark.slow
def test_a_sweep_whose_last_task_is_stopped(cluster: Cluster, tmp_path: Path, stand_in: Path) -> None:
    """The number of that task is the array's: to requeue by it would start all tasks again."""
    lines = tmp_path / "rates.txt"
    lines.write_text("rate=1 wait=1\nrate=2\nrate=3 wait=1\n")
    (array,) = run(
        *(cluster, stand_in, "sbatch", "--parsable", "--array=1-3", *ONE_TASK, f"--output={tmp_path}/output-%a"),
        *(str(SCRIPT), "--sweep", str(lines), "a.yaml"),
    )

    def texts() -> list[str]:
        return [path.read_text() for path in sorted(tmp_path.glob("output-*"))]

    wait_until(
        lambda: sum("starting" in text for text in texts()) == 3 and "trained" in texts()[1], lambda: str(texts())
    )
    assert cluster.run("scontrol", "show", "job", "-o", f"{array}_3").stdout.startswith(f"JobId={array} ")
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_3").check_returncode()
    wait_until(lambda: "trained" in texts()[2], lambda: str(texts()))
    first, second, third = texts()
    assert [text.count("starting") for text in (first, second, third)] == [1, 1, 2]
    assert "trained" not in first
    assert "-m tolktrain train a.yaml rate=2 run.name='rates-2' 0" in second
    cluster.run("scancel", str(array)).check_returncode()


def chain(output: Path, *groups: str) -> list[str]:
    return ["bash", str(CHAIN), "a.yaml", *ONE_TASK, f"--output={output}", *groups]


@pytest.mark.slow
def test_a_chain_waits_for_a_job_that_is_requeued(cluster: Cluster, tmp_path: Path, stand_in: Path) -> None:
    output = tmp_path / "output"
    groups = ["--job-name=long", "seed='a b'", "--", "text", "wait=1", "--", "joint", "--ntasks-per-node=2", "x=2"]
    first, second = run(cluster, stand_in, *chain(output, *groups))
    wait_until(lambda: output.exists() and "starting" in output.read_text(), lambda: str(cluster.job(first)))
    cluster.run("scancel", "--batch", "--signal=USR1", str(first)).check_returncode()
    assert cluster.end_of(second) == Job("COMPLETED", "0:0", num_restarts=0), output.read_text()
    assert cluster.job(first) == Job("COMPLETED", "0:0", num_restarts=1)
    trained = [line for line in output.read_text().splitlines() if line.startswith("trained")]
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
