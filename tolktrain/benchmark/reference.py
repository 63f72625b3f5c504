"""The reference implementation for `bench`: SmolTolk in the way it was published, with the same cost.

It has the same parameters, loss and gradients as `tolktrain.model`, but none of its code. The input adapter processes
all positions under a dense mask that is built segment by segment, in which text positions attend only to themselves;
all states are stacked and promoted to float32 for the pooling; both heads compute float32 logits at every position;
nothing is packed, selected or fused. If the published code allows a choice, the faster variant is used (causal
attention without a mask in backbone and output adapter; the boundaries of a sequence's segments are fetched at once).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain_kernels.bench.reference_adapter import dense_mask
from tolktrain_kernels.bench.reference_pooling import published_pooling

_UNSCORED = -100


@dataclass(frozen=True)
class PublishedInputs:
    """A micro batch on the model's device: B sequences of T positions and K codebooks."""

    tokens: Tensor  # [B, K, T] int64
    targets: Tensor  # [B, K, T] int64
    speech_in: Tensor  # [B, T] bool
    speech_pred: Tensor  # [B, T] bool
    text_pred: Tensor  # [B, T] bool

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> "PublishedInputs":
        """The tensors of a batch."""
        names = ("tokens", "targets", "speech_in", "speech_pred", "text_pred")
        return cls(*(getattr(batch, name).to(device, non_blocking=True) for name in names))


class PublishedSums(NamedTuple):
    """Sums over a micro batch, float32, []."""

    text_nll: Tensor
    speech_nll: Tensor
    entropy: Tensor  # over the positions of sequences that predict speech


class _RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


