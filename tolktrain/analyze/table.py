"""The table of an analysis in the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from tolktrain.analyze.layers import LAYER_PREFIX
from tolktrain.analyze.run import START, TRAINED
from tolktrain.files.terminal import Console
from tolktrain.report.analysis import parse_analysis
from tolktrain.runs.paths import RunPaths

_MOST_ROWS = 12  # of backbone layers


def print_analysis(result: Mapping[str, Any], run_dir: Path, console: Console | None = None) -> None:
    """Print a row per layer with the main numbers, and one with those before training."""
    out = console or Console()
    paths = RunPaths(run_dir)
    analysis = parse_analysis(result, paths.analysis)
    sample = analysis.sample
    title = f"Text and speech of {sample['words']} words of {sample['set']}, step {analysis.step}; in percent" + (
        " (before training)" if analysis.start is not None else ""
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("layer", no_wrap=True)
    columns = [(name, column) for name, measure in analysis.measures.items() for column in measure.headline]
    for _, column in columns:
        table.add_column(column.label.replace(" ", "\n"), justify="right", vertical="bottom", no_wrap=True)
    for layer in _shown_layers(analysis.layers):
        numbers = [[analysis.number(m, name, layer, c.key) for m in (TRAINED, START)] for name, c in columns]
        table.add_row(layer, *(_shown(now, c.scale) for (now, _), (_, c) in zip(numbers, columns, strict=True)))
        if any(before is not None for _, before in numbers):
            cells = (_shown(before, c.scale) for (_, before), (_, c) in zip(numbers, columns, strict=True))
            table.add_row("  before", *cells, style="dim")
    out.print(table)
    problem = result.get("start_problem")
    if problem:
        out.print(f"The model before training is missing: {problem}", soft_wrap=True)
    out.print(
        f"All numbers, chance and controls: {paths.analysis}; figures are in the same folder, and in the page of"
        " `tolktrain report`.",
        soft_wrap=True,
        highlight=False,
    )


def _shown_layers(layers: Sequence[str]) -> list[str]:
    """All layers, or about a dozen of the backbone's, the last one included."""
    backbone = [layer for layer in layers if layer.startswith(LAYER_PREFIX)]
    step = -(-len(backbone) // _MOST_ROWS)
    kept = set(backbone[::-1][::step])
    return [layer for layer in layers if layer in kept or layer not in backbone]


def _shown(value: float | None, scale: str) -> str:
    if value is None:
        return "–"
    if scale == "share":
        return f"{100 * value:.0f}"
    return f"{value:.0f}°" if scale == "degrees" else f"{value:,.0f}"
