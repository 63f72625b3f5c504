"""`tolktrain tune`."""

import argparse

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.verb import Verb
from tolktrain.files.given import input_argument, path_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", type=input_argument, help="configuration, such as configs/bench/cpu.yaml"
    )
    parser.add_argument(
        "--stage", metavar="NAME", action="append", default=[], help="stage that is tuned; can be repeated (all)"
    )
    parser.add_argument("--trials", type=int, default=24, metavar="N", help="most trials of a stage (24)")
    parser.add_argument("--steps", type=int, default=6, metavar="N", help="timed steps of a trial at full length (6)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="steps before them (2)")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="ranks on this machine (its GPUs; without a GPU at most 2)"
    )
    parser.add_argument("--limit", type=float, default=900.0, metavar="SECONDS", help="of a trial (900)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of a rank, in place of all there is")
    parser.add_argument(
        "--speech-share", type=float, default=0.46, metavar="SHARE", help="share of speech in the positions (0.46)"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="also try torch.compile (only on GPUs)"
    )
    parser.add_argument(
        "--memory-only", action="store_true", help="only find the largest micro batch of each layout that fits"
    )
    parser.add_argument("--output", type=path_argument, metavar="FOLDER", help="for the results (runs/tune-<run.name>)")


def _run(parsed: argparse.Namespace) -> int:
    from tolktrain.tune.run import Options, tune

    options = Options(
        stages=tuple(parsed.stage),
        trials=parsed.trials,
        steps=parsed.steps,
        warmup=parsed.warmup,
        processes=parsed.processes,
        limit_seconds=parsed.limit,
        memory_gib=parsed.memory,
        speech_share=parsed.speech_share,
        compiles=parsed.compile,
        memory_only=parsed.memory_only,
        output=parsed.output,
    )
    tune(parsed.config, parsed.overrides, options, ["tolktrain", *parsed.arguments])
    return EXIT_DONE


VERB = Verb("measure which layout and DeepSpeed settings train fastest", _add_arguments, _run)
