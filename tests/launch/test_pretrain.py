"""The launch script, with stand-ins for the programs that it calls; the other tests here have the real ones."""

import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "pretrain.sbatch"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of programs that note how they were called in `calls` and leave with $CODE."""
    folder = tmp_path / "bin"
    folder.mkdir()
    note = f'#!/bin/bash\necho "$(basename "$0") $*" >> {tmp_path}/calls\n'
    for name in ("python", "apptainer"):
        write(folder / name, f"{note}exit ${{CODE:-0}}\n")
    write(folder / "scontrol", f"{note}{SCONTROL}")
    write(folder / "srun", f"{note}{SRUN.format(calls=tmp_path / 'calls')}")
    write(folder / "sleep", f"{note}exit 0\n")
    return folder


SCONTROL = """
case "$*" in
    "show hostnames"*) echo node7 ;;
    "show config") echo "SlurmdTimeout           = 300 sec" ;;
    requeue*) exit ${REQUEUE_CODE:-0} ;;
esac
"""
# A step runs its command once. That all nodes answer is so after $SILENT pauses.
SRUN = """
if [ "$1" = --overlap ] && [ "$6" != bash ]; then
    [ "$(grep -c ^sleep {calls})" -ge "${{SILENT:-0}}" ]
    exit
fi
[ "$1" = --overlap ] || echo "meet $MASTER_ADDR:$MASTER_PORT" >> {calls}
while [[ $1 = -* ]]; do shift; done
exec "$@"
"""


def write(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def launch(tools: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        env={"PATH": f"{tools}:/usr/bin:/bin", "VIRTUAL_ENV": "x", **environ},
        cwd=tools.parent,
        stderr=subprocess.PIPE,
        text=True,
    )


def refusal(tools: Path, *arguments: str, **environ: str) -> str:
    """What a launch says that calls nothing and leaves with 2."""
    process = launch(tools, *arguments, **environ)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2 and not calls(tools)
    return said


def calls(tools: Path) -> list[str]:
    file = tools.parent / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in lines if line != "sleep 0.2"]  # of waiting for several processes


def trained(tools: Path) -> list[str]:
    """Arguments of the trainings that were started."""
    return [call.removeprefix(TRAIN) for call in calls(tools) if call.startswith(TRAIN)]


TRAIN = "python -m tolktrain train "


def test_on_this_machine(tools: Path) -> None:
    assert launch(tools, "a.yaml", "run.name=b", "data.sets.x={path: /a b}", CODE="75").wait(300) == 75
    assert calls(tools) == ["python -m tolktrain train a.yaml run.name=b data.sets.x={path: /a b}"]


NOTE_RANK = "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $OMP_NUM_THREADS $*"


def test_several_processes_on_this_machine(tools: Path) -> None:
    write(tools / "python", f'#!/bin/bash\necho "{NOTE_RANK}" >> {tools.parent}/calls\nexit $((RANK * 70 + 2))\n')
    assert launch(tools, "a.yaml", NPROC="2", MASTER_PORT="12345").wait(300) == 72
    rest = "2 2 localhost:12345 1 -m tolktrain train a.yaml"
    assert sorted(calls(tools)) == [f"0 0 {rest}", f"1 1 {rest}"]


def test_several_processes_get_a_port_of_their_own(tools: Path) -> None:
    write(tools / "python", f'#!/bin/bash\necho "$MASTER_PORT" >> {tools.parent}/calls\n')
    for _ in range(3):
        assert launch(tools, "a.yaml", NPROC="2").wait(300) == 0
    ports = [int(port) for port in calls(tools)]
    assert len(ports) == 6 and len(set(ports)) > 1 and all(10_000 <= port < 30_000 for port in ports)


@pytest.mark.parametrize(("number", "heard"), [(signal.SIGTERM, "TERM"), (signal.SIGUSR1, "USR1")])
def test_a_signal_reaches_all_processes(tools: Path, tmp_path: Path, number: signal.Signals, heard: str) -> None:
    write(
        tools / "python",
        f'#!/bin/bash\nfor s in TERM USR1; do trap "echo $s >> {tmp_path}/calls; exit 75" $s; done\n'
        f"touch {tmp_path}/ready-$RANK\nwhile :; do /bin/sleep 0.05; done\n",
    )
    process = launch(tools, "a.yaml", NPROC="2")
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(300) == 75
    assert calls(tools) == [heard] * 2


@pytest.mark.parametrize("nodes", ["rack[0-1]n[0-3]", "rack0n[0,2-3],login"])
def test_the_first_node_without_scontrol(tools: Path, nodes: str) -> None:
    write(tools / "scontrol", "#!/bin/bash\nexit 127\n")
    assert launch(tools, "a.yaml", **{**SLURM, "SLURM_JOB_NODELIST": nodes}, MASTER_PORT="12345").wait(300) == 0
    assert "meet rack0n0:12345" in calls(tools)


def test_a_configuration_is_needed(tools: Path) -> None:
    process = launch(tools)
    assert process.wait(300) == 2
    assert process.stderr is not None
    assert "CONFIG [dotted.key=value ...]" in process.stderr.read()


def test_the_environment_of_the_repository_is_used(tools: Path, tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    write(tmp_path / ".venv" / "bin" / "python", f'#!/bin/bash\necho "own $*" >> {tmp_path}/calls\n')
    assert launch(tools, "a.yaml", VIRTUAL_ENV="", SLURM_SUBMIT_DIR=str(tmp_path)).wait(300) == 0
    assert calls(tools) == ["own -m tolktrain train a.yaml"]


SLURM = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "4",
    "SLURM_JOB_NAME": "tolktrain",
    "ENVIRONMENT": "BATCH",
}
STEP = "srun --kill-on-bad-exit=0 --wait=60 --distribution=block --cpus-per-task=4 "


@pytest.mark.parametrize("code", [0, 2])
def test_a_slurm_job_ends_as_its_step_does(tools: Path, code: int) -> None:
    assert launch(tools, "a.yaml", **SLURM, CODE=str(code)).wait(300) == code
    hosts, step, meeting, *rest = calls(tools)
    assert hosts == "scontrol show hostnames node[7-8]" and step.startswith(STEP)
    assert step.endswith(f' "$@" rank {TRAIN}a.yaml') and rest == [f"{TRAIN}a.yaml"]
    host, port = meeting.removeprefix("meet ").split(":")
    assert host == "node7" and 10_000 <= int(port) < 30_000


def test_the_port_is_drawn_at_random_unless_it_is_given(tools: Path) -> None:
    """One that follows from the job's number could be taken by another user of the node before the job starts."""
    for _ in range(5):
        assert launch(tools, "a.yaml", **SLURM).wait(300) == 0
    assert launch(tools, "a.yaml", **SLURM, MASTER_PORT="12345").wait(300) == 0
    *drawn, given = [call for call in calls(tools) if call.startswith("meet ")]
    assert given == "meet node7:12345" and len(set(drawn)) > 1


