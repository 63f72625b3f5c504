"""The interface of a kind of vocoder. The rest of the program does not depend on particular kinds."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tolktrain.units.base import SpeechTokenizer, Vocoder
from tolktrain.units.description import SpeechTokenizerInfo


@dataclass(frozen=True)
class Voice:
    """Who speaks, and how; for vocoders that were trained on several speakers or styles."""

    speaker: str | None = None  # name or number; None for the first
    style: str | None = None


FIRST_VOICE: Final = Voice()


@dataclass(frozen=True)
class VocoderSource:
    """What a vocoder is made from."""

    folder: Path  # with vocoder.json, or of the tokenizer if the vocoder needs nothing else
    tokenizer: SpeechTokenizerInfo  # of the units
    load_tokenizer: Callable[[], SpeechTokenizer]
    voice: Voice
    device: str  # of a neural vocoder


@dataclass(frozen=True)
class VocoderMaker:
    """How `python -m tolktrain.units` makes the folder of a vocoder."""

    command: str
    meaning: str  # one line for --help
    add_arguments: Callable[[ArgumentParser], None]  # besides folder
    create: Callable[[Namespace], str]  # returns a line that describes the result


@dataclass(frozen=True)
class VocoderKind:
    """A module of this package defines one as `KIND`; `tolktrain.units.vocoders.load` lists the modules."""

    name: str  # in vocoder.json, or in `TokenizerKind.vocoder`
    # Checks what does not need the weights, then returns what loads them. Raises `UserError` if files are missing or
    # damaged, or the vocoder was trained on the units of another tokenizer, or lacks the speaker or style.
    open: Callable[[VocoderSource], Callable[[], Vocoder]]
    maker: VocoderMaker | None = None  # None: no files of its own, it is part of the tokenizer's folder
