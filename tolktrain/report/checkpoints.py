"""The verb `checkpoints`: a table of a run's checkpoints."""

from datetime import datetime
from pathlib import Path

from rich.table import Table

from tolktrain.files.terminal import Console
from tolktrain.runs.listing import Entry, list_checkpoints

_UNITS = ("B", "kB", "MB", "GB", "TB")


def show_checkpoints(run_dir: Path, checksums: bool, console: Console) -> bool:
    """Print the table; whether no checkpoint was found damaged. With `checksums` every file is read.

    Raises UserError when the run has no checkpoints.
    """
    entries = list_checkpoints(run_dir, checksums)
    table = Table("step", "stage", "size", "written", "layout", "loss", "condition")
    for entry in entries:
        table.add_row(*_row(entry))
    console.print(table)
    for entry in entries:
        if entry.problem:
            console.print(entry.problem, soft_wrap=True, highlight=False)
    total = sum(entry.num_bytes for entry in entries)
    line = f"{len(entries)} in {run_dir / 'checkpoints'}, {_size(total)} in all"
    console.print(line, soft_wrap=True, highlight=False)
    return all(entry.condition != "damaged" for entry in entries)


def _row(entry: Entry) -> tuple[str, ...]:
    written = f"{datetime.fromtimestamp(entry.written):%Y-%m-%d %H:%M}"
    condition = f"{entry.condition} (latest)" if entry.is_latest else entry.condition
    return (str(entry.step), entry.stage, _size(entry.num_bytes), written, entry.layout, entry.loss, condition)


def _size(num_bytes: float) -> str:
    for unit in _UNITS[:-1]:
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} {_UNITS[-1]}"
