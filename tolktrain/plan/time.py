"""Seconds of a training step: operations by a model of the device, collectives by bytes and link, and what hides them.

The operations are computed from the shapes, or those that were counted when the step was rehearsed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from tolktrain.cluster.accelerators import Accelerator
from tolktrain.cluster.device_models import ATTENTION, ATTENTION_BACKWARD, MEMORY, Work
from tolktrain.config.data import InterleavingConfig, Mixture
from tolktrain.config.training import ParameterGroup
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.cut import carrier_bytes
from tolktrain.model.cost.layers import layer_flops
from tolktrain.model.cost.operations import BACKWARD, UPDATE, Operations, micro_batch_operations
from tolktrain.model.cost.step import StepFlops, step_flops
from tolktrain.model.cost.work import LayerCost, StepCounts
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Candidate

_BF16, _FLOAT32 = 2, 4
_MANY = 1 << 20  # positions, so that averages become whole counts
INTERLEAVED_SPEECH = 0.46  # of the positions, as in `tolktrain bench`
UPDATE_PARTS = ("gradient accumulation", "optimizer")

_UNITS_PER_WORD = 6.0  # repeats collapsed; only the short attention inside segments depends on it


@dataclass(frozen=True)
class StepEstimate:
    """Seconds of one step, by what takes them."""

    products: float  # of matrices
    attention: float
    elementwise: float  # everything else that the layers compute
    launches: float  # waiting for the host
    recompute: float  # the forward pass again
    optimizer: float  # adding up gradients, and the update
    tensor_traffic: float
    pipeline_traffic: float
    bubble: float  # ranks without work while the pipeline fills and drains
    data_traffic: float  # what is not hidden behind the computation

    @property
    def seconds(self) -> float:
        """Of the step."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Shape:
    """What a step computes: the model, its data, and the trained groups."""

    architecture: Architecture
    per_position: StepCounts  # averages over the mixture
    sequence_length: int
    trainable: tuple[ParameterGroup, ...]

    @cached_property
    def layers(self) -> list[LayerCost]:
        """Costs of the layers of the model."""
        return layer_flops(self.architecture, self.sequence_length)

    @cached_property
    def flops(self) -> StepFlops:
        """Model FLOPs of `_MANY` positions."""
        counts = {name: round(value * _MANY) for name, value in vars(self.per_position).items()}
        return step_flops(self.architecture, StepCounts(**counts), self.trainable)

    def total_flops(self, positions: float) -> float:
        """Model FLOPs of that many positions."""
        return self.flops.total * positions / _MANY


def average_counts(mixture: Mixture, interleaving: InterleavingConfig, sequence_length: int) -> StepCounts:
    """Counts of a position, on average over the strategies of a mixture.

    Interleaved and prefix sequences are assumed to be 46 % speech; sequences are drawn by the weights.
    """
    total = sum(entry.weight for entry in mixture.values())
    shares = {strategy: entry.weight / total for strategy, entry in mixture.items()}
    text, speech = shares.get("text", 0.0), shares.get("speech", 0.0)
    mixed = 1.0 - text - speech
    parts = (
        (text, StepCounts.average(sequence_length, 0.0, 0.0, 1)),
        (speech, StepCounts.average(sequence_length, 1.0, 1.0)),
        (mixed, interleaved_counts(interleaving, sequence_length)),
    )
    return sum(
        (StepCounts(*(share * value for value in vars(counts).values())) for share, counts in parts), StepCounts()
    )


def interleaved_counts(interleaving: InterleavingConfig, sequence_length: int) -> StepCounts:
    """Counts of a position of interleaved sequences."""
    segment = round(_UNITS_PER_WORD * sum(interleaving.speech_words) / 2)
    return StepCounts.average(sequence_length, INTERLEAVED_SPEECH, 1.0, segment)


def estimate_step(shape: Shape, candidate: Candidate, device: Accelerator, assumed: Assumptions) -> StepEstimate:
    """Seconds of a step of the slowest rank.

    Args:
        shape: model and data.
        candidate: layout.
        device: kind of GPU and its links.
        assumed: rates.
    """
    micro = candidate.micro_batch_size * shape.sequence_length
    compute, backward = _micro_batch(shape, candidate, device, assumed)
    tensor = _tensor_traffic(shape, candidate, device, assumed, micro)
    transfer = _pipeline_traffic(shape, candidate, device, assumed)
    count = candidate.accumulation
    of_one = compute.seconds + tensor + transfer
    found = replace(
        StepEstimate(**{name: count * value for name, value in vars(compute).items()}),
        optimizer=_update(shape, candidate, device, assumed),
        tensor_traffic=count * tensor,
        pipeline_traffic=count * transfer,
        bubble=(candidate.pipeline - 1) * of_one,
        data_traffic=_data_traffic(shape, candidate, device, assumed, backward, compute.seconds),
    )
    return StepEstimate(**{name: assumed.time_factor * value for name, value in vars(found).items()})


