"""FLOPs of one training step, from the counts of its batches: the numerator of model FLOPs utilization."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from tolktrain.config.training import ParameterGroup
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.layers import layer_costs
from tolktrain.model.cost.work import LayerCost, StepCounts
from tolktrain.model.heads import Heads
from tolktrain.model.pooling import POOLING_MODES


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
    """Matrix FLOPs that a training step needs mathematically.

    A product of [n, m] rows with a weight [m, k] takes 2 n m k FLOPs forward, and as many again for each of the two
    gradients of the backward pass: that of the rows, and that of the weight (Kaplan et al., arXiv 2001.08361, section
    2.1: 6 FLOPs per weight and token in all). A frozen weight has no gradient, and a layer before the first trained
    parameter needs no gradient of its rows either: a frozen backbone after trained speech tables costs 4 FLOPs per
    weight and position instead of 6. The weight gradients of low-rank updates are not counted. Attention takes 4 H d
    for each pair of a query and a key that it attends to, and twice that backward, with four products for both
    gradients instead of two. So, with P weights of a transformer
    layer, q = H d and the counts of `StepCounts`, the forward pass of each part takes

        input adapter      2 P (speech positions) + 4 q (pairs inside segments) per layer
        backbone           2 P (positions) + 4 q (causal pairs) per layer
        pooling            2 L D (positions of the sequences that predict speech), the selector
        output adapter     2 P (the same positions) + 4 q (their causal pairs) per layer
        speech heads       2 K V_s D (positions scored as speech)
        text head          2 V_t D (positions scored as text)

    Not counted are pairs that a causal mask hides, recomputation to save memory (`train.activation_checkpointing`,
    recomputation in attention), and everything except products of matrices (norms, rotations, averages of layers, the
    optimizer). So the ratio to the hardware's peak is the model FLOPs utilization of Chowdhery et al. (PaLM, arXiv
    2204.02311, appendix B), not the hardware FLOPs utilization.

    Args:
        architecture: sizes and switches.
        counts: of everything that the step computes, over all micro batches and ranks.
        trainable: groups of parameters that the stage trains; the others are frozen.
    """
    costs = layer_costs(architecture, counts)

    def part(kind: str, members: Collection[LayerCost], to_input: bool, to_weights: bool) -> PartFlops:
        matrices, attention = (sum(getattr(cost, name) for cost in members) for name in ("matrices", "attention"))
        return PartFlops(kind, matrices, attention, to_input, to_weights)

    def layers(kind: str, to_input: bool, to_weights: bool) -> PartFlops:
        return part(kind, [cost for cost in costs if cost.kind == kind], to_input, to_weights)

    speech, backbone, mode = "speech" in trainable, "backbone" in trainable, POOLING_MODES[architecture.layer_pooling]
    lora = () if architecture.lora is None or "lora" not in trainable else architecture.lora.parts
    pooling = "pooling" in trainable and mode.has_weights
    # Whether the backbone's states have a gradient.
    states = speech or backbone or "input_adapter" in lora or "backbone" in lora
    after_pooling = states or pooling or "output_adapter" in lora
    speech_heads = Heads.cost(architecture, None, replace(counts, text_scored=0))
    text_head = Heads.cost(architecture, None, replace(counts, speech_scored=0))
    return StepFlops(
        (
            layers("input adapter", speech or "input_adapter" in lora, speech),
            layers("backbone", states, backbone),
            layers("pooling", states or (pooling and mode.static), pooling),
            layers("output adapter", after_pooling, speech),
            part("speech heads", [speech_heads], after_pooling, speech),
            part("text head", [text_head], states, backbone),
        )
    )
