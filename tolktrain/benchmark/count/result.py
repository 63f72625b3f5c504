"""The counts of a step by part and direction, with predicted times: a table, JSON and a picture."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tolktrain.benchmark.count.counter import DIRECTIONS, Operation
from tolktrain.cluster.accelerators import Accelerator
from tolktrain.cluster.device_models import DeviceModel
from tolktrain.files.writing import replace_file, written_aside
from tolktrain.model.cost.operations import BACKWARD, FORWARD, UPDATE


@dataclass(frozen=True)
class Line:
    """Counts of a part in one direction."""

    part: str
    direction: str
    bytes: float
    flops: float
    launches: float
    seconds: dict[str, float]  # predicted, by the name of the model of the device


@dataclass(frozen=True)
class Count:
    """A counted step."""

    name: str  # of the configuration
    description: str  # of the step
    device: Accelerator
    models: tuple[DeviceModel, ...]  # the last one is what the table shows in detail
    lines: tuple[Line, ...]
    model_flops: float  # the numerator of utilization
    exact_launches: bool  # counted by the null GPU; otherwise, one for each operation of PyTorch
    facts: dict[str, str]
    measured_seconds: float | None = None  # of such a step, median

    def total(self, model: DeviceModel) -> float:
        """Predicted seconds of the step."""
        return sum(line.seconds[model.name] for line in self.lines)

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilization of a step of that length."""
        return self.model_flops / (seconds * self.device.peak_flops)

    def sum(self, attribute: str, part: str | None = None, direction: str | None = None) -> float:
        """Of the bytes, FLOPs or launches of a part or all, in a direction or all."""
        return sum(float(getattr(line, attribute)) for line in self._of(part, direction))

    def seconds(self, part: str, direction: str | None = None, model: DeviceModel | None = None) -> float:
        """Predicted by a model, the last one if none is given."""
        name = (model or self.models[-1]).name
        return sum(line.seconds[name] for line in self._of(part, direction))

    def _of(self, part: str | None, direction: str | None) -> Iterable[Line]:
        return (line for line in self.lines if part in (None, line.part) and direction in (None, line.direction))

    @property
    def parts(self) -> list[str]:
        """Names, the longest predicted time first."""
        return sorted(dict.fromkeys(line.part for line in self.lines), key=self.seconds, reverse=True)

    @property
    def summary(self) -> dict[str, float | None]:
        """The sums of the step."""
        first, last = self.models[0], self.models[-1]
        return {
            "gigabytes": self.sum("bytes") / 1e9,
            "teraflops": self.sum("flops") / 1e12,
            "launches": self.sum("launches"),
            "bound_ms": 1e3 * self.total(first),
            "likely_ms": 1e3 * self.total(last),
            "measured_ms": None if self.measured_seconds is None else 1e3 * self.measured_seconds,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "description": self.description,
            "device": asdict(self.device),
            "models": [asdict(model) for model in self.models],
            "exact_launches": self.exact_launches,
            "facts": self.facts,
            "model_flops": self.model_flops,
            "summary": self.summary,
            "mfu": {model.name: self.mfu(self.total(model)) for model in self.models},
            "measured_seconds": self.measured_seconds,
            "lines": [asdict(line) for line in self.lines],
        }


def lines_of(operations: Sequence[Operation], device: Accelerator, models: Sequence[DeviceModel]) -> tuple[Line, ...]:
    """Sums by part and direction."""
    found = []
    for part, direction in dict.fromkeys((o.part, o.direction) for o in operations):
        works = [o.work for o in operations if (o.part, o.direction) == (part, direction)]
        seconds = {model.name: sum(model.seconds(work, device) for work in works) for model in models}
        found.append(
            Line(
                part,
                direction,
                sum(work.bytes for work in works),
                sum(work.flops for work in works),
                sum(work.launches for work in works),
                seconds,
            )
        )
    return tuple(found)


HEADINGS = (
    *("part", "GB forward", "backward", "optimizer", "TFLOP", "launches"),
    *("ms forward", "backward", "optimizer", "sum", "share", "bound"),
)


