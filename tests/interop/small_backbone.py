"""Backbones of the Llama family as Hugging Face lays them out, written without transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 31,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensors(seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """All weights of a checkpoint with this config.json, under the names of Hugging Face."""
    config = {**CONFIG, **changes}
    width, ffn = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        begin = f"model.layers.{layer}"
        shapes |= {f"{begin}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
        attention = {"q": (width, width), "k": (keys, width), "v": (keys, width), "o": (width, width)}
        shapes |= {f"{begin}.self_attn.{name}_proj.weight": shape for name, shape in attention.items()}
        feed_forward = {"gate": (ffn, width), "up": (ffn, width), "down": (width, ffn)}
        shapes |= {f"{begin}.mlp.{name}_proj.weight": shape for name, shape in feed_forward.items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_config(folder: Path, **changes: Any) -> None:
    """config.json of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def write_files(
    folder: Path, files: Mapping[str, Mapping[str, Tensor]], index: Mapping[str, str] | None = None
) -> None:
    """Files of tensors by name, and the index if it is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(content), folder / name, metadata={"format": "pt"})
    if index is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict(index)}))


def write_backbone(folder: Path, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """A checkpoint of one file; returns its tensors."""
    write_config(folder, **changes)
    found = tensors(seed, **changes)
    write_files(folder, {SINGLE: found})
    return found


def shard_name(number: int, total: int) -> str:
    """As Hugging Face names the files of a large model."""
    return f"model-{number:05d}-of-{total:05d}.safetensors"
