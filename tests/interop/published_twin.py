"""A twin of the SmolTolk authors' model in plain PyTorch, and checkpoint files with their names.

Written from the descriptions of tests/reference/README.md and independent of tolktrain's model. The modules have the
names of the authors' code, so that `state_dict` has their keys.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Of a small model."""

    hidden: int = 16
    layers: int = 2
    heads: int = 4
    groups: int = 2
    ffn: int = 24
    text: int = 31  # without the three special ids
    speech: int = 11  # with EOS and PAD
    theta: float = 10_000.0
    inputs: int = 1
    outputs: int = 1
    static: bool = True
    dynamic: bool = True
    residual: bool = True
    tied: bool = True


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D]."""
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.weight


class Layer(nn.Module):
    """A Llama layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, keys = sizes.hidden, sizes.hidden // sizes.heads * sizes.groups
        self.sizes = sizes
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            setattr(self.self_attn, f"{name}_proj", nn.Linear(width, rows, bias=False))
        for name, shape in (("gate", (width, sizes.ffn)), ("up", (width, sizes.ffn)), ("down", (sizes.ffn, width))):
            setattr(self.mlp, f"{name}_proj", nn.Linear(*shape, bias=False))
        self.input_layernorm, self.post_attention_layernorm = Norm(width), Norm(width)

    def forward(self, x: Tensor, allowed: Tensor, theta: float) -> Tensor:
        """x [B, T, D], allowed bool [B, T, T]."""
        attention: Any = self.self_attn
        mlp: Any = self.mlp
        normed, heads = self.input_layernorm(x), self.sizes.heads
        repeats = heads // self.sizes.groups
        q = turned(normed @ attention.q_proj.weight.T, heads, theta)
        k = turned(normed @ attention.k_proj.weight.T, self.sizes.groups, theta).repeat_interleave(repeats, dim=1)
        v = split(normed @ attention.v_proj.weight.T, self.sizes.groups).repeat_interleave(repeats, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)
        x = x + (scores @ v).transpose(1, 2).flatten(2) @ attention.o_proj.weight.T
        normed = self.post_attention_layernorm(x)
        gate = normed @ mlp.gate_proj.weight.T
        return x + (gate * gate.sigmoid() * (normed @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T


def split(x: Tensor, heads: int) -> Tensor:
    """[B, T, H * d] to [B, H, T, d]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def turned(x: Tensor, heads: int, theta: float) -> Tensor:
    """Rotary position embedding with complex numbers; element i pairs with i + d / 2."""
    parts = split(x, heads)
    half = parts.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half) / half)
    turns = torch.polar(torch.ones(()), torch.arange(parts.shape[2])[:, None] * frequencies)
    result = torch.complex(parts[..., :half].contiguous(), parts[..., half:].contiguous()) * turns
    return torch.cat((result.real, result.imag), dim=-1)


def segment_mask(speech: Tensor) -> Tensor:
    """The released code's attention of the input adapter: bool [B, T, T]."""
    allowed = torch.zeros(*speech.shape, speech.shape[1], dtype=torch.bool)
    for row, is_speech in enumerate(speech.tolist()):
        for later in range(len(is_speech)):
            earlier = later
            while is_speech[later] and earlier >= 0 and is_speech[earlier]:
                allowed[row, later, earlier] = True
                earlier -= 1
            allowed[row, later, later] = True
    return allowed


class Twin(nn.Module):
    """The authors' model."""

    def __init__(self, sizes: Sizes, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = sizes.hidden
        self.sizes = sizes
        self.txt_embed = nn.Embedding(sizes.text + 3, width)
        self.txt_unembed = nn.Linear(width, sizes.text + 3, bias=False)
        self.audio_embed = nn.ModuleList([nn.Embedding(sizes.speech, width)])
        self.audio_unembed = nn.ModuleList([nn.Linear(width, sizes.speech, bias=False)])
        if sizes.tied:
            self.txt_unembed.weight = self.txt_embed.weight
        self.audio_unembed[0].weight = self.audio_embed[0].weight
        self.context_model = nn.Module()
        self.context_model.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.context_model.norm = Norm(width)
        if sizes.inputs:
            self.audio_in_layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.inputs))
        if sizes.outputs:
            self.audio_out_layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.outputs))
        if sizes.static:
            self.layer_weights = nn.Parameter(torch.randn(sizes.layers, 1, 1, 1))
        if sizes.dynamic:
            self.layer_selector = nn.Linear(width, sizes.layers)

    def forward(
        self, tokens: Tensor, speech: Tensor, mask: Tensor | None = None, theta: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of the next token as text [B, T, V_t] and as speech [B, T, V_s].

        Args:
            tokens: [B, T], text or speech ids.
            speech: bool [B, T], which are speech.
            mask: of the input adapter, bool [B, T, T]; that of the released code if None.
            theta: rotary base, if not that of `sizes`.
        """
        sizes = self.sizes
        theta = sizes.theta if theta is None else theta
        embedded = torch.where(
            speech[..., None],
            self.audio_embed[0](tokens.where(speech, 0)),
            self.txt_embed(tokens.where(~speech, 0)),
        )
        causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril().expand(len(tokens), -1, -1)
        x = embedded
        for layer in getattr(self, "audio_in_layers", ()):
            x = layer(x, segment_mask(speech) if mask is None else mask, theta)
        x = torch.where(speech[..., None], x, embedded)
        states = []
        for layer in self.context_model.layers:  # type: ignore[union-attr]
            x = layer(x, causal, theta)
            states.append(x)
        states[-1] = last = self.context_model.norm(x)  # type: ignore[operator]
        stacked, pooled = torch.stack(states), last
        if sizes.static:
            pooled = (stacked * self.layer_weights.softmax(0)).sum(0)
        if sizes.dynamic:
            chosen = self.layer_selector(pooled).softmax(-1)  # [B, T, L]
            pooled = torch.einsum("lbtd,btl->btd", stacked, chosen)
        if sizes.residual:
            pooled = pooled + embedded
        for layer in getattr(self, "audio_out_layers", ()):
            pooled = layer(pooled, causal, theta)
        text = last @ self.txt_unembed.weight[: sizes.text].T
        return text, pooled @ self.audio_unembed[0].weight.T  # type: ignore[operator]

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """`model_args` of the file."""
        sizes = self.sizes
        return {
            "audio_vocabsize": sizes.speech,
            "txt_vocabsize": sizes.text + 3,
            "block_size": 192,
            "audio_pad_token": sizes.speech - 1,
            "bop_token": sizes.text,
            "eop_token": sizes.text + 1,
            "swt_token": sizes.text + 2,
            "n_codebooks": 1,
            "tie_audio_embeddings": True,
            "backbone": "HuggingFaceTB/SmolLM-135M",
            "warm_init": True,
            "n_audio_in_layers": sizes.inputs,
            "n_audio_out_layers": sizes.outputs,
            "layer_wa_audio": sizes.static,
            "layer_selwa_audio": sizes.dynamic,
            "selwa_in_layer": None,
            "selwa_linear": True,
            "raw_speech_residual": sizes.residual,
            "entropy_reg": 0.01,
            "torch_dtype": torch.bfloat16,
            "attn_implementation": "sdpa",
            **changes,
        }

    def save(
        self,
        path: Path,
        prefix: str = "",
        more: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        **changes: Any,
    ) -> Path:
        """Write a checkpoint file as the authors' training does; `changes` are of `model_args`."""
        state = {f"{prefix}{name}": tensor for name, tensor in {**self.state_dict(), **(tensors or {})}.items()}
        torch.save({"model": state, "model_args": self.arguments(**changes), **(more or {})}, path)
        return path

    def backbone_config(self) -> dict[str, Any]:
        """Changes of `small_backbone.CONFIG`."""
        sizes = self.sizes
        return {
            "hidden_size": sizes.hidden,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.groups,
            "intermediate_size": sizes.ffn,
            "vocab_size": sizes.text,
            "rope_theta": sizes.theta,
            "tie_word_embeddings": sizes.tied,
        }
