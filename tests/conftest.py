"""What all tests share."""

import os
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
