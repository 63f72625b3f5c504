"""Standard output whose reader may close it, or whose disk may be full."""

import os
import sys

STDOUT = "standard output"


def print_to_reader(text: str) -> None:
    """Print, with everything printed before, to a reader that may close its end early (head, less)."""
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
    """Whether `probe`, and everything printed before, can be written to standard output."""
    try:
        print(probe, end="", flush=True)
    except OSError:
        return False
    return True
