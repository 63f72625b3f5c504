"""Finds and reads config.json of a Llama-family checkpoint (Hugging Face transformers)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.config.model import head_mistake
from tolktrain.errors import UserError
from tolktrain.files.reading import read_json

SUPPORTED_MODEL_TYPES = ("llama", "mistral")


@dataclass(frozen=True)
class RopeScaling:
    """Scaled rotary angles (Llama 3.1): long wavelengths are stretched by `factor`, short ones are kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


def backbone_folder(path: str, weights: bool) -> Path:
    """The local folder of a checkpoint: the path itself, or the cached download of a hub id.

    Args:
        path: a folder, or an id like HuggingFaceTB/SmolLM-135M.
        weights: fetch the weights too, not only config.json.

    Raises:
        UserError: neither a folder nor a hub id that can be fetched.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"model.backbone: {path} is no folder; give a folder with config.json and *.safetensors, or a hub id"
        )
    import huggingface_hub  # pulls in an HTTP stack that a local folder never needs

    tokenizer = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    more = ["*.safetensors", "*.safetensors.index.json", *tokenizer] if weights else []
    patterns = ["config.json", *more]
    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated classes, network errors among them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model.backbone: {path} is no folder here and could not be fetched from the Hugging Face hub ({reason});"
            " check the name and the network, or download it and give the folder"
        ) from error


def read_llama_config(path: str) -> dict[str, Any]:
    """Backbone fields of `Architecture` from a checkpoint's config.json.

    Args:
        path: folder or hub id.

    Raises:
        UserError: config.json is missing, unreadable, incomplete, or describes something this model cannot compute.
    """
    file = backbone_folder(path, weights=False) / "config.json"
    try:
        config = read_json(file)
    except FileNotFoundError as error:
        below = sorted(file.parent.glob("*/config.json"))
        where = f"; {below[0].parent} has one: name that folder" if below else ""
        raise UserError(
            f"model.backbone: {file} does not exist; a Hugging Face checkpoint has a config.json{where}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.backbone: {file} cannot be read as JSON ({error}); download the checkpoint again"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"model.backbone: {file} holds no JSON object; download the checkpoint again")
    _refuse_unsupported(config, file)
    theta, scaling = _rope(config, file)
    return {
        **_heads(config, file),
        "num_layers": _whole(config, "num_hidden_layers", file),
        "ffn_hidden_size": _whole(config, "intermediate_size", file),
        "text_vocab_size": _whole(config, "vocab_size", file),
        "rope_theta": theta,
        "rms_norm_eps": _number(config, "rms_norm_eps", file, default=1e-6),
        "tie_text_embeddings": _switch(config, "tie_word_embeddings", file),
        "initializer_range": _number(config, "initializer_range", file, default=0.02),
        "rope_scaling": scaling,
    }


def _heads(config: Mapping[str, Any], file: Path) -> dict[str, int]:
    hidden_size = _whole(config, "hidden_size", file)
    heads = _whole(config, "num_attention_heads", file)
    key_value_heads = _whole(config, "num_key_value_heads", file, default=heads)
    head_dim = _whole(config, "head_dim", file) if config.get("head_dim") is not None else None
    mistake = head_mistake(hidden_size, heads, key_value_heads, head_dim)
    if mistake is not None:
        raise UserError(f"model.backbone: {file}: {mistake}")
    return {
        "hidden_size": hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": hidden_size // heads if head_dim is None else head_dim,
    }


def _whole(table: Mapping[str, Any], key: str, file: Path, default: int | None = None) -> int:
    value = _given(table, key, file, default, "a whole number above 0")
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise _wrong(key, value, file, "a whole number above 0")
    return value


def _number(table: Mapping[str, Any], key: str, file: Path, default: float | None = None) -> float:
    value = _given(table, key, file, default, "a number above 0")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
        raise _wrong(key, value, file, "a number above 0")
    return float(value)


def _switch(table: Mapping[str, Any], key: str, file: Path) -> bool:
    value = _given(table, key, file, False, "true or false")
    if not isinstance(value, bool):
        raise _wrong(key, value, file, "true or false")
    return value


def _given(table: Mapping[str, Any], key: str, file: Path, default: Any, expected: str) -> Any:
    value = default if table.get(key) is None else table[key]
    if value is None:
        raise UserError(f"model.backbone: {file} lacks {key} ({expected}); download the checkpoint again")
    return value


def _wrong(key: str, value: Any, file: Path, expected: str) -> UserError:
    return UserError(
        f"model.backbone: {file} sets {key} to {value!r}; expected {expected}; download the checkpoint again"
    )


def _refuse_unsupported(config: Mapping[str, Any], file: Path) -> None:
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UserError(
            f"model.backbone: {file} has model_type {model_type!r}; only Llama-family decoders"
            f" ({', '.join(SUPPORTED_MODEL_TYPES)}) can be a backbone"
        )
    unsupported = {
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "sliding_window": config.get("sliding_window") is not None,
    }
    for key, refused in unsupported.items():
        if refused:
            raise _unsupported(key, config[key], file)
    _refuse_partial_rotation(config, file)
    _refuse_quantization(config, file)
    _refuse_two_types(config, file)


def _refuse_quantization(config: Mapping[str, Any], file: Path) -> None:
    table = config.get("quantization_config")
    if table is not None:
        method = table.get("quant_method") if isinstance(table, Mapping) else table
        raise UserError(
            f"model.backbone: {file} has a quantization_config ({method!r:.80}): the weights are quantized; training"
            " needs the weights before quantization; take the original checkpoint in bf16, fp16 or float32"
        )


def _refuse_two_types(config: Mapping[str, Any], file: Path) -> None:
    """transformers 4.56 renamed `torch_dtype` to `dtype`. Weights are read in the type that their files name."""
    older, newer = (str(config.get(key) or "").removeprefix("torch.") for key in ("torch_dtype", "dtype"))
    if older and newer and older != newer:
        raise UserError(
            f"model.backbone: {file} sets torch_dtype to {older!r:.80} and dtype to {newer!r:.80}, which mean the same"
            " setting; remove the wrong one"
        )


def _refuse_partial_rotation(table: Mapping[str, Any], file: Path) -> None:
    """transformers 5 moves this key from the top of config.json into `rope_parameters`."""
    key = "partial_rotary_factor"
    if table.get(key) not in (None, 1.0):
        raise _unsupported(key, table[key], file)


def _unsupported(key: str, value: Any, file: Path) -> UserError:
    return UserError(
        f"model.backbone: {file} sets {key} to {value!r}, which this model cannot compute; choose a backbone without it"
    )


def _rope(config: Mapping[str, Any], file: Path) -> tuple[float, RopeScaling | None]:
    table = _rope_table(config, file)
    theta = _number(table, "rope_theta", file, default=10_000.0)
    kind = table.get("rope_type", "default")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"model.backbone: {file} scales rotary angles by {kind!r}; only 'default' and 'llama3' are supported"
        )
    return theta, RopeScaling(
        factor=_number(table, "factor", file),
        low_freq_factor=_number(table, "low_freq_factor", file),
        high_freq_factor=_number(table, "high_freq_factor", file),
        original_max_position=_whole(table, "original_max_position_embeddings", file),
    )


def _rope_table(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Rotary settings in the layout of transformers 5, the one table `rope_parameters`.

    Earlier versions write `rope_theta` and `rope_scaling`. A file may hold both layouts; they must agree then, because
    each version of transformers ignores the other's.
    """
    newer, scaling = _rope_entries(config, "rope_parameters", file), _rope_entries(config, "rope_scaling", file)
    theta = config.get("rope_theta")
    if theta is not None and "rope_theta" in scaling and scaling["rope_theta"] != theta:
        raise UserError(
            f"model.backbone: {file} sets rope_theta to {theta!r} and to {scaling['rope_theta']!r} in rope_scaling;"
            " remove the wrong one"
        )
    older = {"rope_theta": theta, **scaling}
    for key, value in older.items():
        if value is not None and key in newer and newer[key] != value:
            raise UserError(
                f"model.backbone: {file} sets {key} to {newer[key]!r} in rope_parameters, which transformers 5 reads,"
                f" and to {value!r} where earlier versions read it; remove the wrong one"
            )
    return {**older, **newer}


def _rope_entries(config: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    """The entries of one of the two tables, with `rope_type` under this name only."""
    table = config.get(key) or {}
    if not isinstance(table, Mapping):
        raise _wrong(key, table, file, "a JSON object")
    if any(isinstance(value, Mapping) for value in table.values()):
        raise UserError(
            f"model.backbone: {file} sets {key} for each type of layer, which this model cannot compute;"
            " choose a backbone whose layers share one setting"
        )
    _refuse_partial_rotation(table, file)
    entries = {name: value for name, value in table.items() if value is not None}
    if "type" in entries:
        older = entries.pop("type")
        if entries.setdefault("rope_type", older) != older:
            raise UserError(
                f"model.backbone: {file} sets rope_type to {entries['rope_type']!r} and its older name type to"
                f" {older!r} in {key}; remove the wrong one"
            )
    return entries
