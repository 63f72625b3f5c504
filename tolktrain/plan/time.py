"""Seconds of a training step: computation by shape and rate, collectives by bytes and link, and what hides them."""

from dataclasses import dataclass, replace
from functools import cached_property

from tolktrain.cluster.accelerators import Accelerator
from tolktrain.config.data import InterleavingConfig, Mixture
from tolktrain.config.training import ParameterGroup
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.cut import carrier_bytes
from tolktrain.model.cost.layers import layer_flops
from tolktrain.model.cost.step import StepFlops, step_flops
from tolktrain.model.cost.work import LayerCost, StepCounts
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Candidate

_BF16 = 2
_MANY = 1 << 20  # positions, so that averages become whole counts
INTERLEAVED_SPEECH = 0.46  # of the positions, as in `tolktrain bench`
_UNITS_PER_WORD = 6.0  # repeats collapsed; only the short attention inside segments depends on it


@dataclass(frozen=True)
class StepEstimate:
    """Seconds of one step, by what takes them."""

    products: float  # of matrices
    attention: float
    elementwise: float  # everything else that the layers compute
    launches: float  # gaps between kernels, and waiting for the host
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
    segment = round(_UNITS_PER_WORD * sum(interleaving.speech_words) / 2)
    parts = (
        (text, StepCounts.average(sequence_length, 0.0, 0.0, segment)),
        (speech, StepCounts.average(sequence_length, 1.0, 1.0)),
        (mixed, StepCounts.average(sequence_length, INTERLEAVED_SPEECH, 1.0, segment)),
    )
    return sum(
        (StepCounts(*(share * value for value in vars(counts).values())) for share, counts in parts), StepCounts()
    )


def estimate_step(shape: Shape, candidate: Candidate, device: Accelerator, assumed: Assumptions) -> StepEstimate:
    """Seconds of a step of the slowest rank.

    Args:
        shape: model and data.
        candidate: layout.
        device: kind of GPU and its links.
        assumed: rates.
    """
    micro = candidate.micro_batch_size * shape.sequence_length
    compute = _micro_batch(shape, candidate, device, assumed, micro)
    tensor = _tensor_traffic(shape, candidate, device, assumed, micro)
    transfer = _pipeline_traffic(shape, candidate, device, assumed)
    count = candidate.accumulation
    of_one = compute.seconds + tensor + transfer
    backward = 0.67 * (compute.products + compute.attention + compute.elementwise)
    update, traffic = _update(shape, candidate, device, assumed, backward, compute.seconds)
    found = replace(
        StepEstimate(**{name: count * value for name, value in vars(compute).items()}),
        optimizer=update,
        tensor_traffic=count * tensor,
        pipeline_traffic=count * transfer,
        bubble=(candidate.pipeline - 1) * of_one,
        data_traffic=traffic,
    )
    return StepEstimate(**{name: assumed.time_factor * value for name, value in vars(found).items()})


