"""Audio, and small models with random weights, saved as the hub has them."""

import json
from pathlib import Path

import numpy as np

RATE = 16_000


def tones(seed: int, seconds: float, rate: int = RATE) -> np.ndarray:
    """A new mix of three tones every 120 ms."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(0.12 * rate)) / rate
    pieces = []
    for _ in range(int(np.ceil(seconds / 0.12))):
        frequencies = rng.uniform(100, 4000, 3)
        pieces.append(sum(np.sin(2 * np.pi * f * t) for f in frequencies) * rng.uniform(0, 0.2))
    return np.concatenate([np.zeros(0), *pieces]).astype(np.float32)[: int(seconds * rate)]


def save_hubert(folder: Path, stable: bool, seed: int = 0) -> Path:
    """A HuBERT of four layers at 25 frames per second, with the large models' order of norms if `stable`."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.HubertConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 8,
        conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2, 2),
        conv_bias=stable,
        feat_extract_norm="layer" if stable else "group",
        do_stable_layer_norm=stable,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        initializer_range=0.4,
    )
    transformers.HubertModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": stable, "sampling_rate": RATE}))
    return folder


def save_mimi(folder: Path, seed: int = 0, **changes: object) -> Path:
    """A Mimi of four codebooks at 12.5 frames per second whose attention reaches four of its 40 ms steps back."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    settings = {
        "hidden_size": 32,
        "num_filters": 4,
        "codebook_size": 16,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "upsample_groups": 32,
        "sliding_window": 4,
        "layer_scale_initial_scale": 0.5,
        "initializer_range": 0.2,
    } | changes
    transformers.MimiModel(transformers.MimiConfig(**settings)).save_pretrained(folder)
    # Drawn in the file, where every version of transformers gives the weights the same names: the same model for all.
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    last = max(int(name.split(".")[2]) for name in weights if name.startswith("decoder.layers."))
    for name, tensor in sorted(weights.items()):
        if name.endswith("embed_sum"):
            tensor.normal_(std=2.0, generator=generator)  # as the latents have, lest many are equally near
        elif name.endswith("bias"):
            tensor.normal_(std=0.1, generator=generator)
        elif tensor.ndim > 1:
            fan_in = tensor[0].numel()
            tensor.normal_(std=0.2 if tensor.ndim == 2 else (2 / fan_in) ** 0.5, generator=generator)
        # Loud enough to differ from silence, and mostly within -1 and 1.
        if name.startswith(f"decoder.layers.{last}."):
            tensor.mul_(0.05)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
