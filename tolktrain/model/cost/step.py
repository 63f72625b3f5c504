"""FLOPs of one training step, from what its batches hold: the numerator of model FLOPs utilization."""

from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.layers import layer_flops
from tolktrain.model.parameter_layout import ParameterGroup
from tolktrain_kernels.speech_adapter import SpeechRuns


class HasCounts(Protocol):
    """A micro batch on the host, counted by whoever made it."""

    tokens: Tensor  # [B, K, T]
    runs: SpeechRuns
    num_text_scored: int
    num_speech_scored: int
    num_entropy_positions: int  # T times the sequences that predict speech


@dataclass(frozen=True)
class StepCounts:
    """Rows and query-key pairs that a step works on; those of several micro batches add up."""

    positions: int = 0
    causal_pairs: int = 0  # of a query and a key it sees, over whole sequences
    speech_positions: int = 0  # those that the input adapter works on
    run_pairs: int = 0  # inside runs of speech
    predicting_positions: int = 0  # of the sequences that predict speech
    predicting_pairs: int = 0
    text_scored: int = 0
    speech_scored: int = 0

    @classmethod
    def of(cls, batches: Iterable[HasCounts]) -> "StepCounts":
        """Counts of micro batches, without looking at a tensor on a GPU."""
        return sum((cls._of_one(batch) for batch in batches), cls())

    @classmethod
    def _of_one(cls, batch: HasCounts) -> "StepCounts":
        num_sequences, _, length = batch.tokens.shape
        pairs = length * (length + 1) // 2
        runs = np.diff(batch.runs.cu_seqlens.numpy()).astype(np.int64)
        return cls(
            positions=num_sequences * length,
            causal_pairs=num_sequences * pairs,
            speech_positions=batch.runs.num_positions,
            run_pairs=int((runs * (runs + 1) // 2).sum()),
            predicting_positions=batch.num_entropy_positions,
            predicting_pairs=batch.num_entropy_positions // length * pairs,
            text_scored=batch.num_text_scored,
            speech_scored=batch.num_speech_scored,
        )

    def __add__(self, other: "StepCounts") -> "StepCounts":
        return StepCounts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class PartFlops:
    """FLOPs of one part of the model in one step."""

    kind: str  # "input adapter", "backbone", "pooling", "output adapter", "speech heads" or "text head"
    matrices: int  # of the forward pass, products with weights
    attention: int  # of the forward pass, scores and weighted values
    to_input: bool  # whether the backward pass computes the gradient of the part's input
    to_weights: bool  # and that of its weights

    @property
    def forward(self) -> int:
        """Of the forward pass."""
        return self.matrices + self.attention

    @property
    def backward(self) -> int:
        """Of the backward pass: as much as forward for each gradient of a product."""
        passes = int(self.to_input) + int(self.to_weights)
        return passes * self.matrices + (2 * self.attention if passes else 0)


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one training step, by part."""

    parts: tuple[PartFlops, ...]

    @property
    def forward(self) -> int:
        """Of all forward passes of the step."""
        return sum(part.forward for part in self.parts)

    @property
    def backward(self) -> int:
        """Of all backward passes of the step."""
        return sum(part.backward for part in self.parts)

    @property
    def total(self) -> int:
        """Of the step."""
        return self.forward + self.backward


def step_flops(architecture: Architecture, counts: StepCounts, trainable: Collection[ParameterGroup]) -> StepFlops:
    """Matrix FLOPs of a training step, as its mathematics asks for them.

    A product of [n, m] rows with a weight [m, k] takes 2 n m k FLOPs forward, and as many again for each of the two
    gradients of the backward pass: that of the rows, and that of the weight (Kaplan et al., arXiv 2001.08361, section
    2.1: 6 FLOPs per weight and token in all). A frozen weight has no gradient, and one before the first trained
    parameter needs none for its rows either: a frozen backbone behind trained speech tables costs 4 FLOPs per weight
    and position in the place of 6. Attention takes 4 H d for each pair of a query and a key that it sees, and twice
    that backward, where the four products of both gradients stand against two. So, with P weights of a transformer
    layer, q = H d and the counts of `StepCounts`, the forward pass of each part takes

        input adapter      2 P (speech positions) + 4 q (pairs inside runs) per layer
        backbone           2 P (positions) + 4 q (causal pairs) per layer
        pooling            2 L D (positions of the sequences that predict speech), the selector
        output adapter     2 P (the same positions) + 4 q (their causal pairs) per layer
        speech heads       2 K V_s D (positions scored as speech)
        text head          2 V_t D (positions scored as text)

    Pairs that a causal mask hides do not count, nor does what is computed a second time to save memory
    (`train.activation_checkpointing`, attention's own recomputation), nor what is no product of matrices (norms,
    rotations, averages of layers, the optimizer). So the ratio to the hardware's peak is the model FLOPs utilization of
    Chowdhery et al. (PaLM, arXiv 2204.02311, appendix B), not the hardware's.

    Args:
        architecture: sizes and switches.
        counts: of everything that the step computes, over all micro batches and ranks.
        trainable: groups of parameters that the stage trains; the others are frozen.
    """
    sizes = architecture
    speech, backbone = "speech" in trainable, "backbone" in trainable
    pooling = "pooling" in trainable and sizes.layer_pooling != "none"
    states = speech or backbone  # whether the backbone's states have a gradient
    adapter_positions, adapter_pairs = counts.speech_positions, counts.run_pairs
    if sizes.adapter_attention == "published":  # its dense mask has every position go through the adapter
        length = 2 * counts.causal_pairs // max(counts.positions, 1) - 1
        adapter_positions, adapter_pairs = counts.positions, counts.positions * length
    per_pair = 4 * sizes.num_attention_heads * sizes.head_dim
    per_row = next(cost.matrices for cost in layer_flops(sizes, 1) if cost.kind == "backbone")

    def layers(kind: str, count: int, rows: int, pairs: int, to_input: bool, to_weights: bool) -> PartFlops:
        return PartFlops(kind, count * rows * per_row, count * pairs * per_pair, to_input, to_weights)

    width, rows, pairs = sizes.hidden_size, counts.predicting_positions, counts.predicting_pairs
    selector = 2 * sizes.num_layers * width * rows if sizes.dynamic_pooling else 0
    speech_heads = 2 * sizes.num_codebooks * sizes.speech_vocab_size * width * counts.speech_scored
    text_head = 2 * sizes.text_vocab_size * width * counts.text_scored
    after_pooling = states or pooling
    return StepFlops(
        (
            layers("input adapter", sizes.input_adapter_layers, adapter_positions, adapter_pairs, speech, speech),
            layers("backbone", sizes.num_layers, counts.positions, counts.causal_pairs, states, backbone),
            PartFlops("pooling", selector, 0, states or (pooling and sizes.static_pooling), pooling),
            layers("output adapter", sizes.output_adapter_layers, rows, pairs, after_pooling, speech),
            PartFlops("speech heads", speech_heads, 0, after_pooling, speech),
            PartFlops("text head", text_head, 0, states, backbone),
        )
    )
