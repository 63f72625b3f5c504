"""`tolktrain export`."""

import argparse
from pathlib import Path

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.verb import Verb, existing_run
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument, path_argument

FORMATS = ("hf", "llama", "published")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="RUN",
        type=input_argument,
        help="run directory, a checkpoint in it, the configuration, or a folder of weights",
    )
    parser.add_argument("into", metavar="INTO", type=path_argument, help="new or empty folder")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="hf",
        help="hf: the whole model, for transformers with trust_remote_code and for tolktrain; llama: the text half as a"
        " plain LlamaForCausalLM; published: the file of the SmolTolk authors' code (hf)",
    )
    parser.add_argument("--step", type=int, metavar="N", help="step of the checkpoint (the latest valid one)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="data type of the weights (fp32)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload INTO to this private repository of the hub")
    parser.add_argument("--public", action="store_true", help="with --push: everybody may read the repository")


def _run(parsed: argparse.Namespace) -> int:
    from tolktrain.interop.export.hf import export_hf
    from tolktrain.interop.export.llama import export_llama
    from tolktrain.interop.export.published import export_published
    from tolktrain.interop.export.source import ExportSource
    from tolktrain.interop.weights import is_checkpoint, is_weights

    folder = Path(parsed.config)
    if is_checkpoint(folder) or is_weights(folder):
        if parsed.overrides:
            raise UserError(f"{parsed.overrides[0]!r} would have no effect: export reads no configuration of {folder}")
    else:
        folder = existing_run(parsed)
    hub = None
    if parsed.push is not None:
        from tolktrain.interop.export.push import Hub

        hub = Hub(parsed.push, parsed.public)
    elif parsed.public:
        raise UserError("--public belongs to --push OWNER/NAME")
    export = {"hf": export_hf, "llama": export_llama, "published": export_published}[parsed.format]
    source = export(ExportSource.of(folder, parsed.step), parsed.into, parsed.dtype, print)
    print(f"weights of {source} in {parsed.into}")
    if hub is not None:
        hub.upload(parsed.into, f"Weights of {source.name} in the format {parsed.format}", print)
    return EXIT_DONE


VERB = Verb(
    "write the weights of a run for other programs, without optimizer states", _add_arguments, _run, in_one_process=True
)
