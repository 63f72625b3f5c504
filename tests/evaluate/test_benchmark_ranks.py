"""`tolktrain evaluate` as two real ranks: the same results as one, and one message if a rank fails."""

import json
import shutil
from pathlib import Path

import pytest
from replicas import Replicas
from warm import Warm

from tolktrain.config.load import load_suite
from tolktrain.evaluate.benchmark_run import evaluate_benchmarks
from tolktrain.evaluate.run import evaluate

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("failing_rank.py")


def _as_two(warm: Warm, *arguments: str | Path) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, outputs and errors."""
    ranks = warm.start_ranks(2, *arguments)
    try:
        codes = [rank.wait(240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return codes, [rank.output for rank in ranks], [rank.errors for rank in ranks]


def _write_suite(folder: Path, **folders: Path) -> Path:
    entries = "".join(f"- {{name: {name}, folder: {path}}}\n" for name, path in folders.items())
    path = folder / "suite.yaml"
    # Small batches, so that both ranks have some.
    path.write_text(f"unit_cache: {folder / 'units'}\nbatch_tokens: 50\nbenchmarks:\n{entries}")
    return path


def test_two_ranks_give_the_files_of_one(warm: Warm, tiny_run: Path, replicas: Replicas, tmp_path: Path) -> None:
    folders = {"sblimp": replicas.folder("sblimp"), "tstorycloze": replicas.folder("parts")}
    alone = shutil.copytree(tiny_run, tmp_path / "alone")
    suite = _write_suite(tmp_path, **folders)
    expected = evaluate_benchmarks(alone, load_suite(suite))
    shutil.rmtree(tmp_path / "units")  # so that both ranks have recordings to encode
    codes, outputs, errors = _as_two(warm, "-m", "tolktrain", "evaluate", tiny_run, "--suite", suite)
    assert codes == [0, 0], errors
    assert json.loads((tiny_run / "benchmarks.json").read_text())["rows"] == expected["rows"]
    names = sorted(str(path.relative_to(alone)) for path in (alone / "scores").rglob("*") if path.is_file())
    assert len(names) == 7  # of the model and two n-grams for two benchmarks, and a submission
    for name in names:
        assert (tiny_run / name).read_bytes() == (alone / name).read_bytes(), name
    assert "sblimp" in outputs[0] and outputs[1] == ""
    assert len(list((tmp_path / "units").rglob("*.safetensors"))) == 4  # of each rank for each benchmark


def test_two_ranks_measure_heldout_sets_as_one(warm: Warm, tiny_run: Path, tmp_path: Path) -> None:
    """Losses, choices and layers, to the last digit; the scores of choices too."""
    alone = shutil.copytree(tiny_run, tmp_path / "alone")
    expected = json.loads(json.dumps(evaluate(alone)))
    codes, _, errors = _as_two(warm, "-m", "tolktrain", "evaluate", tiny_run)
    assert codes == [0, 0], errors
    found = json.loads((tiny_run / "evaluation.json").read_text())
    for key in expected.keys() - {"seconds", "device"}:
        assert found[key] == expected[key], key
    assert (tiny_run / "choices.jsonl").read_bytes() == (alone / "choices.jsonl").read_bytes()


def test_a_recording_that_one_rank_cannot_read(warm: Warm, tiny_run: Path, replicas: Replicas, tmp_path: Path) -> None:
    folder = shutil.copytree(replicas.folder("tstorycloze"), tmp_path / "stories")
    (folder / "2_story-1_correct.wav").write_bytes(b"RIFF no audio")
    suite = _write_suite(tmp_path, tstorycloze=folder)
    codes, _, errors = _as_two(warm, "-m", "tolktrain", "evaluate", tiny_run, "--suite", suite)
    assert codes == [2, 2], errors
    text = "".join(errors)
    assert text.count("error: ") == 1 and "1 unreadable (" in text and "2_story-1_correct.wav" in text
    assert not (tiny_run / "benchmarks.json").exists() and not (tiny_run / "scores").exists()


@pytest.mark.parametrize(("place", "doing"), [("encode", "encoding the recordings of"), ("score", "scoring")])
def test_a_failure_of_one_rank_ends_both(
    warm: Warm, tiny_run: Path, replicas: Replicas, tmp_path: Path, place: str, doing: str
) -> None:
    suite = _write_suite(tmp_path, tstorycloze=replicas.folder("tstorycloze"))
    codes, _, errors = _as_two(warm, SCRIPT, place, tiny_run, "--suite", suite)
    assert codes == [1, 1], errors
    text = "".join(errors)
    assert text.count("error: ") == 1, text
    assert f"rank 1: error: at {doing} tstorycloze" in text and "RuntimeError: the tokenizer's weights are gone" in text
    assert not (tiny_run / "benchmarks.json").exists()
