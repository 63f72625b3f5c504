"""Memory of a rank: what torch's allocator gives out at the step's two peaks, and what lies outside of it."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the fullest rank, by what needs them, at the larger of the two peaks of a step."""

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

    The peaks are the end of the last forward pass, when all activations are held, and the reduction of the gradients
    after the last backward pass, when none are.

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
    states, buffers, step_only = _states(candidate, sizes, trainable)
    positions = candidate.micro_batch_size * sequence_length
    in_flight = min(candidate.accumulation, candidate.pipeline - rank.stage)
    adapted, texts = (1.0, 1.0) if speech_share is None else (speech_share, 1 - speech_share)
    activations = in_flight * positions * _activations(rank, adapted)
    carriers = _carriers(rank, sequence_length)
    logits = _logits(rank, positions * texts, "backbone" in trainable) if rank.has_heads else 0.0
    forward, step = activations + carriers + logits + buffers, step_only + carriers
    reserve, overhead = assumed.reserve * max(forward, step), assumed.overhead_bytes(candidate.cluster.num_gpus)
    if forward >= step:
        return MemoryEstimate(states, activations, logits, carriers, buffers, reserve, overhead)
    return MemoryEstimate(states, 0.0, 0.0, carriers, step_only, reserve, overhead)


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


def _states(
    candidate: Candidate, sizes: dict[ParameterGroup, float], trainable: set[ParameterGroup]
) -> tuple[float, float, float]:
    """Bytes held all the time; buffers during the passes; and what the reduction needs after them."""
    elements = sum(sizes.values())
    trained = sum(size for group, size in sizes.items() if group in trainable)
    data, zero = candidate.data, candidate.settings.entries["zero_optimization"]
    partition = trained / data
    largest_group = max((size for group, size in sizes.items() if group in trainable), default=0.0)
    kept = 0.0 if candidate.offload else _MASTER_AND_MOMENTS * partition
    bucket = min(float(zero.get("reduce_bucket_size", 5e8)), trained)
    if candidate.zero_stage == 1:
        # bf16 gradients stay allocated between steps; the all-reduce over several ranks flattens one group in float32
        # and casts it.
        held = _BF16 * elements + (_BF16 + _FLOAT32) * trained + kept
        return held, 0.0, (_FLOAT32 + _BF16) * largest_group if data > 1 else 0.0
    buckets = _BF16 * bucket * (2 if zero.get("overlap_comm") else 1)
    if candidate.zero_stage == 2:
        held = _BF16 * elements + _FLOAT32 * partition + kept
        return held, buckets + _BF16 * partition, buckets + _FLOAT32 * partition
    live = min(float(zero.get("stage3_max_live_parameters", 1e9)), elements)
    prefetched = min(float(zero.get("stage3_prefetch_bucket_size", 5e7)), elements)
    held = _BF16 * elements / data + (_BF16 + _FLOAT32) * partition + kept
    return held, _BF16 * (live + prefetched) + buckets, buckets + _FLOAT32 * partition


def _activations(rank: _Rank, adapted: float) -> float:
    """Bytes for each position of a micro batch that the rank's layers keep; `adapted` of them in the input adapter."""
    candidate = rank.candidate
    whole = activation_bytes(rank.architecture, candidate.tensor, candidate.sequence_parallel)
    kept = activation_bytes(rank.architecture, candidate.tensor, candidate.sequence_parallel, candidate.recompute)
    rows = {"input adapter": adapted, "backbone": 1.0, "output adapter": 1.0}
    counts = [rows[layer.kind] for layer in rank.layers if layer.kind in rows]
    # Embedding, residual, pooled states and the heads' inputs: a few states more.
    ends = 4 * _BF16 * rank.architecture.hidden_size / rank.slices
    return sum(counts) * kept + (whole if candidate.recompute and counts else 0.0) + ends


def _carriers(rank: _Rank, sequence_length: int) -> float:
    candidate = rank.candidate
    if candidate.cut is None:
        return 0.0

    def size(bound: int) -> float:
        return carrier_bytes(rank.architecture, bound, sequence_length, candidate.micro_batch_size) / rank.slices

    received = size(rank.held.start) if rank.stage else 0.0
    sent = 0.0 if rank.has_heads else size(rank.held.stop)
    return max(2, candidate.pipeline - rank.stage) * (2 * received + sent)


def _logits(rank: _Rank, rows: float, is_trained: bool) -> float:
    """A chunk of logits with the weight's gradient; all logits at once with tensor ranks, which compute them whole."""
    ids, width, tensor = rank.architecture.text_vocab_size, rank.architecture.hidden_size, rank.candidate.tensor
    gradient = (_FLOAT32 + _BF16) * ids * width / tensor if is_trained else 0.0
    if tensor > 1:
        return gradient + rows * ids / tensor * (_BF16 + 2 * _FLOAT32)
    return gradient + _BF16 * min(CHUNK_LOGITS["cuda"], rows * ids)
