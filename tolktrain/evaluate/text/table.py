"""The table of text tasks in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from tolktrain.files.terminal import Console


def print_text_tasks(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the rows of text_tasks.json."""
    out = console or Console()
    compared = result["against"] is not None
    title = f"Text tasks, zero-shot, lm-evaluation-harness {result['harness']}: {result['run']}"
    if compared:
        title += f" against {result['against']}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ["task", "metric", "items", "accuracy", "95 % interval"]
    names += ["backbone", "difference", "95 % interval", "gained", "lost", "p"] if compared else []
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place < 2 else "right")
    for row in result["rows"]:
        cells = [row["task"], row["metric"], str(row["items"]), _percent(row["accuracy"])]
        cells.append(f"{_percent(row['low'])} – {_percent(row['high'])}")
        if compared:
            cells += [_percent(row["against_accuracy"]), f"{100 * row['difference']:+.1f}"]
            cells.append(f"{100 * row['difference_low']:+.1f} – {100 * row['difference_high']:+.1f}")
            cells += [str(row["gained"]), str(row["lost"]), f"{row['p']:.2g}"]
        table.add_row(*cells)
    out.print(table)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
