"""`tolktrain compare`."""

import argparse
from pathlib import Path

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.verb import Verb
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument, path_argument
from tolktrain.runs.paths import RunPaths


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=input_argument,
        help="run directories (or folders of their evaluations, or configurations that were trained); all are compared"
        " with the first",
    )
    parser.add_argument(
        "--benchmarks", nargs="+", default=[], metavar="NAME", help="benchmarks to compare (all that the runs have)"
    )
    parser.add_argument(
        "--rules", nargs="+", default=[], metavar="RULE", help="rules of scores, such as whole_sum (as evaluated)"
    )
    parser.add_argument("--output", type=path_argument, metavar="FOLDER", help="for compare.json and compare.html")


def _run(parsed: argparse.Namespace) -> int:
    # argparse takes positional arguments from one place only; others come as overrides, of which there are none here.
    folders = [_folder(text) for text in (*parsed.runs, *parsed.overrides)]
    from tolktrain.compare.run import compare, write_comparison
    from tolktrain.compare.terminal import print_comparison

    result = compare(folders, parsed.benchmarks, parsed.rules)
    if parsed.output is not None:
        write_comparison(result, parsed.output)
    print_comparison(result)
    return EXIT_DONE


def _folder(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        return path
    if not path.is_file():
        raise UserError(f"{text} does not exist; name a run directory, such as runs/quickstart")
    from tolktrain.config.load import load_config

    return RunPaths.of(load_config(path, [])).root


VERB = Verb(
    "compare evaluated runs: paired tests of their scores, losses, and what differs",
    _add_arguments,
    _run,
    in_one_process=True,
)
