"""`tolktrain import`."""

import argparse
from pathlib import Path

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.verb import Verb
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument, path_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=input_argument,
        help="checkpoint file of the SmolTolk authors (model_ckpt.pt), or a folder that export has written",
    )
    parser.add_argument("into", metavar="INTO", type=path_argument, help="new or empty folder")
    parser.add_argument(
        "--backbone",
        metavar="FOLDER",
        type=input_argument,
        help="folder or hub id of the text model that a file was trained from; its config.json is read",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="data type of the weights (fp32)")
    parser.add_argument(
        "--text-tokenizer", metavar="FOLDER", type=input_argument, help="folder or hub id (that of the backbone)"
    )
    parser.add_argument("--speech-tokenizer", metavar="FOLDER", type=input_argument, help="folder; copied into INTO")
    unknown = parser.add_argument_group("settings that a file does not contain")
    unknown.add_argument("--rope-theta", metavar="X", type=float, help="rotary base (that of the backbone)")
    unknown.add_argument(
        "--adapter-attention",
        choices=("runs", "published"),
        help="of the input adapter: inside speech segments, as the released code, or as the earlier code (runs)",
    )
    unknown.add_argument(
        "--data", metavar="SET", type=input_argument, help="held-out data set; prints the losses of all these settings"
    )
    unknown.add_argument("--sequences", metavar="N", type=int, default=64, help="sequences per strategy of it (64)")


def _run(parsed: argparse.Namespace) -> int:
    if parsed.overrides:
        raise UserError(f"{parsed.overrides[0]!r} would have no effect: import reads no configuration")
    if parsed.rope_theta is not None and not 1 < parsed.rope_theta < 1e12:
        raise UserError(f"--rope-theta is {parsed.rope_theta:g}; expected a base above 1, such as 10000")
    if parsed.sequences < 1:
        raise UserError(f"--sequences is {parsed.sequences}; expected 1 or more")
    from tolktrain.interop.imports.published_model import Choices
    from tolktrain.interop.imports.run import import_weights, open_import
    from tolktrain.interop.tensor_writer import require_new

    require_new(parsed.into)
    choices = Choices(parsed.rope_theta, parsed.adapter_attention or "runs")
    text = parsed.text_tokenizer
    with open_import(Path(parsed.source), parsed.backbone, choices) as weights:
        if text is None and parsed.backbone is not None:
            text = _tokenizer_of(parsed.backbone)
        if parsed.data is not None:
            from tolktrain.evaluate.alternatives import print_alternatives

            print_alternatives(weights, parsed.data, parsed.sequences)
        import_weights(weights, parsed.into, parsed.dtype, text, parsed.speech_tokenizer, print)
        sizes = weights.architecture
        print(
            f"rotary base {sizes.rope_theta:g}; the input adapter attends"
            f" {'inside speech segments' if sizes.adapter_attention == 'runs' else 'as the earlier code'}"
        )
    print(f"weights of {parsed.source} in {parsed.into}")
    return EXIT_DONE


def _tokenizer_of(backbone: str) -> str | None:
    """The backbone if it has a text tokenizer; a folder with config.json alone will do for an import."""
    from tolktrain.data.text_tokenizer import load_text_tokenizer

    try:
        load_text_tokenizer(backbone)
    except UserError as error:
        print(f"no text tokenizer is added: {error}")
        return None
    return backbone


VERB = Verb(
    "read weights of other programs into a folder that train, evaluate and generate take",
    _add_arguments,
    _run,
    in_one_process=True,
)
