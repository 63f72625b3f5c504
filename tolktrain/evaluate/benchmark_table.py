"""The table of benchmarks in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from tolktrain.files.terminal import Console

_COLUMNS = ("benchmark", "split", "aggregation", "rule", "accuracy", "95 % interval", "ids", "unigram", "bigram")


def print_benchmarks(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the rows of benchmarks.json, published numbers below those of the same rule, and what is incomplete."""
    out = console or Console()
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    title = "Benchmarks: share of pairs whose correct item has the higher score; ties count 0.5"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in _COLUMNS[:4] else "right")
    for row in rows:
        floors = [f"{100 * row[name]:.1f}" if name in row else "–" for name in ("unigram", "bigram")]
        interval = f"{100 * row['low']:.1f} – {100 * row['high']:.1f}"
        names = (row["benchmark"], row["set"], row["measure"], row["rule"])
        table.add_row(*names, f"{100 * row['accuracy']:.1f}", interval, str(row["ids"]), *floors)
        for other in row["published"]:
            table.add_row("", "", f"{other['model']} ({other['source']})", "the same", f"{other['percent']:g}")
    out.print(table)
    for name, counts in result["problems"].items():
        if any(counts.values()):
            out.print(f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    for name, count in result["longer_than_training"].items():
        if count:
            out.print(f"{name}: {count} items are longer than the sequences that the model was trained on")
    for note in result["notes"]:
        out.print(note)
