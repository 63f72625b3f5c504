"""Make the folder of a pretrained speech tokenizer: `python -m tolktrain.units hubert|mimi FOLDER --model ...`."""

import argparse
import sys
from collections.abc import Sequence

from tolktrain.errors import UserError
from tolktrain.files.printable import printable
from tolktrain.units.hubert import HubertTokenizer
from tolktrain.units.mimi import MimiTokenizer
from tolktrain.units.sklearn_file import read_sklearn_centroids


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tolktrain.units", description="Make a speech tokenizer's folder.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    hubert = kinds.add_parser("hubert", help="HuBERT and k-means")
    mimi = kinds.add_parser("mimi", help="Mimi")
    for kind in (hubert, mimi):
        kind.add_argument("folder", help="folder to write")
        kind.add_argument("--model", required=True, help="folder or hub id of the model")
        kind.add_argument("--revision", help="branch, tag or commit on the hub")
        kind.add_argument("--device", default="cpu", help="auto, cpu or cuda")
    hubert.add_argument("--kmeans", required=True, help="scikit-learn's k-means, as joblib or pickle wrote it")
    hubert.add_argument("--layer", type=int, required=True, help="layer whose output is clustered; 1 is the first")
    hubert.add_argument(
        "--normalize",
        choices=("yes", "no"),
        help="bring sounds to mean 0 and variance 1; as the model's preprocessor_config.json says if absent",
    )
    hubert.add_argument("--window-seconds", type=float, default=30.0, help="longer sounds are cut into such windows")
    hubert.add_argument("--overlap-seconds", type=float, default=4.0, help="what neighbouring windows share")
    mimi.add_argument("--codebooks", type=int, required=True, help="codebooks to use, from the first")
    mimi.add_argument("--window-seconds", type=float, default=60.0, help="longer sounds are cut into such windows")
    mimi.add_argument("--overlap-seconds", type=float, default=20.0, help="what neighbouring windows share")
    return parser


def _make(options: argparse.Namespace) -> HubertTokenizer | MimiTokenizer:
    windows = {"window_seconds": options.window_seconds, "overlap_seconds": options.overlap_seconds}
    if options.kind == "mimi":
        return MimiTokenizer.create(
            options.folder,
            options.model,
            options.codebooks,
            revision=options.revision,
            device=options.device,
            **windows,
        )
    return HubertTokenizer.create(
        options.folder,
        options.model,
        read_sklearn_centroids(options.kmeans),
        options.layer,
        revision=options.revision,
        normalize=None if options.normalize is None else options.normalize == "yes",
        device=options.device,
        **windows,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the machine failed, such as a full disk, 2 bad input."""
    options = _parser().parse_args(arguments)
    try:
        tokenizer = _make(options)
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