def test_a_port_that_is_taken_is_refused_before_a_rank_starts(tools: Path) -> None:
    write(tools / "scontrol", "#!/bin/bash\necho localhost\n")
    with socket.create_server(("localhost", 0)) as stranger:
        port = str(stranger.getsockname()[1])
        message = (
            f"MASTER_PORT is {port}, on which another process listens at localhost; set it to a free port, or unset"
        )
        for environ in ({"NPROC": "2"}, SLURM):
            assert message in refusal(tools, "a.yaml", MASTER_PORT=port, **environ)
    assert "MASTER_PORT is 'x'; set it to the number of a free" in refusal(tools, "a.yaml", MASTER_PORT="x", NPROC="2")


def test_a_stopped_job_is_requeued(tools: Path) -> None:
    assert launch(tools, "a.yaml", **SLURM, CODE="75").wait(300) == 75
    assert calls(tools)[-2:] == ["scontrol requeue 42", "sleep 60"]


def test_of_an_array_only_the_task_is_requeued(tools: Path) -> None:
    """The number of an array's last task is the array's too."""
    (tools.parent / "lines").write_text("a=1\n")
    array = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "1"}
    assert launch(tools, "--sweep", "lines", "a.yaml", **SLURM, **array, CODE="75").wait(300) == 75
    assert "scontrol requeue 42_1" in calls(tools)


