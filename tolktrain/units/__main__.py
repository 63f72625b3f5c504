"""Make the folder of a pretrained speech tokenizer, `python -m tolktrain.units KIND FOLDER --model ...`, or of a
vocoder, `python -m tolktrain.units vocoder FOLDER --checkpoint ... --config ...`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from tolktrain.errors import UserError
from tolktrain.files.given import input_argument, path_argument
from tolktrain.files.printable import printable
from tolktrain.units.base import SpeechTokenizer
from tolktrain.units.load import KINDS, MODULES
from tolktrain.units.vocoders.load import KINDS as VOCODERS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tolktrain.units", description="Make a tokenizer's or vocoder's folder."
    )
    kinds = parser.add_subparsers(required=True)
    for module, kind in zip(MODULES, KINDS.values(), strict=True):
        if kind.maker is not None:
            of_kind = kinds.add_parser(module, help=kind.maker.meaning)
            of_kind.add_argument("folder", type=path_argument, help="folder to write")
            of_kind.add_argument("--model", type=input_argument, required=True, help="folder or hub id of the model")
            of_kind.add_argument("--revision", help="branch, tag or commit on the hub")
            of_kind.add_argument("--device", default="cpu", help="auto, cpu or cuda")
            kind.maker.add_arguments(of_kind)
            of_kind.set_defaults(create=_tokenizer_maker(kind.maker.create))
    for vocoder in VOCODERS.values():
        if vocoder.maker is not None:
            of_kind = kinds.add_parser(vocoder.maker.command, help=vocoder.maker.meaning)
            of_kind.add_argument("folder", type=path_argument, help="folder to write; may be the tokenizer's")
            vocoder.maker.add_arguments(of_kind)
            of_kind.set_defaults(create=vocoder.maker.create)
    return parser


def _tokenizer_maker(
    create: Callable[[argparse.Namespace], SpeechTokenizer],
) -> Callable[[argparse.Namespace], str]:
    def make(options: argparse.Namespace) -> str:
        made = create(options)
        return (
            f"{options.folder}: {made.name}, {made.num_codebooks} x {made.num_units} units,"
            f" {made.frames_per_second:g} frames per second, sha256 {made.sha256}"
        )

    return make


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the machine failed, such as a full disk, 2 bad input."""
    options = _parser().parse_args(arguments)
    try:
        print(options.create(options))
    except UserError as error:
        print(printable(error), file=sys.stderr)
        return 2
    except OSError as error:
        print(printable(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
