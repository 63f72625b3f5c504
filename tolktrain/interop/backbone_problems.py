"""Refuses backbones whose weights are not those that config.json describes; each message says what to do."""

import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from tolktrain.checkpoint.slices import Shape
from tolktrain.errors import UserError
from tolktrain.interop.safetensors_folder import TensorFolder
from tolktrain.model.architecture import Architecture

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_OWNER = "model.backbone: "
_INCOMPLETE = "the download is incomplete, or config.json belongs to another model; download the checkpoint again"
# Endings of the tensors that quantization adds or leaves in the place of a weight, and its methods.
_QUANTIZED = (
    (re.compile(r".*\.(qweight|qzeros|g_idx)"), "GPTQ or AWQ"),
    (re.compile(r".*\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)"), "bitsandbytes"),
    (re.compile(r".*\.quant_state\..*"), "bitsandbytes"),
    (re.compile(r".*\.(weight_scale_inv|weight_scale|input_scale)"), "fp8 or int8"),
    (re.compile(r".*\.(weight_packed|weight_shape|weight_zero_point)"), "compressed-tensors"),
    (re.compile(r".*\.(W_q|weight_blocks|weight_scales)"), "HQQ or MXFP4"),
)
_TYPES = {"F8_": "fp8", "I8": "int8", "U8": "4-bit or 8-bit"}  # first letters of the types of safetensors
# Parts of names that a wrapper adds, wherever they are, and what to save instead of the wrapper.
_WRAPPERS = {
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "_fsdp_wrapped_module.": ("FSDP", "the model inside of FSDP"),
    "_checkpoint_wrapped_module.": ("activation checkpointing", "the model without this wrapper"),
    "module.": ("DistributedDataParallel or DeepSpeed", "model.module"),
}
_WRAPPER = re.compile("|".join(rf"(?:^|(?<=\.)){re.escape(part)}" for part in _WRAPPERS))

_ADAPTED = re.compile(r"\.(base_layer|lora_[AB])\.")  # by peft

logger = logging.getLogger(__name__)


def refuse_quantized(tensors: TensorFolder) -> None:
    """Raise UserError for a quantized checkpoint, with the method as far as names and types show it."""
    for name, stored in tensors.stored.items():
        method = next((method for pattern, method in _QUANTIZED if pattern.fullmatch(name)), None)
        if method is None and name.endswith(".weight"):
            method = next((method for begin, method in _TYPES.items() if stored.dtype.startswith(begin)), None)
        if method is not None:
            raise UserError(
                f"{_OWNER}{tensors.folder} is quantized ({method}: {name} in {stored.file.name} has the type"
                f" {stored.dtype}); training needs the weights before quantization; take the original checkpoint in"
                " bf16, fp16 or float32"
            )


def refuse_adapters(tensors: TensorFolder) -> None:
    """Raise UserError for the state of a model with adapters, whose own weights are not those it computes with."""
    found = next((name for name in sorted(tensors) if _ADAPTED.search(name)), None)
    if found is not None:
        raise UserError(
            f"{_OWNER}{tensors.stored[found].file} holds {found}: the state of a model with adapters (LoRA) was saved;"
            " merge them with peft (merge_and_unload) and save the result"
        )


def refuse_missing(tensors: TensorFolder, wanted: Collection[str]) -> None:
    """Raise UserError if tensors are missing; names that only differ by a prefix are recognized."""
    missing = sorted(name for name in wanted if name not in tensors)
    if not missing:
        return
    begin = f"{_OWNER}{tensors.folder} lacks {missing[0]}"
    if missing == [HEAD]:
        raise UserError(
            f"{begin}, and its config.json does not tie the text head to the embedding; set tie_word_embeddings to true"
            " in config.json if the model was trained with a tied head, otherwise save the whole model"
            " (AutoModelForCausalLM) or download it again"
        )
    begin += f" and {len(missing) - 1} more weights" if missing[1:] else ""
    begin += " that its config.json calls for"
    first = next((name for name in missing if name != HEAD), HEAD)
    explanation = _renamed(first, tensors)
    raise UserError(f"{begin}; {explanation or _INCOMPLETE}")