def test_a_job_that_cannot_be_requeued_says_so(tools: Path) -> None:
    process = launch(tools, "a.yaml", **SLURM, CODE="75", REQUEUE_CODE="1")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75 and "the job 42 could not be requeued; submit the same sbatch command again" in said


def test_a_job_fails_with_its_step_while_all_nodes_answer(tools: Path) -> None:
    assert launch(tools, "a.yaml", **SLURM, CODE="137").wait(300) == 137
    assert calls(tools)[-1].startswith("srun --overlap --nodes=2 ")
    assert not any("requeue" in call for call in calls(tools))


def test_a_job_with_a_lost_node_waits_for_slurm_to_notice(tools: Path) -> None:
    """If it ended at once, it would have failed, and Slurm would not requeue it."""
    process = launch(tools, "a.yaml", **SLURM, CODE="137", SILENT="3")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 137 and said.count("node[7-8]: not all nodes answer; waiting up to 420 s") == 3
    assert calls(tools)[-2] == "sleep 10" and not any("requeue" in call for call in calls(tools))


def test_a_signal_before_the_ranks_start_requeues_the_job(tools: Path, tmp_path: Path) -> None:
    """USR1 would end a shell without a trap, and a job that fails so is not requeued."""
    setup = tmp_path / "setup.sh"
    setup.write_text("kill -USR1 $$\n")
    assert launch(tools, "a.yaml", **SLURM, TOLKTRAIN_SETUP=str(setup)).wait(300) == 75
    assert calls(tools) == ["scontrol show hostnames node[7-8]", "scontrol requeue 42", "sleep 60"]


def test_the_environment_of_the_ranks(tools: Path, tmp_path: Path) -> None:
    names = ("MASTER_ADDR", "TRITON_CACHE_DIR", "TMPDIR", "OMP_NUM_THREADS", "SLURM_EXPORT_ENV", "PYTORCH_ALLOC_CONF")
    shown = " ".join(f"{name}=${name}" for name in names)
    write(tools / "python", f'#!/bin/bash\necho "{shown}" >> {tmp_path}/calls\n')
    assert launch(tools, "a.yaml", **SLURM, TMPDIR="/scratch", TRITON_CACHE_DIR="/mine").wait(300) == 0
    assert calls(tools)[-1] == (
        "MASTER_ADDR=node7 TRITON_CACHE_DIR=/mine TMPDIR=/scratch OMP_NUM_THREADS=1 SLURM_EXPORT_ENV=ALL"
        " PYTORCH_ALLOC_CONF=expandable_segments:True"
    )
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert launch(tools, "a.yaml", **SLURM, **{name: "backend:native"}).wait(300) == 0
        assert calls(tools)[-1].endswith("PYTORCH_ALLOC_CONF=backend:native")


def pack_environment(folder: Path) -> Path:
    """An archive of an environment whose python notes how it was called."""
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "pyvenv.cfg").touch()
    note = f'[ "$1" = -c ] || echo "$VIRTUAL_ENV $*" >> {folder}/calls'
    write(folder / "venv" / "bin" / "python", f"#!/bin/bash\n{note}\n")
    archive = folder / "env.tar.gz"
    subprocess.run(["bash", SCRIPT.with_name("env_archive.sh"), "make", folder / "venv", archive], check=True)
    return archive


@pytest.mark.parametrize("environ", [SLURM, {}, {"NPROC": "2"}])
def test_the_ranks_run_in_an_environment_unpacked_on_the_node(
    tools: Path, tmp_path: Path, environ: dict[str, str]
) -> None:
    archive = pack_environment(tmp_path)
    (tmp_path / "scratch").mkdir()
    more = {"TOLKTRAIN_ENV_ARCHIVE": str(archive), "TMPDIR": str(tmp_path / "scratch")}
    assert launch(tools, "a.yaml", **environ, **more).wait(300) == 0
    (home,) = tmp_path.glob("scratch/tolktrain-env-*")
    (folder,) = (path for path in home.iterdir() if path.is_dir())
    *before, last = calls(tools)
    assert last.startswith(f"{folder} -m ") and last.endswith("-m tolktrain train a.yaml")
    steps = [call for call in before if call.startswith("srun")]
    assert len(steps) == (2 if environ is SLURM else 0)
    if environ is SLURM:
        assert steps[0] == (
            "srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=1"
            f" bash {SCRIPT.with_name('env_archive.sh')} run {archive} true"
        )


