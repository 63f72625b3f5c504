"""`tolktrain analyze`."""

import argparse

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.verb import Verb, add_model_argument, existing_model
from tolktrain.errors import UserError

_LEAST = {"words": 1, "spans": 0, "seed": 0, "step": 0, "dimensions": 1}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--set", metavar="NAME", help="data set with aligned words (the first held-out set)")
    parser.add_argument("--words", type=int, metavar="N", default=4000, help="words that are compared (4000)")
    parser.add_argument("--spans", type=int, metavar="N", default=1000, help="spans of words (1000)")
    parser.add_argument("--measures", nargs="+", metavar="NAME", help="only these measures")
    parser.add_argument("--layers", nargs="+", type=int, metavar="N", help="only these layers of the backbone, from 1")
    parser.add_argument("--dimensions", type=int, metavar="K", help="of subspaces (width / 16, at most 64)")
    parser.add_argument("--step", type=int, metavar="N", help="step of the checkpoint (the latest valid one)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the sample and the controls (run.seed)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (a GPU if there is one)")
    parser.add_argument("--without-start", action="store_true", help="leave out the model before training")


def _run(parsed: argparse.Namespace) -> int:
    for name, least in _LEAST.items():
        value = getattr(parsed, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; expected {least} or more")
    run_directory, overrides = existing_model(parsed)
    from tolktrain.analyze.run import Options, analyze
    from tolktrain.analyze.table import print_analysis

    options = Options(
        words=parsed.words,
        spans=parsed.spans,
        dataset=parsed.set,
        step=parsed.step,
        seed=parsed.seed,
        layers=tuple(parsed.layers) if parsed.layers else None,
        measures=tuple(parsed.measures) if parsed.measures else None,
        dimensions=parsed.dimensions,
        device=parsed.device,
        against_start=not parsed.without_start,
    )
    print_analysis(analyze(run_directory, options, overrides), run_directory)
    return EXIT_DONE


VERB = Verb(
    "compare how a trained model represents words as text and as speech", _add_arguments, _run, in_one_process=True
)
