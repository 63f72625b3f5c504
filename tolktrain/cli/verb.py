"""The common parts of all verbs of the command line."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument
from tolktrain.runs.paths import RunPaths


@dataclass(frozen=True)
class Verb:
    """A verb. Its file is `tolktrain/cli/NAME.py` and defines it as `VERB`."""

    meaning: str  # one line for --help, beginning in lower case
    add_arguments: Callable[[argparse.ArgumentParser], None]  # without the overrides, which every verb takes
    run: Callable[[argparse.Namespace], int]  # returns the exit code
    in_one_process: bool = False  # whether several processes (torchrun, srun) are refused


def verb_of_run(meaning: str, act: Callable[[Path], None]) -> Verb:
    """A verb that does one thing to a trained run, whose folder or configuration the command line names."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "config", metavar="CONFIG", type=input_argument, help="configuration that was trained, or the run directory"
        )

    def run(parsed: argparse.Namespace) -> int:
        parsed.run_directory = existing_run(parsed)
        act(parsed.run_directory)
        return EXIT_DONE

    return Verb(meaning, add_arguments, run, in_one_process=True)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """What `existing_model` reads."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        type=input_argument,
        help="configuration that was trained, run directory, or folder of weights",
    )


def load(parsed: argparse.Namespace) -> Config:
    """The configuration that the command line names, with its overrides."""
    from tolktrain.config.load import load_config

    return load_config(parsed.config, parsed.overrides)


def refuse_several_processes(verb: str) -> None:
    """Raise UserError if a launcher has started several processes, each of which would do the same work and write the
    same files."""
    try:
        size = ProcessEnvironment.detect().world_size
    except UserError:  # variables of a launcher that has not started this process
        return
    if size > 1:
        raise UserError(
            f"tolktrain {verb} runs in one process, but {size} were started; start it without torchrun, or with srun"
            " --ntasks=1. The layout of a run does not matter: one process reads the checkpoints of any"
        )


def existing_run(parsed: argparse.Namespace) -> Path:
    """The run directory that the command line names, by itself or by its configuration.

    Raises UserError when there is no run, or an override would have no effect.
    """
    path = Path(parsed.config)
    if path.is_dir():
        if not RunPaths(path).config.is_file():
            raise UserError(_no_run(path))
        directory = path
    else:
        directory = RunPaths.of(load(parsed)).root
        if not RunPaths(directory).config.is_file():
            raise UserError(f"{directory} holds no run yet; train it first: tolktrain train {path}")
    foreign = [text for text in parsed.overrides if path.is_dir() or not text.startswith("run.")]
    if foreign:
        raise UserError(
            f"{foreign[0]!r} would have no effect: {parsed.verb} uses the configuration that the run was trained with,"
            f" {RunPaths(directory).config}"
        )
    return directory


def _no_run(folder: Path) -> str:
    """Why a folder is no run."""
    from tolktrain.interop.export.model_config import is_saved_by_transformers

    if is_saved_by_transformers(folder):
        return f"{folder} was saved by transformers; read it first: tolktrain import {folder} INTO"
    return f"{folder} is not a run directory: it has no config.yaml; name a run or a YAML file"


def existing_model(parsed: argparse.Namespace) -> tuple[Path, tuple[str, ...]]:
    """The run directory as `existing_run`, or the folder of weights, that the command line names; and the overrides,
    which only weights take.

    Raises UserError like `existing_run`.
    """
    from tolktrain.interop.weights import is_weights

    path = Path(parsed.config)
    if path.is_dir() and not RunPaths(path).config.is_file() and is_weights(path):
        return path, tuple(parsed.overrides)
    return existing_run(parsed), ()
