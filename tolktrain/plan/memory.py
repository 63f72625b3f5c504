"""Memory of a rank: what torch's allocator gives out at the step's peaks, and what lies outside of it.

In bf16 the formulas are those of Triton's kernels and a GPU. In float32, which is for CPUs, everything that a layer
computes is twice as large, and states are DeepSpeed's in float32.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tolktrain.config.deepspeed import OVERLAPPED_BUCKET
from tolktrain.config.training import ParameterGroup
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.cut import carrier_bytes
from tolktrain.model.cost.memory import activation_bytes
from tolktrain.model.cost.work import LayerCost
from tolktrain.plan.assumptions import Assumptions, gib
from tolktrain.plan.candidates import Candidate
from tolktrain.plan.time import Shape
from tolktrain_kernels.cross_entropy import CHUNK_LOGITS

_BF16, _FLOAT32 = 2, 4
_MASTER_AND_MOMENTS = 3 * _FLOAT32
_UNSCORED = 0.03  # of the positions of interleaved sequences: their target is a switch token (3.8 % counted)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the fullest rank, by what needs them, at the largest of the peaks of a step."""

    states: float  # parameters, gradients, master weights and moments
    activations: float  # of the layers, for the backward pass
    logits: float  # of a chunk, and the head's gradient in float32
    carriers: float  # sent and received between pipeline stages
    buffers: float  # of collectives, and of gradients on their way
    reserve: float  # of the allocator
    overhead: float  # outside of it

    @property
    def allocated_gib(self) -> float:
        """As torch.cuda.max_memory_allocated gives it."""
        return gib(self.states + self.activations + self.logits + self.carriers + self.buffers)

    @property
    def total_gib(self) -> float:
        """Everything that must fit into the GPU."""
        return self.allocated_gib + gib(self.reserve + self.overhead)

    def parts(self) -> dict[str, float]:
        """GiB by part."""
        names = ("states", "activations", "logits", "carriers", "buffers", "reserve", "overhead")
        return {name: gib(getattr(self, name)) for name in names}


def estimate_memory(
    shape: Shape, candidate: Candidate, assumed: Assumptions, speech_share: float | None = None
) -> MemoryEstimate:
    """Memory of the fullest rank in a stage of the recipe.

    The peaks are the end of the last forward pass, when all activations are held; the begin of its backward pass; its
    end, when a layer is recomputed beside nearly all gradients; and the reduction of the gradients after it.

    Args:
        shape: model, sequence length and trained groups.
        candidate: layout.
        assumed: constants.
        speech_share: fraction of the positions whose token is speech. If None, the worst micro batches: all of it
            speech for the input adapter, all of it text for the logits.
    """
    return max(rank_memories(shape, candidate, assumed, speech_share), key=lambda rank: rank.total_gib)


def rank_memories(
    shape: Shape, candidate: Candidate, assumed: Assumptions, speech_share: float | None = None
) -> list[MemoryEstimate]:
    """Memory of a rank of each pipeline stage. Arguments as those of `estimate_memory`."""
    layers = shape.layers
    bounds = candidate.cut.bounds if candidate.cut is not None else (0, len(layers))
    return [
        _rank_memory(
            _Rank(shape.architecture, candidate, layers, stage, range(*bounds[stage : stage + 2])),
            shape.sequence_length,
            set(shape.trainable),
            assumed,
            speech_share,
        )
        for stage in range(len(bounds) - 1)
    ]


@dataclass(frozen=True)
class _Rank:
    """A rank of one pipeline stage."""

    architecture: Architecture
    candidate: Candidate
    all_layers: list[LayerCost]
    stage: int
    held: range  # indices of its layers

    @property
    def layers(self) -> list[LayerCost]:
        return [self.all_layers[index] for index in self.held]

    @property
    def has_heads(self) -> bool:
        return self.held.stop == len(self.all_layers)

    @property
    def slices(self) -> int:
        """Tensor ranks that split the positions."""
        return self.candidate.tensor if self.candidate.sequence_parallel else 1


