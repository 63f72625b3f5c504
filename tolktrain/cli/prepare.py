"""`tolktrain prepare`."""

import argparse
import json

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.output import print_to_reader
from tolktrain.cli.verb import Verb
from tolktrain.cluster.signals import EXIT_PREEMPTED, StopRaised, StopRequest
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument, path_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG",
        type=input_argument,
        nargs="?",
        help="configuration, such as configs/prepare/folder.yaml",
    )
    parser.add_argument(
        "--task", metavar="I/N", help="do only the parts of machine I (from 0) of N (from the Slurm array, if any)"
    )
    parser.add_argument(
        "--retry", action="store_true", help="do parts with failed entries again, after their files were corrected"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of configurations instead")
    look = parser.add_argument_group("inspecting a data set")
    look.add_argument(
        "--inspect",
        type=input_argument,
        metavar="PATH",
        help="folder or address with index.json: print and plot its content",
    )
    look.add_argument("--records", type=int, default=3, metavar="N", help="number of records to print (3)")
    look.add_argument("--strategy", metavar="NAME", help="strategy of the sequences (interleaved if words are aligned)")
    look.add_argument("--sequence-length", type=int, default=512, metavar="T", help="tokens per sequence (512)")
    look.add_argument(
        "--text-tokenizer", type=input_argument, metavar="FOLDER", help="the set's text tokenizer, if not next to it"
    )
    look.add_argument(
        "--speech-tokenizer",
        type=input_argument,
        metavar="FOLDER",
        help="the set's speech tokenizer, if not next to it",
    )
    look.add_argument(
        "--output", type=path_argument, metavar="FOLDER", help="for plots and audio (runs/inspect-<name>-<split>)"
    )


def _run(parsed: argparse.Namespace) -> int:
    stop: StopRequest = parsed.stop_request or StopRequest.installed("stopping; finished parts are kept")
    if parsed.schema or parsed.inspect is not None:
        stop.release()
    if parsed.schema:
        from tolktrain.config.load import schema
        from tolktrain.config.prepare import PrepareConfig

        print_to_reader(json.dumps(schema(PrepareConfig), indent=2) + "\n")
        return EXIT_DONE
    if parsed.inspect is not None:
        return _inspect(parsed)
    if parsed.config is None:
        raise UserError("name a configuration, such as configs/prepare/folder.yaml, or a data set to --inspect")
    try:
        with stop.raised():
            from tolktrain.config.load import load_prepare_config
            from tolktrain.prepare.run import run

            run(load_prepare_config(parsed.config, parsed.overrides), parsed.task, parsed.retry)
    except StopRaised:
        stop.ignore()
        print(f"stopped by {stop.reason}; the same command continues with the parts that are left")
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


VERB = Verb("make a data set from recordings, text, dialogues or a published set, or inspect one", _add_arguments, _run)
