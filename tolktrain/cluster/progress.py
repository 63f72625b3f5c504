"""What a rank is doing: as it reports, and as the stack of its main thread shows."""

import contextlib
import linecache
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import FrameType

from tolktrain.cluster.dump import DumpFile

_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
_WAITING_MODULES = ("torch.distributed", "deepspeed.comm", "torch.autograd")


@dataclass(frozen=True)
class Mark:
    """A point of a rank's progress; all ranks pass the same marks in the same order."""

    doing: str = "starting"
    stage: str = ""  # name of the recipe's stage, empty before the first
    step: int = 0  # the current step, counted from the beginning of the run; 0 before the first
    number: int = 0  # marks since this step began
    time: float = field(default_factory=time.time, compare=False)  # when it was set, seconds since 1970

    @property
    def position(self) -> tuple[int, int]:
        """The order of marks, comparable between ranks."""
        return self.step, self.number

    def __str__(self) -> str:
        stage = f"stage {self.stage!r}, " if self.stage else ""
        step = f"step {self.step:,}, " if self.step else ""
        return f"{stage}{step}{self.doing}"


class Progress:
    """The progress of a rank: written by its main thread, read by its watchdog."""

    def __init__(self) -> None:
        self.mark = Mark()
        self.place = ""  # in the layout: "pipeline 1, tensor 0, data 1"
        self.hint: Callable[[], str] = lambda: ""  # what the main thread probably waits for, if that is known
        self.on_settled: Callable[[], None] = lambda: None
        # Called when the watchdog ends the job: with the reason, and the exit code.
        self.on_end: Callable[[str, int], None] = lambda text, code: None
        self.log: DumpFile | None = None  # of this rank, once it is open
        self.failure: Exception | None = None  # ends training, even if cleaning up is not finished

    def at(self, doing: str) -> None:
        """Set what this rank does now. All ranks must set the same marks, at intervals below the hang timeout."""
        self.mark = Mark(doing, self.mark.stage, self.mark.step, self.mark.number + 1)

    def touch(self) -> None:
        """Note progress inside of the current mark. Unlike marks, this need not be the same on all ranks."""
        self.mark = replace(self.mark, time=time.time())

    def at_step(self, stage: str, step: int, doing: str) -> None:
        """Set that a step begins."""
        self.mark = Mark(doing, stage, step)

    def settle(self, place: str) -> None:
        """Set this rank's place in the layout. It is sent at once, so that it is known if the process is killed."""
        self.place = place
        self.on_settled()

    @contextlib.contextmanager
    def hinting(self, hint: Callable[[], str]) -> Iterator[None]:
        """In this context, `hint` says what the main thread probably waits for. It is called by the watchdog."""
        self.hint = hint
        try:
            yield
        finally:
            self.hint = lambda: ""

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Report an exception at once: while it propagates, cleaning up may wait for ranks that wait for this one."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise


@dataclass(frozen=True)
class Whereabouts:
    """The position of the main thread in the code."""

    line: str = ""  # innermost line outside of libraries
    waiting: bool = False  # whether that line probably waits for other ranks

    @classmethod
    def of_main_thread(cls) -> "Whereabouts":
        """The current position of this process's main thread."""
        frame = main_frame()
        waiting = False
        while frame is not None and _is_library(frame):
            waiting = waiting or _module(frame).startswith(_WAITING_MODULES)
            frame = frame.f_back
        if frame is None:
            return cls("in a library", waiting)
        line = frame.f_lineno or frame.f_code.co_firstlineno  # some instructions have no line: f_lineno is None
        code = linecache.getline(frame.f_code.co_filename, line).strip()
        name = f"{_module(frame)}:{line} in {frame.f_code.co_name}"
        return cls(f"{name}: `{code}`" if code else name, waiting)


def main_frame() -> FrameType | None:
    """Innermost Python frame of the main thread."""
    return sys._current_frames().get(threading.main_thread().ident or 0)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_library(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    if _module(frame).split(".")[0].startswith("tolktrain"):
        return False
    return "site-packages" in file or file.startswith((_STANDARD_LIBRARY, "<frozen"))
