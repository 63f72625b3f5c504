"""Preferences in a run: with a frozen reference that is kept, interrupted, continued, and refused if it is foreign."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_runs import StopAfter, preference_overrides, read_metrics, small_config

from tolktrain.checkpoint.store import read_parameters
from tolktrain.config import Config
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.report.page import render
from tolktrain.report.rundata import read_run
from tolktrain.runs.load_model import load_model
from tolktrain.train import reference
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.run import train

pytestmark = pytest.mark.slow

VALIDATED = ("train.validation.strategies=[preference]", "train.validation.sets=[held]", "train.validation.sequences=5")


def tuned(folder: Path, sets: Path, *overrides: str) -> Config:
    """A run of a stage of text and one of preferences, of two epochs and a part of one."""
    return small_config(
        folder,
        sets,
        *preference_overrides(sets, 1),
        f"data.sets.held.path={sets / 'held-preferences'}",
        *VALIDATED,
        "train.stages.1.trainable=[backbone, pooling, speech]",
        "train.stages.1.tokens=1700",
        "train.stages.1.preference={beta: 2.0, length_normalized: true}",
        "train.last_stage=adapter",
        *overrides,
    )


def references(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "preference_reference.jsonl").read_text().splitlines()]


def test_a_run_is_interrupted_and_continued(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "_SEQUENCES_OF_A_LINE", 8)
    killed_at = -1
    counted: list[int] = []
    compute = Engine.log_probs

    def counting(self: Engine, batches: Sequence[Batch]) -> list[torch.Tensor]:
        if len(counted) == killed_at:
            raise RuntimeError("killed")
        counted.append(sum(len(batch.tokens) for batch in batches))
        return compute(self, batches)

    monkeypatch.setattr(Engine, "log_probs", counting)
    assert train(tuned(tmp_path / "whole", sets)) == 0
    whole = tmp_path / "whole" / "runs" / "small"
    lines = [line for line in read_metrics(whole) if line["stage"] == "adapter" and "loss" in line]
    assert len(lines) == 7 and sum(counted) == 24 + 8, "each record once, and the validation in batches of 4"
    assert lines[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-6) and abs(lines[0]["preference_margin"]) < 1e-6
    assert lines[-1]["loss"] < 0.6 and lines[-1]["preference_accuracy"] > 0.5
    for line in lines:
        margin = line["preference_chosen_reward"] - line["preference_rejected_reward"]
        assert line["preference_margin"] == pytest.approx(margin)
    validated = [line for line in read_metrics(whole) if "validation.preference.held.loss" in line]
    assert [line["step"] for line in validated] == [5, 10], "not in the stage of text"
    assert {key.split(".")[-1] for key in validated[0] if "." in key} == {
        "loss", "accuracy", "margin", "chosen_reward", "rejected_reward",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "  reference of preferences: 29 sequences, sha256 " in printed and "(accuracy " in printed

    again = tmp_path / "again" / "runs" / "small"
    assert train(tuned(tmp_path / "again", sets), StopAfter(2)) == 75
    killed_at = len(counted) + 2  # after the validation and a step
    with pytest.raises(RuntimeError, match="killed"):
        train(tuned(tmp_path / "again", sets))
    killed_at = -1
    for stop in (2, 3):
        assert train(tuned(tmp_path / "again", sets), StopAfter(stop)) == 75
    assert train(tuned(tmp_path / "again", sets)) == 0
    assert sum(counted) == 2 * (24 + 8), "what was known is read from the file"
    assert read_metrics(again) == read_metrics(whole)
    for name, tensor in read_parameters(whole / "checkpoints/step-00000010").items():
        assert torch.equal(tensor, read_parameters(again / "checkpoints/step-00000010")[name])
    assert [line["entries"] for line in references(again)] == [line["entries"] for line in references(whole)]
    page = render(read_run(whole))
    assert "preference loss, nats per pair" in page and "chosen answer preferred" in page and ">held<" in page
    refuse_foreign_references(tmp_path / "again", sets, again)


def refuse_foreign_references(folder: Path, sets: Path, run_dir: Path) -> None:
    """Of another model, cut, damaged or absent; and an extended stage, whose records are all known, is trained."""
    file = run_dir / "preference_reference.jsonl"
    content = file.read_text()
    longer = ("train.stages.1.tokens=1900",)
    digest = str(references(run_dir)[0]["digest"])
    for changed, message in (
        (content.replace(digest, "f" * 64), r"has that of another model \(sha256 ffffffffffff\)"),
        ("", "does not have it; restore the file"),
        (content.replace('"entries"', '"other"'), "preference_reference.jsonl cannot be read"),
        (content.splitlines()[0] + "\n", "has preferences that were not compared with the reference at the begin"),
    ):
        file.write_text(changed)
        with pytest.raises(UserError, match=message):
            train(tuned(folder, sets, *longer))
    file.write_text(content + '{"stage": 1, "digest"')  # as a killed process may leave it
    assert train(tuned(folder, sets, *longer)) == 0
    assert [line["step"] for line in read_metrics(run_dir)][-1] == 11
    assert all("entries" in line for line in references(run_dir))


def test_the_base_of_low_rank_updates_is_the_reference(tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    """Computed in every step, it gives what the stored one gives: the updates are zero at the begin."""
    updates = ("model.lora.rank=2", "train.stages.1.trainable=[lora]", f"checkpoint.init_from={uninterrupted}")
    one_stage = ("train.stages.0.trainable=[pooling]", "train.stages.0.mixture={speech: {sets: {train: 1}}}")
    found = []
    for kind in ("initial", "lora_base"):
        config = tuned(
            tmp_path / kind,
            sets,
            *updates,
            *one_stage,
            f"train.stages.1.preference={{beta: 2.0, reference: {kind}}}",
            "train.stages.1.tokens=600",
        )
        assert train(config) == 0
        run_dir = tmp_path / kind / "runs" / "small"
        found.append(read_metrics(run_dir))
        assert (run_dir / "preference_reference.jsonl").exists() == (kind == "initial")
        assert load_model(run_dir)[0].architecture.lora is not None
    assert found[0] == found[1] and found[0][-1]["step"] == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mixture={preference: {sets: {train: 1}}, text: {sets: {train: 1}}}"], "has preference and text, which have"),
        (["preference.beta=0.2"], "preference has no effect, because the mixture lacks the strategy preference"),
        (
            ["mixture={preference: {sets: {train: 1}}}", "preference.reference=lora_base"],
            r"trainable is \['backbone'\], so that the model without its low-rank updates changes too",
        ),
    ],
)
def test_stages_that_cannot_be_trained_are_refused(
    tmp_path: Path, sets: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        small_config(tmp_path, sets, *(f"train.stages.0.{override}" for override in overrides))
