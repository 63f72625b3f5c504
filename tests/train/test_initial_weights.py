"""A run that begins from trained weights: every tensor has the value that it must have, under any other switches."""

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import small_config
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))  # for `small_backbone`

import small_backbone
from initial_cases import source_run

from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.interop.tensor_writer import DType
from tolktrain.interop.weights import export_weights
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.runs.initial_weights import read_record
from tolktrain.runs.paths import RunPaths
from tolktrain.train.initial_weights import Beginning
from tolktrain.train.model_builder import ModelBuilder
from tolktrain.train.resolved import ResolvedSettings

Tensors = dict[str, Tensor]

ARCHITECTURES = st.fixed_dictionaries(
    {
        "model.backbone.text_vocab_size": st.sampled_from([100, 90, 117]),
        "model.backbone.tie_text_embeddings": st.booleans(),
        "model.special_tokens": st.lists(st.sampled_from(["<|a|>", "<|b|>", "<|c|>"]), unique=True).map(tuple),
        "model.speech.num_units": st.sampled_from([50, 40, 61]),
        "model.speech.num_codebooks": st.integers(1, 3),
        "model.speech.input_adapter_layers": st.integers(0, 2),
        "model.speech.output_adapter_layers": st.integers(0, 2),
        "model.speech.layer_pooling": st.sampled_from(["none", "static", "dynamic", "both"]),
        "model.speech.residual": st.booleans(),
    }
)


def overrides(switches: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in switches.items()]


def built(config: Config, run_dir: Path, tokenizers: Mapping[str, str | None] | None = None) -> SmolTolk:
    """The model with which a run of this configuration begins, in one process."""
    layout, builder = initialize(), ModelBuilder.of(config)
    beginning = Beginning(config, run_dir, tokenizers or {}, is_new=True)
    resolved = ResolvedSettings.of(config, builder.architecture, layout)
    return ModelBuilder(config, builder.architecture, builder.cut, beginning).build(layout, None, resolved)


def rows_of_ids(fresh: Tensor, old: Tensor, specials: int, keeps: bool) -> Tensor:
    """A table, row by row: ids that both have, special ids by their place from the end, and fresh ones."""
    table = fresh.clone()
    for row in range(len(table)):
        from_end = len(table) - row
        if from_end <= specials:
            table[row] = old[len(old) - from_end]
        elif keeps and row < len(old) - specials:
            table[row] = old[row]
    return table


def text_table(fresh: Tensor, old: Tensor, names: Sequence[str], old_names: Sequence[str], keeps: bool) -> Tensor:
    """With rows of the given names at the end of each table."""
    num_rows, num_old_rows = len(fresh) - len(names), len(old) - len(old_names)
    table = rows_of_ids(fresh[:num_rows], old[:num_old_rows], 3, keeps)
    mean = old[: min(num_rows, num_old_rows) - 3].double().mean(dim=0).float()
    rows = []
    for number, name in enumerate(names):
        if name in old_names:
            rows.append(old[num_old_rows + old_names.index(name)])
        else:
            rows.append(mean if keeps else fresh[num_rows + number])
    return torch.cat((table, torch.stack(rows))) if rows else table


def expected(
    fresh: Tensors,
    old: Tensors,
    keeps_text: bool = True,
    keeps_speech: bool = True,
    names: Sequence[str] = (),
    old_names: Sequence[str] = (),
) -> Tensors:
    """Computed without the code under test, from a model as it begins without weights, and the weights."""
    result = {name: old.get(name, tensor).clone() for name, tensor in fresh.items()}
    for name in fresh:
        if name == "text_embedding.weight":
            result[name] = text_table(fresh[name], old[name], names, old_names, keeps_text)
        elif name == "text_head.weight":
            head = old.get(name, old["text_embedding.weight"][: -3 - len(old_names)])
            result[name] = rows_of_ids(fresh[name], head, 0, keeps_text)
        elif name.startswith("speech_embedding.") and name in old:
            result[name] = rows_of_ids(fresh[name], old[name], 2, keeps_speech)
    return result


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    differing = [name for name in found if not torch.equal(found[name], wanted[name])]
    assert not differing


