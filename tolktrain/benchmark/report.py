"""The result of `tolktrain bench`: a table in the terminal, JSON and Markdown."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from tolktrain.benchmark.measure import Measurement
from tolktrain.benchmark.providers import Provider
from tolktrain.files.terminal import Console
from tolktrain.files.writing import replace_file
from tolktrain.model.cost.step import StepFlops
from tolktrain.model.cost.work import StepCounts

UNKNOWN = "unknown device"
_HEADINGS = ("provider", "tokens/s", "ms/step (20-80 %)", "MFU", "memory", "ours/it")


@dataclass(frozen=True)
class Entry:
    """One provider's line."""

    provider: Provider
    measured: Measurement | None  # None if it ran out of memory


@dataclass(frozen=True)
class Report:
    """The results and facts of one run of the benchmark."""

    name: str  # of the configuration
    stage: str
    trainable: tuple[str, ...]
    precision: str
    micro_batch_size: int
    accumulation: int
    sequence_length: int
    warmup: int
    counts: StepCounts  # of a step, mean over those timed
    flops: StepFlops  # of such a step
    peak: float | None  # FLOP/s of the device, where known
    facts: dict[str, str]
    entries: list[Entry]  # ours first
    data_size: int = 1  # data ranks, each with `accumulation` micro batches
    world_size: int = 1  # processes
    layout: str = "1 process"  # in words
    start_memory_gib: float | None = None  # of a process before the model is built; 0 on a GPU

    @property
    def tokens_per_step(self) -> int:
        """Positions of a step."""
        return self.data_size * self.micro_batch_size * self.accumulation * self.sequence_length

    @property
    def speech_share(self) -> float:
        """Positions whose token is speech, among all."""
        return self.counts.speech_positions / self.counts.positions

    def tokens_per_second(self, measured: Measurement) -> float:
        """Positions of a step over its median time."""
        return self.tokens_per_step / measured.percentiles[1]

    def mfu(self, measured: Measurement) -> float | None:
        """FLOPs of a step / (median seconds x peak x devices), None where the peak is not known."""
        if self.peak is None:
            return None
        return self.flops.total / (measured.percentiles[1] * self.peak * self.world_size)

    @property
    def description(self) -> str:
        """What a step consists of."""
        ranks = f"{self.data_size} x " if self.data_size > 1 else ""
        parts = f"{ranks}{self.accumulation} x {self.micro_batch_size} x {self.sequence_length} positions"
        share = f"{100 * self.speech_share:.1f} % speech"
        trained = f"trains {', '.join(self.trainable)}"
        layout = f", {self.layout}" if self.world_size > 1 else ""
        return f"stage {self.stage}: {parts}, {share}, {self.precision}, {trained}{layout}"

    @property
    def formula(self) -> str:
        """The formula of utilization, with the numbers of this run."""
        flops = f"{self.flops.total:.4g} FLOPs (forward {self.flops.forward:.4g}, backward {self.flops.backward:.4g})"
        peak = UNKNOWN if self.peak is None else f"{self.peak:.4g} FLOP/s"
        devices = f"{self.world_size} device{'s' * (self.world_size > 1)}"
        return f"MFU = FLOPs of a step / (seconds x peak x devices): {flops}, peak {peak}, {devices}"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Cells of the table, as in `_HEADINGS`."""
        return [self._row(entry) for entry in self.entries]

    def _row(self, entry: Entry) -> tuple[str, ...]:
        ours, measured = self.entries[0].measured, entry.measured
        assert ours is not None
        if measured is None:
            return (entry.provider.name, "out of memory", "", "", "", "")
        low, median, high = (1e3 * seconds for seconds in measured.percentiles)
        mfu, peak = self.mfu(measured), measured.peak_memory_gib
        return (
            entry.provider.name,
            f"{self.tokens_per_second(measured):,.0f}",
            f"{_digits(median)} ({_digits(low)} - {_digits(high)})",
            UNKNOWN if mfu is None else f"{100 * mfu:.1f} %",
            "unknown" if peak is None else f"{peak:.2f} GiB{_reserved(measured)}",
            f"{measured.percentiles[1] / ours.percentiles[1]:.2f}",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "stage": self.stage,
            "trainable": list(self.trainable),
            "precision": self.precision,
            "micro_batch_size": self.micro_batch_size,
            "accumulation": self.accumulation,
            "sequence_length": self.sequence_length,
            "world_size": self.world_size,
            "layout": self.layout,
            "tokens_per_step": self.tokens_per_step,
            "speech_share": self.speech_share,
            "warmup": self.warmup,
            "counts": asdict(self.counts),
            "flops": {
                "total": self.flops.total,
                "forward": self.flops.forward,
                "backward": self.flops.backward,
                "parts": {part.kind: {"forward": part.forward, "backward": part.backward} for part in self.flops.parts},
                "formula": self.formula,
                "peak_per_second": self.peak,
            },
            "facts": self.facts,
            "providers": [self._entry_json(entry) for entry in self.entries],
        }

    def _entry_json(self, entry: Entry) -> dict[str, Any]:
        ours, measured, provider = self.entries[0].measured, entry.measured, entry.provider
        head = {"name": provider.name, "what": provider.what, "overrides": list(provider.overrides)}
        assert ours is not None
        if measured is None:
            return {**head, "out_of_memory": True}
        low, median, high = measured.percentiles
        return {
            **head,
            "out_of_memory": False,
            "seconds_per_step": {"p20": low, "p50": median, "p80": high},
            "seconds": list(measured.seconds),
            "tokens_per_second": self.tokens_per_second(measured),
            "mfu": self.mfu(measured),
            "peak_memory_gib": measured.peak_memory_gib,
            "peak_reserved_gib": measured.peak_reserved_gib,
            "start_memory_gib": self.start_memory_gib,
            "ours_over_it": median / ours.percentiles[1],
            "first_loss": measured.first_loss if math.isfinite(measured.first_loss) else None,
            "skipped_steps": measured.skipped,
        }


def print_report(report: Report, console: Console) -> None:
    """Print the table, its description, and the formula."""
    table = Table(
        title=report.name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in report.rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print(report.description)
    console.print(report.formula)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write step-<name>.json and step-<name>.md; files of an earlier run are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    table, page = (folder / f"step-{report.name}.{ending}" for ending in ("json", "md"))
    replace_file(table, json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    replace_file(page, _markdown(report))
    return [table, page]


def _markdown(report: Report) -> str:
    rows = [_HEADINGS, ("---", *("---:" for _ in _HEADINGS[1:])), *report.rows]
    total = report.flops.total
    parts = [
        (part.kind, f"{part.forward:.4g}", f"{part.backward:.4g}", f"{(part.forward + part.backward) / total:.1%}")
        for part in report.flops.parts
    ]
    lines = [
        f"# A training step of {report.name}",
        "",
        *(f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in report.facts.items()),
        f"- {report.description}; {len(_timed(report))} steps after {report.warmup} of warm-up",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"- {entry.provider.name}: {entry.provider.what}{_overrides(entry)}" for entry in report.entries),
        "",
        f"{report.formula}. Tokens are positions. FLOPs are counted by `tolktrain.model.cost.step`:",
        "",
        *(
            f"| {' | '.join(row)} |"
            for row in [("part", "forward", "backward", "share"), ("---", *3 * ("---:",)), *parts]
        ),
        "",
    ]
    return "\n".join(lines)


def _digits(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 1000 else f"{milliseconds:.4g}"


def _reserved(measured: Measurement) -> str:
    return "" if measured.peak_reserved_gib is None else f" ({measured.peak_reserved_gib:.2f} reserved)"


def _timed(report: Report) -> tuple[float, ...]:
    ours = report.entries[0].measured
    assert ours is not None
    return ours.seconds


def _overrides(entry: Entry) -> str:
    return f" ({', '.join(f'`{text}`' for text in entry.provider.overrides)})" if entry.provider.overrides else ""
