"""Numbers of the predictions that nothing here computes: efficiencies, traffic counts and reserves, with their sources.

`tolktrain plan --calibration FILE` replaces any of them by measured ones.
"""

import json
import math
import statistics
from bisect import bisect_left
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError
from tolktrain.files.reading import parse_json, read_text

_LARGEST_BYTES = 1 << 20
_GIB = float(1 << 30)
CALIBRATION_FORMAT = 1  # of measurements of steps, as `tolktrain tune` writes them


@dataclass(frozen=True)
class Assumptions:
    """What the predictions assume, in SI units unless the name says otherwise. Fractions are of an `Accelerator`."""

    # Rates.
    product_widths: tuple[float, ...] = (256, 576, 960, 2048, 4096, 8192)  # narrowest side of a product of matrices
    product_fractions: tuple[float, ...] = (0.32, 0.50, 0.58, 0.68, 0.73, 0.76)  # of the peak at these widths
    attention_forward: float = 0.33  # of the peak, heads of 64; cuDNN's on an H100 (FlashAttention-3, arXiv 2407.08608)
    attention_backward: float = 0.26
    copy: float = 0.92  # of the memory's bandwidth, for everything that is no product
    links: float = 0.80  # of the link bandwidth, for collectives inside a node
    network: float = 0.85  # of the network cards' bandwidth, for collectives between nodes
    message_seconds: float = 3e-5  # latency of a collective inside a node; between nodes twice that
    time_factor: float = 1.0  # measured over predicted seconds of a step
    # Bytes that an element or a launch costs, counted on the step's operations.
    layer_ffn_bytes: float = 16.0  # of a transformer layer, forward and backward, for each position and element of F
    layer_hidden_bytes: float = 53.0  # of D: norms, residual additions, copies around attention
    layer_head_bytes: float = 8.0  # of the queries' and keys' widths: rotation
    layer_launches: float = 58.0  # of a layer, forward and backward
    head_bytes: float = 24.0  # of the text head, for each scored position and id
    accumulation_bytes: float = 18.0  # for each trained parameter and micro batch: gradients added up in float32
    reduction_bytes: float = 28.0  # for each trained parameter and step: flattening and casts around the all-reduce
    update_bytes: float = 46.0  # for each trained parameter of the rank's partition and step: norm, AdamW, copies
    update_launches: float = 8.0  # of the update for each layer under ZeRO 1, counted
    partitioned_update_launches: float = 98.0  # under ZeRO 2 and 3, counted for ZeRO 2
    zero3_layer_seconds: float = 1e-3  # of the host, in DeepSpeed's hooks around a layer's modules under ZeRO 3
    launch_seconds: float = 1e-6  # the GPU's own time between two kernels
    host_launch_seconds: float = 1.6e-5  # of the host for a launch; it limits small micro batches
    # Memory.
    context_gib: float = 0.5  # the CUDA context
    communication_gib: float = 1.5  # NCCL's buffers, with more than one GPU
    workspace_gib: float = 0.2  # of cuBLASLt and cuDNN
    inner_workspace_gib: float = 0.0625  # of cuBLAS in torch's allocator; 0.05 rehearsed
    reserve: float = 0.08  # of what changes during a step: memory that the allocator holds in pieces
    # A job over weeks.
    failure_hours: float = 50_000.0  # of a GPU between failures; 419 in 54 days on 16,384 (Llama 3, arXiv 2407.21783)
    restart_seconds: float = 420.0  # from a failure to the next step
    host_update_bandwidth: float = 8e9  # bytes/s of gradients, states and parameters of a rank, with offload
    snapshot_bandwidth: float = 10e9  # bytes/s of a rank from GPU to host; training waits for it at a checkpoint

    def product_fraction(self, width: float) -> float:
        """Fraction of the peak that products of this narrowest side reach, interpolated."""
        widths, fractions = self.product_widths, self.product_fractions
        place = bisect_left(widths, width)
        if place in (0, len(widths)):
            return fractions[min(place, len(widths) - 1)] * (width / widths[0] if place == 0 else 1.0)
        part = (width - widths[place - 1]) / (widths[place] - widths[place - 1])
        return fractions[place - 1] + part * (fractions[place] - fractions[place - 1])

    def overhead_bytes(self, num_gpus: int) -> float:
        """Memory outside of torch's allocator."""
        communication = self.communication_gib if num_gpus > 1 else 0.0
        return (self.context_gib + self.workspace_gib + communication) * _GIB


