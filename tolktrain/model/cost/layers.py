"""What each layer of the model computes, holds and sends, and where a pipeline is cut into stages of equal work."""

from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture


@dataclass(frozen=True)
class LayerCost:
    """One entry of the list that `tolktrain.model.smoltolk.build_layers` makes.

    FLOPs are those of the forward pass, for one position of the batch on average, in whole numbers. The backward pass
    takes twice as many in every layer, so that shares of the forward pass are shares of the step.
    """

    kind: str  # "embedding", "input adapter", "backbone", "final norm", "pooling", "output adapter" or "heads"
    index: int | None  # among its kind, from 0; None where there is only one
    parameters: int  # elements; a tied table counts in the embedding
    matrices: int  # FLOPs of products with weights
    attention: int  # FLOPs of scores and weighted values
    elementwise: int = 0  # FLOPs of additions and scalings, counted where a layer consists of nothing else

    @property
    def name(self) -> str:
        """For display: "backbone 7"."""
        return self.kind if self.index is None else f"{self.kind} {self.index}"

    @property
    def flops(self) -> int:
        """Of the forward pass, per position."""
        return self.matrices + self.attention + self.elementwise


@dataclass(frozen=True)
class PipelineCut:
    """Stages of a pipeline: stage s holds layers[bounds[s]:bounds[s + 1]]."""

    bounds: tuple[int, ...]  # one more than there are stages: from 0 to the number of layers
    layers: tuple[LayerCost, ...]  # of the whole model

    @property
    def num_stages(self) -> int:
        """Stages, each on ranks of its own."""
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


def layer_flops(
    architecture: Architecture,
    sequence_length: int,
    speech_share: float = 0.5,
    pooled_share: float = 1.0,
    run_length: int | None = None,
) -> list[LayerCost]:
    """Cost of every layer, in the order of `build_layers`.

    A product of [., m] and [m, n] takes 2 m n FLOPs a row (a multiplication and an addition per weight; Kaplan et al.,
    arXiv 2001.08361, section 2.1). Attention takes 4 H d for each pair of a query and a key it sees; causal, a position
    sees (T + 1) / 2 keys on average. With q = H d and g = G d the widths of queries and keys, a transformer layer is

        2 D (2 q + 2 g) + 6 D F        matrices: q and o, k and v; gate, up and down
        2 q (T + 1)                    attention, causal over T positions

    Its norms, rotations and activations are left out: below 1 % of it. Which rows a part works on follows SmolTolk
    (arXiv 2503.06211, section 3): the input adapter on speech alone, inside its runs; pooling and output adapter on all
    positions of the sequences that predict speech; each head where its modality is predicted.

    Args:
        architecture: sizes and switches.
        sequence_length: positions of a sequence (T).
        speech_share: fraction of the positions whose token is speech; as many predict speech, the others text.
        pooled_share: fraction of the positions in sequences that predict speech; 1 in interleaved data.
        run_length: positions of a run of speech; a whole sequence if not given, which is the most it can be.
    """
    sizes, width = architecture, architecture.hidden_size
    run = sequence_length if run_length is None else min(run_length, sequence_length)
    input_share, seen = speech_share, (run + 1) / 2
    if sizes.adapter_attention == "published":  # its dense mask has every position go through the adapter
        input_share, seen = 1.0, float(sequence_length)
    causal = (sequence_length + 1) / 2
    tables = sizes.text_table_size + sizes.num_codebooks * sizes.speech_vocab_size
    text_head = sizes.text_vocab_size * width
    speech_heads = sizes.num_codebooks * sizes.speech_vocab_size * width
    return [
        LayerCost(
            "embedding",
            None,
            parameters=tables * width,
            matrices=0,
            attention=0,
            elementwise=round(speech_share * (sizes.num_codebooks - 1) * width),
        ),
        *(_block(sizes, "input adapter", i, input_share, seen) for i in range(sizes.input_adapter_layers)),
        *(_block(sizes, "backbone", i, 1.0, causal) for i in range(sizes.num_layers)),
        # x^2, the sum, and two scalings
        LayerCost("final norm", None, parameters=width, matrices=0, attention=0, elementwise=4 * width),
        _pooling(sizes, pooled_share),
        *(_block(sizes, "output adapter", i, pooled_share, causal) for i in range(sizes.output_adapter_layers)),
        LayerCost(
            "heads",
            None,
            parameters=0 if sizes.tie_text_embeddings else text_head,
            matrices=round(2 * ((1 - speech_share) * text_head + speech_share * speech_heads)),
            attention=0,
        ),
    ]


def cut_points(architecture: Architecture) -> range:
    """Indices of the layers before which a pipeline may be cut: each backbone layer and the final norm.

    Embedding and input adapter stay on the first stage, because packed speech does not travel; what comes behind the
    backbone stays on the last, because both heads, both losses and the pooling need each other's inputs.
    """
    first = 1 + architecture.input_adapter_layers
    return range(first, first + architecture.num_layers + 1)


