"""The analysis of a tiny random model over the embedded corpus."""

import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_backbone import write_backbone
from tiny_run import tiny_tree, write_run

from tolktrain import cli
from tolktrain.analyze import run as analysis_run
from tolktrain.analyze.measures.registry import MEASURES
from tolktrain.analyze.observe import Observation
from tolktrain.analyze.run import Options, analyze
from tolktrain.analyze.sample import Sample, draw_sample
from tolktrain.analyze.start import starting_model
from tolktrain.analyze.table import print_analysis
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.files.terminal import Console
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.report.page import render
from tolktrain.report.rundata import read_run
from tolktrain.train.initial_weights import Beginning
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.resolved import ResolvedSettings

Analyzed = tuple[Path, dict[str, Any]]
LAYERS = ["embedding", "input adapter", "layer 1", "layer 2", "pooled", "output adapter"]


def test_every_measure_of_both_models_is_written(analyzed_run: Analyzed) -> None:
    run_dir, found = analyzed_run
    assert json.loads((run_dir / "analysis" / "analysis.json").read_text()) == json.loads(json.dumps(found))
    assert found["layers"] == LAYERS and found["step"] == 2
    assert found["sample"]["set"] == "heldout_stories" and found["sample"]["words"] == 300
    assert found["start"] == "random weights of seed 0" and found["start_problem"] is None
    for model in ("trained", "start"):
        assert list(found["models"][model]) == list(MEASURES)
        for name, numbers in found["models"][model].items():
            for panel in found["measures"][name]["panels"]:
                for curve in panel["curves"]:
                    values = [numbers["layers"].get(layer, {}).get(curve["key"]) for layer in LAYERS]
                    assert any(value is not None for value in values), (name, curve)
    names = {path.name for path in (run_dir / "analysis").iterdir()}
    assert names == {"analysis.json", *(f"{name}.svg" for name in MEASURES)}
    for name in MEASURES:
        ElementTree.parse(run_dir / "analysis" / f"{name}.svg")
    trained = found["models"]["trained"]
    # The last unit is the input token of the state, whose embedding is a row of the table.
    probes = trained["probes"]["layers"]["embedding"]
    assert probes["speech_unit"] > 0.3 + probes["speech_unit_shuffled"]
    assert trained["pooling"]["static"] == [0.5, 0.5]
    for kind in ("text", "switch", "speech"):
        assert sum(trained["pooling"]["kinds"][kind]) == pytest.approx(1.0)
    # Before the first layer, a word's state is its last token's alone, so the words before it add nothing.
    assert trained["additive"]["layers"]["embedding"]["text_explained_by_last"] == pytest.approx(1.0)


def test_numbers_depend_neither_on_batches_nor_on_the_order_of_passages(
    analyzed_run: Analyzed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, found = analyzed_run
    run_dir = shutil.copytree(original, tmp_path / "copy")
    passes = []
    walk = Observation._walk
    monkeypatch.setattr(
        Observation, "_walk", lambda self, batch: passes.append(len(batch.record_ids)) or walk(self, batch)
    )

    def reversed_sample(*arguments: Any) -> Sample:
        drawn = draw_sample(*arguments)
        return replace(drawn, passages=drawn.passages[::-1], spans=drawn.spans[::-1])

    monkeypatch.setattr(analysis_run, "draw_sample", reversed_sample)
    options = Options(words=300, spans=40, dimensions=4, against_start=False, batch_tokens=1)
    other = analyze(run_dir, options)
    _assert_close(other["models"]["trained"], found["models"]["trained"])
    # One forward pass per batch, here of one passage or span.
    sample = other["sample"]
    assert passes == [3] * sample["passages"] + [8] * sample["spans"]


def _assert_close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_close(one[key], other[key])
    elif isinstance(one, list):
        np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=2e-3, atol=2e-3)
    else:
        assert one == pytest.approx(other, rel=2e-3, abs=2e-3)


def test_table_fits_a_terminal(analyzed_run: Analyzed) -> None:
    run_dir, found = analyzed_run
    console = Console(file=io.StringIO(), width=80)
    print_analysis(found, run_dir, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and "300 words of heldout_stories" in text
    rows = {line[:15].strip(): line for line in text.splitlines() if line[:15].strip() in LAYERS}
    assert list(rows) == LAYERS
    overlap = found["models"]["trained"]["subspaces"]["layers"]["layer 1"]["overlap"]
    assert rows["layer 1"].split()[2] == f"{100 * overlap:.0f}"
    assert f"{run_dir}/analysis/analysis.json" in text


def test_report_shows_the_analysis(analyzed_run: Analyzed) -> None:
    run_dir, found = analyzed_run
    page = render(read_run(run_dir))
    assert "Representations" in page and "random weights of seed 0" in page
    for name, measure in found["measures"].items():
        assert f'aria-label="{measure["title"]}"' in page, name
    colours = set(re.findall(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL))))
    assert colours <= {"#000000", "#ffffff"}


