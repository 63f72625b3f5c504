"""What all tests share."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tolktrain.cluster.environment import alone
from tolktrain.source_root import hide_source_root

# Tests must not depend on who started pytest, reach for the network, or spread tiny tensors over threads. Set here,
# before any test module imports torch or transformers.
hide_source_root()
_launched = dict(os.environ)
os.environ.clear()
os.environ.update(alone(_launched))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shared machine is slow at times; a property does not fail for that.
settings.register_profile("tolktrain", deadline=None)
settings.load_profile("tolktrain")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(params=["interpreter", "gpu"])
def run_in_triton(request: pytest.FixtureRequest, repository: Path, tmp_path: Path) -> Callable[[Path], None]:
    """Runs a file of tests in a process of its own, by Triton's interpreter or on a GPU, and expects all to pass.

    The interpreter must be chosen before a kernel is imported, and by whoever does not have a GPU.
    """
    import torch  # not before the environment above is set

    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU")

    def run(checks: Path) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-c", str(repository / "pyproject.toml"), str(checks)]
        environ = {**os.environ, "TRITON_INTERPRET": "1" if request.param == "interpreter" else "0"}
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]

    return run
