"""The table of benchmarks, in the terminal and for the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tolktrain.evaluate.terminal import print_table
from tolktrain.files.terminal import Console

COLUMNS = ("benchmark", "split", "aggregation", "rule", "accuracy", "95 % interval", "ties", "ids", "unigram", "bigram")
NUM_LEFT = 4
"""Columns that are aligned to the left."""


def table_lines(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The cells of each row of benchmarks.json, published numbers below those of the same rule."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    for row in rows:
        floors = [f"{100 * row[name]:.1f}" if name in row else "–" for name in ("unigram", "bigram")]
        interval = f"{100 * row['low']:.1f} – {100 * row['high']:.1f}"
        names = (row["benchmark"], row["set"], row["measure"], row["rule"])
        yield (*names, f"{100 * row['accuracy']:.1f}", interval, f"{row['ties']:g}", str(row["ids"]), *floors)
        for other in row["published"]:
            names = ("", "", f"{other['model']} ({other['source']})", "the same")
            yield (*names, f"{other['percent']:g}", *[""] * (len(COLUMNS) - NUM_LEFT - 1))


def remarks(result: Mapping[str, Any]) -> Iterator[str]:
    """What was incomplete, longer than in training, or not scored."""
    for name, counts in result["problems"].items():
        if any(counts.values()):
            yield f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    for name, count in result["longer_than_training"].items():
        if count:
            yield f"{name}: {count} items are longer than the sequences that the model was trained on"
    yield from result["notes"]


def print_benchmarks(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table and the remarks."""
    title = "Benchmarks: share of pairs whose correct item has the higher score, or of questions, in percent"
    print_table(title, COLUMNS, NUM_LEFT, table_lines(result), remarks(result), console)