def _rank_memory(
    rank: _Rank,
    sequence_length: int,
    trainable: set[ParameterGroup],
    assumed: Assumptions,
    speech_share: float | None,
) -> MemoryEstimate:
    candidate = rank.candidate
    sizes = _group_sizes(rank)
    order = _order(rank, trainable)
    states = (_wide_states if _is_wide(candidate) else _states)(candidate, sizes, trainable, order)
    positions = candidate.micro_batch_size * sequence_length
    in_flight = min(candidate.accumulation, candidate.pipeline - rank.stage)
    adapted, texts = (1.0, 1.0) if speech_share is None else (speech_share, 1 - speech_share)
    if speech_share and texts:
        texts -= _UNSCORED
    width = 2 if _is_wide(candidate) else 1  # of what is computed, in elements of bf16
    stored = in_flight * positions * width * _activations(rank, adapted, trainable)
    carriers, always = width * _carriers(rank, sequence_length), assumed.inner_workspace_gib * 2**30 + states.always
    loss, gradient = _logits(rank, positions * texts, "backbone" in trainable) if rank.has_heads else (0.0, 0.0)
    loss, gradient = width * loss, width * gradient
    activations, logits, buffers = max(
        _peaks(rank, positions * width, stored, (loss, gradient), states, always), key=lambda peak: math.fsum(peak)
    )
    reserve = assumed.reserve * (activations + logits + carriers + buffers)
    overhead = assumed.overhead_bytes(candidate.cluster.num_gpus)
    return MemoryEstimate(states.held, activations, logits, carriers, buffers, reserve, overhead)


def _group_sizes(rank: _Rank) -> dict[ParameterGroup, float]:
    """Elements of this rank by parameter group. Vectors, which tensor ranks do not split, count as if they did."""
    architecture, candidate = rank.architecture, rank.candidate
    sizes: dict[ParameterGroup, float] = {}
    for layer in rank.layers:
        for group, size in layer.sizes.items():
            sizes[group] = sizes.get(group, 0.0) + size / candidate.tensor
    if candidate.pipeline > 1 and rank.has_heads:  # the last stage has copies of the tied tables
        width = architecture.hidden_size / candidate.tensor
        if architecture.tie_text_embeddings:
            sizes["backbone"] = sizes.get("backbone", 0.0) + architecture.text_table_size * width
        speech = architecture.num_codebooks * architecture.speech_vocab_size * width
        sizes["speech"] = sizes.get("speech", 0.0) + speech
    return sizes


def _peaks(
    rank: _Rank, positions: float, stored: float, heads: tuple[float, float], states: "_States", always: float
) -> Iterator[tuple[float, float, float]]:
    """Bytes of activations, logits and buffers where their sum may be largest, in the order of a step.

    Args:
        rank: layout and layers.
        positions: of a micro batch, times the width of a computed element in elements of bf16.
        stored: activations at the end of the forward pass.
        heads: as `_logits` returns them.
        states: of the rank.
        always: buffers that are never freed.
    """
    architecture, candidate = rank.architecture, rank.candidate
    loss, gradient = heads
    output = positions * _BF16 * architecture.hidden_size / rank.slices
    layer = positions * activation_bytes(architecture, candidate.tensor, candidate.sequence_parallel)
    yield stored, loss, always
    # The backward pass begins: gate and up of the first layer have gradients, buckets are allocated.
    widest = positions * _BF16 * 2 * architecture.ffn_hidden_size / candidate.tensor
    yield stored + widest, 0.0, always + states.opened
    # The first layer is recomputed for the gradient of its output, or its activations are no longer needed.
    left = stored + layer + output if candidate.recompute else max(0.0, stored - layer)
    yield left, gradient, always + states.buckets
    if candidate.recompute:  # the pooling has given every pooled state its gradient
        pooled = output * sum(item.kind == "backbone" for item in rank.layers) if rank.has_heads else 0.0
        yield left + pooled, 0.0, always + states.buckets + states.early
    # The first layer has its gradients, when nearly all others exist, except the table's where no head on this rank has
    # had it before. Then the embedding, with both gradients of it.
    yield layer + 3 * output, 0.0, always + states.reduction - states.after_layers
    yield 3 * output, 0.0, always + states.reduction