def test_chosen_measures_and_layers(analyzed_run: Analyzed, tmp_path: Path, repository: Path) -> None:
    tree = tiny_tree(tmp_path, repository)
    tree["model"]["speech"] |= {"layer_pooling": "none", "residual": False, "output_adapter_layers": 0}
    run_dir = write_run(tmp_path, tree)
    (run_dir / "analysis").mkdir()
    (run_dir / "analysis" / "lens.svg").write_text("of an earlier analysis")
    arguments = ["--measures", "pooling", "cka", "--layers", "2", "--words", "100", "--without-start"]
    assert cli.main(["analyze", str(run_dir), "--set", "heldout_voices", *arguments]) == 0
    found = json.loads((run_dir / "analysis" / "analysis.json").read_text())
    assert found["layers"] == ["embedding", "input adapter", "layer 2"]
    assert list(found["models"]) == ["trained"] and list(found["models"]["trained"]) == ["cka", "pooling"]
    assert found["models"]["trained"]["pooling"]["kinds"]["text"] is None
    assert {path.name for path in (run_dir / "analysis").iterdir()} == {"analysis.json", "cka.svg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measures", "svcca"], "unknown measure 'svcca'; known are subspaces, cka"),
        (["--layers", "3"], "no backbone layer 3; the layers are 1 to 2"),
        (["--set", "other"], "--set other: data.sets does not define it; it defines heldout_stories"),
        (["--words", "30"], "data.sets.heldout_stories: 30 aligned words were found"),
        (["--dimensions", "16"], "there are no subspaces of 16 dimensions in 16 dimensions"),
        (["--spans", "-1"], "--spans is -1; expected 0 or more"),
        (["--step", "7"], "has no checkpoint of step 7; it has 2"),
        (["train.max_steps=3"], "would have no effect: analyze uses the configuration"),
    ],
)
def test_mistakes_of_users(
    analyzed_run: Analyzed, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, found = analyzed_run
    assert cli.main(["analyze", str(run_dir), *arguments]) == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert json.loads((run_dir / "analysis" / "analysis.json").read_text())["sample"] == found["sample"]


def test_states_that_are_not_finite(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = write_run(tmp_path, tiny_tree(tmp_path, repository))

    load = analysis_run.load_trained

    def damaged(*arguments: Any) -> Any:
        model, config, state = load(*arguments)
        with torch.no_grad():
            canonical_state(model)["backbone.layers.1.input_layernorm.weight"].fill_(float("nan"))
        return model, config, state

    monkeypatch.setattr(analysis_run, "load_trained", damaged)
    with pytest.raises(UserError, match="a state of the layer 2 is not a finite number"):
        analyze(run_dir, Options(words=100, spans=0))
    assert not (run_dir / "analysis").exists()


def test_damaged_file(analyzed_run: Analyzed, tmp_path: Path) -> None:
    run_dir, found = analyzed_run
    for file in ("config.yaml", "metrics.jsonl"):
        (tmp_path / file).write_bytes((run_dir / file).read_bytes())
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "analysis.json").write_text(json.dumps(found | {"layers": "all"}))
    with pytest.raises(UserError, match=r"analysis\.json: layers: .*make it again with tolktrain analyze"):
        render(read_run(tmp_path))


def _begin(config: Config, run_dir: Path) -> SmolTolk:
    """The model with which training begins, and the record of what it begins from."""
    layout, builder = initialize(), ModelBuilder.of(config)
    beginning = Beginning(config, run_dir, {}, is_new=True)
    resolved = ResolvedSettings.of(config, builder.architecture, layout)
    model = replace(builder, beginning=beginning).build(layout, None, resolved)
    beginning.write()
    return model


def _assert_same(one: SmolTolk, other: SmolTolk) -> None:
    ours, theirs = canonical_state(one), canonical_state(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_model_before_training_has_the_weights_of_the_backbone(tmp_path: Path, repository: Path) -> None:
    tree = tiny_tree(tmp_path, repository)
    weights = write_backbone(tmp_path / "backbone", vocab_size=1024)
    tree["model"]["backbone"] = str(tmp_path / "backbone")
    run_dir = write_run(tmp_path, tree)
    config = load_config(run_dir / "config.yaml")
    model, source = starting_model(run_dir, config, Architecture.from_config(config.model), {})
    assert source == f"{tmp_path / 'backbone'}, otherwise random weights of seed 0"
    name = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(canonical_state(model)[f"backbone.{name}"], weights[f"model.{name}"])
    _assert_same(model, _begin(config, run_dir))


def test_model_before_training_of_a_run_that_began_from_another(tmp_path: Path, repository: Path) -> None:
    tree = tiny_tree(tmp_path, repository)
    source = write_run(tmp_path, tree, seed=7)
    tree["run"]["name"] = "second"
    tree["checkpoint"] = {"init_from": str(source)}
    tree["model"]["speech"]["output_adapter_layers"] = 2  # one more, which is random
    run_dir = write_run(tmp_path, tree)
    config = load_config(run_dir / "config.yaml")
    expected = _begin(config, run_dir)
    architecture = Architecture.from_config(config.model)
    found, named = starting_model(run_dir, config, architecture, {})
    _assert_same(found, expected)
    assert named.startswith(str(source))
    shutil.rmtree(source)
    result = analyze(run_dir, Options(words=100, spans=0, measures=("cka",), layers=(1,)))
    assert result["start"] is None and str(source) in result["start_problem"]
    assert list(result["models"]) == ["trained"]