def _micro_batch(
    shape: Shape, candidate: Candidate, device: Accelerator, assumed: Assumptions, positions: int
) -> StepEstimate:
    """Computation of one micro batch on the slowest rank; traffic, bubble and update are left at 0."""
    architecture, tensor = shape.architecture, candidate.tensor
    flops = shape.flops
    stage_share = 1.0 if candidate.cut is None else max(candidate.cut.shares)
    share = stage_share / tensor * positions / _MANY
    narrowest = min(architecture.hidden_size, architecture.ffn_hidden_size) / tensor**0.5
    peak = device.peak_flops * device.sustained
    rate = peak * assumed.product_fraction(narrowest)
    products = sum(p.matrices * (1 + p.to_input + p.to_weights) for p in flops.parts) * share / rate
    attention = share * sum(
        p.attention / (peak * assumed.attention_forward)
        + (2 * p.attention / (peak * assumed.attention_backward) if p.to_input or p.to_weights else 0.0)
        for p in flops.parts
    )
    counts = shape.per_position
    layers = architecture.num_layers + architecture.input_adapter_layers * counts.speech_positions
    layers += architecture.output_adapter_layers * counts.predicting_positions
    slices = tensor if candidate.sequence_parallel else 1
    widths = architecture.query_width + architecture.key_width
    of_layer = (
        assumed.layer_ffn_bytes * architecture.ffn_hidden_size / tensor
        + assumed.layer_hidden_bytes * architecture.hidden_size / slices
        + assumed.layer_head_bytes * widths / tensor
    )
    of_heads = assumed.head_bytes * architecture.text_vocab_size * counts.text_scored / tensor
    pooled = 3 * (architecture.num_layers + 2) * _BF16 * architecture.hidden_size * counts.predicting_positions
    moved = positions * (layers * of_layer + (of_heads + (pooled if architecture.keeps_states else 0.0) / slices))
    # A frozen backbone's weights have no gradient, but the states keep theirs: the same bytes.
    elementwise = moved * stage_share / (device.memory_bandwidth * assumed.copy)
    blocks = architecture.num_layers + architecture.input_adapter_layers + architecture.output_adapter_layers
    launches = assumed.layer_launches * blocks * stage_share
    hooks = assumed.zero3_layer_seconds * blocks * stage_share if candidate.zero_stage == 3 else 0.0
    recompute = (products + attention + elementwise) / 3 if candidate.recompute else 0.0
    busy = products + attention + elementwise + recompute + launches * assumed.launch_seconds
    waits = max(0.0, launches * (4 / 3 if candidate.recompute else 1) * assumed.host_launch_seconds + hooks - busy)
    return StepEstimate(
        products, attention, elementwise, launches * assumed.launch_seconds + waits, recompute, 0.0, 0.0, 0.0, 0.0, 0.0
    )


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


def _update(
    shape: Shape, candidate: Candidate, device: Accelerator, assumed: Assumptions, backward: float, micro: float
) -> tuple[float, float]:
    """Seconds of a step for the gradients and the update, and for the traffic between data ranks that stays visible."""
    layers = shape.layers
    cut, data, count = candidate.cut, candidate.data, candidate.accumulation
    spans = [layers] if cut is None else [layers[a:b] for a, b in zip(cut.bounds, cut.bounds[1:], strict=False)]
    largest = max(spans, key=lambda span: sum(layer.parameters for layer in span))
    elements = sum(layer.parameters for layer in largest) / candidate.tensor
    sizes = [size for layer in largest for group, size in layer.sizes.items() if group in shape.trainable]
    trained = sum(sizes) / candidate.tensor
    copies = device.memory_bandwidth * assumed.copy
    stride = candidate.tensor
    gather = _ring(_BF16 * trained, data, candidate, stride, device, assumed)
    bytes_of_update = assumed.update_bytes * trained / data
    # The host launches the update after a synchronization, so that nothing hides these launches.
    per_layer = assumed.update_launches if candidate.zero_stage == 1 else assumed.partitioned_update_launches
    launches = per_layer * len(largest) * assumed.host_launch_seconds
    if candidate.zero_stage == 1:
        reduction = assumed.reduction_bytes if data > 1 else 0.0
        passes = (assumed.accumulation_bytes * count + reduction) * trained
        traffic = 2 * gather + gather  # an all-reduce behind the last backward pass, and updated parameters
    elif candidate.zero_stage == 2:
        passes = assumed.accumulation_bytes * trained * count
        hidden = max(0.0, 2 * gather - backward) + 0.1 * 2 * gather  # the last bucket has nothing to hide behind
        traffic = count * hidden + gather
    else:
        passes = assumed.accumulation_bytes * trained * count
        parameters = _ring(_BF16 * elements, data, candidate, stride, device, assumed)
        of_micro = 2 * parameters + gather
        traffic = count * (max(0.0, of_micro - micro) + 0.1 * of_micro)
    if candidate.offload:
        # Gradients to the host, parameters back, and the update there: 40 bytes a parameter.
        return passes / copies + launches + 40 * trained / data / assumed.host_update_bandwidth, traffic
    return (passes + bytes_of_update) / copies + launches, traffic
