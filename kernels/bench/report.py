"""The results of the benchmarks: tables as CSV and Markdown, and plots."""

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tolktrain_kernels.bench.measure import Row


@dataclass(frozen=True)
class Numeric:
    """Error of one output or gradient against float64: root-mean-square ratio."""

    case: str
    tensor: str
    ours: float
    eager: float
    is_within: bool


@dataclass(frozen=True)
class Compilation:
    """Resources that one kernel needs on one GPU."""

    kernel: str
    architecture: str
    registers: int
    stack_bytes: int
    shared_bytes: int


Table = Sequence[Row] | Sequence[Numeric] | Sequence[Compilation]


def write_report(
    folder: Path,
    facts: Mapping[str, str],
    rows: Sequence[Row],
    numerics: Sequence[Numeric],
    compilations: Sequence[Compilation],
    notes: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write README.md, a CSV file of each table, and one plot of each kernel and mode.

    Args:
        folder: created if missing. Files of an earlier run are replaced: all of them, or none if the disk is full.
        facts: device, versions, command and similar facts, in order.
        notes: a remark for each kernel that is bound by arithmetic, not memory. Its plots show speed-ups.

    Returns:
        The files, in the order written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Table] = {"times": rows, "numerics": numerics, "compilation": compilations}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
        aside = Path(temporary)
        written = [_write_csv(aside / f"{name}.csv", table) for name, table in tables.items() if table]
        plots = []
        for kernel, mode in dict.fromkeys((row.kernel, row.mode) for row in rows):
            path = aside / f"{kernel.replace(' ', '-')}-{mode}.png"  # links in Markdown end at a space
            mine = [row for row in rows if (row.kernel, row.mode) == (kernel, mode)]
            plots.append(_plot(path, mine, shows_speed=kernel in (notes or {})))
        readme = aside / "README.md"
        readme.write_text(_markdown(facts, rows, numerics, compilations, plots, notes or {}), encoding="utf-8")
        return [path.replace(folder / path.name) for path in (*written, *plots, readme)]


def _write_csv(path: Path, table: Table) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(table[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in table)
    return path


def _markdown(
    facts: Mapping[str, str],
    rows: Sequence[Row],
    numerics: Sequence[Numeric],
    compilations: Sequence[Compilation],
    plots: Sequence[Path],
    notes: Mapping[str, str],
) -> str:
    lines = ["# Microbenchmarks of the kernels", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    for kernel in dict.fromkeys(row.kernel for row in rows):
        lines += [f"## {kernel.capitalize()}", ""]
        lines += [notes[kernel], ""] if kernel in notes else []
        lines += _time_table([row for row in rows if row.kernel == kernel])
    lines += [line for plot in plots for line in (f"![{plot.stem}]({plot.name})", "")]
    if numerics:
        lines += [
            "## Numerics",
            "",
            "Root-mean-square error against float64, divided by the root mean square of the exact values.",
            "",
        ]
        lines += _numeric_table(numerics)
    if compilations:
        worst = max(entry.registers for entry in compilations)
        spilled = [f"{e.kernel} ({e.architecture}, {e.stack_bytes} bytes)" for e in compilations if e.stack_bytes]
        architectures = ", ".join(dict.fromkeys(entry.architecture for entry in compilations))
        lines += ["## Compilation", "", f"{len(compilations)} kernels compiled for {architectures}.", ""]
        lines += [f"- maximum registers per thread: {worst}", f"- with a stack: {', '.join(spilled) or 'none'}", ""]
    return "\n".join(lines)


def _time_table(rows: Sequence[Row]) -> list[str]:
    """Milliseconds, speed-up over the first provider, share of the copy rate, peak memory."""
    first = {(row.shape, row.dtype, row.mode): row.ms_50 for row in reversed(rows)}
    lines = [
        f"Speed-up: over {rows[0].provider}. Share: least bytes / (median time x copy rate). Peak: without inputs.",
        "",
        "| shape | type | mode | provider | ms (20 % - 80 %) | speed-up | share of copy | peak MiB |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    groups = list(dict.fromkeys((row.shape, row.dtype, mode) for row in rows for mode in _modes(rows)))
    for row in sorted(rows, key=lambda row: groups.index((row.shape, row.dtype, row.mode))):
        speed = first[row.shape, row.dtype, row.mode] / row.ms_50
        peak = f"{row.peak_bytes / 2**20:.0f}"
        time = f"{row.ms_50:.3g} ({row.ms_20:.3g} - {row.ms_80:.3g})"
        cells = [row.shape, row.dtype, row.mode, row.provider, time, f"{speed:.1f}", f"{row.copy_share:.0%}", peak]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _modes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.mode for row in rows))


def _numeric_table(numerics: Sequence[Numeric]) -> list[str]:
    lines = ["| case | worst tensor | ours | eager | allowed |", "|---|---|---:|---:|---|"]
    for case in dict.fromkeys(entry.case for entry in numerics):
        worst = max(
            (entry for entry in numerics if entry.case == case), key=lambda entry: (not entry.is_within, entry.ours)
        )
        answer = "yes" if worst.is_within else "NO"
        lines.append(f"| {case} | {worst.tensor} | {worst.ours:.1e} | {worst.eager:.1e} | {answer} |")
    return [*lines, ""]


def _plot(path: Path, rows: Sequence[Row], shows_speed: bool) -> Path:
    """Bars by shape and type: share of the copy rate that each provider reaches, or its speed-up over the first one."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((row.shape, row.dtype) for row in rows))
    providers = list(dict.fromkeys(row.provider for row in rows))
    first = {(row.shape, row.dtype): row.ms_50 for row in rows if row.provider == providers[0]}
    figure = Figure(figsize=(max(6.0, 1.9 * len(groups)), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(providers)
    for index, provider in enumerate(providers):
        mine = {(row.shape, row.dtype): row for row in rows if row.provider == provider}
        places = [number + (index - (len(providers) - 1) / 2) * width for number in range(len(groups))]
        heights = [100 * mine[group].copy_share if group in mine else 0.0 for group in groups]
        if shows_speed:
            heights = [first[group] / mine[group].ms_50 if group in mine else 0.0 for group in groups]
        bars = axes.bar(places, heights, width, label=provider)
        times = [f"{mine[group].ms_50:.3g}" if group in mine else "" for group in groups]
        axes.bar_label(bars, times, fontsize=6, rotation=90, padding=2)
    axes.set_xticks(
        range(len(groups)), [f"{shape.replace(', ', chr(10))}\n{dtype}" for shape, dtype in groups], fontsize=7
    )
    height = f"speed-up over {providers[0]}" if shows_speed else "% of the copy rate (least bytes)"
    axes.set_ylabel(f"{height}; labels: ms")
    axes.set_title(f"{rows[0].kernel}, {rows[0].mode}")
    axes.margins(y=0.15)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    return path
