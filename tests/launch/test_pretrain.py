"""The launch script, with stand-ins for the programs that it calls; `test_srun.py` has the real ones."""

import signal
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
    for name in ("python", "torchrun"):
        write(folder / name, f"{note}exit ${{CODE:-0}}\n")
    write(folder / "scontrol", f'{note}[ "$1" = show ] && echo node7\nexit 0\n')
    write(folder / "srun", f'{note}echo "meet $MASTER_ADDR:$MASTER_PORT" >> {tmp_path}/calls\nexit ${{CODE:-0}}\n')
    return folder


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


def calls(tools: Path) -> list[str]:
    file = tools.parent / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_on_this_machine(tools: Path) -> None:
    assert launch(tools, "a.yaml", "run.name=b", "data.sets.x={path: /a b}", CODE="75").wait(20) == 75
    assert calls(tools) == ["python -m tolktrain train a.yaml run.name=b data.sets.x={path: /a b}"]


def test_several_processes_on_this_machine(tools: Path) -> None:
    assert launch(tools, "a.yaml", NPROC="2").wait(20) == 0
    assert calls(tools) == ["torchrun --standalone --nproc-per-node 2 -m tolktrain train a.yaml"]


def test_a_configuration_is_needed(tools: Path) -> None:
    process = launch(tools)
    assert process.wait(20) == 2
    assert process.stderr is not None
    assert "CONFIG [dotted.key=value ...]" in process.stderr.read()


def test_the_environment_of_the_repository_is_used(tools: Path, tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    write(tmp_path / ".venv" / "bin" / "python", f'#!/bin/bash\necho "own $*" >> {tmp_path}/calls\n')
    assert launch(tools, "a.yaml", VIRTUAL_ENV="", SLURM_SUBMIT_DIR=str(tmp_path)).wait(20) == 0
    assert calls(tools) == ["own -m tolktrain train a.yaml"]


SLURM = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": "4"}
STEP = "srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task=4 python -m tolktrain train a.yaml"


@pytest.mark.parametrize("code", [2, 137])
def test_a_slurm_job_ends_as_its_step_does(tools: Path, code: int) -> None:
    assert launch(tools, "a.yaml", **SLURM, CODE=str(code)).wait(20) == code
    assert calls(tools) == ["scontrol show hostnames node[7-8]", STEP, "meet node7:10042"]


def test_term_is_not_trapped_so_that_scancel_cancels(tools: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    write(tools / "srun", f"#!/bin/bash\ntouch {ready}\nexec /bin/sleep 3\n")
    process = launch(tools, "a.yaml", **SLURM)
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM
    assert not any("requeue" in call for call in calls(tools))


def test_the_header_asks_slurm_for_what_requeueing_needs() -> None:
    header = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    for option in ("--signal=B:USR1@300", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {option}" in header
