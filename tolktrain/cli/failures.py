"""Exit codes and error messages."""

import argparse
import contextlib
import errno
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from tolktrain.cli.output import STDOUT, drop_stdout, stdout_works
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.errors import UserError
from tolktrain.files.printable import printable
from tolktrain.runs.paths import RunPaths

EXIT_DONE = 0
EXIT_MACHINE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # what a shell reports after Ctrl-C


def complain(message: object) -> None:
    """Print an error on stderr, with the rank if there are several; failures of printing are ignored."""
    if not stdout_works():
        drop_stdout()
    with contextlib.suppress(OSError):  # stderr may lead to the disk that is full; the exit code reports it too
        print(f"{_speaker()}error: {printable(message)}", file=sys.stderr, flush=True)


def described(error: BaseException, parsed: argparse.Namespace) -> tuple[str, int]:
    """The message about an error, and its exit code."""
    if isinstance(error, UserError):
        return printable(error), EXIT_MACHINE if error.by_machine else EXIT_BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", EXIT_INTERRUPTED
    if is_defect(error):
        return printable_traceback(error), EXIT_MACHINE
    assert isinstance(error, OSError)
    return printable(_error_line(error, parsed)), EXIT_MACHINE


def described_at(error: BaseException, mark: object, parsed: argparse.Namespace) -> tuple[str, int]:
    """The same for one of several ranks; for a defect, with the point of its progress."""
    text, code = described(error, parsed)
    return f"at {mark}\n{text}" if is_defect(error) else text, code


def is_defect(error: BaseException) -> bool:
    """Whether an error is a defect: neither bad input, nor a fault of the machine, nor an interruption."""
    return not isinstance(error, (UserError, KeyboardInterrupt, OSError))


def printable_traceback(error: BaseException) -> str:
    """The traceback as `printable` shows it."""
    return printable("".join(traceback.format_exception(error)).rstrip())


def _error_line(error: OSError, parsed: argparse.Namespace) -> str:
    """An error of the machine in one line with its path; the traceback goes to the run's log, if it has one."""
    run_directory: Path | None = getattr(parsed, "run_directory", None)
    paths = [str(name) for name in (error.filename, error.filename2) if name is not None]
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full and not paths and not stdout_works("\n"):  # what was to be printed before may be gone
        paths = [STDOUT]
    # An error from a library may not name its file; the run directory is the likeliest place.
    place = " -> ".join(paths) or (f"in {run_directory}" if run_directory is not None else "")
    reason = error.strerror or str(error) or type(error).__name__
    if is_full and paths != [STDOUT]:
        reason += _advice(paths)
    line = " ".join(f"{place}: {reason}".removeprefix(": ").split())
    log = _log_file(run_directory) if run_directory is not None else None
    if log is None:
        return line
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(printable_traceback(error) + "\n")
    except OSError:
        return line
    return f"{line} (details in {log})"


def _advice(paths: Sequence[str]) -> str:
    """The advice for a full disk. With a quota, some of the disk is still free."""
    elsewhere = free = ""
    if paths:
        folders = Path(paths[-1]).absolute().parents
        with contextlib.suppress(OSError):
            left = shutil.disk_usage(next(folder for folder in folders if folder.is_dir())).free
            free = f" ({left / 1e6:,.1f} MB are free)"
        if Path(tempfile.gettempdir()) in folders:
            elsewhere = ", or let TMPDIR name a folder on another disk"
    return f"{free}; free some{elsewhere}, and run the same command again"


def _log_file(run_directory: Path) -> Path | None:
    """This rank's log, if training has made one."""
    try:
        rank = ProcessEnvironment.detect().rank
    except UserError:
        return None
    log = RunPaths(run_directory).log(rank)
    return log if log.is_file() else None


def _speaker() -> str:
    """Which rank speaks, when there are several."""
    try:
        environment = ProcessEnvironment.detect()
    except UserError:
        return ""
    return f"rank {environment.rank}: " if environment.world_size > 1 else ""
