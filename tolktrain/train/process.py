"""Sets up a training process: threads, log file, DeepSpeed without its side effects."""

import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tolktrain.cluster.dump import DumpFile
from tolktrain.cluster.progress import Progress
from tolktrain.files.printable import PrintableFormatter, printable
from tolktrain.files.writing import AppendedFile
from tolktrain.libraries.compiler import compiling_later
from tolktrain.libraries.imports import deferred
from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.compat import (
    forget_modules,
    forget_outputs,
    without_memory_reports,
    without_ranges_on_cpu,
    without_shared_memory_collectives,
)

logger = logging.getLogger(__name__)

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_threads(layout: Layout, cpu_threads: int | None) -> None:
    """Divide the machine's cores among its ranks, if these compute on CPUs."""
    if layout.device.type == "cpu":
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(cpu_threads or max(1, len(os.sched_getaffinity(0)) // ranks_here))


@contextmanager
def dumping_to(log: Path, progress: Progress) -> Iterator[None]:
    """Let the watchdog, and crashes in C code, write this rank's stacks to the log."""
    progress.log = DumpFile(log)
    try:
        yield
    finally:
        progress.log.close()
        progress.log = None


@contextmanager
def logging_to(path: Path, rank: int) -> Iterator[None]:
    """Append this rank's log to the file `path`; rank 0 shows its warnings on the terminal too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [_LogFile(path)]
    handlers[0].setFormatter(PrintableFormatter(_LOG_FORMAT))
    if rank == 0:
        handlers.append(_Terminal(logging.WARNING))
    root, own = logging.getLogger(), logging.getLogger("tolktrain")
    level = own.level
    own.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        own.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


class _LogFile(logging.Handler):
    """A rank's log. On a full disk, records are lost, with one warning on stderr; training is not affected."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be opened."""
        super().__init__()
        self._file = AppendedFile(path)
        self._complained = False

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record."""
        try:
            self._file.append(f"{self.format(record)}\n")
        except OSError as error:
            if not self._complained:
                self._complained = True
                _print_error(f"warning: {error}; training continues, and log records are lost meanwhile")
        except Exception:  # formatting a record failed, which is a defect
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()
        super().close()


class _Terminal(logging.Handler):
    """Prints our own records to the current stderr, which a progress bar redirects."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message."""
        if record.name.startswith("tolktrain"):
            _print_error(f"{record.levelname.lower()}: {record.getMessage()}")


def _print_error(line: str) -> None:
    # stderr may be a job's output file on a full disk.
    with suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def import_deepspeed() -> ModuleType:
    """The package `deepspeed`, imported without noise on the terminal. Nothing else may import it before."""
    if not torch.cuda.is_available():
        # On import, it searches for an accelerator by trying drivers one after the other.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with importing_less():
        return importlib.import_module("deepspeed")


@contextmanager
def importing_less() -> Iterator[None]:
    """In this context, DeepSpeed imports neither torch's compiler (for Muon) nor Triton (for mixtures of experts)."""
    with compiling_later(), deferred("deepspeed.ops.triton_ops"):
        yield


@contextmanager
def silenced() -> Iterator[None]:
    """Redirects DeepSpeed's prints from the terminal to the log."""
    chatter = io.StringIO()
    with redirect_stdout(chatter):
        yield
    logger.debug("deepspeed printed: %s", chatter.getvalue())


@contextmanager
def own_device_as_local_rank() -> Iterator[None]:
    """Set LOCAL_RANK to the device index, as DeepSpeed expects: they differ if each rank sees only its own GPU."""
    before = os.environ.get("LOCAL_RANK", "0")
    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())
    try:
        yield
    finally:
        os.environ["LOCAL_RANK"] = before


def quiet_initialize(**arguments: Any) -> Any:
    """`deepspeed.initialize` without its prints; returns the engine."""
    deepspeed = start_deepspeed()
    with silenced(), own_device_as_local_rank(), importing_less():
        engine, *_ = deepspeed.initialize(**arguments)
    return engine


def forget_engine(engine: Any) -> None:
    """Remove DeepSpeed's hooks from the model, and free its buffers and its other references to the model."""
    engine.destroy()
    forget_outputs(engine)
    forget_modules(engine.module)


def _concerns_users(record: logging.LogRecord) -> bool:
    """Drops ZeRO 3's warning that it finds no tensors in our dataclasses. The parameters that a layer needs are
    gathered all the same: losses under ZeRO 3 equal those of one process (`tests/train/test_layouts.py`)."""
    return "unknown inputs or outputs type" not in record.getMessage()


def start_deepspeed() -> ModuleType:
    """DeepSpeed, initialized with the existing process group. Further calls have no effect."""
    deepspeed = import_deepspeed()
    os.environ.setdefault("LOCAL_RANK", "0")  # demanded even of a single process
    own = logging.getLogger("DeepSpeed")
    own.handlers.clear()  # they write to the terminal; the log files get the records through the root logger
    own.propagate = True
    own.setLevel(logging.WARNING)
    own.addFilter(_concerns_users)
    without_memory_reports()
    if not deepspeed.comm.is_initialized():
        without_shared_memory_collectives(deepspeed)
        without_ranges_on_cpu()
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