def assert_close(found: Tensors, wanted: Tensors) -> None:
    """Equal, apart from the rounding of a mean."""
    assert found.keys() == wanted.keys()
    differing = [name for name in found if not torch.allclose(found[name], wanted[name], rtol=0, atol=1e-7)]
    assert not differing


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=ARCHITECTURES, now=ARCHITECTURES, tables=st.sampled_from(["auto", "keep", "new"]), data=st.data())
def test_any_switches_after_any_others(
    before: dict[str, Any], now: dict[str, Any], tables: str, data: st.DataObject, tmp_path: Path, sets: Path
) -> None:
    digests = st.sampled_from([None, "a" * 64, "b" * 64])
    trained = {"text": data.draw(digests), "speech": data.draw(digests)}
    given_ = {"text": data.draw(digests), "speech": data.draw(digests)}
    with source_run(tmp_path, small_config(tmp_path, sets, *overrides(before)), trained) as (run_dir, model):
        config = small_config(
            tmp_path, sets, *overrides(now), f"checkpoint.init_from={run_dir}", f"checkpoint.init_tables={tables}"
        )
        found = canonical_state(built(config, tmp_path / "new", given_))
    same = {kind: None in (trained[kind], given_[kind]) or trained[kind] == given_[kind] for kind in trained}
    nested = [before[f"model.speech.{key}"] == now[f"model.speech.{key}"] for key in ("num_units", "num_codebooks")]
    same["speech"] |= nested == [True, False]
    keeps = same if tables == "auto" else dict.fromkeys(same, tables == "keep")
    fresh = canonical_state(SmolTolk(Architecture.from_config(config.model), seed=config.run.seed))
    names = [switches["model.special_tokens"] for switches in (now, before)]
    assert_close(found, expected(fresh, canonical_state(model), keeps["text"], keeps["speech"], *names))


@pytest.mark.parametrize("form", ["run", "checkpoints", "checkpoint", "fp32", "bf16", "earlier"])
def test_every_form_of_weights(form: str, tmp_path: Path, sets: Path) -> None:
    with source_run(tmp_path, small_config(tmp_path, sets)) as (run_dir, model):
        path = {"run": run_dir, "checkpoints": run_dir / "checkpoints"}.get(form, tmp_path / "weights")
        if form == "checkpoint":
            path = run_dir / "checkpoints" / "step-00000007"
        elif form in ("fp32", "bf16", "earlier"):
            dtype: DType = "bf16" if form == "bf16" else "fp32"
            export_weights(run_dir, path, dtype=dtype, report=lambda _: None)
        if form == "earlier":  # version 0.1 wrote the same files, with other names of data types
            description = path / "architecture.json"
            description.write_text(description.read_text().replace('"fp32"', '"float32"'))
        found = canonical_state(built(small_config(tmp_path, sets, f"checkpoint.init_from={path}"), tmp_path / "new"))
    old = canonical_state(model)
    assert_equal(found, {name: t.bfloat16().float() if form == "bf16" else t for name, t in old.items()})