def carried_slices(architecture: Architecture, bound: int) -> int:
    """Slices [T, B, D] that travel over a cut before layer `bound`, one of `cut_points`.

    Before backbone layer i (or the final norm, i = L) these are the states h_1 .. h_i that the pooling will read, of
    which the last is the backbone's own way on (the adapted embedding, for i = 0), and e for the residual.
    """
    assert bound in cut_points(architecture)
    layers_before = bound - cut_points(architecture).start
    states = max(layers_before, 1) if architecture.layer_pooling != "none" else 1
    return states + (1 if architecture.residual else 0)


def carrier_bytes(
    architecture: Architecture, bound: int, sequence_length: int, micro_batch_size: int, bytes_per_element: int = 2
) -> int:
    """Bytes of the tensor that travels over the cut before layer `bound`, once forward for each micro batch.

    Its gradient, of the same size, comes back. Under sequence parallelism the tensor ranks of a stage share this;
    without, each of them sends all of it.

    Args:
        architecture: sizes and switches.
        bound: one of `cut_points`.
        sequence_length: positions of a sequence (T).
        micro_batch_size: sequences (B).
        bytes_per_element: 2 in bf16, 4 in float32.
    """
    positions = sequence_length * micro_batch_size
    return carried_slices(architecture, bound) * positions * architecture.hidden_size * bytes_per_element


def activation_bytes(
    architecture: Architecture, tensor_size: int = 1, sequence_parallel: bool = False, recompute: bool = False
) -> float:
    """Bytes in bf16 that the backward pass of one transformer layer needs of each position, on each tensor rank.

    With q and g the widths of queries and keys, and F that of the feed-forward layer, these are (2 bytes each)

        4 D                  inputs of both norms, and what both give to the matrices
        3 q + 3 g            the product q, k, v, of which v is a part; q and k rotated; attention's result
        3 F                  gate and up, and what goes into down
        2 H                  logarithms of attention's sums (float32)

    for a norm that keeps its input alone, as CUDA's does. PyTorch's on a CPU keeps float32 copies, 12 D bytes more.
    Recomputed, a layer keeps its input, which is the state that the pooling reads, and so nothing beyond that.

    Args:
        architecture: sizes and switches.
        tensor_size: tensor ranks, which share everything but the 4 D.
        sequence_parallel: whether they share those too.
        recompute: whether the backward pass computes the layer anew; one layer at a time then needs the rest.
    """
    slices = tensor_size if sequence_parallel else 1
    if recompute:
        return 2 * architecture.hidden_size / slices
    widths = _query_width(architecture) + _key_width(architecture) + architecture.ffn_hidden_size
    return 8 * architecture.hidden_size / slices + (6 * widths + 4 * architecture.num_attention_heads) / tensor_size


def cut_layers(
    architecture: Architecture, sequence_length: int, num_stages: int, speech_share: float = 0.5
) -> PipelineCut:
    """Cut the list of layers so that the stage with the most FLOPs has as few as can be.

    The slowest stage sets the pace of a pipeline. Among the best cuts the one is taken that sends the fewest states
    (which also keeps the fewest in memory), then the one whose cuts come first.

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
    # For each end, as the end of the stages so far: the slices sent and the bounds; None where a stage would exceed.
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
    """The least that the largest stage can have. Stages end at some of `flops` (cumulated), the last at its last."""
    best: list[float] = list(flops)
    for _ in range(num_stages - 1):
        best = [
            min((max(best[i], end - flops[i]) for i in range(j)), default=float("inf")) for j, end in enumerate(flops)
        ]
    return int(best[-1])


def _block(sizes: Architecture, kind: str, index: int, share: float, seen: float) -> LayerCost:
    """A transformer layer that works on a share of the positions, each of which sees `seen` keys."""
    width = sizes.hidden_size
    queries, keys = _query_width(sizes), _key_width(sizes)
    weights = width * (2 * queries + 2 * keys) + 3 * width * sizes.ffn_hidden_size
    return LayerCost(
        kind,
        index,
        parameters=weights + 2 * width,
        matrices=round(share * 2 * weights),
        attention=round(share * 4 * queries * seen),
    )


def _query_width(sizes: Architecture) -> int:
    return sizes.num_attention_heads * sizes.head_dim


def _key_width(sizes: Architecture) -> int:
    return sizes.num_key_value_heads * sizes.head_dim


def _pooling(sizes: Architecture, share: float) -> LayerCost:
    """Each average multiplies and adds L slices; the selector is a product [., D] x [D, L]."""
    average = 2 * sizes.num_layers * sizes.hidden_size
    averages = int(sizes.static_pooling) + int(sizes.dynamic_pooling)
    parameters = sizes.num_layers * int(sizes.static_pooling)
    if sizes.dynamic_pooling:
        parameters += sizes.num_layers * (sizes.hidden_size + 1)
    residual = sizes.hidden_size if sizes.residual else 0
    return LayerCost(
        "pooling",
        None,
        parameters=parameters,
        matrices=round(share * average) if sizes.dynamic_pooling else 0,
        attention=0,
        elementwise=round(share * (averages * average + residual)),
    )


def _spans(layers: tuple[LayerCost, ...]) -> str:
    """ "embedding, input adapter 0-1, backbone 0-6"."""
    parts = []
    for _, members in groupby(layers, key=lambda layer: layer.kind):
        span = list(members)
        parts.append(span[0].name if len(span) == 1 else f"{span[0].name}-{span[-1].index}")
    return ", ".join(parts)
