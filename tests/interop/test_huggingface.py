"""Backbones from Hugging Face: text logits equal those of transformers; bad checkpoints are named."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig

from tolktrain.config.model import ModelConfig, SpeechConfig
from tolktrain.errors import UserError
from tolktrain.interop.huggingface import load_backbone, load_backbone_into
from tolktrain.interop.published import trace
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk

pytestmark = pytest.mark.transformers

BASE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 101,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tied_grouped": {},
    "untied": {"tie_word_embeddings": False, "vocab_size": 64},
    "one_group_large_theta": {"num_key_value_heads": 1, "rope_theta": 500_000.0, "rms_norm_eps": 1e-6},
    "no_groups_wide_heads": {"num_key_value_heads": 4, "head_dim": 20},
    "odd_sizes": {"hidden_size": 66, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 70},
    "llama3_scaling": {"rope_scaling": LLAMA3, "max_position_embeddings": 256},
}


def save(folder: Path, changes: dict[str, Any], **options: Any) -> LlamaForCausalLM:
    """Write a randomly initialized checkpoint."""
    torch.manual_seed(1)
    # transformers 5 adds to the tables that it is given.
    model = LlamaForCausalLM(LlamaConfig(**copy.deepcopy({**BASE, **changes}))).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder, **options)
    return model


LAYOUTS = ["4", "5"]


def lay_out(folder: Path, version: str) -> None:
    """Rewrite the rotary settings of config.json as this version of transformers lays them out."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    table = {"rope_theta": config.pop("rope_theta", None), **(config.pop("rope_scaling", None) or {})}
    table = {"rope_type": "default", **table, **(config.pop("rope_parameters", None) or {})}
    if version == "5":
        config["rope_parameters"] = table
    else:
        config["rope_theta"] = table.pop("rope_theta")
        config["rope_scaling"] = None if table == {"rope_type": "default"} else table
    file.write_text(json.dumps(config))


