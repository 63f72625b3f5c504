"""Folders of backbones in which files contradict each other, lack something or hold something else."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_backbone import CONFIG, INDEX, SINGLE, shard_name, tensors, write_backbone, write_config, write_files
from torch import Tensor

from tolktrain.errors import UserError
from tolktrain.interop.huggingface import load_backbone
from tolktrain.model.llama import read_llama_config
from tolktrain.model.parameter_layout import canonical_state

NAMES = sorted(tensors())
QUIET = settings(max_examples=20, deadline=None)


def loaded(folder: Path) -> dict[str, Tensor]:
    """What a folder's backbone has been read as, under the names of Hugging Face, without rows of special ids."""
    state = canonical_state(load_backbone(str(folder)))
    found = {f"model.{name.removeprefix('backbone.')}": t for name, t in state.items() if name.startswith("backbone.")}
    found["model.embed_tokens.weight"] = state["text_embedding.weight"][: CONFIG["vocab_size"]]
    if "text_head.weight" in state:
        found["lm_head.weight"] = state["text_head.weight"]
    return found


def assert_loads(folder: Path, expected: Mapping[str, Tensor]) -> None:
    found = loaded(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].float()) for name in expected)


def refusal(folder: Path) -> str:
    """The message with which a folder is refused."""
    with pytest.raises(UserError) as caught:
        load_backbone(str(folder))
    message = str(caught.value)
    assert message.startswith("model.backbone: ") and str(folder) in message
    return message


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


STRAYS: dict[str, Callable[[Path], object]] = {
    "pytorch_model.bin": lambda path: path.write_bytes(b"\x80\x04N."),
    "pytorch_model.bin.index.json": lambda path: path.write_text('{"weight_map": {"model.norm.weight": "a.bin"}}'),
    "consolidated.safetensors": lambda path: save_file({"tok_embeddings.weight": torch.ones(3)}, path),
    "consolidated.00.pth": lambda path: path.write_bytes(b"\0"),
    "adapter_model.safetensors": lambda path: save_file({"model.norm.weight": torch.ones(16)}, path),
    "adapter_config.json": lambda path: path.write_text("{}"),
    "training_args.bin": lambda path: path.write_bytes(b"\x80\x04N."),
    "optimizer.pt": lambda path: path.write_bytes(b"\0"),
    "flax_model.msgpack": lambda path: path.write_bytes(b"\0"),
    "model.fp16.safetensors": lambda path: save_file({"model.norm.weight": torch.ones(16)}, path),
    "checkpoint-100/model.safetensors": lambda path: save_file(tensors(seed=9), path),
    "original/model.safetensors.index.json": lambda path: path.write_text("no JSON"),
    "tokenizer.json": lambda path: path.write_text("{}"),
}


