"""A prepared set has the same bytes as in the last release."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tolktrain.config.load import load_prepare_config
from tolktrain.prepare.run import run

RELEASED = Path(__file__).parent / "released_set"


@pytest.mark.parametrize(("source", "name"), [("text", "stories"), ("recordings", "prompts")])
def test_the_bytes_are_those_of_the_last_release(
    source: str, name: str, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    run(load_prepare_config(RELEASED / f"{source}.yaml", [f"output={tmp_path / name}"]), task=None)
    written = {
        path.relative_to(tmp_path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / name).rglob("*")
        if path.is_file() and path.parent.name != "parts" and path.name != "preparation.json"
    }
    lines = [line.split() for line in (RELEASED / "sha256sums.txt").read_text().splitlines()]
    assert written == {path: digest for digest, path in lines if path.startswith(f"{name}/")}
    assert any(path.endswith(".mds.zstd") for path in written)


@pytest.mark.slow
def test_a_preparation_ends_quietly_and_leaves_no_temporary_file(tmp_path: Path, repository: Path) -> None:
    """Its processes meet in a folder that multiprocessing makes in ours, and removes itself."""
    command = ["-m", "tolktrain", "prepare", str(RELEASED / "text.yaml"), f"output={tmp_path}"]
    with tempfile.TemporaryDirectory() as folder:  # a long path, as pytest's, would not be used for this
        environ = {**os.environ, "TMPDIR": folder}
        done = subprocess.run([sys.executable, *command], cwd=repository, env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert os.listdir(folder) == []
