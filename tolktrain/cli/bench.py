"""`tolktrain bench`."""

import argparse

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.verb import Verb
from tolktrain.files.given import input_argument, path_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", type=input_argument, help="configuration, such as configs/bench/smoltolk-150m.yaml"
    )
    parser.add_argument("--stage", metavar="NAME", help="stage whose step is timed (the last)")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed (20)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them (5)")
    parser.add_argument(
        "--accumulation", type=int, default=1, metavar="N", help="micro batches of a step, in place of the recipe's (1)"
    )
    parser.add_argument(
        "--global-batch", type=int, metavar="N", help="sequences of a step over all ranks, in place of --accumulation"
    )
    parser.add_argument(
        "--speech-share", type=float, default=0.46, metavar="SHARE", help="share of speech in the positions (0.46)"
    )
    parser.add_argument(
        "--largest-batches",
        action="store_true",
        help="let the peak memory include steps of speech alone and, where the stage has text, of text alone",
    )
    parser.add_argument("--memory-limit", type=float, metavar="GIB", help="of each rank, in place of all there is")
    parser.add_argument(
        "--against", default="", metavar="NAMES", help="also time these forms: published, strongest; by commas"
    )
    parser.add_argument("--no-compile", action="store_true", help="do not compile the strongest plain form")
    parser.add_argument(
        "--count", action="store_true", help="count bytes, FLOPs and launches of the step, and predict its time by part"
    )
    parser.add_argument("--device", metavar="NAME", help="with --count: GPU to predict for, such as h200 (the present)")
    parser.add_argument(
        "--calibration", type=path_argument, metavar="FILE", help="with --count: JSON of measured rates, as in `plan`"
    )
    parser.add_argument(
        "--output", type=path_argument, metavar="FOLDER", help="for the results (runs/bench-<run.name>)"
    )


def _run(parsed: argparse.Namespace) -> int:
    from tolktrain.benchmark.run import Options, bench

    options = Options(
        stage=parsed.stage,
        steps=parsed.steps,
        warmup=parsed.warmup,
        accumulation=parsed.accumulation,
        global_batch=parsed.global_batch,
        speech_share=parsed.speech_share,
        largest_batches=parsed.largest_batches,
        memory_limit_gib=parsed.memory_limit,
        against=tuple(name.strip() for name in parsed.against.split(",") if name.strip()),
        compiles=not parsed.no_compile,
        count=parsed.count,
        device=parsed.device,
        calibration=parsed.calibration,
        output=parsed.output,
    )
    bench(parsed.config, parsed.overrides, options, ["tolktrain", *parsed.arguments])
    return EXIT_DONE


VERB = Verb("time the training step on synthetic data, with random weights", _add_arguments, _run)