def refuse_other_shape(tensors: TensorFolder, name: str, expected: Shape, sizes: Architecture) -> None:
    """Raise UserError if a tensor has another shape than `expected`, with the keys of config.json that would fit it."""
    file, _, shape = tensors.stored[name]
    if shape == expected:
        return
    keys = []
    if len(shape) == len(expected):
        pairs = zip(_keys_of(name), expected, shape, strict=False)
        keys = [f"{key} to {_setting(key, found, sizes)}" for key, asked, found in pairs if asked != found]
    fix = f"; if the weights are right, set {' and '.join(keys)} in config.json" if keys else ""
    raise UserError(
        f"{_OWNER}{name} in {file} has shape {list(shape)}, but config.json asks for {list(expected)};"
        f" config.json and weights belong to different models{fix}"
    )


def refuse_other_head(tensors: TensorFolder) -> None:
    """Raise UserError if config.json ties the text head, and a head with other weights exists."""
    if HEAD not in tensors:
        return
    head, table = tensors.stored[HEAD], tensors.stored[TABLE]
    if not tensors.same(HEAD, head.file, TABLE, table.file):
        raise UserError(
            f"{_OWNER}config.json in {tensors.folder} sets tie_word_embeddings to true, but {HEAD} (in"
            f" {head.file.name}) differs from {TABLE}; set it to false to train with this head, or remove {HEAD}"
            " from the file"
        )


def note_adapter(folder: Path) -> None:
    """Warn of an adapter (LoRA) in the folder of a model: libraries that find it apply it, this one does not."""
    found = sorted(folder.glob("adapter_model.*"))
    if found:
        logger.warning(
            "%s%s is an adapter (LoRA), which is not applied; to train from the model with it, merge it with peft"
            " (merge_and_unload) and save the result",
            _OWNER,
            found[0],
        )


def _renamed(name: str, tensors: Iterable[str]) -> str | None:
    """Where a missing tensor is under another name, and what to do; None if it is nowhere."""
    bare = name.removeprefix("model.")
    for other in sorted(tensors):
        plain = _WRAPPER.sub("", other)
        if plain in (name, bare) and plain != other:
            part = next(match[0] for match in _WRAPPER.finditer(other))
            wrapper, inside = _WRAPPERS[part]
            return (
                f"it holds {other} instead: the state of a model that was wrapped by {wrapper} was saved; save that of"
                f" {inside}, or remove {part!r} from the names"
            )
        if other == bare:
            return (
                f"it holds {other} instead: the model without its head (AutoModel) was saved; save the model with its"
                " head (AutoModelForCausalLM), or add 'model.' to the names"
            )
        if other.endswith(f".{name}"):
            prefix = other[: -len(name)]
            return (
                f"it holds {other} instead: the text model is a part of a larger one; save this part alone, or remove"
                f" {prefix!r} from the names"
            )
    return None


def _keys_of(name: str) -> tuple[str, ...]:
    """The key of config.json that gives each dimension of a tensor."""
    part = name.split(".")[-2]
    return {
        "embed_tokens": ("vocab_size", "hidden_size"),
        "lm_head": ("vocab_size", "hidden_size"),
        "q_proj": ("num_attention_heads", "hidden_size"),
        "k_proj": ("num_key_value_heads", "hidden_size"),
        "v_proj": ("num_key_value_heads", "hidden_size"),
        "o_proj": ("hidden_size", "num_attention_heads"),
        "gate_proj": ("intermediate_size", "hidden_size"),
        "up_proj": ("intermediate_size", "hidden_size"),
        "down_proj": ("hidden_size", "intermediate_size"),
    }.get(part, ("hidden_size",))


def _setting(key: str, length: int, sizes: Architecture) -> str:
    if key not in ("num_attention_heads", "num_key_value_heads"):
        return str(length)
    heads, rest = divmod(length, sizes.head_dim)
    return f"{heads} (or head_dim to another width)" if not rest else "another number, and head_dim to another width"
