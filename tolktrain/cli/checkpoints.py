"""`tolktrain checkpoints`."""

import argparse

from tolktrain.cli.failures import EXIT_DONE, EXIT_MACHINE
from tolktrain.cli.verb import Verb, existing_run
from tolktrain.files.given import input_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="RUN", type=input_argument, help="the run directory, or the configuration that was trained"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read every file and compare checksums; exit code 1 if one is damaged"
    )


def _run(parsed: argparse.Namespace) -> int:
    run_directory = existing_run(parsed)
    from tolktrain.files.terminal import Console
    from tolktrain.report.checkpoints import show_checkpoints

    intact = show_checkpoints(run_directory, parsed.verify, Console())
    return EXIT_DONE if intact or not parsed.verify else EXIT_MACHINE


VERB = Verb("list a run's checkpoints, or verify them", _add_arguments, _run)
