"""`python -m tolktrain.benchmark.ablations`, started by `launch/ablations.sh`.

Trains variants of the quickstart model on equal tokens, several seeds each, several processes side by side, and prints
a table with intervals over seeds and held-out items. A sweep that was stopped continues with the same command.
"""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tolktrain.benchmark.ablations.sweep import (
    USUAL,
    Run,
    configuration,
    cores,
    finished,
    plan,
    train_all,
    worker_command,
)
from tolktrain.cluster.signals import EXIT_PREEMPTED
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.files.given import path_argument
from tolktrain.files.reading import read_json
from tolktrain.files.writing import replace_file
from tolktrain.report.rundata import SWEEP_FILE

ROOT = Path(__file__).resolve().parents[3]  # of the repository, whose configurations and data are used


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all runs are done; 1: some failed; 2: bad input; 75: stopped, continue with the same command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _sweep(options, shlex.join(["bash", "launch/ablations.sh", *given]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return EXIT_PREEMPTED


def _sweep(options: argparse.Namespace, command: str) -> int:
    out = options.out.resolve()
    runs = plan(out, options.variants, options.seeds)
    threads = max(1, cores() // options.processes)
    commands = {}
    for run in runs:
        path, config = configuration(ROOT / "configs", run.variant, options.overrides)
        overrides = run.overrides(config, options.steps, threads, options.overrides)
        load_config(path, overrides)  # a mistake is reported before anything starts
        commands[run] = worker_command(run, path, overrides)
    _keep_settings(out, {"steps": options.steps, "overrides": options.overrides})
    failed: list[Run] = []
    if not options.table:
        failed = train_all(runs, commands.__getitem__, ROOT, options.processes, _say)
    found = finished(runs)
    if found:
        from tolktrain.benchmark.ablations.table import build_table, markdown, write_table  # scipy takes a second

        table = build_table(found)
        write_table(out, table, command)
        print(markdown(table))
        print(f"{len(found)} of {len(runs)} runs; table.md, table.json and differences.svg are in {out}")
    else:
        print("no run is done yet")
    return 1 if failed else 0


def _keep_settings(out: Path, settings: dict[str, object]) -> None:
    """Write the settings of the sweep. Raises UserError if the folder holds a sweep with others."""
    path = out / SWEEP_FILE
    if path.is_file():
        try:
            before = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); give the sweep another --out") from None
        if before != settings:
            raise UserError(
                f"{out} holds a sweep with {json.dumps(before)}, not {json.dumps(settings)}; give this one another"
                " --out"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(settings) + "\n")


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the processes get it once
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launch/ablations.sh", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument(
        "--out", type=path_argument, default=Path("runs/ablations"), help="folder of the sweep (runs/ablations)"
    )
    parser.add_argument(
        "--variants", type=_names, default=USUAL, metavar="NAME,...", help=f"({','.join(USUAL)}); {'full'} is compared"
    )
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], metavar="N,...", help="seeds of each (0,1,2)")
    parser.add_argument("--steps", type=_positive, metavar="N", help="steps of each run (the configuration's)")
    parser.add_argument(
        "--processes", type=_positive, default=cores(), metavar="N", help="runs at a time (one per core)"
    )
    parser.add_argument("--table", action="store_true", help="train nothing; print the table of the runs that are done")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of all configurations")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text} names a variant twice")
    return names


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,1,2") from None
    if len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text} has a seed twice, or a negative one")
    return numbers


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