@dataclass(frozen=True)
class _Order:
    """Elements whose gradients arise at the ends of a backward pass."""

    early: float  # before the backbone's
    late: float  # after those of all layers


def _order(rank: _Rank, trainable: set[ParameterGroup]) -> _Order:
    def trained(layers: Iterable[LayerCost]) -> float:
        sizes = (size for layer in layers for group, size in layer.sizes.items() if group in trainable)
        return math.fsum(sizes) / rank.candidate.tensor

    backbone = [place for place, layer in enumerate(rank.layers) if layer.kind == "backbone"]
    early = trained(rank.layers[backbone[-1] + 1 :]) if backbone else 0.0
    late = 0.0 if rank.stage > 0 or rank.has_heads else trained(rank.layers[:1])
    return _Order(early, late)


@dataclass(frozen=True)
class _States:
    """Bytes of a rank that do not depend on its micro batches."""

    held: float  # parameters, gradients, master weights and moments
    always: float = 0.0  # buffers that are never freed
    opened: float = 0.0  # buckets that a backward pass begins with
    buckets: float = 0.0  # of gradients, early in a backward pass
    early: float = 0.0  # gradients of what is behind the backbone, if they are not reduced at once
    reduction: float = 0.0  # of gradients after the last one
    after_layers: float = 0.0  # of `reduction`, what is not there yet when the gradients of all layers are


def _is_wide(candidate: Candidate) -> bool:
    """Whether training is in float32."""
    return not candidate.settings.entries["bf16"]["enabled"]


def _wide_states(
    candidate: Candidate, sizes: dict[ParameterGroup, float], trainable: set[ParameterGroup], order: _Order
) -> _States:
    """Those of float32, in which ZeRO 1 to 3 keep master weights of their own. What is offloaded is the same memory."""
    elements = sum(sizes.values())
    trained = sum(size for group, size in sizes.items() if group in trainable)
    zero_stage, partition = candidate.zero_stage, trained / candidate.data
    if zero_stage == 0:
        return _States(_FLOAT32 * elements + (_FLOAT32 + 2 * _FLOAT32) * trained)
    updated = _MASTER_AND_MOMENTS * partition
    gathered = _states(candidate, sizes, trainable, order)
    names = ("always", "opened", "buckets", "early", "reduction", "after_layers")
    buffers = {name: 2 * getattr(gathered, name) for name in names}
    if zero_stage == 3:
        held = _FLOAT32 * elements / candidate.data + 2 * _FLOAT32 * partition + updated
        return _States(held, **buffers)
    gradients = _FLOAT32 * (partition if zero_stage == 2 else trained)
    return _States(_FLOAT32 * elements + _FLOAT32 * trained + gradients + updated, **buffers)