class _Attention(nn.Module):
    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.heads, self.groups, self.dim = sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim
        self.q_proj = nn.Linear(sizes.hidden_size, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(sizes.hidden_size, self.groups * self.dim, bias=False)
        self.v_proj = nn.Linear(sizes.hidden_size, self.groups * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, sizes.hidden_size, bias=False)

    def forward(self, hidden: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = _rotate(query, *angles), _rotate(key, *angles)
        if self.groups < self.heads:
            key, value = (t.repeat_interleave(self.heads // self.groups, dim=1) for t in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


class _FeedForward(nn.Module):
    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden_size, sizes.ffn_hidden_size, bias=False)
        self.up_proj = nn.Linear(sizes.hidden_size, sizes.ffn_hidden_size, bias=False)
        self.down_proj = nn.Linear(sizes.ffn_hidden_size, sizes.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class _Layer(nn.Module):
    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.input_layernorm = _RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.self_attn = _Attention(sizes)
        self.post_attention_layernorm = _RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.mlp = _FeedForward(sizes)

    def forward(self, hidden: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), angles, mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class _Layers(nn.Module):
    def __init__(self, sizes: Architecture, count: int, with_norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(count))
        self.norm = _RMSNorm(sizes.hidden_size, sizes.rms_norm_eps) if with_norm else None
        self.recompute = False

    def forward(self, hidden: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None = None) -> list[Tensor]:
        """[B, T, D] to the outputs of all layers, the last one after the norm if there is one."""
        states = []
        for layer in self.layers:
            if self.recompute:
                hidden = checkpoint(layer, hidden, angles, mask, use_reentrant=False)
            else:
                hidden = layer(hidden, angles, mask)
            states.append(hidden)
        if self.norm is not None:
            states[-1] = self.norm(states[-1])
        return states


class _Pooling(nn.Module):
    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(sizes.num_layers))
        self.selector = nn.Linear(sizes.hidden_size, sizes.num_layers)


def check_published(architecture: Architecture) -> None:
    """Raise UserError for a model that was not published: other pooling, no residual, scaled angles."""
    published = architecture.layer_pooling == "both" and architecture.residual and architecture.rope_scaling is None
    if not published:
        raise UserError(
            "--against published: the reference has model.speech.layer_pooling both, model.speech.residual true,"
            " and no scaled rotary angles; leave it out for this model"
        )


class PublishedSmolTolk(nn.Module):
    """Parameters have the canonical names of `tolktrain.model.parameter_layout`:

    take `canonical_state` as its state dict."""

    def __init__(self, architecture: Architecture) -> None:
        """`check_published` says which architectures there are."""
        super().__init__()
        check_published(architecture)
        sizes = self.architecture = architecture
        self.text_embedding = nn.Embedding(sizes.text_table_size, sizes.hidden_size)
        self.speech_embedding = nn.ModuleList(
            nn.Embedding(sizes.speech_vocab_size, sizes.hidden_size) for _ in range(sizes.num_codebooks)
        )
        self.input_adapter = _Layers(sizes, sizes.input_adapter_layers)
        self.backbone = _Layers(sizes, sizes.num_layers, with_norm=True)
        self.pooling = _Pooling(sizes)
        self.output_adapter = _Layers(sizes, sizes.output_adapter_layers)
        if not sizes.tie_text_embeddings:
            self.text_head = nn.Linear(sizes.hidden_size, sizes.text_vocab_size, bias=False)

    def recompute_layers(self) -> None:
        """Let the backward pass recompute transformer layers instead of keeping their activations."""
        for part in (self.input_adapter, self.backbone, self.output_adapter):
            part.recompute = True

    def forward(self, inputs: PublishedInputs) -> PublishedSums:
        """Summed losses of a micro batch, in nats."""
        is_speech = inputs.speech_in.unsqueeze(-1)
        embedded = torch.where(is_speech, self._embed_speech(inputs), self._embed_text(inputs))
        angles = self._angles(embedded)
        hidden = embedded
        if len(self.input_adapter.layers):
            adapted = self.input_adapter(embedded, angles, dense_mask(inputs.speech_in))[-1]
            hidden = torch.where(is_speech, adapted, embedded)
        states = self.backbone(hidden, angles)
        weights, selector = self.pooling.layer_weights, self.pooling.selector
        pooled = published_pooling(states, weights, selector.weight, selector.bias, embedded)
        assert pooled.entropy is not None
        speech = self.output_adapter(pooled.pooled, angles)[-1] if len(self.output_adapter.layers) else pooled.pooled
        predicts = inputs.speech_pred.any(dim=1, keepdim=True)
        return PublishedSums(
            text_nll=_nll(functional.linear(states[-1], self._text_table()), inputs.targets[:, 0], inputs.text_pred),
            speech_nll=self._speech_nll(speech, inputs),
            entropy=(pooled.entropy * predicts).sum(),
        )

    def _embed_text(self, inputs: PublishedInputs) -> Tensor:
        return self.text_embedding(inputs.tokens[:, 0].masked_fill(inputs.speech_in, 0))

    def _embed_speech(self, inputs: PublishedInputs) -> Tensor:
        ids = inputs.tokens.masked_fill(~inputs.speech_in.unsqueeze(1), 0)
        return torch.stack([table(ids[:, k]) for k, table in enumerate(self.speech_embedding)]).sum(dim=0)

    def _angles(self, like: Tensor) -> tuple[Tensor, Tensor]:
        dim = self.architecture.head_dim
        exponents = torch.arange(0, dim, 2, device=like.device).float() / dim
        positions = torch.arange(like.shape[1], device=like.device).float()
        angles = torch.outer(positions, self.architecture.rope_theta**-exponents).repeat(1, 2)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def _text_table(self) -> Tensor:
        if not self.architecture.tie_text_embeddings:
            return self.text_head.weight
        return self.text_embedding.weight[: self.architecture.text_vocab_size]

    def _speech_nll(self, hidden: Tensor, inputs: PublishedInputs) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        for k, table in enumerate(self.speech_embedding):
            targets = inputs.targets[:, k]
            scored = inputs.speech_pred & (targets != self.architecture.speech_pad)
            total = total + _nll(functional.linear(hidden, table.weight), targets, scored)  # type: ignore[arg-type]
        return total


def _nll(logits: Tensor, targets: Tensor, scored: Tensor) -> Tensor:
    """Summed negative log-likelihood of the scored targets; logits [B, T, V] of all positions, in float32."""
    labels = targets.masked_fill(~scored, _UNSCORED).flatten()
    return functional.cross_entropy(logits.float().flatten(0, 1), labels, ignore_index=_UNSCORED, reduction="sum")
