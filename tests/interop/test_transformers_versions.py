"""Files written by version 4 or 5 of transformers mean the same under either."""

import os
import subprocess
import sys
from pathlib import Path

import both_versions
import numpy as np
import pytest
import torch

from tolktrain.interop.huggingface import load_backbone
from tolktrain.interop.published import trace

pytestmark = pytest.mark.slow

VERSION_5 = Path(sys.prefix) / "transformers-5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that either version wrote, with the results of version 5."""
    if not VERSION_5.is_dir():
        pytest.skip(f"{VERSION_5} does not exist; `make test-transformers-5` makes it")
    folder = tmp_path_factory.mktemp("versions")
    both_versions.write(folder / "4")
    environ = {**os.environ, "PYTHONPATH": str(VERSION_5)}
    command = [sys.executable, both_versions.__file__, str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def test_either_version_reads_what_either_wrote(folder: Path) -> None:
    here, there = both_versions.results(folder), np.load(folder / "read-by-5.npz")
    assert {name.split("/")[0] for name in here} == {"4", "5"} and set(here) == set(there)
    for name, value in here.items():
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            np.testing.assert_allclose(there[name], value, rtol=0, atol=1e-4, err_msg=name)
        else:
            assert np.array_equal(there[name], value), name
    for name in ("hubert", "hubert-large", "mimi"):  # otherwise constant units would pass
        assert len(np.unique(here[f"4/{name}"])) > 5
        assert len(np.unique(here[f"5/{name}"])) > 5


@pytest.mark.parametrize("writer", ["4", "5"])
def test_a_backbone_of_either_version(folder: Path, writer: str) -> None:
    """Logits as the writer's own transformers computed them."""
    tokens = torch.tensor(both_versions.PROMPT)
    found = trace(load_backbone(str(folder / writer / "llama")), {"input": tokens.unsqueeze(1)})["text_logits"]
    np.testing.assert_allclose(found.detach().numpy(), np.load(folder / writer / "logits.npy"), rtol=0, atol=1e-5)
