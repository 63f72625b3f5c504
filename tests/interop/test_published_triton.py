"""The published numbers from the whole model in Triton, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

CHECKS = (Path(__file__).with_name("triton_published.py"), Path(__file__).parents[1] / "model" / "triton_smoltolk.py")


@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "device",
    ["interpreter", pytest.param("gpu", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
def test_computes_what_it_should(device: str, checks: Path, repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(repository / "pyproject.toml")]
    environ = {**os.environ, "TRITON_INTERPRET": "1" if device == "interpreter" else "0"}
    done = subprocess.run([*command, str(checks)], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
