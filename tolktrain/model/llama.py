"""config.json of a Llama-family checkpoint (Hugging Face transformers), and where to find it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.config.errors import UserError

SUPPORTED_MODEL_TYPES = ("llama", "mistral")
_NEEDED_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class RopeScaling:
    """Stretched rotary angles (Llama 3.1): long wavelengths are slowed down by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


def backbone_folder(path: str, weights: bool) -> Path:
    """The local folder of a checkpoint: the path itself, or the cached download of a hub id.

    Args:
        path: a folder, or an id like HuggingFaceTB/SmolLM-135M.
        weights: fetch the weights too, not config.json alone.

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

    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json"] if weights else ["config.json"]
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
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"model.backbone: {file} does not exist; a Hugging Face checkpoint has a config.json"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"model.backbone: {file} cannot be read as JSON ({error}); download the checkpoint again"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"model.backbone: {file} holds no JSON object; download the checkpoint again")
    _refuse_unsupported(config, file)
    heads = config["num_attention_heads"]
    theta, scaling = _rope(config, file)
    return {
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "ffn_hidden_size": config["intermediate_size"],
        "text_vocab_size": config["vocab_size"],
        "rope_theta": theta,
        "rms_norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "tie_text_embeddings": bool(config.get("tie_word_embeddings", False)),
        "initializer_range": float(config.get("initializer_range", 0.02)),
        "rope_scaling": scaling,
    }


def _refuse_unsupported(config: Mapping[str, Any], file: Path) -> None:
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UserError(
            f"model.backbone: {file} has model_type {model_type!r}; only Llama-family decoders"
            f" ({', '.join(SUPPORTED_MODEL_TYPES)}) can be a backbone"
        )
    missing = [key for key in _NEEDED_KEYS if not isinstance(config.get(key), int)]
    if missing:
        raise UserError(
            f"model.backbone: {file} lacks {', '.join(missing)} (whole numbers); download the checkpoint again"
        )
    unsupported = {
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "sliding_window": config.get("sliding_window") is not None,
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0) != 1.0,
        "quantization_config": config.get("quantization_config") is not None,
    }
    for key, refused in unsupported.items():
        if refused:
            raise UserError(
                f"model.backbone: {file} sets {key} to {config[key]!r}, which this model cannot compute;"
                " choose a backbone without it"
            )


def _rope(config: Mapping[str, Any], file: Path) -> tuple[float, RopeScaling | None]:
    # transformers 5 writes one table rope_parameters, earlier versions rope_theta and rope_scaling.
    table = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(table.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"model.backbone: {file} scales rotary angles by {kind!r}; only 'default' and 'llama3' are supported"
        )
    try:
        return theta, RopeScaling(
            factor=float(table["factor"]),
            low_freq_factor=float(table["low_freq_factor"]),
            high_freq_factor=float(table["high_freq_factor"]),
            original_max_position=int(table["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise UserError(
            f"model.backbone: {file} scales rotary angles by llama3 but lacks {error}; download the checkpoint again"
        ) from error
