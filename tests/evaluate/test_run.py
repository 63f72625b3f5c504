"""The whole evaluation of a tiny random model over the embedded corpus."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_disk import MakeDisk
from tiny_run import tiny_tree, write_run

from tolktrain.data.folder import open_records
from tolktrain.data.loader import validation_batches
from tolktrain.errors import UserError
from tolktrain.evaluate.choice_file import read_choices
from tolktrain.evaluate.run import evaluate
from tolktrain.model.inputs import ModelInputs
from tolktrain.runs.load_model import load_model
from tolktrain.vocabulary import Vocabulary

HELD_OUT = ("heldout_stories", "heldout_voices")


def test_evaluation_of_a_run(tiny_run: Path) -> None:
    found = evaluate(tiny_run)
    assert json.loads((tiny_run / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    assert not list(tiny_run.glob(".tmp*"))
    assert (found["step"], found["stage"], found["tokens"]) == (2, "joint", 2 * 4 * 192)
    strategies = ("text", "speech", "interleaved", "recognition")
    assert [(r["set"], r["strategy"]) for r in found["losses"]] == [(n, s) for n in HELD_OUT for s in strategies]
    for row in found["losses"]:
        for modality in ("text", "speech"):
            if row[modality] is not None:
                assert 1.0 < row[modality]["bigram_loss"] < math.log(1024) + 0.1
                assert 5.0 < row[modality]["loss"] < 10.0
    assert len(found["choices"]) == 8
    for row in found["choices"]:
        assert row["trials"] == 8 and row["low"] <= row["accuracy"] <= row["high"]
        assert 0 <= row["unigram"] <= 1 and 0 <= row["bigram"] <= 1
    assert found["parameters"]["total"] == sum(found["parameters"][g] for g in ("backbone", "pooling", "speech"))
    assert found["layers"]["static"] == [0.5, 0.5]
    for modality in ("text", "speech"):
        assert sum(found["layers"][modality]) == pytest.approx(1.0)
    assert found["settings"] == load_model(tiny_run)[1].follow_up_settings()
    assert len(found["targets"]) == 2 * (2 + 4)
    header, trials = read_choices(tiny_run / "choices.jsonl")
    assert (header["run"], header["step"]) == ("tiny", 2)
    assert list(trials) == [(row["set"], row["direction"]) for row in found["choices"]]
    for row, scored in zip(found["choices"], trials.values(), strict=True):
        for scorer, accuracy in (("model", row["accuracy"]), ("bigram", row["bigram"])):
            values = [trial.scores[scorer] for trial in scored.values()]
            assert np.mean([0.5 if true == other else true > other for true, other in values]) == accuracy
    again = evaluate(tiny_run)
    for key in ("losses", "choices", "layers", "bigram"):
        assert again[key] == found[key]


def test_speech_loss_is_the_mean_of_the_models_own(tiny_run: Path) -> None:
    found = evaluate(tiny_run)
    model, config, _ = load_model(tiny_run)
    batches = validation_batches(
        config.data.sets["heldout_stories"],
        "speech",
        6,
        vocabulary=Vocabulary(1024, 0, 500),
        sequence_length=192,
        interleaving=config.data.interleaving,
        micro_batch_size=4,
    )
    sums, positions = 0.0, 0
    for batch in batches:
        sums += float(model(ModelInputs.from_batch(batch)).speech_nll.detach())
        positions += batch.num_speech_scored
    row = next(r for r in found["losses"] if r["strategy"] == "speech")
    assert row["speech"]["positions"] == positions
    assert row["speech"]["loss"] == pytest.approx(sums / positions, rel=1e-5)


def test_bigram_beats_the_unigram_of_the_corpus(tiny_run: Path, repository: Path) -> None:
    found = evaluate(tiny_run)
    config = load_model(tiny_run)[1]
    records = open_records(config.data.sets["stories"])
    units = np.concatenate([records[i].units[:, 0] for i in range(40)])
    shares = np.bincount(units, minlength=500) / len(units)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    row = next(r for r in found["losses"] if r["set"] == "heldout_stories" and r["strategy"] == "speech")
    assert row["speech"]["bigram_loss"] < entropy - 1.0


def test_model_without_pooling_and_without_baseline(tmp_path: Path, repository: Path) -> None:
    tree = tiny_tree(tmp_path, repository)
    tree["model"]["speech"]["layer_pooling"] = "none"
    tree["evaluation"] |= {"train_set": None, "heldout_sets": ["heldout_voices"]}
    found = evaluate(write_run(tmp_path, tree))
    assert found["layers"] is None and found["bigram"] is None
    assert all(row["speech"]["bigram_loss"] is None for row in found["losses"] if row["speech"])
    assert {target["name"] for target in found["targets"]} == {row["direction"] for row in found["choices"]}


def test_passages_too_long_for_the_records_give_no_choices(tmp_path: Path, repository: Path) -> None:
    tree = tiny_tree(tmp_path, repository)
    tree["evaluation"] |= {"prompt_words": 5000, "heldout_sets": ["heldout_voices"]}
    assert evaluate(write_run(tmp_path, tree))["choices"] == []


def test_run_without_checkpoint(tiny_run: Path) -> None:
    for path in (tiny_run / "checkpoints").glob("*/manifest.json"):
        path.unlink()
    with pytest.raises(UserError, match="no valid checkpoint"):
        evaluate(tiny_run)
    assert not (tiny_run / "evaluation.json").exists()


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml"):
        evaluate(tmp_path)


def test_nothing_to_evaluate(tiny_run: Path) -> None:
    _change(tiny_run, lambda tree: tree["evaluation"].update(heldout_sets=[]))
    with pytest.raises(UserError, match=r"evaluation\.heldout_sets is empty"):
        evaluate(tiny_run)


def test_held_out_set_that_is_gone(tiny_run: Path, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    _change(tiny_run, lambda tree: tree["data"]["sets"]["heldout_voices"].update(path=gone))
    with pytest.raises(UserError, match=r"gone.*does not exist"):
        evaluate(tiny_run)


def _change(run_dir: Path, change: Callable[[dict], None]) -> None:
    path = run_dir / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    change(tree)
    path.write_text(yaml.safe_dump(tree))


def test_a_full_disk_keeps_the_last_evaluation(repository: Path, make_disk: MakeDisk) -> None:
    disk = make_disk(4 << 10)
    run_dir = write_run(disk.path, tiny_tree(disk.path, repository))
    (run_dir / "evaluation.json").write_text("{}")
    disk.refuses(lambda: evaluate(run_dir), f"'{run_dir}/choices.jsonl'", leaving_kib=4)
    assert json.loads((run_dir / "evaluation.json").read_text())["losses"]