def test_what_was_taken_is_recorded_and_an_interrupted_start_begins_from_the_same(tmp_path: Path, sets: Path) -> None:
    """Also if the source has newer checkpoints by then, and if the key is dropped."""
    new = tmp_path / "new"
    new.mkdir()
    with source_run(tmp_path, small_config(tmp_path, sets)) as (run_dir, model):
        config = small_config(
            tmp_path, sets, "model.speech.output_adapter_layers=2", "model.speech.layer_pooling=static",
            "model.speech.num_units=60", f"checkpoint.init_from={run_dir}",
        )  # fmt: skip
        layout, builder = initialize(), ModelBuilder.of(config)
        resolved = ResolvedSettings.of(config, builder.architecture, layout)
        beginning = Beginning(config, new, {}, is_new=True)
        builder = ModelBuilder(config, builder.architecture, builder.cut, beginning)
        first = canonical_state(builder.build(layout, None, resolved))
        beginning.write()
        record = read_record(RunPaths(new).initial_weights)
        assert record is not None and (record.step, record.stage, record.format) == (7, "joint", "checkpoint")
        assert record.init_from == str(run_dir) and record.folder.endswith("step-00000007")
        assert len(record.digest) == 64 and record.taken_in_part == ["speech_embedding.0.weight"]
        assert all(name.startswith("output_adapter.layers.1.") for name in record.new) and len(record.new) == 9
        assert record.unused == ["pooling.selector.bias", "pooling.selector.weight"]
        assert set(record.taken) == set(first) - set(record.new) - set(record.taken_in_part)
        with source_run(tmp_path, small_config(tmp_path, sets), step=9, seed=8):
            assert_equal(canonical_state(builder.build(layout, None, resolved)), first)  # after a rollback
            again = Beginning(config, new, {}, is_new=False)
            builder = ModelBuilder(config, builder.architecture, builder.cut, again)
            assert_equal(canonical_state(builder.build(layout, None, resolved)), first)
            dropped = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"init_from": None})})
            again = Beginning(dropped, new, {}, is_new=False)
            builder = ModelBuilder(dropped, builder.architecture, builder.cut, again)
            assert_equal(canonical_state(builder.build(layout, None, resolved)), first)
            found = canonical_state(built(config, new))  # a restart
            assert not torch.equal(found["backbone.norm.weight"], first["backbone.norm.weight"])


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ("model.backbone.num_layers=3", ["num_layers is 2 there, 3 in the model", "pooling.selector.weight has shape"]),
        ("model.backbone.num_attention_heads=2", ["num_attention_heads is 4 there, 2 in the model", "head_dim is 8"]),
        ("model.backbone.num_key_value_heads=4", ["k_proj.weight has shape [16, 32] there, [32, 32] in the model"]),
        ("model.backbone.ffn_hidden_size=64", ["mlp.down_proj.weight has shape [32, 48] there, [32, 64] in the model"]),
        ("model.backbone.hidden_size=64", ["text_embedding.weight has shape [103, 32] there, [103, 64] in the model"]),
    ],
)
def test_what_does_not_fit_is_named(change: str, lines: list[str], tmp_path: Path, sets: Path) -> None:
    with source_run(tmp_path, small_config(tmp_path, sets)) as (run_dir, _):
        config = small_config(tmp_path, sets, change, f"checkpoint.init_from={run_dir}")
        with pytest.raises(UserError) as caught:
            built(config, tmp_path / "new")
    message = str(caught.value)
    assert message.startswith("checkpoint.init_from: ") and "step-00000007 does not fit the model:" in message
    assert all(line in message for line in lines)