@QUIET
@given(names=st.sets(st.sampled_from(sorted(STRAYS))), is_sharded=st.booleans())
def test_other_files_of_a_folder_do_not_count(
    names: set[str], is_sharded: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = emptied(tmp_path_factory.getbasetemp() / "strays")
    expected = write_backbone(folder)
    if is_sharded:
        (folder / SINGLE).rename(folder / shard_name(1, 1))
        write_files(folder, {}, dict.fromkeys(expected, shard_name(1, 1)))
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        STRAYS[name](folder / name)
    assert_loads(folder, expected)


def test_an_adapter_that_is_not_applied_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_backbone(tmp_path)
    STRAYS["adapter_model.safetensors"](tmp_path / "adapter_model.safetensors")
    with caplog.at_level(logging.WARNING):
        load_backbone(str(tmp_path))
    assert f"{tmp_path / 'adapter_model.safetensors'} is an adapter (LoRA), which is not applied" in caplog.text


@QUIET
@given(
    places=st.lists(st.integers(0, 2), min_size=len(NAMES), max_size=len(NAMES)),
    has_index=st.booleans(),
    has_single=st.booleans(),
    copied=st.sets(st.sampled_from(NAMES)),
    changed=st.none() | st.tuples(st.sampled_from(NAMES), st.integers(0, 10**6)),
)
def test_copies_of_a_tensor_must_agree(
    places: list[int],
    has_index: bool,
    has_single: bool,
    copied: set[str],
    changed: tuple[str, int] | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Shards with or without index, a single file in addition, tensors in two shards: one value in a copy decides."""
    folder = emptied(tmp_path_factory.getbasetemp() / "copies")
    write_config(folder)
    expected = tensors()
    shards = [{name: expected[name] for name, place in zip(NAMES, places, strict=True) if place == i} for i in range(3)]
    for name in copied:
        shards[(places[NAMES.index(name)] + 1) % 3][name] = expected[name].clone()
    files = {shard_name(i + 1, 3): shards[i] for i in range(3) if shards[i]}
    if has_single:
        files[SINGLE] = {name: tensor.clone() for name, tensor in expected.items()}
    where = [name for name in files if changed is not None and changed[0] in files[name]]
    if changed is not None:
        values = files[where[-1]][changed[0]].clone()
        values.flatten()[changed[1] % values.numel()] += 1
        files[where[-1]][changed[0]] = values
    index = {name: shard_name(place + 1, 3) for name, place in zip(NAMES, places, strict=True)}
    write_files(folder, files, index if has_index else None)
    if changed is None:
        assert_loads(folder, expected)
    elif len(where) > 1:
        message = refusal(folder)
        assert f"{changed[0]} is in" in message and "and the two differ" in message
        assert sum(name in message for name in where) == 2
    else:
        assert loaded(folder)[changed[0]].ne(expected[changed[0]]).sum() == 1


def _two_shards(folder: Path, **options: Any) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    write_config(folder, **options)
    expected = tensors(**options)
    names = sorted(expected)
    files = {shard_name(i + 1, 2): {name: expected[name] for name in names[i::2]} for i in range(2)}
    return files, {name: shard_name(i + 1, 2) for i in range(2) for name in names[i::2]}


def _listed_file_is_gone(folder: Path) -> None:
    files, index = _two_shards(folder)
    del files[shard_name(2, 2)]
    write_files(folder, files, index)


def _listed_file_is_gone_next_to_a_single_one(folder: Path) -> None:
    _listed_file_is_gone(folder)
    write_files(folder, {SINGLE: tensors()})


def _index_lacks_a_tensor(folder: Path) -> None:
    files, index = _two_shards(folder)
    write_files(folder, files, {name: file for name, file in index.items() if name != "model.norm.weight"})


def _index_lists_a_tensor_that_is_nowhere(folder: Path) -> None:
    files, index = _two_shards(folder)
    write_files(folder, files, {**index, "model.layers.0.self_attn.q_proj.bias": shard_name(1, 2)})


def _index_names_the_wrong_file(folder: Path) -> None:
    files, index = _two_shards(folder)
    write_files(folder, files, {**index, NAMES[0]: shard_name(2, 2)})


def _shards_of_another_save(folder: Path) -> None:
    files, index = _two_shards(folder)
    write_files(folder, {**files, shard_name(3, 3): {"model.layers.2.mlp.up_proj.weight": torch.ones(2)}}, index)


def _single_file_lacks_a_tensor(folder: Path) -> None:
    files, index = _two_shards(folder)
    single = {name: tensor for name, tensor in tensors().items() if name != NAMES[3]}
    write_files(folder, {**files, SINGLE: single}, index)


def _single_file_in_another_type(folder: Path) -> None:
    files, index = _two_shards(folder)
    write_files(folder, {**files, SINGLE: {name: tensor.half() for name, tensor in tensors().items()}}, index)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_listed_file_is_gone, "model-00002-of-00002.safetensors cannot be read"),
        (_listed_file_is_gone_next_to_a_single_one, "lists model-00002-of-00002.safetensors, which does not exist"),
        (_index_lacks_a_tensor, "json lacks model.norm.weight, which model-0000"),
        (_index_lists_a_tensor_that_is_nowhere, "q_proj.bias is in model-00001-of-00002.safetensors, which does not"),
        (_index_names_the_wrong_file, f"says that {NAMES[0]} is in model-00002-of-00002.safetensors, which does not"),
        (_shards_of_another_save, "model-00003-of-00003.safetensors holds model.layers.2.mlp.up_proj.weight, which is"),
        (_single_file_lacks_a_tensor, f"lists {NAMES[3]}, which model.safetensors does not hold"),
        (_single_file_in_another_type, "the two differ"),
    ],
)
def test_an_index_and_files_that_disagree_are_refused(
    write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    assert message in refusal(tmp_path)


@QUIET
@given(
    name=st.sampled_from(NAMES),
    place=st.integers(0, 10**6),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_a_value_that_is_not_finite_is_found(
    name: str, place: int, value: float, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = emptied(tmp_path_factory.getbasetemp() / "finite")
    write_config(folder)
    content = {other: tensor.to(dtype) for other, tensor in tensors().items()}
    place %= content[name].numel()
    content[name].flatten()[place] = value
    write_files(folder, {SINGLE: content})
    position = [int(number) for number in torch.unravel_index(torch.tensor(place), content[name].shape)]
    message = refusal(folder)
    assert f"{name} in {folder / SINGLE} holds {'NaN' if math.isnan(value) else 'infinity'} (1 of" in message
    assert f"the first at {position})" in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_largest_and_smallest_values_of_a_type_are_finite(dtype: torch.dtype, tmp_path: Path) -> None:
    content = {name: tensor.to(dtype) for name, tensor in write_backbone(tmp_path).items()}
    limits = torch.finfo(torch.float32 if dtype == torch.float64 else dtype)
    for number, value in enumerate((limits.max, limits.min, limits.tiny, limits.smallest_normal / 2, -0.0)):
        content["model.norm.weight"][number] = value
    write_files(tmp_path, {SINGLE: content})
    assert_loads(tmp_path, content)


@pytest.mark.parametrize(
    ("suffix", "dtype", "method"),
    [
        ("qweight", torch.int32, "GPTQ or AWQ"),
        ("weight.absmax", torch.uint8, "bitsandbytes"),
        ("weight.quant_state.bitsandbytes__nf4", torch.uint8, "bitsandbytes"),
        ("SCB", torch.float32, "bitsandbytes"),
        ("weight_scale_inv", torch.float32, "fp8 or int8"),
        ("weight_packed", torch.int32, "compressed-tensors"),
        ("weight", torch.float8_e4m3fn, "fp8"),
        ("weight", torch.float8_e5m2, "fp8"),
        ("weight", torch.int8, "int8"),
        ("weight", torch.uint8, "4-bit or 8-bit"),
    ],
)
def test_a_quantized_backbone_is_called_one(suffix: str, dtype: torch.dtype, method: str, tmp_path: Path) -> None:
    content = write_backbone(tmp_path)
    name = f"model.layers.1.mlp.up_proj.{suffix}"
    write_files(tmp_path, {SINGLE: {**content, name: torch.ones(24, 16).to(dtype)}})
    message = refusal(tmp_path)
    assert f"is quantized ({method}: {name} in {SINGLE} has the type" in message
    assert "take the original checkpoint" in message


def test_a_quantization_in_config_json_is_called_one(tmp_path: Path) -> None:
    write_backbone(tmp_path)
    write_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "has a quantization_config ('gptq'): the weights are quantized" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: name.removeprefix("model."), "holds embed_tokens.weight instead: the model without its head"),
        (lambda name: f"_orig_mod.{name}", "wrapped by torch.compile was saved; save that of model._orig_mod"),
        (lambda name: f"module.{name}", "wrapped by DistributedDataParallel or DeepSpeed was saved; save that of"),
        (lambda name: f"module._orig_mod.{name}", "remove 'module.' from the names"),
        (lambda name: name.replace("layers.1.", "layers.1._orig_mod."), "holds model.layers.1._orig_mod."),
        (lambda name: name.replace("model.", "model._fsdp_wrapped_module."), "wrapped by FSDP was saved"),
        (lambda name: f"base_model.model.{name}", "remove 'base_model.model.' from the names"),
        (lambda name: f"language_model.{name}", "holds language_model.model.embed_tokens.weight instead: the text mod"),
        (lambda name: name.replace("mlp", "ffn"), "calls for; the download is incomplete"),
    ],
)
def test_other_names_are_explained(rename: Callable[[str], str], message: str, tmp_path: Path) -> None:
    content = write_backbone(tmp_path)
    write_files(tmp_path, {SINGLE: {rename(name): tensor for name, tensor in content.items()}})
    found = refusal(tmp_path)
    assert "lacks model." in found and message in found


@pytest.mark.parametrize(
    ("rename", "added"),
    [
        (lambda name: f"base_model.model.{name}".replace("q_proj.", "q_proj.base_layer."), []),
        (lambda name: name.replace("q_proj.", "q_proj.base_layer."), []),
        (lambda name: name, ["model.layers.0.self_attn.q_proj.lora_A.default.weight"]),
        (lambda name: name, ["base_model.model.lm_head.lora_B.weight"]),
    ],
)
def test_the_state_of_a_model_with_adapters(rename: Callable[[str], str], added: list[str], tmp_path: Path) -> None:
    content = write_backbone(tmp_path)
    renamed = {rename(name): tensor for name, tensor in content.items()}
    write_files(tmp_path, {SINGLE: renamed | dict.fromkeys(added, next(iter(content.values())).clone())})
    assert "a model with adapters (LoRA) was saved; merge them with peft" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("is_tied", "head", "message"),
    [
        (True, "equal", None),
        (True, "other", "sets tie_word_embeddings to true, but lm_head.weight (in model.safetensors) differs"),
        (True, "longer", "sets tie_word_embeddings to true, but lm_head.weight (in model.safetensors) differs"),
        (False, "equal", None),
        (False, "other", None),
        (False, None, "lacks lm_head.weight, and its config.json does not tie the text head"),
    ],
)
def test_the_text_head_and_the_configuration(
    is_tied: bool, head: str | None, message: str | None, tmp_path: Path
) -> None:
    content = write_backbone(tmp_path)
    write_config(tmp_path, tie_word_embeddings=is_tied)
    table = content["model.embed_tokens.weight"]
    heads = {"equal": table.clone(), "other": table + 1, "longer": torch.cat((table, table[:1]))}
    expected = dict(content)
    if head is not None:
        content["lm_head.weight"] = heads[head]
        expected |= {} if is_tied else {"lm_head.weight": heads[head]}
    write_files(tmp_path, {SINGLE: content})
    if message is None:
        assert_loads(tmp_path, expected)
    else:
        assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"vocab_size": 32}, "set vocab_size to 31 in config.json"),
        ({"intermediate_size": 20}, "set intermediate_size to 24 in config.json"),
        ({"num_key_value_heads": 4}, "set num_key_value_heads to 2 (or head_dim to another width) in config.json"),
        ({"hidden_size": 32}, "set hidden_size to 16 in config.json"),
    ],
)
def test_sizes_that_contradict_config_json(changes: dict[str, int], fix: str, tmp_path: Path) -> None:
    write_backbone(tmp_path)
    write_config(tmp_path, **changes)
    message = refusal(tmp_path)
    assert "but config.json asks for" in message and f"if the weights are right, {fix}" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch_dtype": "bfloat16", "dtype": "float32"}, "sets torch_dtype to 'bfloat16' and dtype to 'float32'"),
        ({"torch_dtype": "torch.bfloat16", "dtype": "bfloat16"}, None),
        ({"torch_dtype": None, "dtype": "float32"}, None),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "default"}},
            "sets rope_type to 'default' and its older name",
        ),
        ({"rope_scaling": {"type": "default", "rope_type": "default"}}, None),
        (
            {"rope_scaling": {"rope_type": "default", "rope_theta": 5.0}},
            "sets rope_theta to 10000.0 and to 5.0 in rope_",
        ),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 1e4}}, None),
        ({"rope_parameters": {"rope_theta": 5.0}}, "sets rope_theta to 5.0 in rope_parameters, which transformers 5"),
    ],
)
def test_settings_under_two_names(changes: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    expected = write_backbone(tmp_path)
    write_config(tmp_path, **changes)
    if message is None:
        assert read_llama_config(str(tmp_path))["rope_theta"] == 10_000.0
        assert_loads(tmp_path, expected)
    else:
        assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "pytorch_model.bin holds pickled weights; load them with transformers"),
        ("pytorch_model-00001-of-00002.bin", "holds pickled weights"),
        ("consolidated.00.pth", "holds weights in the original format of Meta or Mistral; download the Hugging Face"),
        ("consolidated.safetensors", "holds weights in the original format of Meta or Mistral"),
        ("adapter_model.safetensors", "holds an adapter (LoRA), which is not a whole model; merge it"),
        ("flax_model.msgpack", "holds weights of Flax"),
        ("tf_model.h5", "holds weights of TensorFlow"),
        ("model-Q4_K_M.gguf", "holds weights that are quantized for llama.cpp"),
        ("training_args.bin", "download the checkpoint again"),
        ("checkpoint-5/model.safetensors", "checkpoint-5 does; name that folder"),
    ],
)
def test_a_folder_with_something_else_says_what_it_holds(file: str, message: str, tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"\0" * 16)
    found = refusal(tmp_path)
    assert "holds no *.safetensors file with the weights of a model" in found and message in found


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 269060552\n")
    assert "is a pointer of Git LFS instead of the file itself; run `git lfs pull`" in refusal(tmp_path)


def test_config_json_in_a_folder_below_is_named(tmp_path: Path) -> None:
    write_backbone(tmp_path / "final")
    assert f"{tmp_path / 'final'} has one: name that folder" in refusal(tmp_path)


def test_index_json_is_not_read_as_a_shard(tmp_path: Path) -> None:
    """An index that names the single file itself."""
    expected = write_backbone(tmp_path)
    write_files(tmp_path, {}, dict.fromkeys(expected, SINGLE))
    assert json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert_loads(tmp_path, expected)
