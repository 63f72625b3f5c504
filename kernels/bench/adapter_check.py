"""Numerics of the speech adapter's kernels against float64, compared with eager PyTorch in the same type."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tolktrain_kernels.backend import Backend
from tolktrain_kernels.bench.elementwise_check import relative_error
from tolktrain_kernels.bench.pooling_check import TOLERANCES, Deviation
from tolktrain_kernels.speech_adapter import SpeechSegments, embed_tokens, merge_speech, pack_segments

KERNELS = ("embed", "merge")
TEXT_SIZE, SPEECH_SIZE = 43, 29
NUM_PADDING = 3  # packed rows after the speech


@dataclass(frozen=True)
class Case:
    """What is computed."""

    kernel: str  # of `KERNELS`
    shape: tuple[int, int]  # sequences and positions
    width: int
    num_codebooks: int
    speech_share: float
    dtype: torch.dtype


QUICK_CASES = tuple(
    Case(kernel, (2, 9), width, num_codebooks, 0.5, dtype)
    for kernel, width, num_codebooks in (("embed", 576, 1), ("embed", 72, 3), ("merge", 960, 1))
    for dtype in TOLERANCES
)


def random_mask(
    rng: np.random.Generator, shape: tuple[int, int], speech_share: float, mean_segment: float
) -> np.ndarray:
    """Alternating segments of random lengths, bool [B, T]; all or nothing at a share of 1 or 0."""
    mask = np.zeros(shape, dtype=bool)
    if speech_share in (0.0, 1.0):
        mask[:] = speech_share == 1.0
        return mask
    means = {True: mean_segment, False: mean_segment * (1 - speech_share) / speech_share}
    for row in mask:
        position, is_speech = 0, bool(rng.random() < speech_share)
        while position < shape[1]:
            length = 1 + rng.poisson(means[is_speech] - 1 if means[is_speech] > 1 else 0.5)
            row[position : position + length] = is_speech
            position, is_speech = position + length, not is_speech
    return mask


def deviations(case: Case, device: str) -> list[Deviation]:
    """Errors of every output and gradient. On the CPU it needs Triton's interpreter (TRITON_INTERPRET=1)."""
    rng = np.random.default_rng(case.width)
    segments = pack_segments(random_mask(rng, case.shape, case.speech_share, 3.0))
    num_rows, num_packed = len(segments.places), segments.num_positions + NUM_PADDING
    is_speech = segments.places.unsqueeze(1) >= 0
    units = torch.from_numpy(rng.integers(0, SPEECH_SIZE, (num_rows, case.num_codebooks)))
    words = torch.from_numpy(rng.integers(0, TEXT_SIZE, (num_rows, case.num_codebooks)))
    tokens = torch.where(is_speech, units, words)
    if case.kernel == "embed":
        shapes = {"text table": TEXT_SIZE} | {f"speech table {k}": SPEECH_SIZE for k in range(case.num_codebooks)}
        outputs = {"embeddings": num_rows, "packed": num_packed}
    else:
        shapes = {"hidden": num_rows, "packed": num_packed, "update": num_packed}
        outputs = {"merged": num_rows}

    def random(length: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal((length, case.width))).to(case.dtype).double()

    inputs, gradients = [random(n) for n in shapes.values()], [random(n) for n in outputs.values()]

    def run(backend: Backend, dtype: torch.dtype, place: str) -> list[Tensor]:
        leaves = [tensor.to(place, dtype).requires_grad_() for tensor in inputs]
        found = compute(case.kernel, leaves, tokens.to(place), segments.to(place), backend)
        return [*found, *torch.autograd.grad(found, leaves, [gradient.to(place, dtype) for gradient in gradients])]

    exact = run("torch", torch.float64, "cpu")
    eager, ours = run("torch", case.dtype, device), run("triton", case.dtype, device)
    names = [*outputs, *(f"gradient of {name}" for name in shapes)]
    return [
        Deviation(name, relative_error(mine, true), relative_error(plain, true))
        for name, mine, plain, true in zip(names, ours, eager, exact, strict=True)
    ]


def compute(
    kernel: str, inputs: Sequence[Tensor], tokens: Tensor, segments: SpeechSegments, backend: Backend
) -> tuple[Tensor, ...]:
    """Outputs of one kernel; tables, or states, in the order of its arguments."""
    if kernel == "embed":
        return embed_tokens(tokens, segments, inputs[0], inputs[1:], segments.num_positions + NUM_PADDING, backend)
    hidden, packed, update = inputs
    return (merge_speech(hidden, segments, packed, update, backend),)