def computed_operations(shape: Shape, candidate: Candidate) -> list[Operations]:
    """Operations of a micro batch of a rank that has all layers, without the optimizer's and without recomputation."""
    positions = candidate.micro_batch_size * shape.sequence_length
    counts = StepCounts(*(positions * value for value in vars(shape.per_position).values()))
    return micro_batch_operations(
        shape.architecture, counts, shape.trainable, candidate.tensor, candidate.sequence_parallel
    )


def stage_share(candidate: Candidate) -> float:
    """Fraction of the model's operations on the slowest pipeline stage."""
    return 1.0 if candidate.cut is None else max(candidate.cut.shares)


@dataclass(frozen=True)
class OperationSums:
    """Sums over the operations of a rank, without collectives."""

    launches: float
    bytes: float
    flops: float
    seconds: float  # by the rates of the device
    update_seconds: float  # of them, for gradients and update

    @classmethod
    def of(
        cls, operations: Iterable[tuple[Operations, float]], device: Accelerator, assumed: Assumptions
    ) -> "OperationSums":
        """Of operations, each with how often it is done."""
        launches = moved = flops = seconds = update = 0.0
        for item, times in operations:
            launches += times * item.work.launches
            moved += times * item.work.bytes
            flops += times * item.work.flops
            of_item = times * assumed.rates.seconds(item.work, device)
            seconds += of_item
            update += of_item if item.part in UPDATE_PARTS else 0.0
        return cls(launches, moved, flops, seconds, update)


def rank_operations(shape: Shape, candidate: Candidate, stage: int) -> list[tuple[Operations, float]]:
    """The operations of a step of a rank of a pipeline stage, each with how often it is done."""
    share = 1.0 if candidate.cut is None else candidate.cut.shares[stage]
    times = share * candidate.accumulation
    return [
        *(
            (item, times * (2 if candidate.recompute and item.is_recomputed else 1))
            for item in computed_operations(shape, candidate)
        ),
        *((item, 1.0) for item in update_operations(shape, candidate)),
    ]


def with_rehearsed(step: StepEstimate, computed: OperationSums, rehearsed: OperationSums) -> StepEstimate:
    """A step whose computation takes as much longer as the rehearsed operations of a rank exceed the computed ones."""
    ratio = (rehearsed.seconds - rehearsed.update_seconds) / (computed.seconds - computed.update_seconds)
    update = rehearsed.update_seconds / computed.update_seconds if computed.update_seconds else 1.0
    names = ("products", "attention", "elementwise", "recompute", "bubble")
    return replace(step, optimizer=update * step.optimizer, **{name: ratio * getattr(step, name) for name in names})


def _micro_batch(
    shape: Shape, candidate: Candidate, device: Accelerator, assumed: Assumptions
) -> tuple[StepEstimate, float]:
    """Computation of one micro batch on the slowest rank, traffic and update left at 0; and the backward pass of it."""
    share, rates = stage_share(candidate), assumed.rates
    products = attention = elementwise = recompute = backward = launches = 0.0
    for item in computed_operations(shape, candidate):
        seconds = share * rates.seconds(item.work, device)
        launches += share * item.work.launches
        if item.work.kind in (ATTENTION, ATTENTION_BACKWARD):
            attention += seconds
        elif item.work.kind == MEMORY:
            elementwise += seconds
        else:
            products += seconds
        if candidate.recompute and item.is_recomputed:
            recompute += seconds
            launches += share * item.work.launches
        if item.direction == BACKWARD:
            backward += seconds
    architecture = shape.architecture
    blocks = architecture.num_layers + architecture.input_adapter_layers + architecture.output_adapter_layers
    hooks = assumed.zero3_layer_seconds * blocks * share if candidate.zero_stage == 3 else 0.0
    busy = products + attention + elementwise + recompute
    waits = max(0.0, launches * assumed.host_launch_seconds + hooks - busy)
    return StepEstimate(products, attention, elementwise, waits, recompute, 0.0, 0.0, 0.0, 0.0, 0.0), backward


