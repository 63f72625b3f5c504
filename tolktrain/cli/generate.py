"""`tolktrain generate`."""

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tolktrain.cli.failures import EXIT_DONE
from tolktrain.cli.output import print_to_reader
from tolktrain.cli.ranks import run_watched
from tolktrain.cli.verb import Verb, add_model_argument, existing_model
from tolktrain.cluster.environment import ProcessEnvironment
from tolktrain.errors import UserError
from tolktrain.files.given import input_argument, path_argument
from tolktrain.runs.paths import RunPaths

if TYPE_CHECKING:
    from tolktrain.cluster.watch.watchdog import Watch
    from tolktrain.generate.requests import Request
    from tolktrain.generate.settings import Drawing
    from tolktrain.parallel.layout import Layout

_PROMPTS = ("text", "audio", "units", "prompts")
# Options that have an effect only with a prompt, and the least and most value of numbers.
_NUMBERS = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 1 << 30),
    "top_p": (1e-6, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "seed": (0, 1 << 62),
    "samples": (1, 1 << 16),
    "batch": (1, 1 << 16),
    "length": (1, 1 << 30),
    "seconds": (0.0, 1e6),
    "utterances": (1, 1 << 30),
    "step": (0, 1 << 62),
}
_TERMINAL = ""  # in place of the file of conversations
_NOT_OF_CHATS = ("to", "ends_utterance", "stop", "samples", "batch", "utterances")
_LONGEST_SHOWN = 40  # characters of a prompt in messages
_OTHERS = ("to", "ends_utterance", "stop", "into", "vocoder", "speaker", "style")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    prompts = parser.add_argument_group("prompts, in place of the spoken ones of evaluation.prompts")
    prompts.add_argument("--text", metavar="TEXT", action="append", help="text; may be given several times")
    prompts.add_argument(
        "--audio", metavar="FILE", type=input_argument, action="append", help="WAV, FLAC or MP3; several times"
    )
    prompts.add_argument("--units", metavar="UNITS", action="append", help="units such as '12 7 480'; several times")
    prompts.add_argument(
        "--prompts",
        metavar="FILE",
        type=input_argument,
        help="JSON lines with text, audio or units; - for standard input",
    )
    prompts.add_argument("--to", choices=("text", "speech"), help="what follows (the modality of the prompt)")
    prompts.add_argument(
        "--ends-utterance", action="store_true", default=None, help="the prompt is a whole utterance: EOS follows it"
    )
    chats = parser.add_argument_group("conversations with a tuned model")
    chats.add_argument(
        "--chat",
        metavar="FILE",
        type=input_argument,
        nargs="?",
        const=_TERMINAL,
        help="turn by turn at the terminal; with FILE, JSON lines with messages; - for standard input",
    )
    chats.add_argument("--answer", choices=("text", "speech", "interleaved", "chain"), help="as in the training")
    chats.add_argument("--system", metavar="TEXT", help="instruction at the beginning of each conversation")
    drawing = parser.add_argument_group("sampling of these prompts and answers")
    drawing.add_argument("--step", metavar="N", type=int, help="step of the checkpoint (the latest valid one)")
    drawing.add_argument("--temperature", metavar="T", type=float, help="0: the likeliest (evaluation.temperature)")
    drawing.add_argument("--top-k", metavar="K", type=int, help="likeliest ids that are drawn from; 0: all")
    drawing.add_argument("--top-p", metavar="P", type=float, help="share of probability that is drawn from (1)")
    drawing.add_argument("--repetition-penalty", metavar="R", type=float, help="above 1: repeats are less likely (1)")
    drawing.add_argument("--seed", metavar="N", type=int, help="of the random numbers (run.seed)")
    drawing.add_argument("--samples", metavar="N", type=int, help="continuations of each prompt (1)")
    drawing.add_argument("--batch", metavar="N", type=int, help="prompts that are computed together (1)")
    ends = parser.add_argument_group("end of a continuation, at the first limit that is reached")
    ends.add_argument("--length", metavar="N", type=int, help="text ids or units (300)")
    ends.add_argument("--utterances", metavar="N", type=int, help="ends of utterances (1)")
    ends.add_argument("--seconds", metavar="S", type=float, help="of speech")
    ends.add_argument("--stop", metavar="TEXT", action="append", help="text that ends a text; several times")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--into", metavar="DIR", type=path_argument, help="new folder for WAV files, texts, units and timings"
    )
    output.add_argument(
        "--vocoder", metavar="DIR", type=input_argument, help="folder with vocoder.json (that of the tokenizer)"
    )
    output.add_argument("--speaker", metavar="NAME", help="name or number of the vocoder's speaker (the first)")
    output.add_argument("--style", metavar="NAME", help="name or number of the vocoder's style (the first)")


def _run(parsed: argparse.Namespace) -> int:
    environment = ProcessEnvironment.detect()
    if environment.world_size == 1:
        _generate(parsed)
        return EXIT_DONE
    return run_watched(parsed, environment, lambda watch: _generate_together(parsed, environment, watch))


def _generate_together(parsed: argparse.Namespace, environment: ProcessEnvironment, watch: "Watch") -> None:
    """Generate as one of several ranks, each of which computes a part of every layer."""
    from tolktrain.generate.tensor_ranks import LONGEST_WAIT, follow, load_part, release_followers
    from tolktrain.parallel.layout import initialize

    watch.limit(LONGEST_WAIT.total_seconds())
    environment.export()
    layout = initialize(tensor=environment.world_size, timeout=LONGEST_WAIT)
    watch.progress.at("generating")
    if layout.rank == 0:
        _generate(parsed, layout)
        release_followers()
    else:
        run_directory, overrides = existing_model(parsed)
        follow(load_part(run_directory, parsed.step, overrides, layout)[0])