def rows_of(count: Count) -> list[tuple[str, ...]]:
    """Cells of the table, as in `HEADINGS`; the last row is the sum. Times are the last model's, except "bound"."""
    total = count.total(count.models[-1])

    def row(name: str, part: str | None) -> tuple[str, ...]:
        parts = count.parts if part is None else [part]
        times = [1e3 * sum(count.seconds(p, direction) for p in parts) for direction in DIRECTIONS]
        bound = 1e3 * sum(count.seconds(p, None, count.models[0]) for p in parts)
        return (
            name,
            *(f"{count.sum('bytes', part, direction) / 1e9:.2f}" for direction in (FORWARD, BACKWARD, UPDATE)),
            f"{count.sum('flops', part) / 1e12:.2f}",
            f"{count.sum('launches', part):.0f}",
            *(f"{time:.2f}" for time in times),
            f"{sum(times):.2f}",
            f"{sum(times) / (1e3 * total):.1%}" if total else "",
            f"{bound:.2f}",
        )

    return [*(row(part, part) for part in count.parts), row("step", None)]


SHORT_HEADINGS = ("part", "GB", "TFLOP", "launches", "ms fwd", "bwd", "opt", "share")


def short_rows_of(count: Count) -> list[tuple[str, ...]]:
    """Cells of the table for a terminal, as in `SHORT_HEADINGS`."""
    return [
        (name, f"{sum(map(float, moved)):.1f}", f"{float(flops):.1f}", launches, forward, backward, update, share)
        for name, *moved, flops, launches, forward, backward, update, _, share, _ in rows_of(count)
    ]


def sentences(count: Count) -> list[str]:
    """What the table is about, and its sums."""
    shown = [
        f"{model.name}: {1e3 * count.total(model):.1f} ms, MFU {count.mfu(count.total(model)):.1%} ({model.what})"
        for model in count.models
    ]
    how = "counted by the null GPU" if count.exact_launches else "one for each operation"
    lines = [
        count.description,
        f"Predicted for {count.device.name}, not measured. Launches: {how}.",
        *shown,
    ]
    if count.measured_seconds is not None:
        likely = count.total(count.models[-1])
        lines.append(
            f"measured: {1e3 * count.measured_seconds:.1f} ms, MFU {count.mfu(count.measured_seconds):.1%};"
            f" predicted over measured {likely / count.measured_seconds:.2f}"
        )
    return lines


def write_count(count: Count, folder: Path) -> list[Path]:
    """Write count-<name>.json, .md and .png; files of an earlier count are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    table, page, picture = (folder / f"count-{count.name}.{ending}" for ending in ("json", "md", "png"))
    replace_file(table, json.dumps(count.to_json(), indent=2) + "\n")
    replace_file(page, _markdown(count))
    with written_aside(picture) as aside:
        _draw(count, aside)
    return [table, page, picture]


def _markdown(count: Count) -> str:
    facts: Mapping[str, str] = count.facts
    rows = [HEADINGS, ("---", *("---:" for _ in HEADINGS[1:])), *rows_of(count)]
    lines = [
        f"# The training step of {count.name}, counted",
        "",
        *(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in facts.items()),
        *(f"- {sentence}" for sentence in sentences(count)),
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def _draw(count: Count, path: Path) -> None:
    """Bars of the predicted time of each part, by direction."""
    from matplotlib.figure import Figure

    parts = count.parts[::-1]
    figure = Figure(figsize=(8, 0.32 * len(parts) + 1.4), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(parts)
    for direction in DIRECTIONS:
        widths = [1e3 * count.seconds(part, direction) for part in parts]
        axes.barh(parts, widths, left=left, label=direction)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    bounds = [1e3 * count.seconds(part, None, count.models[0]) for part in parts]
    axes.plot(bounds, parts, "k|", markersize=10, label=count.models[0].name)
    axes.set_xlabel(f"predicted ms of a step ({count.models[-1].name}, {count.device.name})")
    axes.set_title(count.name)
    axes.margins(x=0.03, y=0.01)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