def _states(
    candidate: Candidate, sizes: dict[ParameterGroup, float], trainable: set[ParameterGroup], order: _Order
) -> _States:
    elements = sum(sizes.values())
    trained = sum(size for group, size in sizes.items() if group in trainable)
    data, zero = candidate.data, candidate.settings.entries["zero_optimization"]
    partition = trained / data
    kept = 0.0 if candidate.offload else _MASTER_AND_MOMENTS * partition
    bucket = min(float(zero.get("reduce_bucket_size", 5e8)), trained)
    if candidate.zero_stage == 0:
        return _States(_BF16 * elements + (_BF16 + _MASTER_AND_MOMENTS) * trained, reduction=_FLOAT32 * trained)
    if candidate.zero_stage == 1:
        # bf16 gradients are there at the end of a backward pass only, when activations are not. Buckets to be sent
        # replace them, one after the other, and the rank's own sums are received.
        held = _BF16 * elements + _FLOAT32 * trained + kept
        bucket = min(float(zero.get("reduce_bucket_size", OVERLAPPED_BUCKET)), trained)
        scattered = bucket + partition if data > 1 else 0.0
        missing, first = order.late + scattered, 0.0
        if data > 1 and trained - order.late > bucket:  # buckets are sent early in the backward pass, too
            missing, first = order.late, bucket
        return _States(
            held,
            buckets=_BF16 * first,
            early=_BF16 * order.early,
            reduction=_BF16 * (trained + scattered),
            after_layers=_BF16 * missing,
        )
    if candidate.zero_stage == 2:
        held = _BF16 * elements + _FLOAT32 * partition + kept
        # With overlap_comm there are two buckets, of which one is counted while the heads' gradients are larger.
        opened = _BF16 * bucket * (2 if zero.get("overlap_comm") else 1)
        reduction = opened + _FLOAT32 * partition
        return _States(held, opened=opened, buckets=_BF16 * (bucket + partition), reduction=reduction)
    # Its bucket is one buffer. Gathered parameters are at most all of them.
    live = float(zero.get("stage3_max_live_parameters", 1e9)) + float(zero.get("stage3_prefetch_bucket_size", 5e7))
    gradients = 0.0 if candidate.offload else (_BF16 + _FLOAT32) * partition
    held = _BF16 * elements / data + gradients + kept
    return _States(held, always=_BF16 * (min(live, elements) + bucket), reduction=_FLOAT32 * partition)


def _activations(rank: _Rank, adapted: float, trainable: set[ParameterGroup]) -> float:
    """Bytes for each position of a micro batch that the rank's layers keep; `adapted` of them in the input adapter."""
    architecture, candidate = rank.architecture, rank.candidate

    def kept(is_frozen: bool) -> float:
        tensor, sequence_parallel = candidate.tensor, candidate.sequence_parallel
        return activation_bytes(architecture, tensor, sequence_parallel, candidate.recompute, is_frozen)

    # ZeRO 3's own linear function keeps its input in any case.
    backbone = kept("backbone" not in trainable and candidate.zero_stage < 3)
    rows = {"input adapter": adapted * kept(False), "backbone": backbone, "output adapter": kept(False)}
    # Embedding, residual, pooled states and the heads' inputs: a few states more.
    states = 4 * _BF16 * architecture.hidden_size / rank.slices
    return math.fsum(rows.get(layer.kind, 0.0) for layer in rank.layers) + states


def _carriers(rank: _Rank, sequence_length: int) -> float:
    candidate = rank.candidate
    if candidate.cut is None:
        return 0.0

    def size(bound: int) -> float:
        return carrier_bytes(rank.architecture, bound, sequence_length, candidate.micro_batch_size) / rank.slices

    received = size(rank.held.start) if rank.stage else 0.0
    sent = 0.0 if rank.has_heads else size(rank.held.stop)
    # Buffers of the micro batches in flight, and one for what arrives; the gradient of what was received is put
    # together from those of its states.
    return max(2, candidate.pipeline - rank.stage) * (2 * received + sent) + 3 * received + sent


def _logits(rank: _Rank, rows: float, is_trained: bool) -> tuple[float, float]:
    """What the text head needs for the loss and for the backward pass: the gradient of its weight, and for the loss
    logits: a chunk of them, or with tensor ranks all, in both precisions."""
    ids, width, tensor = rank.architecture.text_vocab_size, rank.architecture.hidden_size, rank.candidate.tensor
    weight = ids * width / tensor if is_trained else 0.0
    if tensor > 1:
        return _BF16 * weight + rows * ids / tensor * (_BF16 + _FLOAT32), _BF16 * weight
    return _FLOAT32 * weight + _BF16 * min(CHUNK_LOGITS["cuda"], rows * ids), (_FLOAT32 + _BF16) * weight