def test_no_rank_starts_where_the_environment_cannot_be_unpacked(tools: Path, tmp_path: Path) -> None:
    archive = tmp_path / "env.tar.gz"
    archive.write_bytes(b"no archive")
    process = launch(tools, "a.yaml", **SLURM, TOLKTRAIN_ENV_ARCHIVE=str(archive), TMPDIR=str(tmp_path))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2 and f"{archive} could not be unpacked" in said
    assert not any(call.startswith("meet") for call in calls(tools))


def test_the_ranks_share_a_secret(tools: Path, tmp_path: Path) -> None:
    """One of each start, in the environment and on no command line."""
    write(tools / "python", f'#!/bin/bash\necho "secret $TOLKTRAIN_JOB_SECRET" >> {tmp_path}/calls\n')
    for _ in range(2):
        assert launch(tools, "a.yaml", **SLURM).wait(300) == 0
    assert launch(tools, "a.yaml", **SLURM, TOLKTRAIN_JOB_SECRET="of my own, for all").wait(300) == 0
    said = "\n".join(calls(tools))
    *drawn, own = re.findall(r"^secret (.*)$", said, re.MULTILINE)
    assert own == "of my own, for all"
    assert len(set(drawn)) == 2 and all(re.fullmatch("[0-9a-f]{64}", secret) for secret in drawn)
    assert all(said.count(secret) == 1 for secret in (*drawn, own))


def test_the_jobs_name_is_the_runs(tools: Path) -> None:
    assert launch(tools, "a.yaml", "b=1", **{**SLURM, "SLURM_JOB_NAME": "it's 7"}).wait(300) == 0
    assert launch(tools, "a.yaml", "run.name=x", **{**SLURM, "SLURM_JOB_NAME": "y"}).wait(300) == 0
    assert launch(tools, "a.yaml", **{**SLURM, "SLURM_JOB_NAME": "interactive", "ENVIRONMENT": ""}).wait(300) == 0
    assert trained(tools) == ["a.yaml b=1 run.name='it''s 7'", "a.yaml run.name=x", "a.yaml"]


def test_a_sweep_takes_a_line_for_each_task(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "rates.txt").write_text("# rates\na=1\n\n  b='{c: d e}' run.name=own\nc=$(touch ran)\n")
    for task in ("1", "2", "3"):
        assert launch(tools, "--sweep", "rates.txt", "a.yaml", "z=0", SLURM_ARRAY_TASK_ID=task).wait(300) == 0
    named = {**SLURM, "SLURM_JOB_NAME": "study", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "40"}
    assert launch(tools, "--sweep", "rates.txt", "a.yaml", **named).wait(300) == 0
    assert trained(tools) == [
        "a.yaml z=0 a=1 run.name='rates-1'",
        "a.yaml z=0 b={c: d e} run.name=own",
        "a.yaml z=0 c=$(touch ran) run.name='rates-3'",
        "a.yaml a=1 run.name='study-1'",
    ]
    assert not (tmp_path / "ran").exists()