def _generate(parsed: argparse.Namespace, layout: "Layout | None" = None) -> None:
    run_directory, overrides = existing_model(parsed)
    for name, (least, most) in _NUMBERS.items():
        value = getattr(parsed, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected {least} to {most}")
    if parsed.chat is not None:
        _chat(run_directory, parsed, overrides, layout)
        return
    of_chats = [name for name in ("answer", "system") if getattr(parsed, name) is not None]
    if of_chats:
        raise UserError(f"--{of_chats[0]} belongs to conversations; give --chat, too")
    if any(getattr(parsed, name) is not None for name in _PROMPTS):
        _answer(run_directory, parsed, overrides, layout)
        return
    without_effect = [name for name in (*_NUMBERS, *_OTHERS) if getattr(parsed, name) is not None]
    if without_effect:
        option = without_effect[0].replace("_", "-")
        raise UserError(
            f"--{option} belongs to prompts that are given by --text, --audio, --units or --prompts; the spoken prompts"
            " of evaluation.prompts are continued as the section evaluation of the run's configuration says"
        )
    generate_samples(run_directory, overrides, layout)


def generate_samples(run_directory: Path, overrides: tuple[str, ...] = (), layout: "Layout | None" = None) -> None:
    """Continue the prompts of the configuration."""
    from tolktrain.generate.run import generate

    files = generate(run_directory, overrides, layout)
    print(f"{len(files)} files in {RunPaths(run_directory).samples}")


def _answer(
    run_directory: Path, parsed: argparse.Namespace, overrides: tuple[str, ...], layout: "Layout | None"
) -> None:
    from tolktrain.generate.answer import Answering, answer
    from tolktrain.generate.continuation import Limits
    from tolktrain.generate.settings import Hearing

    if "" in (parsed.stop or ()):
        raise UserError("--stop is empty, which would end every text before it begins; give the text that ends one")
    limits = Limits(parsed.length or 300, parsed.seconds, parsed.utterances or 1, tuple(parsed.stop or ()))
    options = Answering(
        step=parsed.step,
        drawing=_drawing(parsed),
        num_samples=parsed.samples or 1,
        batch_size=parsed.batch or 1,
        limits=limits,
        into=parsed.into,
        hearing=Hearing(parsed.vocoder, parsed.speaker, parsed.style),
        overrides=overrides,
    )
    answer(run_directory, _requests(parsed), options, print_to_reader, layout)


def _chat(run_directory: Path, parsed: argparse.Namespace, overrides: tuple[str, ...], layout: "Layout | None") -> None:
    given = [name for name in (*_PROMPTS, *_NOT_OF_CHATS) if getattr(parsed, name) is not None]
    if given:
        raise UserError(
            f"--{given[0].replace('_', '-')} has no effect on conversations; leave it out, or leave --chat out to"
            " continue a prompt"
        )
    from tolktrain.generate.chat.dialogue import ChatLimits
    from tolktrain.generate.chat.run import Chatting, answer_scripts, converse
    from tolktrain.generate.chat.scripts import read_scripts
    from tolktrain.generate.requests import STANDARD_INPUT
    from tolktrain.generate.settings import Hearing

    options = Chatting(
        step=parsed.step,
        form=parsed.answer,
        system=parsed.system,
        drawing=_drawing(parsed),
        hearing=Hearing(parsed.vocoder, parsed.speaker, parsed.style),
        limits=ChatLimits(parsed.length or ChatLimits().length, parsed.seconds),
        into=parsed.into,
        overrides=overrides,
    )
    if parsed.chat == _TERMINAL:
        converse(run_directory, _typed(), options, print_to_reader, layout)
        return
    if parsed.chat != STANDARD_INPUT:
        # All lines, before anything is drawn and written.
        deque(read_scripts(parsed.chat), maxlen=0)
    answer_scripts(run_directory, read_scripts(parsed.chat), options, print_to_reader, layout)


def _typed() -> Iterator[str]:
    """The lines of standard input; at a terminal, each after a sign of whose turn it is."""
    while True:
        if sys.stdin.isatty():
            print_to_reader("user: ")
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _drawing(parsed: argparse.Namespace) -> "Drawing":
    from tolktrain.generate.settings import Drawing

    return Drawing(
        parsed.temperature,
        parsed.top_k,
        1.0 if parsed.top_p is None else parsed.top_p,
        1.0 if parsed.repetition_penalty is None else parsed.repetition_penalty,
        parsed.seed,
    )


def _requests(parsed: argparse.Namespace) -> Iterator["Request"]:
    from tolktrain.generate.requests import STANDARD_INPUT, read_requests, request

    ends, taken = bool(parsed.ends_utterance), []
    for kind in ("text", "audio", "units"):
        for number, given in enumerate(getattr(parsed, kind) or [], start=1):
            content: Any = _numbers(given) if kind == "units" else given
            taken.append(f"{kind}-{number}")
            yield request(kind, content, parsed.to, ends, taken[-1], f"--{kind} {_shortened(given)!r}")
    if parsed.prompts is not None:
        if parsed.prompts != STANDARD_INPUT:
            # All lines, before anything is drawn and written.
            deque(read_requests(parsed.prompts, parsed.to, ends, taken), maxlen=0)
        yield from read_requests(parsed.prompts, parsed.to, ends, taken)


def _shortened(given: str) -> str:
    return given if len(given) <= _LONGEST_SHOWN else f"{given[:_LONGEST_SHOWN]}..."


def _numbers(given: str) -> list[int]:
    try:
        return [int(number) for number in given.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"--units {given!r:.60} is no list of units; expected numbers such as '12 7 480'") from None


VERB = Verb("continue prompts of text or speech with a trained model", _add_arguments, _run)
