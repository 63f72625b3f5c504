"""The console for all output, with terminal control characters escaped."""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from tolktrain.files.printable import printable


class Console(rich.console.Console):
    """Rich's console for plain text.

    Control characters are shown as escapes; brackets are not markup and colons not emoji. Use `rich.text.Text` and
    `style` for styles. Options are those of Rich.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of the output; Rich's own controls, such as those of progress bars, are unchanged."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def spinner() -> Progress:
    """A line with the current activity, which is removed afterwards."""
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    return Progress(*columns, console=Console(), transient=True)
