"""One transformer layer of the Llama kind: megatron-core's, with our attention, norm and gated activation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tolktrain.config.training import ParameterGroup
from tolktrain.model.architecture import Architecture
from tolktrain.model.cache import CacheAccess
from tolktrain.model.cost.work import LayerCost
from tolktrain.model.lora import Fused, LowRank, Matrix, lora_size
from tolktrain.model.parameter_layout import Initial, ParameterView, Shape
from tolktrain.parallel.megatron import (
    MLP,
    AttnMaskType,
    ColumnParallelLinear,
    MLPSubmodules,
    ModuleSpec,
    RowParallelLinear,
    SelfAttention,
    SelfAttentionSubmodules,
    TransformerConfig,
    TransformerLayer,
    TransformerLayerSubmodules,
)
from tolktrain_kernels.backend import Kernels
from tolktrain_kernels.documents import Documents
from tolktrain_kernels.elementwise import add_rms_norm, fork_rms_norm, rms_norm, split_heads, swiglu
from tolktrain_kernels.segment_attention import segment_attention
from tolktrain_kernels.speech_adapter import SpeechSegments


@dataclass(frozen=True)
class AttentionContext:
    """The mask and the rotary angles of attention."""

    cos: Tensor  # [T or N, 1, 1, head_dim] float32; [T * B, 1, 1, head_dim] with documents
    sin: Tensor  # the same; the first half of each head negated
    segments: SpeechSegments | None = None  # attention inside these; if None, causal over the whole sequence
    mask: Tensor | None = None  # bool [B, 1, T, T], instead of both
    cached: CacheAccess | None = None  # of generation: keys and values are kept, and perhaps read
    documents: Documents | None = None  # causal inside these, instead of the whole sequence


def rotary_angles(architecture: Architecture, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of the rotary angles of positions 0 .. length - 1: float32 [length, 1, 1, head_dim].

    Computed at each step in float32, because a buffer would be rounded when the model is cast to bfloat16.
    """
    dim = architecture.head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    frequencies = 1.0 / (architecture.rope_theta**exponents)
    if architecture.rope_scaling is not None:
        scaling = architecture.rope_scaling
        # Llama 3.1: the number of turns within the original context decides; between the two bounds, blend linearly.
        turns = scaling.original_max_position * frequencies / (2 * torch.pi)
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = keep.clamp(0, 1)
        frequencies = (1 - keep) * frequencies / scaling.factor + keep * frequencies
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    cos, sin = angles.cos(), angles.sin()
    shape = (length, 1, 1, dim)
    return torch.cat((cos, cos), dim=-1).view(shape), torch.cat((-sin, sin), dim=-1).view(shape)


class CoreAttention(nn.Module):
    """Rotation and softmax attention with grouped queries: causal, or causal inside segments."""

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, **_: Any) -> None:
        super().__init__()
        assert attn_mask_type == AttnMaskType.causal
        self.kernels = Kernels()
        self.attend_inside: Callable[..., Tensor] = segment_attention

    def forward(self, product: Tensor, context: AttentionContext) -> Tensor:
        """[T, B, G, (H / G + 2) d], queries, key and value of each group, to [T, B, H d]."""
        if context.documents is not None:
            return self._inside_documents(product, context, context.documents)
        segments, backend = context.segments, self.kernels.backend
        # Rows after the packed speech pad it to a multiple of the tensor ranks.
        num_padding = 0 if segments is None else product.shape[0] - segments.num_positions
        if num_padding:
            product = product[:-num_padding]
        # The product's backward pass reads only its inputs. Attention inside segments would copy heads with gaps.
        in_place = segments is None
        query, key, value = split_heads(product, context.cos, context.sin, backend, in_place)
        if context.cached is not None:
            context.cached.store(key, value)
        if segments is not None:
            heads = (query.squeeze(1), key.squeeze(1), value.squeeze(1))
            mixed = self.attend_inside(*heads, segments, self.kernels.attention).flatten(1)
            return (functional.pad(mixed, (0, 0, 0, num_padding)) if num_padding else mixed).unsqueeze(1)
        if context.cached is not None and context.cached.num_read is not None:
            return context.cached.attend(query)
        queries, keys, values = (heads.permute(1, 2, 0, 3) for heads in (query, key, value))
        grouped = query.shape[2] != key.shape[2]
        mask = context.mask
        if mask is None:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
        else:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=grouped)
            # Backends differ for rows that attend to nothing (zero, NaN, or the mean); here the result is zero.
            mixed = torch.where(mask.any(dim=-1, keepdim=True), mixed, 0)
        return mixed.permute(2, 0, 1, 3).flatten(2)

    def _inside_documents(self, product: Tensor, context: AttentionContext, documents: Documents) -> Tensor:
        assert context.cached is None and context.mask is None
        length, width = product.shape[:2]
        # Angles differ from sequence to sequence, so each row counts as a position.
        rows = split_heads(product.flatten(0, 1).unsqueeze(1), context.cos, context.sin, self.kernels.backend)
        heads = (part.squeeze(1).unflatten(0, (length, width)).transpose(0, 1).flatten(0, 1) for part in rows)
        mixed = self.attend_inside(*heads, documents, self.kernels.attention)
        return mixed.reshape(width, length, -1).transpose(0, 1)


