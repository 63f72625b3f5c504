"""How far a preparation is, for a person at a terminal and for a log file."""

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tolktrain.files.terminal import Console
from tolktrain.prepare.job.parts import PartResult

_LINE_SECONDS = 30.0


class Narrator:
    """Shows items done, rate and time left: a bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._items = self._total = self._parts = self._num_parts = self._failed = 0
        self._began = self._spoke = 0.0

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def begin(self, num_items: int, num_parts: int) -> None:
        """So many items in so many parts are to be done."""
        self._items = self._parts = self._failed = 0
        self._total, self._num_parts = num_items, num_parts
        self._began = self._spoke = self._clock()
        if self.console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=num_items)
            self._bar.start()
        else:
            self.say(f"preparing {num_items:,} items in {num_parts:,} parts")

    def advance(self, items: int) -> None:
        """So many more items are done."""
        if not self._items and items:
            # Processes take seconds to start, which says nothing of the rate.
            self._began = self._clock()
        self._items += items
        if self._bar is not None:
            self._bar.update(self._task, completed=self._items, description=self.state())
        elif self._clock() - self._spoke >= _LINE_SECONDS:
            self._spoke = self._clock()
            self.say(f"{self._items:,} of {self._total:,} items, {self.state()}")

    def part_done(self, result: PartResult) -> None:
        """A part is done."""
        self._parts += 1
        self._failed += len(result.failures)
        self.advance(0)

    def state(self) -> str:
        """Rate, time left, parts and failures."""
        seconds = self._clock() - self._began
        rate = self._items / seconds if seconds > 0 else 0.0
        # Totals of text are estimates.
        left = (
            f", {_duration((self._total - self._items) / rate)} left" if rate > 0 and self._items < self._total else ""
        )
        return f"{rate:,.1f}/s{left}, {self._parts:,} of {self._num_parts:,} parts, {self._failed:,} failed"

    def __enter__(self) -> "Narrator":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing more is done, for better or worse."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _duration(seconds: float) -> str:
    minutes = max(round(seconds / 60), 0)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