def test_other_settings_of_the_backbone_are_named(tmp_path: Path, sets: Path, caplog: pytest.LogCaptureFixture) -> None:
    with source_run(tmp_path, small_config(tmp_path, sets), {"text": "a" * 64, "speech": None}) as (run_dir, model):
        config = small_config(tmp_path, sets, "model.backbone.rope_theta=5000.0", f"checkpoint.init_from={run_dir}")
        with caplog.at_level(logging.WARNING):
            found = canonical_state(built(config, tmp_path / "new", {"text": "b" * 64, "speech": "c" * 64}))
    assert "rope_theta is 5000.0 now, and was 100000.0 when the weights were trained" in caplog.text
    assert "another text tokenizer (sha256 bbbbbbbbbbbb) than the weights were trained with (sha256 aaaa" in caplog.text
    assert "speech tokenizer" not in caplog.text
    old = canonical_state(model)
    assert torch.equal(found["text_embedding.weight"][-3:], old["text_embedding.weight"][-3:])
    assert not torch.equal(found["text_embedding.weight"][:-3], old["text_embedding.weight"][:-3])
    assert torch.equal(found["speech_embedding.0.weight"], old["speech_embedding.0.weight"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("form", ["run", "exported"])
def test_weights_that_are_not_finite_are_refused(value: float, form: str, tmp_path: Path, sets: Path) -> None:
    spoiled = ("output_adapter.layers.0.mlp.up_proj.weight", value)
    with source_run(tmp_path, small_config(tmp_path, sets), spoiled=spoiled) as (run_dir, _):
        path = run_dir
        if form == "exported":
            path = tmp_path / "weights"
            export_weights(run_dir, path, report=lambda _: None)
        with pytest.raises(UserError, match=r"output_adapter.layers.0.mlp.up_proj.weight in .* holds (NaN|infinity)"):
            built(small_config(tmp_path, sets, f"checkpoint.init_from={path}"), tmp_path / "new")


def test_weights_in_a_bucket_are_refused(tmp_path: Path, sets: Path) -> None:
    with pytest.raises(UserError, match="checkpoint.init_from: 's3://bucket/run' is an address, but only local paths"):
        small_config(tmp_path, sets, "checkpoint.init_from=s3://bucket/run")


def test_folders_that_hold_no_weights_are_refused(tmp_path: Path, sets: Path) -> None:
    small_backbone.write_backbone(tmp_path / "hf")
    (tmp_path / "empty").mkdir()
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with source_run(tmp_path, small_config(tmp_path, sets)) as (run_dir, _):
        shard = next((run_dir / "checkpoints" / "step-00000007").rglob("*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        cases = {
            tmp_path / "absent": "is no folder; give a run, a checkpoint or exported weights",
            tmp_path / "empty": "holds no weights of a known format",
            tmp_path
            / "hf": "is a Hugging Face checkpoint, which has the weights of a backbone only; set model.backbone",
            tmp_path / "new": "is in the run directory of this run; give this run another run.name",
            tmp_path / "new" / "checkpoints": "is in the run directory of this run",
            run_dir: "has no valid checkpoint.*SHA-256 differs",
            shard.parents[1]: "its content has changed since it was written",
        }
        for path, message in cases.items():
            config = small_config(tmp_path, sets, f"checkpoint.init_from={path}")
            with pytest.raises(UserError, match=f"(?s)^checkpoint.init_from.*{message}"):
                built(config, tmp_path / "new")


def test_a_backbone_provides_what_the_weights_lack(
    tmp_path: Path, sets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Text rows that are new are those of the configured backbone; its tokenizer is compared with that of the data."""
    changes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 110}
    content = small_backbone.write_backbone(tmp_path / "hf", **changes)
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of "{}"
    options = {"backbone": str(tmp_path / "hf"), "speech": small_config(tmp_path, sets).model.speech.model_dump()}
    with source_run(tmp_path, small_config(tmp_path, sets)) as (run_dir, model):
        config = small_config(tmp_path, sets, f"checkpoint.init_from={run_dir}")
        config = Config.model_validate({**config.model_dump(), "model": options})
        with caplog.at_level(logging.WARNING):
            found = canonical_state(built(config, tmp_path / "new", {"text": "a" * 64, "speech": None}))
            assert (
                f"(sha256 {digest}) is not the tokenizer that the data was made with (sha256 {'a' * 64})" in caplog.text
            )
            caplog.clear()
            built(config, tmp_path / "new", {"text": digest, "speech": None})
            assert "is not the tokenizer" not in caplog.text
    old, table = canonical_state(model), found["text_embedding.weight"]
    assert torch.equal(table[:100], old["text_embedding.weight"][:100])
    assert torch.equal(table[100:110], content["model.embed_tokens.weight"][100:])
    assert torch.equal(table[110:], old["text_embedding.weight"][100:])
    name = "backbone.layers.1.mlp.up_proj.weight"
    assert torch.equal(found[name], old[name])