def mark_sequence_parallel(parameter: nn.Parameter, config: TransformerConfig) -> None:
    """Mark a parameter that is replicated on all tensor ranks, each of which applies it to a slice of the sequence.

    Its gradient is summed over the tensor group by `tolktrain.parallel.gradients`.
    """
    parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class _Norm(nn.Module):
    """The weight of a norm."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        mark_sequence_parallel(self.weight, config)
        self.eps = eps
        self.kernels = Kernels()


class RMSNorm(_Norm):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

    def forward(self, hidden: Tensor, update: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """[..., D] to [..., D]; with an update, which is added before, the sum and its norm."""
        if update is not None:
            return add_rms_norm(hidden, update, self.weight, self.eps, self.kernels.backend)
        return rms_norm(hidden, self.weight, self.eps, self.kernels.backend)


class ForkingNorm(_Norm):
    """The norm at the begin of a layer, whose input is also passed on."""

    def forward(self, hidden: Tensor, update: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """[..., D]: the states, plus an update if given; the same for another use; and their norm."""
        return fork_rms_norm(hidden, update, self.weight, self.eps, self.kernels.backend)


class SwiGLU(nn.Module):
    """Gated activation of the feed-forward layer: [..., 2 F] to [..., F]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.kernels = Kernels()

    def forward(self, gate_up: Tensor) -> Tensor:
        """Gate is the first half of the last dimension, up the second."""
        return swiglu(gate_up, self.kernels.backend)


class _Linear:
    """Megatron's linear layers without their empty `_extra_state`, which is not a parameter and breaks loaders."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lora: LowRank | None = None
        # The hook would add the key, which a strict load then rejects.
        self._load_state_dict_pre_hooks.clear()  # type: ignore[attr-defined]

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Returns the product, and megatron's bias, which is None."""
        if self.config.tensor_model_parallel_size == 1:  # type: ignore[attr-defined]
            # Without an exchange: torch.compile stops at megatron's implementation, which warns about missing groups.
            product = functional.linear(states, self.weight)  # type: ignore[attr-defined]
        else:
            product, _ = super().forward(states, *args, **kwargs)  # type: ignore[misc]
        return product if self.lora is None else product + self.lora(states), None


class ColumnLinear(_Linear, ColumnParallelLinear):
    """Matrix split over its outputs."""


class RowLinear(_Linear, RowParallelLinear):
    """Matrix split over its inputs."""


def megatron_config(
    architecture: Architecture, tensor_size: int = 1, sequence_parallel: bool = False
) -> TransformerConfig:
    """Megatron's configuration of one layer: no biases, no dropout, no fusions, uninitialized weights."""
    return TransformerConfig(
        tensor_model_parallel_size=tensor_size,
        sequence_parallel=sequence_parallel,
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_key_value_heads,
        kv_channels=architecture.head_dim,
        ffn_hidden_size=architecture.ffn_hidden_size,
        layernorm_epsilon=architecture.rms_norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=functional.silu,
        use_te_activation_func=True,  # enables a custom activation module, here SwiGLU
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        cuda_graph_scope=[],
        gradient_accumulation_fusion=False,  # writes main_grad, which DeepSpeed never reads
        use_cpu_initialization=True,
        perform_initialization=False,
    )


