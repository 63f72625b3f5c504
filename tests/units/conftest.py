"""Small models with random weights, saved as the hub has them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `small_models`

from small_models import save_hubert, save_mimi


@pytest.fixture(scope="session", params=[False, True], ids=["base", "large"])
def hubert_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small HuBERT: with group norm and late norms, or with layer norms and early norms."""
    pytest.importorskip("transformers")
    return save_hubert(tmp_path_factory.mktemp("hubert"), request.param)


@pytest.fixture(scope="session")
def mimi_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small Mimi."""
    pytest.importorskip("transformers")
    return save_mimi(tmp_path_factory.mktemp("mimi"))
