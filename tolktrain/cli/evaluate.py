"""`tolktrain evaluate`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.ranks import run_watched
from tolktrain.cli.verb import Verb, add_model_argument, existing_model
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.errors import UserError
from tolktrain.files.given import given_path, input_argument
from tolktrain.runs.paths import RunPaths

if TYPE_CHECKING:
    from tolktrain.cluster.progress import Progress
    from tolktrain.cluster.watch.watchdog import Watch
    from tolktrain.config.suite import SuiteConfig
    from tolktrain.evaluate.generation.run import Options

# Options of generated speech, and the least and most value of each.
_GENERATION: dict[str, tuple[type, float, float, str]] = {
    "recordings": (int, 1, 1 << 30, "recordings that are used, the first ones (1000)"),
    "prompt_seconds": (float, 0.1, 1e4, "length of a prompt (3)"),
    "units": (int, 1, 1 << 20, "most units of a continuation (150)"),
    "temperature": (float, 0.0, 100.0, "of the sampling (0.8)"),
    "top_k": (int, 1, 1 << 30, "likeliest units that are drawn from (25)"),
    "seed": (int, 0, 1 << 62, "of the random numbers (0)"),
    "batch": (int, 1, 1 << 16, "prompts that are continued together (8)"),
}
_JUDGES = ("asr", "lm", "language")


def evaluate_run(run_directory: Path, overrides: tuple[str, ...] = (), progress: "Progress | None" = None) -> None:
    """Write evaluation.json."""
    from tolktrain.evaluate.run import evaluate

    evaluate(run_directory, overrides, progress)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    suite = parser.add_argument_group("benchmarks, instead of the held-out sets")
    suite.add_argument(
        "--benchmarks",
        nargs="+",
        metavar="NAME=FOLDER",
        help="swuggy, sblimp, prosaudit, sstorycloze, tstorycloze, salmon, voxeval or spoken_arc, and its folder",
    )
    suite.add_argument("--suite", type=input_argument, metavar="FILE", help="a YAML file with benchmarks and settings")
    suite.add_argument("--allow-incomplete", action="store_true", help="leave out what is missing or unreadable")
    text = parser.add_argument_group("text tasks of lm-evaluation-harness, instead of the held-out sets")
    text.add_argument("--text-tasks", metavar="NAME,...", help="tasks, such as hellaswag,arc_easy,piqa,blimp,mmlu")
    text.add_argument("--data-dir", type=input_argument, metavar="DIR", help="folder with a folder for each data set")
    text.add_argument(
        "--against",
        type=input_argument,
        metavar="BACKBONE",
        help="model to compare with: a Llama checkpoint, hub id, run, checkpoint of a run, or exported weights",
    )
    speech = parser.add_argument_group("generated speech, instead of the held-out sets")
    speech.add_argument(
        "--generation", type=input_argument, metavar="DIR", help="recordings whose beginnings the model continues"
    )
    speech.add_argument("--asr", type=input_argument, metavar="DIR", help="speech recognition: a CTC model or Whisper")
    speech.add_argument("--lm", type=input_argument, metavar="DIR", help="text language model, for GenPPL")
    speech.add_argument("--language", metavar="CODE", help="what a multilingual Whisper transcribes (en)")
    for name, (kind, _, _, text_of) in _GENERATION.items():
        speech.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text_of)
    answers = parser.add_argument_group("answers to questions, instead of the held-out sets")
    answers.add_argument(
        "--answers", type=input_argument, metavar="DIR", help="questions, such as data/sample/dialogues"
    )


def _run(parsed: argparse.Namespace) -> int:
    environment = ProcessEnvironment.detect()
    if environment.world_size > 1:
        return run_watched(parsed, environment, lambda watch: _evaluate_watched(parsed, environment, watch))
    from tolktrain.cluster.progress import Progress

    _evaluate(parsed, environment, Progress())
    return EXIT_DONE


def _evaluate_watched(parsed: argparse.Namespace, environment: ProcessEnvironment, watch: "Watch") -> None:
    """Evaluate as one of several ranks."""
    from tolktrain.config.load import load_config
    from tolktrain.config.root import ParallelConfig

    file = RunPaths(existing_model(parsed)[0]).config
    parallel = load_config(file).parallel if file.is_file() else ParallelConfig()  # of a folder of weights
    watch.limit(parallel.hang_timeout_seconds)
    _evaluate(parsed, environment, watch.progress)


def _evaluate(parsed: argparse.Namespace, environment: ProcessEnvironment, progress: "Progress") -> None:
    suite = _suite(parsed)
    names = _text_tasks(parsed)
    speech = _generation(parsed)
    if parsed.answers is not None and (names or speech is not None or suite is not None):
        raise UserError("--answers, --generation, benchmarks and text tasks exclude each other; evaluate one by one")
    parsed.run_directory, overrides = existing_model(parsed)
    if parsed.answers is not None:
        from tolktrain.evaluate.closed_answers.run import evaluate_answers
        from tolktrain.evaluate.closed_answers.table import print_answers

        print_answers(evaluate_answers(parsed.run_directory, Path(parsed.answers), progress, overrides))
        return
    if names:
        from tolktrain.evaluate.text.retention import evaluate_text_tasks
        from tolktrain.evaluate.text.table import print_text_tasks

        text = evaluate_text_tasks(
            parsed.run_directory, names, parsed.data_dir, parsed.against, mark=progress, overrides=overrides
        )
        if environment.rank == 0:
            print_text_tasks(text)
        return
    if speech is not None:
        from tolktrain.evaluate.generation.run import evaluate_generation
        from tolktrain.evaluate.generation.table import print_generation

        generated = evaluate_generation(parsed.run_directory, speech, progress, overrides)
        if environment.rank == 0:
            print_generation(generated)
        return
    if suite is None:
        evaluate_run(parsed.run_directory, overrides, progress)
        return
    from tolktrain.evaluate.benchmark_run import evaluate_benchmarks
    from tolktrain.evaluate.benchmark_table import print_benchmarks

    result = evaluate_benchmarks(parsed.run_directory, suite, progress, overrides)
    if environment.rank == 0:
        print_benchmarks(result)


def _text_tasks(parsed: argparse.Namespace) -> list[str]:
    """The names of text tasks; none: something else is evaluated."""
    if parsed.text_tasks is None:
        for option in ("data_dir", "against"):
            if getattr(parsed, option) is not None:
                raise UserError(f"--{option.replace('_', '-')} concerns text tasks; name some with --text-tasks")
        return []
    if parsed.suite is not None or parsed.benchmarks is not None:
        raise UserError("--text-tasks and benchmarks exclude each other; evaluate one after the other")
    if parsed.data_dir is None:
        raise UserError("--text-tasks needs --data-dir, the folder with the data sets (docs/evaluation.md)")
    names = [name.strip() for name in parsed.text_tasks.split(",")]
    if not all(names):
        raise UserError(f"--text-tasks: {parsed.text_tasks!r} has an empty name; write hellaswag,arc_easy")
    return names


def _generation(parsed: argparse.Namespace) -> "Options | None":
    """What speech is generated and judged; None: something else is evaluated."""
    given = {name: value for name in (*_GENERATION, *_JUDGES) if (value := getattr(parsed, name)) is not None}
    if parsed.generation is None:
        for name in given:
            raise UserError(f"--{name.replace('_', '-')} concerns generated speech; name recordings with --generation")
        return None
    if parsed.suite is not None or parsed.benchmarks is not None or parsed.text_tasks is not None:
        raise UserError("--generation, benchmarks and text tasks exclude each other; evaluate one after the other")
    for name, (_, least, most, _) in _GENERATION.items():
        if not least <= given.get(name, least) <= most:
            raise UserError(f"--{name.replace('_', '-')} is {given[name]}; expected {least:g} to {most:g}")
    from tolktrain.evaluate.generation.run import Options

    asr, lm = (None if (folder := given.pop(name, None)) is None else Path(folder) for name in ("asr", "lm"))
    return Options(Path(parsed.generation), asr, lm, **given, allow_incomplete=bool(parsed.allow_incomplete))


def _suite(parsed: argparse.Namespace) -> "SuiteConfig | None":
    """The suite that the options describe; None: the held-out sets."""
    if parsed.suite is None and parsed.benchmarks is None:
        if parsed.allow_incomplete and parsed.generation is None:
            raise UserError("--allow-incomplete concerns benchmarks; name some with --benchmarks or --suite")
        return None
    if parsed.suite is not None and parsed.benchmarks is not None:
        raise UserError("--suite and --benchmarks exclude each other; add the benchmarks to the suite's file")
    from tolktrain.config.load import load_suite
    from tolktrain.config.suite import BenchmarkConfig, SuiteConfig

    if parsed.suite is not None:
        suite = load_suite(parsed.suite)
        return suite.model_copy(update={"allow_incomplete": suite.allow_incomplete or parsed.allow_incomplete})
    entries = []
    for text in parsed.benchmarks:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--benchmarks: {text!r} is not of the form NAME=FOLDER, such as sblimp=data/sLM21-dataset")
        entries.append(BenchmarkConfig(name=name, folder=given_path(folder, is_input=True)))
    return SuiteConfig(benchmarks=tuple(entries), allow_incomplete=parsed.allow_incomplete)


VERB = Verb(
    "measure a trained model on held-out sets, benchmarks, generated speech or text tasks",
    _add_arguments,
    _run,
    in_one_process=False,
)
