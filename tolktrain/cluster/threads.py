"""Background threads, none of which ends in silence."""

import logging
import threading
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)


def guarded(
    name: str, work: Callable[[], object], on_failure: Callable[[BaseException], object] | None = None
) -> threading.Thread:
    """A thread, not started yet, that does `work`. It does not keep the process from ending.

    Args:
        name: what messages and stacks call it.
        work: returns when the thread has nothing left to do.
        on_failure: called in the thread with whatever `work` raises, to say it and to draw the consequence. Without
            one it is logged with the stack.
    """

    def run() -> None:
        try:
            work()
        except BaseException as error:  # SystemExit too: a thread that it ends is missing like any other
            if on_failure is None:
                log_failure(name, error)
                return
            try:
                on_failure(error)
            except BaseException:
                log_failure(name, error)
                raise

    return threading.Thread(target=run, name=name, daemon=True)


def log_failure(name: str, error: BaseException) -> None:
    """Say in the log what has ended a thread."""
    logger.error("the background thread %r has failed: %s", name, describe(error), exc_info=error)


def failed_watchdog(error: BaseException) -> str:
    """Why a job ends whose watchdog's own thread has ended; in all ranks' logs, so with the stack."""
    return f"the watchdog failed: {describe(error)}\n{''.join(traceback.format_exception(error)).rstrip()}"


def describe(error: BaseException) -> str:
    """An error in one line: its kind and its words."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
