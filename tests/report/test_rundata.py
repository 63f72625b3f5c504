"""Reading of run directorys, whole, unfinished and broken."""

import json
from pathlib import Path

import pytest

from tolktrain.errors import UserError
from tolktrain.report.rundata import read_run


def test_finished_run(full_run: Path) -> None:
    run = read_run(full_run)
    assert run.name == "synthetic" and run.primary_set == "heldout_stories"
    assert len(run.steps) == 1200
    stages = [(s.name, s.first_step, s.last_step, s.tokens) for s in run.stages]
    assert stages == [("text", 1, 300, 300 * 4096), ("adapter", 301, 600, 300 * 4096), ("joint", 601, 1200, 600 * 4096)]
    assert [round(stage.seconds) for stage in run.stages] == [120, 120, 240]
    assert run.evaluated("heldout_stories", "speech", "speech")["bigram_loss"] == 2.30  # type: ignore[index]
    assert run.evaluated("heldout_stories", "text", "speech") is None


def test_single_modality_strategies_count_as_that_modality(full_run: Path) -> None:
    run = read_run(full_run)
    for validation in run.validations:
        if validation.strategy == "text":
            assert validation.text_loss == validation.loss and validation.speech_loss is None
        elif validation.strategy == "speech":
            assert validation.speech_loss == validation.loss and validation.text_loss is None
        else:
            assert validation.text_loss is not None and validation.speech_loss is not None


def test_last_validation_of_each_stage(full_run: Path) -> None:
    last = {(v.stage, v.strategy, v.dataset): v.step for v in read_run(full_run).last_validations()}
    assert len(last) == 3 * 3 * 2
    assert {step for (stage, _, _), step in last.items() if stage == "adapter"} == {600}


def test_dots_in_the_name_of_a_set(bare_run: Path) -> None:
    line = {"step": 1200, "stage": "joint", "validation.prefix.a.b-1.0.loss": 1.5}
    with (bare_run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    validation = read_run(bare_run).validations[-1]
    assert (validation.strategy, validation.dataset, validation.loss) == ("prefix", "a.b-1.0", 1.5)


def test_line_that_is_being_written_is_ignored(bare_run: Path) -> None:
    with (bare_run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1201, "lo')
    assert len(read_run(bare_run).steps) == 1200


def test_broken_line_in_the_middle(bare_run: Path) -> None:
    path = bare_run / "metrics.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(UserError, match=r"^\S*metrics\.jsonl, line 1 is not JSON; restore the file or train again$"):
        read_run(bare_run)


def test_folder_that_is_missing_or_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a run directory; `tolktrain train"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.yaml is missing"):
        read_run(tmp_path)


def test_run_without_a_step(bare_run: Path) -> None:
    (bare_run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no training step"):
        read_run(bare_run)
    (bare_run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl is missing"):
        read_run(bare_run)


@pytest.mark.parametrize(("content", "message"), [("{", "is not readable JSON"), ("[]", "must hold a JSON object")])
def test_broken_evaluation(bare_run: Path, content: str, message: str) -> None:
    (bare_run / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_run(bare_run)


@pytest.mark.parametrize(("content", "message"), [("a: [", "not valid YAML"), ("- 1", "expected a mapping")])
def test_broken_configuration(bare_run: Path, content: str, message: str) -> None:
    (bare_run / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_run(bare_run)
