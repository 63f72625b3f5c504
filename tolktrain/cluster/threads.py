"""Background threads whose failures are always reported."""

import logging
import threading
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)


def guarded(
    name: str, work: Callable[[], object], on_failure: Callable[[BaseException], object] | None = None
) -> threading.Thread:
    """A daemon thread, not started yet, that calls `work`.

    Args:
        name: of the thread, in messages and stacks.
        work: returns when the thread is done.
        on_failure: called in the thread with the exception that `work` raises. Without it, the exception is logged with
            its stack.
    """

    def run() -> None:
        try:
            work()
        except BaseException as error:  # including SystemExit, which ends a thread too
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
    """Log the exception that has ended a thread."""
    logger.error("the background thread %r has failed: %s", name, describe(error), exc_info=error)


def failed_watchdog(error: BaseException) -> str:
    """The message if the watchdog's thread has failed. It contains the stack, because all ranks log it."""
    return f"the watchdog failed: {describe(error)}\n{''.join(traceback.format_exception(error)).rstrip()}"


def describe(error: BaseException) -> str:
    """An error in one line: its type and message."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
