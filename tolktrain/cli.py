"""The command line: `tolktrain VERB CONFIG [dotted.key=value ...]`.

Only light modules are imported here, so that `--help` answers at once and signal handlers stand before torch is
imported.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tolktrain import __version__
from tolktrain.cluster.environment import ProcessEnvironment, alone
from tolktrain.cluster.kernel_caches import place_kernel_caches
from tolktrain.cluster.signals import EXIT_PREEMPTED, StopRaised, StopRequest
from tolktrain.config import Config
from tolktrain.errors import UserError
from tolktrain.files.printable import PrintableFormatter, printable
from tolktrain.files.reading import TABLE_BYTES, read_json
from tolktrain.files.shared import enter_temporary_folder, leave_temporary_folder
from tolktrain.runs.paths import RunPaths

if TYPE_CHECKING:
    from tolktrain.cluster.watch.watchdog import Watch

EXIT_DONE = 0
EXIT_MACHINE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # what a shell reports after Ctrl-C
_STDOUT = "standard output"

RUN_VERBS = {
    "evaluate": "measure a trained run on its held-out sets",
    "generate": "let a trained run speak: write WAV files",
    "report": "write a run's report.html and print its table",
}

EPILOG = """\
exit codes: 0 done; 1 the machine failed (disk full, no permission, a rank killed or hanging: one message, details in
the run's logs), `checkpoints --verify` found damage, or a defect of the program (a traceback); 2 bad input, the message
says what to mend; 75 asked to stop, a checkpoint is written: run the same command again; 130 interrupted.
Values of dotted.key=value are YAML, such as train.max_steps=10 or data.sets.mine='{path: /data/mine}'.
"""


def program() -> int:
    """The whole process: `main`, with places of its own for temporary files and compiled kernels."""
    try:
        place_kernel_caches(enter_temporary_folder())
    except OSError as error:
        _complain(f"no folder for temporary files can be used: {error}; set TMPDIR to one with free space")
        return EXIT_MACHINE
    try:
        return main()
    finally:
        leave_temporary_folder()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; `arguments` defaults to the process's own. Returns the exit code."""
    parsed = _parse(arguments)
    _make_stderr_printable()
    verb: Callable[[argparse.Namespace], int] = parsed.run
    try:
        code = verb(parsed)
        if code == EXIT_DONE:  # any other one matters more than what was printed
            _print("")
        return code
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (UserError, OSError) as error:
        message, code = _told(error, parsed)
        _complain(message)
        return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments from one place only; overrides may also stand behind an option.
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
    train = _verb(verbs, "train", "train, or go on where the last checkpoint is", _train)
    train.add_argument("config", metavar="CONFIG", help="configuration, a YAML file")
    train.add_argument(
        "--skip-health-check", action="store_true", help="start on these machines, whatever is wrong with them"
    )
    for name, meaning in RUN_VERBS.items():
        verb = _verb(verbs, name, meaning, _on_run)
        verb.add_argument("config", metavar="CONFIG", help="configuration that was trained, or the run's folder")
        verb.set_defaults(verb=name)
    _add_checkpoints(verbs)
    _add_prepare(verbs)
    _add_bench(verbs)
    config = _verb(verbs, "config", "print the resolved configuration", _config)
    config.add_argument("config", metavar="CONFIG", nargs="?", help="configuration, a YAML file")
    config.add_argument("--schema", action="store_true", help="print the JSON schema of configurations instead")
    for verb in verbs.choices.values():
        verb.add_argument("overrides", metavar="key=value", nargs="*", help="dotted key and new value")
    return parser


def _add_checkpoints(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    checkpoints = _verb(
        verbs, "checkpoints", "list a run's checkpoints, verify them, or take the weights out", _checkpoints
    )
    checkpoints.add_argument("config", metavar="RUN", help="the run's folder, or the configuration that was trained")
    checkpoints.add_argument(
        "--verify", action="store_true", help="read every file and compare checksums; exit code 1 if one is damaged"
    )
    weights = checkpoints.add_argument_group("weights without optimizer")
    weights.add_argument(
        "--weights-only", type=Path, metavar="DIR", help="write plain safetensors files into this new folder"
    )
    weights.add_argument("--step", type=int, metavar="N", help="of this checkpoint (the newest sound one)")
    weights.add_argument("--dtype", choices=("float32", "bf16"), help="of the weights (float32)")
    checkpoints.set_defaults(verb="checkpoints")


def _add_prepare(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    prepare = _verb(
        verbs, "prepare", "make a data set of recordings, text or a published set; or look at one", _prepare
    )
    prepare.add_argument(
        "config", metavar="CONFIG", nargs="?", help="configuration, such as configs/prepare/folder.yaml"
    )
    prepare.add_argument(
        "--task", metavar="I/N", help="do only the parts of machine I (from 0) of N; taken from a Slurm array by itself"
    )
    prepare.add_argument(
        "--retry", action="store_true", help="do parts with failed items again, whose files were mended"
    )
    prepare.add_argument("--schema", action="store_true", help="print the JSON schema of configurations instead")
    look = prepare.add_argument_group("looking at a data set")
    look.add_argument(
        "--inspect", metavar="PATH", help="folder or address with index.json: print and draw what is in it"
    )
    look.add_argument("--records", type=int, default=3, metavar="N", help="records that are shown (3)")
    look.add_argument("--strategy", metavar="NAME", help="how sequences are made (interleaved where words are aligned)")
    look.add_argument("--sequence-length", type=int, default=512, metavar="T", help="tokens of a sequence (512)")
    look.add_argument("--text-tokenizer", metavar="FOLDER", help="the set's text tokenizer, if not beside it")
    look.add_argument("--speech-tokenizer", metavar="FOLDER", help="the set's speech tokenizer, if not beside it")
    look.add_argument("--output", type=Path, metavar="FOLDER", help="for plots and sound (runs/inspect-<name>-<split>)")


def _add_bench(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bench = _verb(verbs, "bench", "time the training step on synthetic data, with random weights", _bench)
    bench.add_argument("config", metavar="CONFIG", help="configuration, such as configs/bench/smoltolk-150m.yaml")
    bench.add_argument("--stage", metavar="NAME", help="stage whose step is timed (the last)")
    bench.add_argument("--steps", type=int, default=20, help="steps that are timed (20)")
    bench.add_argument("--warmup", type=int, default=5, help="steps before them (5)")
    bench.add_argument(
        "--accumulation", type=int, default=1, metavar="N", help="micro batches of a step, in place of the recipe's (1)"
    )
    bench.add_argument(
        "--speech-share", type=float, default=0.46, metavar="SHARE", help="share of speech in the positions (0.46)"
    )
    bench.add_argument(
        "--against", default="", metavar="NAMES", help="also time these forms: published, strongest; by commas"
    )
    bench.add_argument("--no-compile", action="store_true", help="do not compile the strongest plain form")
    bench.add_argument("--output", type=Path, metavar="FOLDER", help="for the results (runs/bench-<run.name>)")


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
    environment = ProcessEnvironment.detect()
    if environment.world_size == 1:
        config, code = _train_rank(parsed, stop, None)
    else:
        config, code = _train_watched(parsed, stop, environment)
    if code != EXIT_DONE:
        stop.ignore()
        return code
    stop.release()
    if config.evaluation.after_training and environment.rank == 0:
        return _follow_up(config, environment)
    return code


def _train_watched(
    parsed: argparse.Namespace, stop: StopRequest, environment: ProcessEnvironment
) -> tuple[Config, int]:
    """Train as one of several ranks, of which one speaks when any of them fails."""
    from tolktrain.cluster.watch.watchdog import Watch

    def describe(error: BaseException) -> tuple[str, int]:
        text, code = _told(error, parsed)
        return f"at {watch.progress.mark}\n{text}" if _is_defect(error) else text, code

    watch = Watch.start(environment, describe)
    try:
        config, code = _train_rank(parsed, stop, watch)
    except (Exception, KeyboardInterrupt) as error:
        watch.fail(error)
    return config, watch.finish(code)


def _train_rank(parsed: argparse.Namespace, stop: StopRequest, watch: "Watch | None") -> tuple[Config, int]:
    if parsed.skip_health_check:
        parsed.overrides.append("health.enabled=false")
    config = _load(parsed)
    if watch is not None:
        watch.limit(config.parallel.hang_timeout_seconds)
    parsed.run_directory = RunPaths.of(config).root
    if config.evaluation.after_training:
        from tolktrain.generate.inputs import check_inputs

        check_inputs(config)  # what is missing would end the run hours later
    from tolktrain.train.run import train

    return config, train(config, stop, None if watch is None else watch.progress)


def _follow_up(config: Config, environment: ProcessEnvironment) -> int:
    """Evaluate, generate and report; what was made of the last checkpoint with the same settings is kept.

    Bad input of one verb does not keep the next ones from being run.
    """
    paths = RunPaths.of(config)
    products = {"evaluate": paths.evaluation, "generate": paths.sample_index, "report": None}
    worst = EXIT_DONE
    for verb, product in products.items():
        if product is not None and _is_current(product, config):
            continue
        code = _run_follow_up(verb, paths.root, environment)
        if code not in (EXIT_DONE, EXIT_BAD_INPUT):
            return code
        worst = max(worst, code)
    return worst


def _run_follow_up(verb: str, run_directory: Path, environment: ProcessEnvironment) -> int:
    if environment.world_size > 1:
        # This process belongs to a group whose other ranks have left; a fresh one stands for itself.
        command = [sys.executable, "-m", "tolktrain", verb, str(run_directory)]
        return subprocess.run(command, env=alone(), check=False).returncode
    try:
        _run_verb(verb, run_directory)
    except UserError as error:
        _complain(f"{verb}: {error}")
        return EXIT_MACHINE if error.by_machine else EXIT_BAD_INPUT
    return EXIT_DONE


def _is_current(product: Path, config: Config) -> bool:
    """Whether a product is newer than the last checkpoint and was made with the settings of `config`."""
    from tolktrain.checkpoint.store import LATEST

    latest = RunPaths.of(config).checkpoints / LATEST
    if not (product.exists() and latest.exists() and product.stat().st_mtime_ns >= latest.stat().st_mtime_ns):
        return False
    try:
        content = read_json(product, TABLE_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("settings") == config.follow_up_settings()


def _on_run(parsed: argparse.Namespace) -> int:
    parsed.run_directory = _existing_run(parsed)
    _run_verb(parsed.verb, parsed.run_directory)
    return EXIT_DONE


def _existing_run(parsed: argparse.Namespace) -> Path:
    """The folder of the run that the command line names, by itself or by its configuration."""
    path = Path(parsed.config)
    if path.is_dir():
        if not RunPaths(path).config.is_file():
            raise UserError(f"{path} is not the folder of a run: it has no config.yaml; name a run or a YAML file")
        directory = path
    else:
        directory = RunPaths.of(_load(parsed)).root
        if not RunPaths(directory).config.is_file():
            raise UserError(f"{directory} holds no run yet; train it first: tolktrain train {path}")
    foreign = [text for text in parsed.overrides if path.is_dir() or not text.startswith("run.")]
    if foreign:
        raise UserError(
            f"{foreign[0]!r} would have no effect: {parsed.verb} uses the configuration that the run was trained with,"
            f" {RunPaths(directory).config}"
        )
    return directory


def _checkpoints(parsed: argparse.Namespace) -> int:
    run_directory = _existing_run(parsed)
    if parsed.weights_only is not None:
        if parsed.verify:
            raise UserError("--weights-only verifies the checkpoint it takes; give it without --verify")
        from tolktrain.interop.weights import export_weights

        source = export_weights(run_directory, parsed.weights_only, parsed.step, parsed.dtype or "float32")
        print(f"weights of {source} in {parsed.weights_only}")
        return EXIT_DONE
    if parsed.step is not None or parsed.dtype is not None:
        raise UserError("--step and --dtype say which weights to take out; name a folder with --weights-only DIR")
    from tolktrain.files.terminal import Console
    from tolktrain.report.checkpoints import show_checkpoints

    sound = show_checkpoints(run_directory, parsed.verify, Console())
    return EXIT_DONE if sound or not parsed.verify else EXIT_MACHINE


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


def _prepare(parsed: argparse.Namespace) -> int:
    if parsed.schema:
        from tolktrain.config.load import schema
        from tolktrain.config.prepare import PrepareConfig

        _print(json.dumps(schema(PrepareConfig), indent=2) + "\n")
        return EXIT_DONE
    if parsed.inspect is not None:
        return _inspect(parsed)
    if parsed.config is None:
        raise UserError("name a configuration, such as configs/prepare/folder.yaml, or a data set to --inspect")
    stop = StopRequest("stopping; finished parts are kept")
    stop.install()
    try:
        with stop.raised():
            from tolktrain.config.load import load_prepare_config
            from tolktrain.prepare.run import run

            run(load_prepare_config(parsed.config, parsed.overrides), parsed.task, parsed.retry)
    except StopRaised:
        stop.ignore()
        print(f"stopped by {stop.reason}; the same command goes on with the parts that are left")
        return EXIT_PREEMPTED
    return EXIT_DONE


def _inspect(parsed: argparse.Namespace) -> int:
    if parsed.config is not None:
        raise UserError(f"--inspect looks at a data set and takes no configuration; remove {parsed.config}")
    from tolktrain.files.terminal import Console
    from tolktrain.inspect.run import InspectOptions, inspect_dataset

    options = InspectOptions(
        path=parsed.inspect,
        records=parsed.records,
        strategy=parsed.strategy,
        sequence_length=parsed.sequence_length,
        text_tokenizer=parsed.text_tokenizer,
        speech_tokenizer=parsed.speech_tokenizer,
        output=parsed.output,
    )
    inspect_dataset(options, Console())
    return EXIT_DONE


def _bench(parsed: argparse.Namespace) -> int:
    from tolktrain.benchmark.run import Options, bench

    options = Options(
        stage=parsed.stage,
        steps=parsed.steps,
        warmup=parsed.warmup,
        accumulation=parsed.accumulation,
        speech_share=parsed.speech_share,
        against=tuple(name.strip() for name in parsed.against.split(",") if name.strip()),
        compiles=not parsed.no_compile,
        output=parsed.output,
    )
    bench(parsed.config, parsed.overrides, options, ["tolktrain", *parsed.arguments])
    return EXIT_DONE


def _config(parsed: argparse.Namespace) -> int:
    from tolktrain.config.load import dump_config, schema

    if parsed.schema:
        _print(json.dumps(schema(), indent=2) + "\n")
    elif parsed.config is None:
        raise UserError("name a configuration, such as configs/quickstart.yaml, or ask for --schema")
    else:
        _print(dump_config(_load(parsed)))
    return EXIT_DONE


def _print(text: str) -> None:
    """Print, with what was printed before, to a reader who may leave before the end (head, less)."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        _drop_stdout()
    except OSError as error:
        raise OSError(error.errno, error.strerror, _STDOUT) from error


def _drop_stdout() -> None:
    """What could not be written would be tried again at exit, with a complaint and another exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _load(parsed: argparse.Namespace) -> Config:
    from tolktrain.config.load import load_config

    return load_config(parsed.config, parsed.overrides)


def _complain(message: object) -> None:
    if not _stdout_works():
        _drop_stdout()
    with contextlib.suppress(OSError):  # stderr may lead to the disk that is full; the exit code says it too
        print(f"{_speaker()}error: {printable(message)}", file=sys.stderr, flush=True)


def _stdout_works(probe: str = "") -> bool:
    try:
        print(probe, end="", flush=True)
    except OSError:
        return False
    return True


def _make_stderr_printable() -> None:
    """What is shown by Python and not by us may hold text from files too: defects, and records without a handler."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    sys.excepthook = lambda kind, error, trace: print(_traceback(error), file=sys.stderr)


def _traceback(error: BaseException) -> str:
    return printable("".join(traceback.format_exception(error)).rstrip())


def _told(error: BaseException, parsed: argparse.Namespace) -> tuple[str, int]:
    """What the user reads about an error, and the exit code."""
    if isinstance(error, UserError):
        return printable(error), EXIT_MACHINE if error.by_machine else EXIT_BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", EXIT_INTERRUPTED
    if _is_defect(error):
        return _traceback(error), EXIT_MACHINE
    assert isinstance(error, OSError)
    return printable(_described(error, parsed)), EXIT_MACHINE


def _is_defect(error: BaseException) -> bool:
    return not isinstance(error, (UserError, KeyboardInterrupt, OSError))


def _described(error: OSError, parsed: argparse.Namespace) -> str:
    """An error of the machine in one line with its path; the traceback goes to the run's log, if it has one."""
    run_directory: Path | None = getattr(parsed, "run_directory", None)
    paths = [str(name) for name in (error.filename, error.filename2) if name is not None]
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full and not paths and not _stdout_works("\n"):  # what was to be printed before may be gone
        paths = [_STDOUT]
    # What a library writes does not say where; the run's folder is the likeliest place.
    place = " -> ".join(paths) or (f"in {run_directory}" if run_directory is not None else "")
    reason = error.strerror or str(error) or type(error).__name__
    if is_full and paths != [_STDOUT]:
        reason += _advice(paths)
    line = " ".join(f"{place}: {reason}".removeprefix(": ").split())
    log = _log_file(run_directory) if run_directory is not None else None
    if log is None:
        return line
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(_traceback(error) + "\n")
    except OSError:
        return line
    return f"{line} (details in {log})"


def _advice(paths: Sequence[str]) -> str:
    """What to do about a full disk. A quota, or one file less than it would need, leaves some of it free."""
    elsewhere = free = ""
    if paths:
        folders = Path(paths[-1]).absolute().parents
        with contextlib.suppress(OSError):
            left = shutil.disk_usage(next(folder for folder in folders if folder.is_dir())).free
            free = f" ({left / 1e6:,.1f} MB are free)"
        if Path(tempfile.gettempdir()) in folders:
            elsewhere = ", or let TMPDIR name a folder on another disk"
    return f"{free}; free some{elsewhere}, and run the same command again"


def _log_file(run_directory: Path) -> Path | None:
    """This rank's log, if training has made one."""
    try:
        rank = ProcessEnvironment.detect().rank
    except UserError:
        return None
    log = RunPaths(run_directory).log(rank)
    return log if log.is_file() else None


def _speaker() -> str:
    """Which rank speaks, when there are several."""
    try:
        environment = ProcessEnvironment.detect()
    except UserError:
        return ""
    return f"rank {environment.rank}: " if environment.world_size > 1 else ""