@dataclass(frozen=True)
class Calibration:
    """What measurements replace."""

    assumed: Assumptions
    measured: tuple[str, ...] = ()  # in words: names of assumptions, or where the factor of time comes from
    device: str | None = None  # name of the measured device, if the file has one
    replaced: tuple[str, ...] = ()  # names of the assumptions


def cpu_assumptions() -> Assumptions:
    """What is assumed of a rank on processor cores in float32."""
    return Assumptions(
        product_fractions=(1.0,) * 6,
        attention_forward=1.0,
        attention_backward=1.0,
        links=1.0,
        message_seconds=2e-4,
        launch_seconds=1e-6,
        host_launch_seconds=1e-5,
        context_gib=0.5,  # of the process: its libraries
        communication_gib=0.0,
        workspace_gib=0.0,
        reserve=0.0,
    )


def read_calibration(path: Path, default: Assumptions) -> Calibration:
    """The assumptions with measured values in place of some.

    Args:
        default: what is assumed otherwise.
        path: a JSON object of fields of `Assumptions`; or measurements of steps, as `tolktrain tune` writes them, whose
            entry `format` is 1. These give `time_factor`.

    Raises:
        UserError: the file cannot be read, or has an unknown name or a value of another kind.
    """
    try:
        values = parse_json(read_text(path, _LARGEST_BYTES))
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"--calibration {path}: cannot be read as JSON: {error}") from None
    if isinstance(values, dict) and "format" in values:
        return _of_measurements(path, values, default)
    known = {field.name for field in fields(Assumptions)}
    if not isinstance(values, dict) or not set(values) <= known:
        found = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
        raise UserError(f"--calibration {path}: unknown {found}; expected an object with names of {sorted(known)}")
    numbers: dict[str, Any] = {name: _number(path, name, value) for name, value in values.items()}
    return Calibration(replace(default, **numbers), tuple(numbers), replaced=tuple(numbers))


def _of_measurements(path: Path, values: dict[str, Any], default: Assumptions) -> Calibration:
    """Measured steps: their seconds over the predicted ones, as a geometric mean."""
    if values["format"] != CALIBRATION_FORMAT:
        raise UserError(
            f"--calibration {path}: format {values['format']!r}; this version of plan reads {CALIBRATION_FORMAT}"
        )
    device, entries = values.get("device"), values.get("measurements")
    if not isinstance(device, str) or not isinstance(entries, list):
        raise UserError(f"--calibration {path}: expected the name of a device, and a list of measurements")
    ratios = [_ratio(path, number, entry) for number, entry in enumerate(entries)]
    factor = math.exp(statistics.fmean(map(math.log, ratios))) if ratios else values.get("time_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise UserError(f"--calibration {path}: it has no measurements, and time_factor is {factor!r}; expected > 0")
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
    text = (
        f"time x {factor:.2f}{spread}, {len(ratios)} measurements of {values.get('world_size', '?')} ranks on {device}"
    )
    return Calibration(replace(default, time_factor=float(factor)), (text,), device, ("time_factor",))


def _ratio(path: Path, number: int, entry: Any) -> float:
    names = ("predicted_tokens_per_second", "tokens_per_second")
    rates: list[Any] = [entry.get(name) if isinstance(entry, dict) else None for name in names]
    if any(isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf for rate in rates):
        raise UserError(
            f"--calibration {path}: measurements[{number}] needs numbers above 0 for {' and '.join(names)}, not {rates}"
        )
    return float(rates[0]) / float(rates[1])


def _number(path: Path, name: str, value: Any) -> float | tuple[float, ...]:
    many = isinstance(getattr(Assumptions(), name), tuple)
    items = value if many and isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, int | float) or item < 0 for item in items):
        raise UserError(f"--calibration {path}: {name} is {value!r}; expected {'numbers' if many else 'a number'} >= 0")
    if many and len(items) != len(getattr(Assumptions(), name)):
        raise UserError(f"--calibration {path}: {name} has {len(items)} numbers, expected as many as the default")
    return tuple(map(float, items)) if many else float(items[0])


def gib(num_bytes: float) -> float:
    """Bytes in GiB."""
    return num_bytes / _GIB
