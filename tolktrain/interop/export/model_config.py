"""config.json of the hf format, and the architecture that it describes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from tolktrain.config.model import LayerPooling
from tolktrain.errors import UserError
from tolktrain.files.reading import read_json
from tolktrain.interop.tensor_writer import DType
from tolktrain.model.architecture import Architecture

MODEL_TYPE = "smoltolk"
MODELING_FILE = "modeling_smoltolk.py"
PROCESSING_FILE = "processing_smoltolk.py"
TORCH_NAMES: Mapping[DType, str] = {"fp32": "float32", "bf16": "bfloat16"}
# Names in config.json of the fields of Architecture.
_KEYS: Mapping[str, str] = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_hidden_size": "intermediate_size",
    "text_vocab_size": "vocab_size",
    "rope_theta": "rotary_base",
    "rope_scaling": "rotary_scaling",
    "rms_norm_eps": "rms_norm_eps",
    "tie_text_embeddings": "tie_text_embeddings",
    "initializer_range": "initializer_range",
    "num_units": "num_units",
    "num_codebooks": "num_codebooks",
    "input_adapter_layers": "input_adapter_layers",
    "output_adapter_layers": "output_adapter_layers",
    "layer_pooling": "layer_pooling",
    "residual": "residual",
    "special_tokens": "special_tokens",
}


def model_config(
    architecture: Architecture,
    dtype: DType,
    text_eos: int | None,
    tokenizers: Mapping[str, str | None],
    sequence_length: int | None,
) -> dict[str, Any]:
    """config.json for the modeling file and the processor.

    Args:
        architecture: whose input adapter attends inside speech segments.
        dtype: of the weights.
        text_eos: EOS of the text tokenizer.
        tokenizers: SHA-256 of the tokenizers of the data, by modality.
        sequence_length: positions of a training sequence.
    """
    values = architecture.to_dict()
    modeling, processing = (name.removesuffix(".py") for name in (MODELING_FILE, PROCESSING_FILE))
    return {
        "architectures": ["SmolTolkForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{modeling}.SmolTolkConfig",
            "AutoModelForCausalLM": f"{modeling}.SmolTolkForCausalLM",
            "AutoProcessor": f"{processing}.SmolTolkProcessor",
        },
        "model_type": MODEL_TYPE,
        "torch_dtype": TORCH_NAMES[dtype],
        "eos_token_id": text_eos,
        "max_position_embeddings": sequence_length,
        "tokenizers": dict(tokenizers),
        **{theirs: values[ours] for ours, theirs in _KEYS.items()},
    }


def is_saved_by_transformers(folder: Path) -> bool:
    """Whether a folder holds a SmolTolk in the hf format that transformers has saved, without architecture.json."""
    try:
        found = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool(found.get("model_type") == MODEL_TYPE)


def architecture_from(config: Mapping[str, Any], path: Path) -> Architecture:
    """The inverse of `model_config`. Raises UserError if a key is missing or of another type."""
    config = {"special_tokens": [], **config}  # absent from folders that were written before there were any
    missing = sorted(theirs for theirs in _KEYS.values() if theirs not in config)
    if missing:
        raise UserError(f"{path} lacks {missing[0]}; restore it from the folder that tolktrain export has written")
    values = {ours: config[theirs] for ours, theirs in _KEYS.items()}
    try:
        architecture = Architecture.from_dict({**values, "adapter_attention": "runs"})
        kinds = {name: type(value) for name, value in architecture.to_dict().items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the sizes are not those of a SmolTolk ({error}); restore it") from None
    if any(not isinstance(name, str) for name in architecture.special_tokens):
        raise UserError(f"{path}: special_tokens is {values['special_tokens']!r:.80}, expected names; restore it")
    if architecture.layer_pooling not in get_args(LayerPooling):
        raise UserError(f"{path}: layer_pooling is {architecture.layer_pooling!r:.80}, which is unknown; restore it")
    for name, kind in kinds.items():
        expected = _kind_of(name)
        if expected is not None and not (kind is expected or (expected is float and kind is int)):
            raise UserError(f"{path}: {_KEYS[name]} is {values[name]!r:.80}, expected {expected.__name__}; restore it")
        if expected is int and not 0 <= values[name] < 1 << 31:
            raise UserError(f"{path}: {_KEYS[name]} is {values[name]!r:.80}, which is no size; restore it")
    return architecture


def _kind_of(name: str) -> type | None:
    if name in ("rope_scaling", "adapter_attention", "special_tokens"):
        return None
    if name == "layer_pooling":
        return str
    if name in ("tie_text_embeddings", "residual"):
        return bool
    return float if name in ("rope_theta", "rms_norm_eps", "initializer_range") else int
