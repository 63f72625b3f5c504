"""The progress of a preparation, for a terminal and for a log file."""

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tolktrain.files.terminal import Console
from tolktrain.prepare.job.parts import PartResult

_LINE_SECONDS = 30.0


class ProgressDisplay:
    """Shows entries done, rate and time left: a bar on a terminal, otherwise a line every half minute."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._done = self._total = self._parts = self._num_parts = self._failed = 0
        self._began = self._last_line = 0.0

    def print_line(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def begin(self, num_entries: int, num_parts: int) -> None:
        """Start with this number of entries and parts to do."""
        self._done = self._parts = self._failed = 0
        self._total, self._num_parts = num_entries, num_parts
        self._began = self._last_line = self._clock()
        if self.console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=num_entries)
            self._bar.start()
        else:
            self.print_line(f"preparing {num_entries:,} entries in {num_parts:,} parts")

    def advance(self, entries: int) -> None:
        """Count further entries as done."""
        if not self._done and entries:
            # Processes take seconds to start, which must not count in the rate.
            self._began = self._clock()
        self._done += entries
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=self.state())
        elif self._clock() - self._last_line >= _LINE_SECONDS:
            self._last_line = self._clock()
            self.print_line(f"{self._done:,} of {self._total:,} entries, {self.state()}")

    def part_done(self, result: PartResult) -> None:
        """Count a part as done, with its failures."""
        self._parts += 1
        self._failed += len(result.failures)
        self.advance(0)

    def state(self) -> str:
        """Rate, time left, parts and failures."""
        seconds = self._clock() - self._began
        rate = self._done / seconds if seconds > 0 else 0.0
        # Totals of text are estimates.
        left = f", {_duration((self._total - self._done) / rate)} left" if rate > 0 and self._done < self._total else ""
        return f"{rate:,.1f}/s{left}, {self._parts:,} of {self._num_parts:,} parts, {self._failed:,} failed"

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _duration(seconds: float) -> str:
    minutes = max(round(seconds / 60), 0)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
