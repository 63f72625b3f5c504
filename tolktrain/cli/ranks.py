"""Verbs that several processes run together."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from tolktrain.cli.failures import EXIT_DONE, described_at
from tolktrain.cluster.environment import ProcessEnvironment

if TYPE_CHECKING:
    from tolktrain.cluster.watch.watchdog import Watch


def run_watched(parsed: argparse.Namespace, environment: ProcessEnvironment, act: Callable[["Watch"], None]) -> int:
    """Act as one of several ranks. If any of them fails, all end, and one reports the error."""
    from tolktrain.cluster.watch.watchdog import Watch
    from tolktrain.parallel.layout import shut_down

    def describe(error: BaseException) -> tuple[str, int]:
        return described_at(error, watch.progress.mark, parsed)

    watch = Watch.start(environment, describe)
    try:
        act(watch)
        shut_down()
    except (Exception, KeyboardInterrupt) as error:
        watch.fail(error)
    return watch.finish(EXIT_DONE)
