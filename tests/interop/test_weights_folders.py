"""Folders of weights do what a run does: evaluate, generate, export, and begin a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_twin import Sizes, Twin
from replicas import write_released
from small_backbone import write_config

from tolktrain import cli
from tolktrain.demo.session import Session
from tolktrain.errors import UserError
from tolktrain.interop.formats.find import describe_weights, open_weights
from tolktrain.interop.safetensors_folder import INDEX
from tolktrain.interop.trained import load_trained
from tolktrain.interop.weights import load_weights
from tolktrain.model.parameter_layout import canonical_state


@pytest.fixture
def weights(tiny_run: Path, tmp_path: Path) -> Path:
    """The run, exported."""
    assert cli.main(["export", str(tiny_run), str(tmp_path / "weights")]) == 0
    return tmp_path / "weights"


def test_generate_continues_as_the_run_does(
    tiny_run: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the tokenizers and the context of the folder."""
    capsys.readouterr()
    shown = []
    for source in (tiny_run, weights):
        options = ["--text", "the little bird", "--length", "12", "--seed", "3"]
        assert cli.main(["generate", str(source), *options]) == 0
        assert cli.main(["generate", str(source), *options, "--to", "speech"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and len(set(shown[0].split())) > 8
    assert Session.load(weights).speaker.vocoder is None  # nothing tells how long units last
    assert cli.main(["generate", str(weights), "--text", "a", "--to", "speech", "--into", str(tmp_path / "units")]) == 0
    (line,) = (tmp_path / "units" / "continuations.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] is None and json.loads(line)["units"]
    capsys.readouterr()
    assert load_trained(weights)[1].train.sequence_length == 192
    assert cli.main(["generate", str(weights), "--text", "a", "--step", "2"]) == 2
    assert "give --step with a run directory only" in capsys.readouterr().err
    assert cli.main(["generate", str(weights), "--text", "a", "evaluation.top_q=3"]) == 2
    assert "top_q" in capsys.readouterr().err


def test_evaluate_measures_what_it_measures_of_the_run(tiny_run: Path, weights: Path, repository: Path) -> None:
    """With data from the command line; the result is in the card of the next export."""
    sample = repository / "data" / "sample"
    sets = {"stories": "train", "heldout_stories": "heldout_stories"}
    overrides = [f"data.sets.{name}.path={sample / folder}" for name, folder in sets.items()]
    settings = ["evaluation.sequences=6", "evaluation.choices=4", "evaluation.baseline_records=10"]
    overrides += ["evaluation.heldout_sets=[heldout_stories]", "evaluation.train_set=stories", *settings]
    config = (
        (tiny_run / "config.yaml").read_text().replace("  - heldout_voices\n", "").replace("choices: 8", "choices: 4")
    )
    (tiny_run / "config.yaml").write_text(config.replace("baseline_records: 40", "baseline_records: 10"))
    assert cli.main(["evaluate", str(tiny_run)]) == 0
    assert cli.main(["evaluate", str(weights), *overrides]) == 0
    one, two = (json.loads((folder / "evaluation.json").read_text()) for folder in (tiny_run, weights))
    by_strategy: dict[str, Any] = {row["strategy"]: row for row in two["losses"]}
    assert {"text", "speech", "recognition", "synthesis", "interleaved"} <= set(by_strategy)
    for row in one["losses"]:
        assert row["set"] != "heldout_stories" or by_strategy[row["strategy"]] == row
    assert one["choices"] == two["choices"] and one["layers"] == two["layers"]
    assert (two["step"], two["stage"], two["tokens"]) == (2, "", None)
    assert cli.main(["export", str(weights), str(weights.parent / "again")]) == 0
    card = (weights.parent / "again" / "README.md").read_text()
    for row in two["losses"]:
        assert f"| heldout_stories | {row['strategy']} | {row['loss']:.4f} |" in card


def test_analyze_finds_what_it_finds_in_the_run(
    tiny_run: Path, weights: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With data from the command line, and without the model before training."""
    words = "--words 100 --spans 0 --measures cka lens --layers 1"
    options = words.split()
    data = ["evaluation.heldout_sets=[heldout_stories]"]
    data.append(f"data.sets.heldout_stories.path={repository / 'data' / 'sample' / 'heldout_stories'}")
    assert cli.main(["analyze", str(tiny_run), *options, "--without-start"]) == 0
    assert cli.main(["analyze", str(weights), *data, *options]) == 0
    assert "lens" in capsys.readouterr().out.lower()
    one, two = (json.loads((folder / "analysis" / "analysis.json").read_text()) for folder in (tiny_run, weights))
    assert one["sample"] == two["sample"] and one["step"] == two["step"]
    for name, expected in one["models"]["trained"].items():
        found = two["models"]["trained"][name]["layers"]
        for layer, numbers in expected["layers"].items():
            assert found[layer] == pytest.approx(numbers, rel=1e-4, abs=1e-6)
    assert list(two["models"]) == ["trained"] and "does not hold the weights before training" in two["start_problem"]
    assert cli.main(["analyze", str(weights), *options]) == 2
    assert "evaluation.heldout_sets is empty" in capsys.readouterr().err


def test_benchmarks_score_as_of_the_run(tiny_run: Path, weights: Path, tmp_path: Path) -> None:
    """Without any data set: EOS is that of the folder's tokenizer."""
    write_released(tmp_path / "scloze", "<u8")
    rows = []
    for source in (tiny_run, weights):
        assert cli.main(["evaluate", str(source), "--benchmarks", f"tstorycloze={tmp_path / 'scloze'}"]) == 0
        rows.append(json.loads((source / "benchmarks.json").read_text())["rows"])
        scores = (source / "scores" / "tstorycloze.jsonl").read_text().replace(f'"{source.name}"', '"name"')
        rows[-1].append(scores)
    baselines = ("unigram", "bigram")
    *run, scored = rows[0]
    *same, also = rows[1]
    assert [{key: row[key] for key in row if key not in baselines} for row in run] == same and len(same) == 4
    assert scored == also
    assert cli.main(["export", str(tiny_run), str(tmp_path / "again")]) == 0
    card = (tmp_path / "again" / "README.md").read_text()
    for row in run:
        assert f"| tstorycloze | {row['set']} | accuracy | {row['rule']} | {100 * row['accuracy']:.1f} |" in card


def test_imported_weights_begin_a_run(tmp_path: Path) -> None:
    """As `checkpoint.init_from` reads them: `tests/train/test_initial_weights.py` begins runs from such folders."""
    twin = Twin(Sizes())
    write_config(tmp_path / "backbone", **twin.backbone_config())
    file = twin.save(tmp_path / "model_ckpt.pt")
    into = str(tmp_path / "weights")
    assert cli.main(["import", str(file), into, "--backbone", str(tmp_path / "backbone")]) == 0
    with pytest.raises(UserError, match="tolktrain import reads a file of the SmolTolk authors"):
        describe_weights(file, "checkpoint.init_from")
    described = describe_weights(Path(into), "checkpoint.init_from")
    state = twin.state_dict()
    with open_weights(described) as reader:
        block = reader.block("output_adapter.layers.0.mlp.up_proj.weight", (3, 0), (5, 16))
    assert torch.equal(block, state["audio_out_layers.0.mlp.up_proj.weight"][3:8])
    assert described.architecture == load_weights(into).architecture


def test_a_folder_that_transformers_has_saved(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The messages name the command with which it can be used, which works."""
    (weights / "architecture.json").unlink()  # which transformers does not write
    for arguments in (["generate", str(weights), "--text", "a"], ["export", str(weights), str(tmp_path / "again")]):
        assert cli.main(arguments) == 2
        assert f"tolktrain import {weights} INTO" in capsys.readouterr().err
    with pytest.raises(UserError, match=rf"init_from: .* tolktrain import {weights} INTO"):
        describe_weights(weights, "checkpoint.init_from")
    assert cli.main(["import", str(weights), str(tmp_path / "into")]) == 0
    assert describe_weights(tmp_path / "into", "checkpoint.init_from").format == "exported weights"


def test_half_downloaded_and_foreign_folders_are_named(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard that is missing or cut, another architecture, another kind of model, and ids beyond the vocabulary."""
    before = canonical_state(load_weights(weights))
    (shard,) = weights.glob("*.safetensors")
    content, description = shard.read_bytes(), weights / "architecture.json"
    into = tmp_path / "into"

    def refused(message: str) -> None:
        for arguments in (["import", str(weights), str(into)], ["export", str(weights), str(into)]):
            assert cli.main(arguments) == 2, arguments
            assert message in capsys.readouterr().err
        with pytest.raises(UserError, match=message):
            load_trained(weights)
        assert not into.exists() and not list(tmp_path.glob(".tmp*"))

    shard.write_bytes(content[: len(content) // 2])
    refused(f"{shard} cannot be read")
    shard.rename(tmp_path / "aside")
    refused(str(shard))
    shard.write_bytes(content)
    written = description.read_text()
    description.write_text(written.replace('"ffn_hidden_size": 24', '"ffn_hidden_size": 32'))
    refused("the checkpoint belongs to a model of another architecture")
    description.unlink()
    (weights / "config.json").write_text('{"model_type": "qwen2_audio"}')
    assert cli.main(["import", str(weights), str(into)]) == 2
    assert "a model of type 'qwen2_audio'; expected 'smoltolk'" in capsys.readouterr().err
    description.write_text(written)
    tokenizer = weights / "tokenizer.json"
    larger = json.loads(tokenizer.read_text())
    larger["model"]["vocab"]["beyond"] = 1024
    tokenizer.write_text(json.dumps(larger))
    description.write_text(json.dumps({**json.loads(written), "tokenizers": {}}))
    assert cli.main(["import", str(weights), str(into)]) == 2
    assert "has 1025 ids, more than the model's 1024" in capsys.readouterr().err
    assert not into.exists() and not list(tmp_path.glob(".tmp*"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in canonical_state(load_weights(weights)).items())
    assert (weights / INDEX).is_file()


def _cut(weights: Path, size: int) -> None:
    (file,) = weights.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:size])


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _name_another_shard(weights: Path) -> None:
    _edit(weights / INDEX, lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], "model-9")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: _cut(weights, 0), "safetensors cannot be read"),
        (lambda weights: _cut(weights, 100), "safetensors cannot be read"),  # inside the header
        (lambda weights: _cut(weights, 30_000), "not fully covered"),
        (lambda weights: next(weights.glob("*.safetensors")).unlink(), "No such file"),
        (_name_another_shard, "model-9"),
        (
            lambda weights: _edit(weights / "architecture.json", lambda d: d["architecture"].update(hidden_size=32)),
            "belongs to a model of another architecture",
        ),
        (
            lambda weights: _edit(weights / "architecture.json", lambda d: d["architecture"].update(num_layers=5)),
            "belongs to a model of another architecture",
        ),
    ],
    ids=["empty", "a cut header", "half", "a missing file", "a missing shard", "another width", "more layers"],
)
def test_damaged_folders_leave_nothing(
    weights: Path, tmp_path: Path, damage: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(weights)
    into = tmp_path / "into"
    for arguments in (
        ["generate", str(weights), "--text", "a", "--into", str(into)],
        ["import", str(weights), str(into)],
        ["export", str(weights), str(into)],
        ["export", str(weights), str(into), "--format", "llama"],
    ):
        capsys.readouterr()
        assert cli.main(arguments) == 2, arguments
        assert message in capsys.readouterr().err
        assert not into.exists() and not list(tmp_path.glob("*into*")), arguments
