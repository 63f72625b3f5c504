"""Standard output whose reader may close it, or whose disk may be full."""

import os
import sys

STDOUT = "standard output"


def print_to_reader(text: str) -> None:
    """Print, with what was printed before, to a reader who may leave before the end (head, less)."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        drop_stdout()
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from error


def drop_stdout() -> None:
    """Discard the buffer: at exit Python would write it again, print an error and change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout_works(probe: str = "") -> bool:
    """Whether standard output takes `probe`, and what was printed before."""
    try:
        print(probe, end="", flush=True)
    except OSError:
        return False
    return True
