"""The package works from any folder, however it is installed.

A clone and the package have the same name, and so have our folder `kernels/` and a library of Hugging Face: what Python
finds must not depend on the folder in which it starts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
# Where the kernels are found; importing them would import torch.
SHOW = """
import importlib.util, tolktrain.config
print(tolktrain.__file__, importlib.util.find_spec("tolktrain_kernels.backend").origin)
"""


def run(*command: str | Path, folder: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    """A command that starts in this folder."""
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module", params=["editable", "wheel"])
def python(request: pytest.FixtureRequest, clone: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which the package is installed; a stand-in for the library `kernels` too.

    Everything else comes from the environment of the tests, of which .pth files are not read: its own tolktrain is not
    found.
    """
    venv = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    (site_packages,) = venv.glob("lib/python3.*/site-packages")
    others = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site_packages / "others.pth").write_text("\n".join(others))
    (site_packages / "kernels").mkdir()
    (site_packages / "kernels" / "__init__.py").write_text("")
    target = ["--editable", clone] if request.param == "editable" else [wheel]
    command = [python, *PIP, "install", "--no-deps", "--no-build-isolation", "--ignore-installed", *target]
    subprocess.run(command, check=True, capture_output=True, cwd=venv)
    return python


@pytest.mark.parametrize("place", ["..", ".", "tests", "launch"])
def test_a_command_a_script_and_a_notebook(python: Path, clone: Path, place: str) -> None:
    """A notebook finds modules as `python -c` does: in the folder where it starts first."""
    folder = (clone / place).resolve()
    folder.mkdir(exist_ok=True)
    script = folder / "beside.py"
    script.write_text(SHOW)
    for command in (["-m", "tolktrain", "config", "--schema"], ["-c", SHOW], [script]):
        done = run(python, *command, folder=folder)
        assert done.returncode == 0, done.stderr
    # In the clone itself its own folder comes first. An editable installation is the clone, no copy.
    home = clone if folder == clone or "editable" in str(python) else python.parents[1]
    assert Path(done.stdout.split()[0]).is_relative_to(home)


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_the_launch_script(python: Path, clone: Path, processes: str) -> None:
    """It reaches tolktrain's own check of the configuration, in the folder that holds the clone, whose message is all
    that is printed."""
    path = f"{python.parent}:{os.environ['PATH']}"
    environ = {"VIRTUAL_ENV": str(python.parents[1]), "PATH": path, "NPROC": processes}
    done = run("bash", f"{clone.name}/launch/pretrain.sbatch", "missing.yaml", folder=clone.parent, **environ)
    assert done.returncode == 2, done.stderr
    assert "error: missing.yaml does not exist" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_our_folder_does_not_hide_the_library_kernels(python: Path, clone: Path) -> None:
    (clone / "imports_kernels.py").write_text("import kernels; print(kernels.__file__)")
    library = next(python.parents[1].glob("lib/python3.*/site-packages/kernels")) / "__init__.py"
    for command in (["-c", (clone / "imports_kernels.py").read_text()], ["imports_kernels.py"]):
        done = run(python, *command, folder=clone)
        assert (done.stdout.strip(), done.returncode) == (str(library), 0), done.stderr
