"""Processes on null GPUs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from null_jobs import NullJobs  # noqa: E402

from nullgpu.build import Unavailable, build  # noqa: E402


@pytest.fixture(scope="session")
def null_gpu_libraries() -> Path:
    """Where the stub libraries are. The test is skipped where they cannot be built."""
    try:
        return build()
    except Unavailable as error:
        pytest.skip(f"no null GPU: {error}")


@pytest.fixture(scope="module")
def null_jobs(null_gpu_libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> NullJobs:
    """Starts jobs on null GPUs."""
    return NullJobs(null_gpu_libraries, tmp_path_factory.mktemp("null-jobs"))