def assert_same_logits(folder: Path, reference: torch.nn.Module, vocab: int, length: int = 40) -> None:
    tokens = torch.randint(vocab, (3, length))
    with torch.no_grad():
        expected = reference(tokens).logits
        found = trace(load_backbone(str(folder)), {"input": tokens.unsqueeze(1)})["text_logits"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", [*LAYOUTS, "as saved"])
@pytest.mark.parametrize("name", SHAPES)
def test_text_logits_equal_transformers(name: str, layout: str, tmp_path: Path) -> None:
    reference = save(tmp_path, SHAPES[name])
    if layout in LAYOUTS:
        lay_out(tmp_path, layout)
    assert_same_logits(tmp_path, reference, {**BASE, **SHAPES[name]}["vocab_size"], length=70)


def test_sharded_checkpoint(tmp_path: Path) -> None:
    reference = save(tmp_path, {"tie_word_embeddings": False}, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_logits(tmp_path, reference, BASE["vocab_size"])


def test_bfloat16_checkpoint_and_mistral(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = MistralConfig(**BASE, sliding_window=None)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    # Read back, because a cast would round the angles of the reference too.
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_logits(tmp_path, reference, BASE["vocab_size"])


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": {**LLAMA3, "type": "llama3"}, "rope_theta": 250_000.0},
        {"rope_scaling": {"type": "llama3", **{k: v for k, v in LLAMA3.items() if k != "rope_type"}}},
        {"rope_parameters": {**LLAMA3, "rope_theta": None}, "rope_theta": 250_000.0},
        {"rope_parameters": {**LLAMA3, "rope_theta": 250_000.0}, "rope_theta": 250_000, "rope_scaling": LLAMA3},
        {"rope_parameters": {**LLAMA3, "rope_theta": 250_000.0, "partial_rotary_factor": 1.0}},
        {"rope_parameters": None, "rope_scaling": LLAMA3, "rope_theta": 250_000.0},
    ],
)
def test_spellings_of_rotary_settings(settings: dict[str, Any], tmp_path: Path) -> None:
    theta = 250_000.0 if "250000" in json.dumps(settings) else 10_000.0
    reference = save(tmp_path, {"rope_scaling": LLAMA3, "rope_theta": theta, "max_position_embeddings": 256})
    lay_out(tmp_path, "4")
    edit_config(tmp_path, rope_theta=None, rope_scaling=None)
    edit_config(tmp_path, **settings)
    assert_same_logits(tmp_path, reference, BASE["vocab_size"], length=70)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("5", {"rope_theta": 500_000.0}, r"sets rope_theta to 10000\.0 in rope_parameters, .* and to 500000\.0 where"),
        ("5", {"rope_scaling": LLAMA3}, "sets rope_type to 'default' in rope_parameters, .* and to 'llama3' where"),
        ("4", {"rope_parameters": {**LLAMA3, "rope_theta": 20_000.0}}, r"sets rope_theta to 20000\.0 in rope_param"),
        (
            "5",
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "sets partial_rotary_factor to 0.5",
        ),
        ("4", {"partial_rotary_factor": 0.5}, "sets partial_rotary_factor to 0.5"),
        ("5", {"rope_parameters": {"full_attention": LLAMA3}}, "sets rope_parameters for each type of layer"),
        ("5", {"rope_parameters": [LLAMA3]}, r"sets rope_parameters to \[\{.*expected a JSON object"),
    ],
)
def test_rotary_settings_that_disagree_or_cannot_be_computed_are_refused(
    layout: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(tmp_path, {})
    lay_out(tmp_path, layout)
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_backbone(str(tmp_path))


def test_loads_into_a_model_and_draws_the_special_rows(tmp_path: Path) -> None:
    reference = save(tmp_path, {})
    config = ModelConfig(backbone=str(tmp_path), speech=SpeechConfig(num_units=7, input_adapter_layers=1))
    model = SmolTolk(Architecture.from_config(config), seed=3)
    before = {name: tensor.clone() for name, tensor in canonical_state(model).items()}
    load_backbone_into(model, str(tmp_path), seed=3)
    after = canonical_state(model)
    table = after["text_embedding.weight"]
    assert torch.equal(table[:-3], reference.model.embed_tokens.weight)
    assert torch.equal(table[-3:], before["text_embedding.weight"][-3:])
    assert table[-3:].std() > 0
    for name, tensor in after.items():
        if name.startswith("backbone.layers"):
            assert torch.equal(tensor, reference.state_dict()["model." + name.removeprefix("backbone.")]), name
        elif not name.startswith(("backbone.", "text_embedding")):
            assert torch.equal(tensor, before[name]), name


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        load_backbone(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_backbone(str(tmp_path))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path, {})
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != "model.layers.1.mlp.up_proj.weight"}, file)
    with pytest.raises(UserError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_backbone(str(tmp_path))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors file"):
        load_backbone(str(tmp_path))


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    save(tmp_path, {}, max_shard_size="60KB")
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(str(tmp_path))


def test_a_snapshot_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    """Its files are links to others of the cache; a link to anything else is refused."""
    save(tmp_path / "plain", {}, max_shard_size="20kB")
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        path.rename(repository / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    shards = sorted(snapshot.glob("*-of-*.safetensors"))
    assert len(shards) > 1
    load_backbone(str(snapshot))
    target = shards[0].resolve()
    shards[0].unlink()
    shards[0].symlink_to(target.rename(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=f"index.json names the file '{shards[0].name}', which leads outside"):
        load_backbone(str(snapshot))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {"x": None}}, "names the file None, which is not text"),
        ({"weight_map": ["x"]}, "is no index of shards"),
        ([], "is no index of shards"),
    ],
)
def test_bad_index_of_shards_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    save(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 95}, r"has shape \[96, 48\], but config\.json asks for \[95, 48\]"),
        ({"num_hidden_layers": 2}, r"holds model\.layers\.2\..*, for which its config\.json has no place"),
        ({"num_hidden_layers": 4}, r"lacks model\.layers\.3"),
        ({"tie_word_embeddings": False}, r"lacks lm_head\.weight"),
        ({"vocab_size": 100}, r"embed_tokens.*asks for \[100, 48\]"),
        ({"model_type": "gpt2"}, "only Llama-family decoders"),
        ({"attention_bias": True}, "sets attention_bias to True"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_attention_heads": 0}, r"config\.json sets num_attention_heads to 0; expected a whole number above 0"),
        ({"num_key_value_heads": 3}, r"config\.json: num_key_value_heads 3 does not divide num_attention_heads 4"),
        ({"num_key_value_heads": 0}, "sets num_key_value_heads to 0; expected a whole number above 0"),
        ({"num_key_value_heads": "2"}, "sets num_key_value_heads to '2'; expected a whole number above 0"),
        ({"num_attention_heads": True}, "sets num_attention_heads to True; expected a whole number above 0"),
        ({"num_attention_heads": 5, "head_dim": None}, "num_attention_heads 5 does not divide hidden_size 48"),
        ({"num_attention_heads": 16, "head_dim": None}, "gives heads of width 3, which cannot be rotated"),
        ({"head_dim": 11}, "head_dim 11 cannot be rotated"),
        ({"head_dim": -2}, "sets head_dim to -2; expected a whole number above 0"),
        ({"num_hidden_layers": 2.0}, r"sets num_hidden_layers to 2\.0; expected a whole number above 0"),
        ({"vocab_size": -5}, "sets vocab_size to -5; expected a whole number above 0"),
        ({"rms_norm_eps": "x"}, "sets rms_norm_eps to 'x'; expected a number above 0"),
        ({"initializer_range": [1]}, r"sets initializer_range to \[1\]; expected a number above 0"),
        ({"tie_word_embeddings": "no"}, "sets tie_word_embeddings to 'no'; expected true or false"),
    ],
)
def test_config_that_disagrees_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(tmp_path, {})
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "scales rotary angles by 'yarn'"),
        ({"rope_theta": "big"}, "sets rope_theta to 'big'; expected a number above 0"),
        ({"rope_theta": math.nan}, "sets rope_theta to nan; expected a number above 0"),
        ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "sets factor to '8'; expected a number above 0"),
        ({"rope_scaling": {"rope_type": "llama3"}}, r"lacks factor \(a number above 0\)"),
    ],
)
def test_rotary_settings_that_make_no_sense_are_refused(
    changes: dict[str, Any], message: str, layout: str, tmp_path: Path
) -> None:
    save(tmp_path, {})
    lay_out(tmp_path, "4")
    edit_config(tmp_path, **changes)
    lay_out(tmp_path, layout)
    with pytest.raises(UserError, match=message):
        load_backbone(str(tmp_path))


def test_rotary_settings_that_are_no_table_are_refused(tmp_path: Path) -> None:
    save(tmp_path, {})
    edit_config(tmp_path, rope_scaling="llama3")
    with pytest.raises(UserError, match="sets rope_scaling to 'llama3'; expected a JSON object"):
        load_backbone(str(tmp_path))