def _ring(
    num_bytes: float, ranks: int, candidate: Candidate, stride: int, device: Accelerator, assumed: Assumptions
) -> float:
    """Seconds of a gather or scatter of `num_bytes` over ranks that are `stride` apart; an all-reduce takes two."""
    if ranks == 1:
        return 0.0
    per_node = max(1, candidate.cluster.gpus_per_node // stride)
    inside = min(ranks, per_node)
    links = device.link_bandwidth * assumed.links
    # As many rings as the group has ranks on a node, each through a network card of its own.
    rate = links if ranks <= per_node else min(links, inside * device.network_bandwidth * assumed.network)
    latency = assumed.message_seconds * (1 if ranks <= per_node else 2)
    return num_bytes * (ranks - 1) / ranks / rate + latency


def _tensor_traffic(
    shape: Shape, candidate: Candidate, device: Accelerator, assumed: Assumptions, positions: int
) -> float:
    """Gathers and scatters of a micro batch between tensor ranks, which nothing hides (docs/parallelism.md)."""
    if candidate.tensor == 1:
        return 0.0
    architecture, counts = shape.architecture, shape.per_position
    layers = architecture.num_layers + architecture.output_adapter_layers * counts.predicting_positions
    layers += architecture.input_adapter_layers * counts.speech_positions
    share = 1.0 if candidate.cut is None else max(candidate.cut.shares)
    # 20 D bytes a position and layer are ten gathers or scatters of the states; recomputed, three more.
    transfers = 10 + (3 if candidate.recompute else 0)
    states = positions * architecture.hidden_size * _BF16
    one = _ring(states, candidate.tensor, candidate, 1, device, assumed)
    return transfers * layers * share * one


def _pipeline_traffic(shape: Shape, candidate: Candidate, device: Accelerator, assumed: Assumptions) -> float:
    """The largest carrier forward and its gradient backward, for each micro batch; DeepSpeed waits for both."""
    if candidate.cut is None:
        return 0.0
    slices = candidate.tensor if candidate.sequence_parallel else 1
    largest = max(
        carrier_bytes(shape.architecture, bound, shape.sequence_length, candidate.micro_batch_size)
        for bound in candidate.cut.bounds[1:-1]
    )
    # Stages are the outermost dimension: they lie on other nodes unless the whole job is on one.
    if candidate.cluster.num_nodes == 1:
        rate = device.link_bandwidth * assumed.links
    else:
        rate = device.network_bandwidth * assumed.network
    return 2 * (largest / slices / rate + 2 * assumed.message_seconds)


@dataclass(frozen=True)
class _Sizes:
    """Elements of the rank with the most parameters."""

    all: float
    trained: float
    first: float  # of the trained ones, those of its first layer
    layers: int  # that it holds


def _sizes(shape: Shape, candidate: Candidate) -> _Sizes:
    layers, cut = shape.layers, candidate.cut
    spans = [layers] if cut is None else [layers[a:b] for a, b in zip(cut.bounds, cut.bounds[1:], strict=False)]
    largest = max(spans, key=lambda span: sum(layer.parameters for layer in span))
    trained = [sum(size for group, size in layer.sizes.items() if group in shape.trainable) for layer in largest]
    return _Sizes(
        sum(layer.parameters for layer in largest) / candidate.tensor,
        sum(trained) / candidate.tensor,
        trained[0] / candidate.tensor,
        len(largest),
    )


@dataclass(frozen=True)
class _Passes:
    """Bytes that DeepSpeed moves for the gradients and the update, and its launches, as counted on the null GPU."""

    first: float  # of a trained element: gradients of the first micro batch
    later: float  # of each later one
    average: float  # over data ranks, apart from the collective
    whole: float  # of the update, for all trained elements: the norm
    partition: float  # of the update, for those of the rank: norm, AdamW, copies
    first_launches: float  # for each layer: gradients of the first micro batch
    later_launches: float  # of each later one
    update_launches: float  # of the update


_PASSES = {
    0: _Passes(2.0, 6.0, 4.0, 4.0, 34.0, 6.0, 6.0, 6.5),  # assumed: ZeRO 0 is in the ranking of no plan
    1: _Passes(6.0, 10.0, 6.0, 0.0, 34.0, 0.3, 6.0, 0.5),  # several GPUs without pipeline stages
    2: _Passes(14.5, 14.0, 0.0, 4.0, 38.0, 10.0, 11.0, 22.0),
    3: _Passes(19.0, 19.5, 0.0, 4.0, 38.0, 16.5, 18.5, 18.0),  # with the copies of gathered parameters
}
_NORM = 4.0  # bytes of the norm, of a gradient in float32


def _passes(candidate: Candidate) -> _Passes:
    """Of a layout with several GPUs."""
    passes = _PASSES[candidate.zero_stage]
    if candidate.zero_stage == 1 and candidate.pipeline > 1:
        # The norm is that of all gradients of the stage: tied tables need whole ones.
        return replace(passes, whole=passes.whole + _NORM, partition=passes.partition - _NORM)
    return passes


def update_operations(shape: Shape, candidate: Candidate) -> list[Operations]:
    """What a step does for the gradients and the update, apart from collectives. Bytes of an element were counted on
    the null GPU."""
    sizes, data, count = _sizes(shape, candidate), candidate.data, candidate.accumulation
    trained, passes = sizes.trained, _passes(candidate)
    moved = passes.first + passes.later * (count - 1) + (passes.average if data > 1 else 0.0)
    launches = sizes.layers * (passes.first_launches + passes.later_launches * (count - 1))
    if candidate.zero_stage == 1 and candidate.cluster.num_gpus == 1 and not candidate.offload:
        # The gradients of the last micro batch are not added. Norm and update read them in bf16, and the sums of
        # earlier ones if there are any.
        moved -= passes.first if count == 1 else passes.later
        launches -= sizes.layers * (passes.first_launches if count == 1 else passes.later_launches)
        read = _BF16 + (0.0 if count == 1 else _FLOAT32)
        passes = replace(passes, partition=passes.partition - _NORM - _FLOAT32 + 2 * read)
    moved *= trained
    found = [Operations(UPDATE_PARTS[0], BACKWARD, Work(MEMORY, moved, launches=launches))]
    if not candidate.offload:
        updated = trained * (passes.whole + passes.partition / data)
        work = Work(MEMORY, updated, launches=passes.update_launches * sizes.layers)
        found.append(Operations(UPDATE_PARTS[1], UPDATE, work))
    return found


def _update(shape: Shape, candidate: Candidate, device: Accelerator, assumed: Assumptions) -> float:
    """Seconds of a step for the gradients and the update."""
    operations = update_operations(shape, candidate)
    seconds = sum(assumed.rates.seconds(item.work, device) for item in operations)
    # The host launches the update after a synchronization, so that nothing hides these launches.
    sizes = _sizes(shape, candidate)
    seconds += _PASSES[candidate.zero_stage].update_launches * sizes.layers * assumed.host_launch_seconds
    if candidate.offload:
        # Gradients to the host, parameters back, and the update there: 40 bytes a parameter.
        seconds += 40 * sizes.trained / candidate.data / assumed.host_update_bandwidth
    return seconds


def _data_traffic(
    shape: Shape, candidate: Candidate, device: Accelerator, assumed: Assumptions, backward: float, micro: float
) -> float:
    """Seconds of a step for the traffic between data ranks that nothing hides.

    Args:
        shape: model.
        candidate: layout.
        device: with its links.
        assumed: what a job reaches of them.
        backward: seconds of the backward pass of a micro batch.
        micro: seconds of a micro batch.
    """
    sizes, count = _sizes(shape, candidate), candidate.accumulation
    gather = _ring(_BF16 * sizes.trained, candidate.data, candidate, candidate.tensor, device, assumed)
    if candidate.zero_stage == 0:
        return 2 * gather + gather  # an all-reduce after the last backward pass, and updated parameters
    if candidate.zero_stage == 1:
        return _traffic_of_zero1(candidate, gather, sizes.first / max(sizes.trained, 1.0), backward) + gather
    if candidate.zero_stage == 2:
        hidden = max(0.0, 2 * gather - backward) + 0.1 * 2 * gather  # the last bucket has nothing to hide behind
        return count * hidden + gather
    parameters = _ring(_BF16 * sizes.all, candidate.data, candidate, candidate.tensor, device, assumed)
    of_micro = 2 * parameters + gather
    return count * (max(0.0, of_micro - micro) + 0.1 * of_micro)


def _traffic_of_zero1(candidate: Candidate, gather: float, first: float, backward: float) -> float:
    """Seconds of the reduction of gradients that nothing hides; `first` is the first layer's share of the gradients."""
    zero = candidate.settings.entries["zero_optimization"]
    scatters = zero.get("reduce_scatter", True) and candidate.cut is None and not candidate.offload
    reduction = gather if scatters else 2 * gather
    if candidate.offload or not zero.get("overlap_comm", True):
        return reduction
    # Hidden by the last backward pass, but for the first layer's gradients, which exist when it ends.
    last = reduction * max(0.05, first)
    return max(0.0, reduction - last - backward) + last