class Attention(SelfAttention):
    """Megatron's projections around our attention, without its code for inference and offloading."""

    def forward(self, hidden: Tensor, context: AttentionContext) -> Tensor:
        """[T, B, D] to [T, B, D]."""
        product, _ = self.get_query_key_value_tensors(hidden, split_qkv=False)
        mixed, _ = self.linear_proj(self.core_attention(product, context))
        return mixed


class DecoderLayer(TransformerLayer):
    """Megatron's parts of a layer; each residual addition is fused with the norm that follows it."""

    def forward(
        self, hidden: Tensor, context: AttentionContext, update: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The input, which is the sum of states and, if given, their update; and two tensors whose sum is the output:
        the states before the layer's last addition, and the update."""
        hidden, entered, normed = self.input_layernorm(hidden, update)
        update = self.self_attention(normed, context)
        states, normed = self.pre_mlp_layernorm(hidden, update)
        update, _ = self.mlp(normed)
        return entered, states, update


def layer_spec() -> ModuleSpec:
    """The modules of a layer."""
    attention = SelfAttentionSubmodules(linear_qkv=ColumnLinear, core_attention=CoreAttention, linear_proj=RowLinear)
    mlp = MLPSubmodules(linear_fc1=ColumnLinear, activation_func=SwiGLU, linear_fc2=RowLinear)
    return ModuleSpec(
        module=DecoderLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=ForkingNorm,
            self_attention=ModuleSpec(
                module=Attention, params={"attn_mask_type": AttnMaskType.causal}, submodules=attention
            ),
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(module=MLP, submodules=mlp),
        ),
    )


