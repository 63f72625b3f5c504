"""The input adapter: two transformer layers over the speech of a batch, including packing and unpacking.

The reference implementation computes the layers for every position under a dense mask; ours packs the speech.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tolktrain_kernels.backend import Backend, Kernels, choose_attention
from tolktrain_kernels.bench.adapter_check import QUICK_CASES, Case, deviations, random_mask
from tolktrain_kernels.bench.elementwise_check import make_angles
from tolktrain_kernels.bench.measure import Plan, Row, measure_modes
from tolktrain_kernels.bench.pooling_check import entries
from tolktrain_kernels.bench.reference_adapter import dense_mask
from tolktrain_kernels.compilation import Build
from tolktrain_kernels.elementwise import add_rms_norm, rms_norm, split_heads, swiglu
from tolktrain_kernels.segment_attention import segment_attention
from tolktrain_kernels.speech_adapter import SpeechSegments, gather_rows, merge_speech, pack_segments

EPS = 1e-5
NUM_LAYERS = 2
SPEECH_SHARE = 0.46  # of the positions, in the published recipe's interleaved data
MEAN_SEGMENT = 80  # positions of a speech segment: ten words
NOTE = "Matrix products and attention dominate the time, so the share of copy means little."

Provider = Callable[[Tensor, list["Layer"]], Tensor]


@dataclass(frozen=True)
class Shape:
    """What passes the adapter."""

    batch_size: int
    length: int
    width: int
    num_heads: int
    num_groups: int
    head_dim: int
    ffn_width: int

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.length}, {self.width}"


# The models of 150M, 400M and 2B parameters.
GPU_SHAPES = (
    Shape(64, 2048, 576, 9, 3, 64, 1536),
    Shape(64, 2048, 960, 15, 5, 64, 2560),
    Shape(16, 2048, 2048, 32, 32, 64, 8192),
)
CPU_SHAPES = (Shape(1, 2048, 576, 9, 3, 64, 1536),)


@dataclass(frozen=True)
class Layer:
    """Weights of one transformer layer."""

    first_norm: Tensor  # [D]
    qkv: Tensor  # [(H + 2 G) d, D]
    output: Tensor  # [D, H d]
    second_norm: Tensor  # [D]
    gate_up: Tensor  # [2 F, D]
    down: Tensor  # [D, F]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [self.first_norm, self.qkv, self.output, self.second_norm, self.gate_up, self.down]


def rows(plan: Plan) -> Iterator[Row]:
    """Measure every provider, one after the other: bf16 on a GPU, float32 on the CPU."""
    on_gpu = plan.device == "cuda"
    shapes: tuple[Shape, ...] = GPU_SHAPES if on_gpu else CPU_SHAPES
    if plan.quick:
        shapes = tuple(Shape(1, 256, *(getattr(s, f) for f in _MODEL_FIELDS)) for s in shapes[:1])
    dtype = torch.bfloat16 if on_gpu else torch.float32
    for shape in shapes:
        yield from _measure_shape(plan, shape, dtype)


_MODEL_FIELDS = ("width", "num_heads", "num_groups", "head_dim", "ffn_width")


def builds() -> list[Build]:
    """Every setting of the Triton kernels."""
    from tolktrain_kernels.speech_adapter_builds import builds

    return builds()


def numerics(device: str) -> Iterator[tuple[str, str, float, float, bool]]:
    """Errors against float64, as `pooling_check.entries` gives them."""
    for case in QUICK_CASES:
        yield from entries(_name(case), case.dtype, deviations(case, device))


def _name(case: Case) -> str:
    return f"{case.kernel}, {case.width}, {case.num_codebooks} codebooks, {str(case.dtype).removeprefix('torch.')}"


def _measure_shape(plan: Plan, shape: Shape, dtype: torch.dtype) -> Iterator[Row]:
    mask = random_mask(np.random.default_rng(0), (shape.batch_size, shape.length), SPEECH_SHARE, MEAN_SEGMENT)
    generator = torch.Generator(plan.device).manual_seed(0)

    def random(*size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*size, dtype=dtype, device=plan.device, generator=generator)
        return (scale * values).requires_grad_()

    hidden = random(shape.length * shape.batch_size, shape.width)
    layers = [make_layer(shape, random) for _ in range(NUM_LAYERS)]
    gradient = random(*hidden.shape).detach()
    leaves = [hidden, *(tensor for layer in layers for tensor in layer.tensors)]
    weights = sum(leaf.nbytes for leaf in leaves[1:])
    least = {"forward": 2 * gradient.nbytes + weights, "backward": 3 * gradient.nbytes + 2 * weights}
    least["both"] = sum(least.values())
    for name, provider in providers(plan.device, shape, mask, dtype).items():
        yield from measure_modes(
            plan,
            partial(_outputs, provider, hidden, layers),
            leaves,
            [gradient],
            kernel="adapter",
            provider=name,
            shape=str(shape),
            dtype=dtype,
            least=least,
        )


def _outputs(provider: Provider, hidden: Tensor, layers: list[Layer]) -> list[Tensor]:
    return [provider(hidden, layers)]


def make_layer(shape: Shape, random: Callable[..., Tensor]) -> Layer:
    """Weights of the scale at which a layer keeps that of its states."""
    heads, groups = shape.num_heads * shape.head_dim, shape.num_groups * shape.head_dim
    width, inner = shape.width, shape.ffn_width
    return Layer(
        random(width),
        random(heads + 2 * groups, width, scale=width**-0.5),
        random(width, heads, scale=heads**-0.5),
        random(width),
        random(2 * inner, width, scale=width**-0.5),
        random(width, inner, scale=inner**-0.5),
    )


def providers(device: str, shape: Shape, mask: np.ndarray, dtype: torch.dtype) -> dict[str, Provider]:
    """The reference implementation, then packed segments with every available attention, on GPUs also our kernels."""
    segments, speech_in = pack_segments(mask).to(device), torch.from_numpy(mask).to(device)
    found: dict[str, Provider] = {"published": partial(published_adapter, shape, speech_in)}
    backends: tuple[Backend, ...] = ("torch", "triton") if device == "cuda" else ("torch",)
    attentions = {"padded", choose_attention("auto", device, dtype, shape.head_dim)[0]}
    for backend in backends:
        for attention in sorted(attentions):
            kernels = Kernels(backend, attention)
            found[f"packed, {backend}, {attention}"] = partial(packed_adapter, shape, segments, kernels)
    return found


def published_adapter(shape: Shape, speech_in: Tensor, hidden: Tensor, layers: list[Layer]) -> Tensor:
    """All positions [T * B, D] through the layers; the results of text are discarded."""
    mask = dense_mask(speech_in)
    cos, sin = make_angles(shape.length, shape.head_dim, hidden.device)
    states = hidden.view(shape.length, shape.batch_size, shape.width)
    for layer in layers:
        product = _groups(shape, functional.linear(rms_norm(states, layer.first_norm, EPS), layer.qkv))
        queries, keys, values = (heads.permute(1, 2, 0, 3) for heads in split_heads(product, cos, sin))
        grouped = shape.num_heads != shape.num_groups
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=grouped)
        states = states + functional.linear(mixed.permute(2, 0, 1, 3).flatten(2), layer.output)
        gate, up = functional.linear(rms_norm(states, layer.second_norm, EPS), layer.gate_up).chunk(2, dim=-1)
        states = states + functional.linear(functional.silu(gate) * up, layer.down)
    return torch.where(speech_in.t().unsqueeze(-1), states, hidden.view_as(states)).flatten(0, 1)


def packed_adapter(
    shape: Shape, segments: SpeechSegments, kernels: Kernels, hidden: Tensor, layers: list[Layer]
) -> Tensor:
    """The speech of [T * B, D] through the layers."""
    backend = kernels.backend
    cos, sin = (
        angle.index_select(0, segments.positions)
        for angle in make_angles(shape.length, shape.head_dim, segments.rows.device)
    )
    states = gather_rows(hidden, segments.rows).unsqueeze(1)
    update = None
    for layer in layers:
        if update is None:
            normed = rms_norm(states, layer.first_norm, EPS, backend)
        else:
            states, normed = add_rms_norm(states, update, layer.first_norm, EPS, backend)
        query, key, value = split_heads(_groups(shape, functional.linear(normed, layer.qkv)), cos, sin, backend)
        mixed = segment_attention(query.squeeze(1), key.squeeze(1), value.squeeze(1), segments, kernels.attention)
        update = functional.linear(mixed.flatten(1), layer.output).unsqueeze(1)
        states, normed = add_rms_norm(states, update, layer.second_norm, EPS, backend)
        update = functional.linear(swiglu(functional.linear(normed, layer.gate_up), backend), layer.down)
    assert update is not None
    return merge_speech(hidden, segments, states.squeeze(1), update.squeeze(1), backend)


def _groups(shape: Shape, qkv: Tensor) -> Tensor:
    """[T, B, (H + 2 G) d] to [T, B, G, (H / G + 2) d]."""
    return qkv.unflatten(-1, (shape.num_groups, -1))
