"""A session of a random model."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate"))  # for `tiny_run`
sys.path.insert(0, str(Path(__file__).parent))  # for `browser`

from tiny_run import tiny_tree, write_run

from tolktrain.demo.session import Session


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Session:
    """Of a model with pooling by both weights."""
    folder = tmp_path_factory.mktemp("demo")
    return Session.load(write_run(folder, tiny_tree(folder, repository)))


@pytest.fixture(scope="session")
def talking(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Session:
    """Of a model with tokens of roles."""
    folder = tmp_path_factory.mktemp("talking")
    tree = tiny_tree(folder, repository)
    tree["model"]["special_tokens"] = ["<|system|>", "<|user|>", "<|assistant|>"]
    return Session.load(write_run(folder, tree))
