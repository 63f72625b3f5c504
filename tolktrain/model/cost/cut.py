"""Cuts the layers into pipeline stages of equal work, and computes what is sent over each cut."""

from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.layers import layer_flops
from tolktrain.model.cost.work import LayerCost


@dataclass(frozen=True)
class PipelineCut:
    """Stages of a pipeline: stage s holds layers[bounds[s]:bounds[s + 1]]."""

    bounds: tuple[int, ...]  # one more than there are stages: from 0 to the number of layers
    layers: tuple[LayerCost, ...]  # of the whole model

    @property
    def num_stages(self) -> int:
        """Number of pipeline stages."""
        return len(self.bounds) - 1

    @property
    def shares(self) -> tuple[float, ...]:
        """Fraction of the model's FLOPs in each stage."""
        total = sum(layer.flops for layer in self.layers)
        return tuple(sum(layer.flops for layer in self.layers[a:b]) / total for a, b in pairwise(self.bounds))

    def describe(self) -> list[str]:
        """One line for each stage: "stage 0: embedding, input adapter 0-1, backbone 0-6 (26 % of the FLOPs)"."""
        spans = (self.layers[a:b] for a, b in pairwise(self.bounds))
        return [
            f"stage {stage}: {_spans(layers)} ({100 * share:.0f} % of the FLOPs)"
            for stage, (layers, share) in enumerate(zip(spans, self.shares, strict=True))
        ]


def cut_points(architecture: Architecture) -> range:
    """Indices of the layers before which a pipeline may be cut: each backbone layer and the final norm.

    Embedding and input adapter stay on the first stage, because packed speech is not sent. The layers after the
    backbone stay on the last stage, because heads, losses and pooling need each other's inputs.
    """
    first = 1 + architecture.input_adapter_layers
    return range(first, first + architecture.num_layers + 1)


def carried_slices(architecture: Architecture, bound: int) -> int:
    """Number of slices [T, B, D] that are sent over a cut before layer `bound`, one of `cut_points`.

    Before backbone layer i (or the final norm, i = L), these are the states h_1 .. h_i for the pooling, the last of
    which is also the input of the next layer (the adapted embedding, for i = 0), and e for the residual.
    """
    assert bound in cut_points(architecture)
    layers_before = bound - cut_points(architecture).start
    states = max(layers_before, 1) if architecture.keeps_states else 1
    return states + (1 if architecture.residual else 0)


def carrier_bytes(
    architecture: Architecture, bound: int, sequence_length: int, micro_batch_size: int, bytes_per_element: int = 2
) -> int:
    """Bytes of the tensor that is sent over the cut before layer `bound`, once forward for each micro batch.

    Its gradient, of the same size, is sent back. With sequence parallelism, each tensor rank of a stage sends a slice;
    without, each sends the whole tensor.

    Args:
        architecture: sizes and switches.
        bound: one of `cut_points`.
        sequence_length: positions of a sequence (T).
        micro_batch_size: sequences (B).
        bytes_per_element: 2 in bf16, 4 in float32.
    """
    positions = sequence_length * micro_batch_size
    return carried_slices(architecture, bound) * positions * architecture.hidden_size * bytes_per_element


def cut_layers(
    architecture: Architecture, sequence_length: int, num_stages: int, speech_share: float = 0.5
) -> PipelineCut:
    """Cut the list of layers so that the largest number of FLOPs of a stage is minimal.

    The slowest stage determines the speed of a pipeline. Among the best cuts, the one that sends the fewest states
    (which also keeps the fewest in memory) is taken, then the one with the earliest cuts.

    Args:
        architecture: sizes and switches.
        sequence_length: positions of a sequence in training.
        num_stages: parallel.pipeline_parallel_size.
        speech_share: fraction of the positions whose token is speech.

    Raises:
        UserError: the model cannot be cut into that many stages.
    """
    points = cut_points(architecture)
    if not 1 <= num_stages <= len(points) + 1:
        raise UserError(
            f"parallel.pipeline_parallel_size {num_stages}: a model of {architecture.num_layers} backbone layers can be"
            f" cut into 1 to {len(points) + 1} stages (before each of its layers and before the final norm);"
            f" use {1 if num_stages < 1 else len(points) + 1} or {'more' if num_stages < 1 else 'fewer'}"
        )
    layers = tuple(layer_flops(architecture, sequence_length, speech_share))
    before = [0, *accumulate(layer.flops for layer in layers)]  # FLOPs of the layers before each
    ends = [*points, len(layers)]
    limit = _smallest_maximum([before[end] for end in ends], num_stages)
    carried = [carried_slices(architecture, point) for point in points]
    # For each end of the stages so far: the slices sent and the bounds; None if a stage would exceed the maximum.
    best: list[tuple[int, tuple[int, ...]] | None] = [(0, (0, end)) if before[end] <= limit else None for end in ends]
    for _ in range(num_stages - 1):
        best = [
            min(
                (
                    (so_far[0] + slices, (*so_far[1], end))
                    for so_far, slices, start in zip(best[:j], carried[:j], ends[:j], strict=True)
                    if so_far is not None and before[end] - before[start] <= limit
                ),
                default=None,
            )
            for j, end in enumerate(ends)
        ]
    found = best[-1]
    assert found is not None
    return PipelineCut(found[1], layers)


def _smallest_maximum(flops: list[int], num_stages: int) -> int:
    """The least possible FLOPs of the largest stage. Stages end at entries of the cumulated `flops`."""
    best: list[float] = list(flops)
    for _ in range(num_stages - 1):
        best = [
            min((max(best[i], end - flops[i]) for i in range(j)), default=float("inf")) for j, end in enumerate(flops)
        ]
    return int(best[-1])


def _spans(layers: tuple[LayerCost, ...]) -> str:
    """ "embedding, input adapter 0-1, backbone 0-6"."""
    parts = []
    for _, members in groupby(layers, key=lambda layer: layer.kind):
        span = list(members)
        parts.append(span[0].name if len(span) == 1 else f"{span[0].name}-{span[-1].index}")
    return ", ".join(parts)
