"""The console on which everything is shown: text from files gives the terminal no orders."""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from tolktrain.files.printable import printable


class Console(rich.console.Console):
    """Rich's console, on which text is what it says.

    Characters that a terminal obeys are shown as escapes, wherever they come from; brackets are no markup and colons no
    emoji. Styles are given by `rich.text.Text` and `style`. Options are those of Rich.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of what is shown; Rich's own controls, such as those of progress bars, are left as they are."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def spinner() -> Progress:
    """A line that says what is being done, and goes away afterwards."""
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    return Progress(*columns, console=Console(), transient=True)
