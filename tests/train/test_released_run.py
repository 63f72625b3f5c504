"""A run that the last release began resumes, and continues as it would have there."""

import json
import shutil
from pathlib import Path

import pytest
from small_runs import assert_close, read_metrics

from tolktrain.config.load import load_config
from tolktrain.train.run import train

RELEASED = Path(__file__).parent / "released_run"
# The release's figures may come from another processor, whose sums round differently. With the vector instructions of
# this one switched off (ATEN_CPU_CAPABILITY=default), losses and norms differ by 1e-7 at most.
REL = 1e-5


@pytest.mark.slow
def test_a_run_of_the_last_release_resumes(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "tiny"
    shutil.copytree(RELEASED / "tiny", run_dir)
    assert not Path("/tmp/tolktrain").exists()  # config.yaml names data and DeepSpeed's file in a clone there
    before = read_metrics(run_dir)
    monkeypatch.chdir(repository)
    assert train(load_config(RELEASED / "tiny.yaml", [f"run.dir={tmp_path}"])) == 0
    after = read_metrics(run_dir)
    assert after[: len(before)] == before
    (tmp_path / "expected").mkdir()
    shutil.copy(RELEASED / "expected.jsonl", tmp_path / "expected" / "metrics.jsonl")
    expected = read_metrics(tmp_path / "expected")
    assert len(after) == len(before) + len(expected)
    for line, released in zip(after[len(before) :], expected, strict=True):
        assert_close(line, released, rel=REL)
        for key in ("stage", "tokens", "learning_rate", "speech_learning_rate", "skipped"):
            assert line.get(key) == released.get(key), (line["step"], key)


def test_the_fixture_is_a_run_in_the_middle_of_its_second_stage() -> None:
    """What the test above resumes is not a run at its beginning or at the end of a stage."""
    (folder,) = (RELEASED / "tiny" / "checkpoints").glob("step-*")
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["stage"], state["stage_complete"]) == (4, 1, False)
