"""What a rank is doing, as it says itself and as its stack shows."""

import contextlib
import linecache
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType

from tolktrain.cluster.dump import DumpFile

_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
_WAITING_MODULES = ("torch.distributed", "deepspeed.comm", "torch.autograd")


@dataclass(frozen=True)
class Mark:
    """A place on the way of training; all ranks pass the same ones in the same order."""

    doing: str = "starting"
    stage: str = ""  # name of the recipe's stage, empty before the first
    step: int = 0  # the step that is under way, counted from the beginning of the run; 0 before the first
    number: int = 0  # marks since this step began
    time: float = field(default_factory=time.time, compare=False)  # when it was set, seconds since 1970

    @property
    def position(self) -> tuple[int, int]:
        """Orders marks; comparable between ranks."""
        return self.step, self.number

    def __str__(self) -> str:
        stage = f"stage {self.stage!r}, " if self.stage else ""
        step = f"step {self.step:,}, " if self.step else ""
        return f"{stage}{step}{self.doing}"


class Progress:
    """Written by the main thread of a rank, read by its watch."""

    def __init__(self) -> None:
        self.mark = Mark()
        self.place = ""  # in the layout: "pipeline 1, tensor 0, data 1"
        self.on_settled: Callable[[], None] = lambda: None
        self.on_end: Callable[[str], None] = lambda text: None  # told why the job ends, while this process still lives
        self.log: DumpFile | None = None  # this rank's, once it has one
        self.failure: Exception | None = None  # ends training, whatever is still to be tidied up

    def at(self, doing: str) -> None:
        """Say what comes now. Every rank must say the same, and more often than the hang timeout."""
        self.mark = Mark(doing, self.mark.stage, self.mark.step, self.mark.number + 1)

    def at_step(self, stage: str, step: int, doing: str) -> None:
        """Say that a step begins."""
        self.mark = Mark(doing, stage, step)

    def settle(self, place: str) -> None:
        """Say where in the layout this rank is; told at once, for a process that is killed next can no longer."""
        self.place = place
        self.on_settled()

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Make an exception known at once: on its way up it may meet what waits for ranks that wait for this one."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise


@dataclass(frozen=True)
class Whereabouts:
    """Where the main thread is in the code."""

    line: str = ""  # innermost line that is not a library's
    waiting: bool = False  # whether that line waits, as far as one can tell, for other ranks

    @classmethod
    def of_main_thread(cls) -> "Whereabouts":
        """Of this process, now."""
        frame = main_frame()
        waiting = False
        while frame is not None and _is_library(frame):
            waiting = waiting or _module(frame).startswith(_WAITING_MODULES)
            frame = frame.f_back
        if frame is None:
            return cls("in a library", waiting)
        code = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        name = f"{_module(frame)}:{frame.f_lineno} in {frame.f_code.co_name}"
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
