"""Make the folder of a pretrained speech tokenizer: `python -m tolktrain.units KIND FOLDER --model ...`."""

import argparse
import sys
from collections.abc import Sequence

from tolktrain.errors import UserError
from tolktrain.files.given import input_argument, path_argument
from tolktrain.files.printable import printable
from tolktrain.units.base import SpeechTokenizer
from tolktrain.units.load import KINDS, MODULES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tolktrain.units", description="Make a speech tokenizer's folder.")
    kinds = parser.add_subparsers(required=True)
    for module, kind in zip(MODULES, KINDS.values(), strict=True):
        if kind.maker is not None:
            of_kind = kinds.add_parser(module, help=kind.maker.meaning)
            of_kind.add_argument("folder", type=path_argument, help="folder to write")
            of_kind.add_argument("--model", type=input_argument, required=True, help="folder or hub id of the model")
            of_kind.add_argument("--revision", help="branch, tag or commit on the hub")
            of_kind.add_argument("--device", default="cpu", help="auto, cpu or cuda")
            kind.maker.add_arguments(of_kind)
            of_kind.set_defaults(create=kind.maker.create)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the machine failed, such as a full disk, 2 bad input."""
    options = _parser().parse_args(arguments)
    try:
        tokenizer: SpeechTokenizer = options.create(options)
    except UserError as error:
        print(printable(error), file=sys.stderr)
        return 2
    except OSError as error:
        print(printable(error), file=sys.stderr)
        return 1
    print(
        f"{options.folder}: {tokenizer.name}, {tokenizer.num_codebooks} x {tokenizer.num_units} units,"
        f" {tokenizer.frames_per_second:g} frames per second, sha256 {tokenizer.sha256}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
