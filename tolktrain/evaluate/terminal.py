"""Tables of results at the terminal."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.measure import Measurement
from rich.table import Table

from tolktrain.files.terminal import Console

_WIDEST = 1000  # characters


def print_table(
    title: str,
    columns: Sequence[str],
    num_left: int,
    lines: Iterable[Sequence[str]],
    remarks: Iterable[str],
    console: Console | None,
) -> None:
    """Print a table, whose first `num_left` columns are aligned to the left, and remarks below it.

    In files and pipes, rows are as long as they need to be.
    """
    out = console or Console()
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < num_left else "right")
    for line in lines:
        table.add_row(*line)
    if not out.is_terminal:
        needed = Measurement.get(out, out.options.update_width(_WIDEST), table).maximum
        out.width = max(out.width, needed)
    out.print(table)
    for remark in remarks:
        out.print(remark)
