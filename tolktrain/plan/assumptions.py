"""Numbers of the predictions that nothing here computes: links, host, reserves and failures, with their sources.

The rates of the device are those of `tolktrain/cluster/device_models.py`. `tolktrain plan --calibration FILE` replaces
any of both by measured ones.
"""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tolktrain.cluster.device_models import PROCESSOR, RATES, SUSTAINED, WIDTHS, DeviceModel
from tolktrain.errors import UserError
from tolktrain.files.reading import parse_json, read_text

_LARGEST_BYTES = 1 << 20
_GIB = float(1 << 30)
CALIBRATION_FORMAT = 1  # of measurements of steps, as `tolktrain tune` writes them


@dataclass(frozen=True)
class Assumptions:
    """What the predictions assume, in SI units unless the name says otherwise. Fractions are of an `Accelerator`."""

    rates: DeviceModel = SUSTAINED  # of everything that the device computes
    links: float = 0.80  # of the link bandwidth, for collectives inside a node
    network: float = 0.85  # of the network cards' bandwidth, for collectives between nodes
    message_seconds: float = 3e-5  # latency of a collective inside a node; between nodes twice that
    time_factor: float = 1.0  # measured over predicted seconds of a step
    zero3_layer_seconds: float = 1e-3  # of the host, in DeepSpeed's hooks around a layer's modules under ZeRO 3
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
    rates: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)  # those of the device, by `RATES`


def cpu_assumptions() -> Assumptions:
    """What is assumed of a rank on processor cores in float32."""
    return Assumptions(
        rates=PROCESSOR,
        links=1.0,
        message_seconds=2e-4,
        host_launch_seconds=1e-5,
        context_gib=0.6,  # of the process: its libraries; 0.56 measured
        inner_workspace_gib=0.0,
        communication_gib=0.0,
        workspace_gib=0.0,
        reserve=0.0,
    )


def read_calibration(path: Path, default: Assumptions) -> Calibration:
    """The assumptions with measured values in place of some.

    Args:
        default: what is assumed otherwise.
        path: a JSON object with names of `Assumptions`, and of `RATES` as fractions of an `Accelerator`'s figures; or
            measurements of steps, as `tolktrain tune` writes them, whose entry `format` is 1. These give `time_factor`.

    Raises:
        UserError: the file cannot be read, or has an unknown name or a value of another kind.
    """
    try:
        values = parse_json(read_text(path, _LARGEST_BYTES))
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"--calibration {path}: cannot be read as JSON: {error}") from None
    if isinstance(values, dict) and "format" in values:
        return _of_measurements(path, values, default)
    known = {item.name for item in fields(Assumptions)} - {"rates"} | set(RATES)
    if not isinstance(values, dict) or not set(values) <= known:
        found = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
        raise UserError(f"--calibration {path}: unknown {found}; expected an object with names of {sorted(known)}")
    numbers: dict[str, Any] = {name: _number(path, name, value) for name, value in values.items()}
    rates = {name: numbers.pop(name) for name in RATES if name in numbers}
    assumed = replace(default, **numbers, rates=default.rates.measured(rates))
    return Calibration(assumed, tuple(values), replaced=tuple(values), rates=rates)


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
    many = name in ("products", "vocabulary_products")
    items = value if many and isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, int | float) or item < 0 for item in items):
        raise UserError(f"--calibration {path}: {name} is {value!r}; expected {'numbers' if many else 'a number'} >= 0")
    if any(item == 0 for item in items) and name in RATES and name != "launch_seconds":
        raise UserError(f"--calibration {path}: {name} is {value!r}; expected more than 0")
    if many and len(items) != len(WIDTHS):
        widths = ", ".join(f"{width:g}" for width in WIDTHS)
        raise UserError(
            f"--calibration {path}: {name} has {len(items)} numbers, expected one for each width of {widths}"
        )
    return tuple(map(float, items)) if many else float(items[0])


def gib(num_bytes: float) -> float:
    """Bytes in GiB."""
    return num_bytes / _GIB
