"""The entry point: parses the command line, runs one verb, and turns errors into exit codes."""

import argparse
import contextlib
import importlib
import logging
import sys
from collections.abc import Sequence
from multiprocessing.util import Finalize

from tolktrain import __version__
from tolktrain.cli.failures import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    complain,
    described,
    printable_traceback,
)
from tolktrain.cli.output import print_to_reader
from tolktrain.cli.verb import Verb, refuse_several_processes
from tolktrain.cluster.kernel_caches import place_kernel_caches
from tolktrain.cluster.signals import StopRequest
from tolktrain.cluster.watch.torchrun import report_to_torchrun
from tolktrain.errors import UserError
from tolktrain.files.printable import PrintableFormatter
from tolktrain.files.shared import enter_temporary_folder, leave_temporary_folder

# In the order of --help; each is a file here that defines VERB.
VERBS = (
    *("train", "evaluate", "compare", "analyze", "generate", "demo", "report", "checkpoints", "import", "export"),
    *("prepare", "plan", "tune", "bench", "config"),
)

EPILOG = """\
exit codes: 0 done; 1 the machine failed (disk full, no permission, a rank killed or hanging: one message, details in
the run's logs), `checkpoints --verify` found damage, or a defect of the program (a traceback); 2 bad input, the message
says what to correct; 75 asked to stop, a checkpoint is written: run the same command again; 130 interrupted.
Values of dotted.key=value are YAML, such as train.max_steps=10 or data.sets.mine='{path: /data/mine}'.
"""


def program(stop: StopRequest | None = None) -> int:
    """The whole process: `main`, with private folders for temporary files and compiled kernels."""
    try:
        place_kernel_caches(enter_temporary_folder())
    except OSError as error:
        complain(f"no folder for temporary files can be used: {error}; set TMPDIR to one with free space")
        return EXIT_MACHINE
    # At the very end: multiprocessing removes a folder of its own in this one, with priority -100, and complains if it
    # is gone.
    Finalize(None, leave_temporary_folder, exitpriority=-1000)
    code = main(stop=stop)
    StopRequest.ignore_at_exit()
    return code


def main(arguments: Sequence[str] | None = None, stop: StopRequest | None = None) -> int:
    """Run one verb; `arguments` defaults to the process's own. Returns the exit code.

    `stop` handles signals already; without it, verbs that can be stopped install one.
    """
    parsed = _parse(arguments)
    parsed.stop_request = stop
    _make_stderr_printable()
    try:
        if parsed.in_one_process:
            refuse_several_processes(parsed.verb)
        code = int(parsed.run(parsed))
        if code == EXIT_DONE:  # any other one matters more than what was printed
            print_to_reader("")
        return code
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (UserError, OSError) as error:
        message, code = described(error, parsed)
        complain(message)
        report_to_torchrun(message)
        return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments from one place only; overrides may also follow an option.
    foreign = [text for text in rest if text.startswith("-")]
    if foreign:
        parser.error(f"unrecognized arguments: {' '.join(foreign)}")
    parsed.overrides += rest
    parsed.arguments = list(sys.argv[1:] if arguments is None else arguments)
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tolktrain",
        description="Training of text-speech language models (SmolTolk).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tolktrain {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name in VERBS:
        verb: Verb = importlib.import_module(f"tolktrain.cli.{name}").VERB
        of_verb = verbs.add_parser(
            name,
            help=verb.meaning,
            description=f"{verb.meaning[0].upper()}{verb.meaning[1:]}.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        of_verb.set_defaults(run=verb.run, verb=name, in_one_process=verb.in_one_process)
        verb.add_arguments(of_verb)
        of_verb.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted key and new value")
    return parser


def _make_stderr_printable() -> None:
    """What is shown by Python and not by us may hold text from files too: defects, and records without a handler."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    sys.excepthook = lambda kind, error, trace: print(printable_traceback(error), file=sys.stderr)
