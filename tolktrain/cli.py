"""The command line: `tolktrain VERB CONFIG [dotted.key=value ...]`.

Only light modules are imported here, so that `--help` answers at once and signal handlers stand before torch is
imported.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tolktrain import __version__
from tolktrain.cluster.environment import ProcessEnvironment, alone
from tolktrain.cluster.signals import StopRequest
from tolktrain.config import Config
from tolktrain.config.errors import UserError

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # what a shell reports after Ctrl-C

RUN_VERBS = {
    "evaluate": "measure a trained run on its held-out sets",
    "generate": "let a trained run speak: write WAV files",
    "report": "write a run's report.html and print its table",
}

EPILOG = """\
exit codes: 0 done; 2 bad input, the message says what to mend; 75 asked to stop, a checkpoint is written: run the same
command again. Values of dotted.key=value are YAML, such as train.max_steps=10 or data.sets.mine='{path: /data/mine}'.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; `arguments` defaults to the process's own. Returns the exit code."""
    parsed = _parser().parse_args(arguments)
    verb: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return verb(parsed)
    except UserError as error:
        sys.stdout.flush()
        print(f"{_speaker()}error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has left; Python would complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tolktrain",
        description="Training of text-speech language models (SmolTolk).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tolktrain {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    train = _verb(verbs, "train", "train, or go on where the last checkpoint is", _train)
    train.add_argument("config", metavar="CONFIG", help="configuration, a YAML file")
    for name, meaning in RUN_VERBS.items():
        verb = _verb(verbs, name, meaning, _on_run)
        verb.add_argument("config", metavar="CONFIG", help="configuration that was trained, or the run's folder")
        verb.set_defaults(verb=name)
    config = _verb(verbs, "config", "print the resolved configuration", _config)
    config.add_argument("config", metavar="CONFIG", nargs="?", help="configuration, a YAML file")
    config.add_argument("--schema", action="store_true", help="print the JSON schema of configurations instead")
    for verb in verbs.choices.values():
        verb.add_argument("overrides", metavar="key=value", nargs="*", help="dotted key and new value")
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    meaning: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=meaning,
        description=f"{meaning[0].upper()}{meaning[1:]}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=run)
    return verb


def _train(parsed: argparse.Namespace) -> int:
    stop = StopRequest()
    stop.install()
    config = _load(parsed)
    from tolktrain.train.run import train

    code = train(config, stop)
    stop.release()
    environment = ProcessEnvironment.detect()
    if code == EXIT_DONE and config.evaluation.after_training and environment.rank == 0:
        return _follow_up(_run_directory(config), environment)
    return code


def _follow_up(run_directory: Path, environment: ProcessEnvironment) -> int:
    """Evaluate, generate and report; what is newer than the last checkpoint is kept."""
    latest = run_directory / "checkpoints" / "latest"
    products = {"evaluate": "evaluation.json", "generate": "samples/samples.json", "report": None}
    for verb, product in products.items():
        if product is not None and _is_newer(run_directory / product, latest):
            continue
        if environment.world_size == 1:
            _run_verb(verb, run_directory)
        else:
            # This process belongs to a group whose other ranks have left; a fresh one stands for itself.
            command = [sys.executable, "-m", "tolktrain", verb, str(run_directory)]
            code = subprocess.run(command, env=alone(), check=False).returncode
            if code != EXIT_DONE:
                return code
    return EXIT_DONE


def _is_newer(product: Path, reference: Path) -> bool:
    return product.exists() and reference.exists() and product.stat().st_mtime_ns >= reference.stat().st_mtime_ns


def _on_run(parsed: argparse.Namespace) -> int:
    path = Path(parsed.config)
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path} is not the folder of a run: it has no config.yaml; name a run or a YAML file")
        directory = path
    else:
        directory = _run_directory(_load(parsed))
        if not (directory / "config.yaml").is_file():
            raise UserError(f"{directory} holds no run yet; train it first: tolktrain train {path}")
    foreign = [text for text in parsed.overrides if path.is_dir() or not text.startswith("run.")]
    if foreign:
        raise UserError(
            f"{foreign[0]!r} would have no effect: {parsed.verb} uses the configuration that the run was trained with,"
            f" {directory / 'config.yaml'}"
        )
    _run_verb(parsed.verb, directory)
    return EXIT_DONE


def _run_verb(verb: str, run_directory: Path) -> None:
    if verb == "evaluate":
        from tolktrain.evaluate.run import evaluate

        evaluate(run_directory)
    elif verb == "generate":
        from tolktrain.generate.run import generate

        print(f"{len(generate(run_directory))} files in {run_directory / 'samples'}")
    else:
        from tolktrain.report.run import report

        report(run_directory)


def _config(parsed: argparse.Namespace) -> int:
    from tolktrain.config.load import dump_config, schema

    if parsed.schema:
        import json

        print(json.dumps(schema(), indent=2))
    elif parsed.config is None:
        raise UserError("name a configuration, such as configs/quickstart.yaml, or ask for --schema")
    else:
        print(dump_config(_load(parsed)), end="")
    return EXIT_DONE


def _load(parsed: argparse.Namespace) -> Config:
    from tolktrain.config.load import load_config

    return load_config(parsed.config, parsed.overrides)


def _run_directory(config: Config) -> Path:
    return Path(config.run.dir) / config.run.name


def _speaker() -> str:
    """Which rank speaks, when there are several."""
    try:
        environment = ProcessEnvironment.detect()
    except UserError:
        return ""
    return f"rank {environment.rank}: " if environment.world_size > 1 else ""
