"""`tolktrain plan`."""

import argparse
from pathlib import Path

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.verb import Verb
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument, path_argument


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", type=input_argument, help="configuration, such as configs/bench/smoltolk-2b.yaml"
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--gpus", metavar="N,N", help="numbers of GPUs, by commas (8,64,512)")
    sizes.add_argument("--nodes", metavar="N,N", help="numbers of nodes instead")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="GPUs of a node (8)")
    parser.add_argument("--device", default="h100", help="kind of GPU: a100, h100, h200, b200, ... (h100)")
    parser.add_argument("--price", type=float, metavar="PRICE", help="of a GPU for an hour, in your currency")
    parser.add_argument("--calibration", type=input_argument, metavar="FILE", help="JSON with measured rates")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="layouts that are shown for each size (3)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--records", type=int, metavar="N", help="records of a stage's sets, if their indexes are elsewhere"
    )
    size.add_argument("--tokens-in-data", type=float, metavar="N", help="the same in tokens (30e9)")
    parser.add_argument(
        "--rehearse",
        type=_layouts,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="also run the N best layouts (1) of each size on a null GPU, and compare their memory",
    )
    parser.add_argument("--json", type=path_argument, metavar="FILE", help="also write everything here")
    parser.add_argument(
        "--picture", type=path_argument, metavar="FILE", help="also draw step and memory, as .png or .svg"
    )


def _layouts(text: str) -> int:
    """The number of layouts after --rehearse, which may be left out at the end only."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r:.100} is no number of layouts; write --rehearse=1 before key=value"
        ) from None


def _run(parsed: argparse.Namespace) -> int:
    from tolktrain.files.terminal import Console
    from tolktrain.plan.rehearse import check_null_gpu, rehearse
    from tolktrain.plan.report import print_plans, write_json
    from tolktrain.plan.run import Options, plan

    option, text = ("--nodes", parsed.nodes) if parsed.nodes else ("--gpus", parsed.gpus or "8,64,512")
    counts = _counts(option, text)
    if parsed.gpus_per_node < 1 or parsed.top < 1 or (parsed.price is not None and parsed.price < 0):
        raise UserError("--gpus-per-node and --top must be 1 or more, and --price not negative")
    options = Options(
        gpus=tuple(count * (parsed.gpus_per_node if parsed.nodes else 1) for count in counts),
        gpus_per_node=parsed.gpus_per_node,
        device=parsed.device,
        price=parsed.price,
        calibration=None if parsed.calibration is None else Path(parsed.calibration),
        top=parsed.top,
        records=parsed.records,
        tokens_in_data=None if parsed.tokens_in_data is None else round(parsed.tokens_in_data),
    )
    if parsed.picture is not None and parsed.picture.suffix not in (".png", ".svg"):
        raise UserError(f"--picture {parsed.picture}: the name must end in .png or .svg")
    for option, size in (("--records", parsed.records), ("--tokens-in-data", parsed.tokens_in_data)):
        if size is not None and not 1 <= size < 1e18:
            raise UserError(f"{option} {size:g}: expected a number, 1 or more")
    if parsed.rehearse < 0:
        raise UserError(f"--rehearse {parsed.rehearse}: expected a number of layouts, 1 or more")
    if parsed.rehearse:
        check_null_gpu()
    found = plan(parsed.config, parsed.overrides, options)
    rehearsals = rehearse(found, parsed.rehearse) if parsed.rehearse else []
    print_plans(found, Console(highlight=False, soft_wrap=True), rehearsals)
    if parsed.json is not None:
        write_json(found, parsed.json, rehearsals)
    if parsed.picture is not None:
        from tolktrain.plan.picture import draw

        draw(found, parsed.picture)
    return EXIT_DONE


def _counts(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r}: expected whole numbers by commas, such as 8,64,512") from None


VERB = Verb("predict memory, speed and cost of the layouts of a job, before it is submitted", _add_arguments, _run)