class Block(nn.Module):
    """A transformer layer with canonical names for its parameters."""

    def __init__(self, architecture: Architecture, config: TransformerConfig, name: str, group: ParameterGroup) -> None:
        super().__init__()
        spec = layer_spec()
        self.layer = spec.module(config=config, submodules=spec.submodules)
        self.name = name
        self.recompute = False  # whether the backward pass recomputes the layer instead of keeping activations
        self._views = partial(_block_views, architecture, name, group)
        self._lora_views = _add_lora(self.layer, architecture, config, name)

    def forward(self, hidden: Tensor, context: AttentionContext) -> Tensor:
        """[T, B, D] (or [N, 1, D] for packed speech) to the same; with sequence parallelism, a slice of the first
        dimension."""
        _, states, update = self.parts(hidden, context)
        return states + update

    def parts(
        self, hidden: Tensor, context: AttentionContext, update: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `DecoderLayer.forward`."""
        found: tuple[Tensor, Tensor, Tensor]
        if self.recompute and torch.is_grad_enabled():
            if update is not None:  # one tensor is kept, not two
                hidden = hidden + update
            # Without dropout, no random numbers are drawn inside.
            found = checkpoint(self.layer, hidden, context, use_reentrant=False, preserve_rng_state=False)
        elif update is None:
            found = self.layer(hidden, context)
        else:
            found = self.layer(hidden, context, update)
        return found

    def parameter_views(self) -> dict[str, ParameterView]:
        """Canonical views of the parameters, by their names in this module."""
        return self._views() | self._lora_views


def layer_matrices(architecture: Architecture) -> dict[str, Fused]:
    """The canonical matrices of a layer, by the linear layer of `DecoderLayer` that holds them."""
    width, inner = architecture.hidden_size, architecture.ffn_hidden_size
    queries, keys, groups = architecture.query_width, architecture.key_width, architecture.num_key_value_heads
    attention = (
        Matrix("self_attn.q_proj", (queries, width), architecture.num_attention_heads // groups),
        Matrix("self_attn.k_proj", (keys, width)),
        Matrix("self_attn.v_proj", (keys, width)),
    )
    gated = (Matrix("mlp.gate_proj", (inner, width)), Matrix("mlp.up_proj", (inner, width)))
    return {
        "self_attention.linear_qkv": Fused(attention, is_row_split=False, num_groups=groups),
        "self_attention.linear_proj": Fused((Matrix("self_attn.o_proj", (width, queries)),), is_row_split=True),
        "mlp.linear_fc1": Fused(gated, is_row_split=False),
        "mlp.linear_fc2": Fused((Matrix("mlp.down_proj", (width, inner)),), is_row_split=True),
    }


def _add_lora(
    layer: nn.Module, architecture: Architecture, config: TransformerConfig, name: str
) -> dict[str, ParameterView]:
    """Add low-rank updates to the linear layers that have some; their canonical views."""
    lora = architecture.lora
    views: dict[str, ParameterView] = {}
    if lora is None or name.split(".")[0] not in lora.parts:
        return {}
    for place, fused in layer_matrices(architecture).items():
        if fused.targeted(lora):
            linear = layer.get_submodule(place)
            linear.lora = LowRank(fused, lora, config)
            found = linear.lora.parameter_views(name)
            views |= {f"layer.{place}.lora.{key}": view for key, view in found.items()}
    return views


def _block_views(architecture: Architecture, name: str, group: ParameterGroup) -> dict[str, ParameterView]:
    width, inner = architecture.hidden_size, architecture.ffn_hidden_size
    heads, groups, dim = architecture.num_attention_heads, architecture.num_key_value_heads, architecture.head_dim
    queries, keys = (heads * dim, width), (groups * dim, width)

    def matrix(
        names: tuple[str, ...],
        shapes: tuple[tuple[int, ...], ...],
        dim: int = 0,
        initial: Initial = "normal",
        **layout: Any,
    ) -> ParameterView:
        full = tuple(f"{name}.{n}.weight" for n in names)
        return ParameterView(full, shapes, group, initial, decays=True, dim=dim, **layout)

    def norm(part: str) -> ParameterView:
        return ParameterView((f"{name}.{part}.weight",), ((width,),), group, "ones", decays=False)

    return {
        "layer.input_layernorm.weight": norm("input_layernorm"),
        "layer.self_attention.linear_proj.weight": matrix(
            ("self_attn.o_proj",), ((width, heads * dim),), dim=1, initial="residual output"
        ),
        "layer.self_attention.linear_qkv.weight": matrix(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            (queries, keys, keys),
            interleaved=(heads // groups, 1, 1),
            num_groups=groups,
        ),
        "layer.pre_mlp_layernorm.weight": norm("post_attention_layernorm"),
        "layer.mlp.linear_fc1.weight": matrix(("mlp.gate_proj", "mlp.up_proj"), ((inner, width), (inner, width))),
        "layer.mlp.linear_fc2.weight": matrix(("mlp.down_proj",), ((width, inner),), dim=1, initial="residual output"),
    }


def block_cost(
    architecture: Architecture, kind: str, index: int | None, group: ParameterGroup, rows: float, pairs: float
) -> LayerCost:
    """Cost of a transformer layer on `rows` positions that see `pairs` keys in all.

    With q and k the widths of queries and keys: 2 D (q + k) + 3 D F weights, each multiplied and added once a row; 4 q
    FLOPs a pair. Norms, rotations and activations are omitted; they are below 1 %.
    """
    width = architecture.hidden_size
    shapes: dict[str, Shape] = {
        m.name: m.shape for fused in layer_matrices(architecture).values() for m in fused.matrices
    }
    updates = lora_size(architecture.lora, kind.replace(" ", "_"), shapes)
    weights = (
        width * (2 * architecture.query_width + 2 * architecture.key_width) + 3 * width * architecture.ffn_hidden_size
    )
    return LayerCost(
        kind,
        index,
        {group: weights + 2 * width} | ({"lora": updates} if updates else {}),
        matrices=round(rows * 2 * (weights + updates)),
        attention=round(pairs * 4 * architecture.query_width),
    )
