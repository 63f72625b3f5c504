"""All kernels in Triton, and models that are made of them, against the same computed without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
import torch  # noqa: E402

PROGRAMS = sorted(Path(__file__).parents[1].glob("*/triton_*.py"))
AREAS = {"interop", "kernels", "model", "train"}


@pytest.mark.slow
@pytest.mark.parametrize("device", ["interpreter", "gpu"])
def test_computes_what_it_should(device: str, repository: Path, tmp_path: Path) -> None:
    """By Triton's interpreter or on a GPU, which must be chosen before a kernel is imported: so in another process.

    One for all of them, since to import takes longer than most of these tests.
    """
    if device == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert {program.parent.name for program in PROGRAMS} == AREAS
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(repository / "pyproject.toml")]
    environ = {**os.environ, "TRITON_INTERPRET": "1" if device == "interpreter" else "0"}
    done = subprocess.run([*command, *map(str, PROGRAMS)], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
