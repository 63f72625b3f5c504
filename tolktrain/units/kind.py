"""The interface of a kind of speech tokenizer. The rest of the program does not depend on particular kinds."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.units.base import SpeechTokenizer


@dataclass(frozen=True)
class Maker:
    """How `python -m tolktrain.units` makes the folder of a tokenizer from a pretrained model."""

    meaning: str  # one line for --help
    add_arguments: Callable[[ArgumentParser], None]  # besides folder, --model, --revision and --device
    create: Callable[[Namespace], SpeechTokenizer]


@dataclass(frozen=True)
class TokenizerKind:
    """A module of this package defines one as `KIND`; `tolktrain.units.load` lists the modules."""

    name: str  # in speech_tokenizer.json
    version: str  # of the features and the file format
    description: type[Any]  # strict model of speech_tokenizer.json
    # Folder, device and seconds of audio that a neural model computes at a time.
    load: Callable[[str | Path, str, float | None], SpeechTokenizer]
    vocoder: str | None  # the vocoder that needs nothing but the folder of such a tokenizer (tolktrain.units.vocoders)
    is_neural: bool  # whether it computes with a model that a GPU makes faster
    maker: Maker | None = None
