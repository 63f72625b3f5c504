"""The table of text tasks in the terminal and for the report."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from tolktrain.files.terminal import Console

NUM_LEFT = 2
"""Columns that are aligned to the left."""


def columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Heads of the columns."""
    names = ("task", "metric", "items", "accuracy", "95 % interval")
    compared = ("backbone", "difference", "95 % interval", "gained", "lost", "p")
    return names if result["against"] is None else (*names, *compared)


def text_task_lines(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The cells of each row of text_tasks.json."""
    for row in result["rows"]:
        cells = [row["task"], row["metric"], str(row["items"]), _percent(row["accuracy"])]
        cells.append(f"{_percent(row['low'])} – {_percent(row['high'])}")
        if result["against"] is not None:
            cells += [_percent(row["against_accuracy"]), f"{100 * row['difference']:+.1f}"]
            cells.append(f"{100 * row['difference_low']:+.1f} – {100 * row['difference_high']:+.1f}")
            cells += [str(row["gained"]), str(row["lost"]), f"{row['p']:.2g}"]
        yield tuple(cells)


def print_text_tasks(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the rows of text_tasks.json."""
    out = console or Console()
    title = f"Text tasks, zero-shot, lm-evaluation-harness {result['harness']}: {result['run']}"
    if result["against"] is not None:
        title += f" against {result['against']}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns(result)):
        table.add_column(name, justify="left" if place < NUM_LEFT else "right")
    for line in text_task_lines(result):
        table.add_row(*line)
    out.print(table)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
