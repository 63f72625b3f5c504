"""`tolktrain checkpoints`."""

import argparse

from tolktrain.cli.failures import EXIT_DONE, EXIT_MACHINE
from tolktrain.cli.verb import Verb, existing_run
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument, path_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="RUN", type=input_argument, help="the run directory, or the configuration that was trained"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read every file and compare checksums; exit code 1 if one is damaged"
    )
    weights = parser.add_argument_group("weights without optimizer")
    weights.add_argument(
        "--weights-only", type=path_argument, metavar="DIR", help="write plain safetensors files into this new folder"
    )
    weights.add_argument("--step", type=int, metavar="N", help="step of the checkpoint (the latest valid one)")
    weights.add_argument("--dtype", choices=("float32", "bf16"), help="data type of the weights (float32)")


def _run(parsed: argparse.Namespace) -> int:
    run_directory = existing_run(parsed)
    if parsed.weights_only is not None:
        if parsed.verify:
            raise UserError("--weights-only verifies the checkpoint it takes; give it without --verify")
        from tolktrain.interop.weights import export_weights

        source = export_weights(run_directory, parsed.weights_only, parsed.step, parsed.dtype or "float32")
        print(f"weights of {source} in {parsed.weights_only}")
        return EXIT_DONE
    if parsed.step is not None or parsed.dtype is not None:
        raise UserError("--step and --dtype belong to --weights-only; name a folder with --weights-only DIR")
    from tolktrain.files.terminal import Console
    from tolktrain.report.checkpoints import show_checkpoints

    intact = show_checkpoints(run_directory, parsed.verify, Console())
    return EXIT_DONE if intact or not parsed.verify else EXIT_MACHINE


VERB = Verb("list a run's checkpoints, verify them, or export the weights", _add_arguments, _run)
