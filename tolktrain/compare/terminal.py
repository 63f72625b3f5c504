"""A comparison as tables in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from tolktrain.compare.cells import tables
from tolktrain.files.terminal import Console


def print_comparison(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables and remarks of a comparison."""
    out = console or Console()
    for run in result["runs"]:
        steps = ", ".join(f"{what} of step {step:,}" for what, step in run["steps"].items())
        out.print(f"{run['name']}: {steps}", soft_wrap=True, highlight=False)
    for found in tables(result):
        table = Table(
            title=found.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for place, name in enumerate(found.columns):
            table.add_column(name, justify="left" if place < found.num_left else "right")
        for group in found.groups:
            for place, line in enumerate(group):
                table.add_row(*line, end_section=place == len(group) - 1)
        out.print(table)
        if found.note:
            out.print(found.note, highlight=False)
            out.print()
    for remark in result["remarks"]:
        out.print(remark, soft_wrap=True, highlight=False)