BAD: dict[str, tuple[list[str], dict[str, str], str]] = {
    "no archive": (["a.yaml"], {"TOLKTRAIN_ENV_ARCHIVE": "absent.tar"}, "TOLKTRAIN_ENV_ARCHIVE: absent.tar cannot be"),
    "archive and container": (
        ["a.yaml"],
        {"TOLKTRAIN_ENV_ARCHIVE": "a.tar", "TOLKTRAIN_CONTAINER": "a.sif"},
        "TOLKTRAIN_ENV_ARCHIVE or TOLKTRAIN_CONTAINER, not both",
    ),
    "no file": (["--sweep"], {}, "--sweep needs a file with a line of overrides for each task of the array"),
    "no configuration": (["--sweep", "lines"], {}, "CONFIG [dotted.key=value ...]"),
    "unknown option": (["--swep", "lines"], {}, "CONFIG [dotted.key=value ...]"),
    "missing": (["--sweep", "there", "a.yaml"], {"SLURM_ARRAY_TASK_ID": "1"}, "--sweep: there cannot be read"),
    "empty": (["--sweep", "empty", "a.yaml"], {"SLURM_ARRAY_TASK_ID": "1"}, "empty has no line of overrides"),
    "no array": (["--sweep", "lines", "a.yaml"], {}, "--sweep is for arrays: sbatch --array=1-2 "),
    "beyond": (["--sweep", "lines", "a.yaml"], {"SLURM_ARRAY_TASK_ID": "3"}, "no line for task 3"),
    "from 0": (["--sweep", "lines", "a.yaml"], {"SLURM_ARRAY_TASK_ID": "0"}, "submit with --array=1-2"),
    "quotes": (["--sweep", "lines", "a.yaml"], {"SLURM_ARRAY_TASK_ID": "2"}, "line for task 2: bad quotes"),
    "no sweep": (["a.yaml"], {"SLURM_ARRAY_TASK_ID": "1"}, "would all train one run; give each its overrides with"),
    "no set-up": (["a.yaml"], {"TOLKTRAIN_SETUP": "there"}, "TOLKTRAIN_SETUP: there cannot be read"),
    "bad set-up": (["a.yaml"], {"TOLKTRAIN_SETUP": "./fails"}, "./fails, which prepares the environment, failed"),
    "no number": (["a.yaml"], {"NPROC": "two"}, "NPROC is 'two'; set it to the number of processes, such as 2"),
    "image": (["a.yaml"], {"TOLKTRAIN_CONTAINER": "nvcr.io#x"}, "without Slurm only Apptainer's files"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tools: Path, name: str) -> None:
    arguments, environ, message = BAD[name]
    (tools.parent / "lines").write_text("a=1\nb='\n")
    (tools.parent / "empty").write_text("# nothing\n")
    (tools.parent / "fails").write_text("return 1\n")
    assert message in refusal(tools, *arguments, **environ)


def test_the_set_up_is_read_first(tools: Path, tmp_path: Path) -> None:
    """Modules' scripts read variables that are not set. A file launch/setup.sh is found by itself."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "setup.sh").write_text('export FROM_SETUP="x$SURELY_NOT_SET"\n')
    write(tools / "python", f'#!/bin/bash\necho "$FROM_SETUP" >> {tmp_path}/calls\n')
    assert launch(tools, "a.yaml", SLURM_SUBMIT_DIR=str(tmp_path)).wait(300) == 0
    assert calls(tools) == ["x"]


def test_containers(tools: Path, tmp_path: Path) -> None:
    mounts = {"TOLKTRAIN_MOUNTS": "/data,/a:/b"}
    inside = f"apptainer exec --nv --pwd {tmp_path} --bind {tmp_path}:{tmp_path},/data:/data,/a:/b x.sif {TRAIN}a.yaml"
    assert launch(tools, "a.yaml", TOLKTRAIN_CONTAINER="x.sif", **mounts).wait(300) == 0
    assert calls(tools) == [inside]
    assert launch(tools, "a.yaml", **SLURM, TOLKTRAIN_CONTAINER="x.sif").wait(300) == 0
    assert calls(tools)[-1] == f"apptainer exec --nv --pwd {tmp_path} --bind {tmp_path}:{tmp_path} x.sif {TRAIN}a.yaml"
    assert launch(tools, "a.yaml", **SLURM, TOLKTRAIN_CONTAINER="nvcr.io#x", **mounts).wait(300) == 0
    options = (
        f"{STEP}--container-image=nvcr.io#x --container-mounts={tmp_path}:{tmp_path},/data:/data,/a:/b"
        f" --container-workdir={tmp_path} sh -c"
    )
    assert any(call.startswith(options) for call in calls(tools)) and trained(tools) == ["a.yaml"]


def test_term_is_not_trapped_so_that_scancel_cancels(tools: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    write(tools / "srun", f"#!/bin/bash\ntouch {ready}\nexec /bin/sleep 3\n")
    process = launch(tools, "a.yaml", **SLURM)
    deadline = time.monotonic() + 300
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(300) == -signal.SIGTERM
    assert not any("requeue" in call for call in calls(tools))


def test_the_header_asks_slurm_for_what_requeueing_needs() -> None:
    header = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    for option in ("--signal=B:USR1@300", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {option}" in header
