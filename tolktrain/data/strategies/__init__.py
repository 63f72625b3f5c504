"""Strategies: ways to make a training sequence from a record, as a pure function of (record, seed, epoch).

The names are those of `tolktrain.config.data.Strategy`; each is a file here.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast, get_args

import numpy as np

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.records import Record
from tolktrain.data.sequences import Sequence, SequenceWriter
from tolktrain.data.strategies.base import SequenceStrategy
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary

STRATEGIES: Mapping[Strategy, SequenceStrategy] = MappingProxyType(
    {name: importlib.import_module(f"{__name__}.{name}").STRATEGY for name in get_args(Strategy)}
)
# Order of strategies in tables.
DISPLAY_ORDER = tuple(cast(list[Strategy], sorted(STRATEGIES, key=lambda name: STRATEGIES[name].needs_speech)))


def build_sequence(
    record: Record,
    strategy: Strategy,
    vocabulary: Vocabulary,
    sequence_length: int,
    interleaving: InterleavingConfig,
    rng: np.random.Generator,
) -> Sequence:
    """Make the sequence of a record.

    It starts at a random position that is early enough for the rest of the record to fill the sequence, if the record
    is long enough; every part of a record is drawn about equally often. Tokens beyond `sequence_length` + 1 are
    dropped, possibly in the middle of a word.

    Raises:
        UserError: the record lacks what the strategy needs, or its ids lie outside the vocabulary.
    """
    require_modalities(strategy, record.has_text, record.has_speech, record.is_aligned, f"record {record.id!r}")
    writer = SequenceWriter(vocabulary, sequence_length + 1)
    STRATEGIES[strategy].write(writer, record, interleaving, rng)
    return writer.finish(record.id, strategy)


def require_modalities(strategy: Strategy, text: bool, speech: bool, aligned: bool, where: str) -> None:
    """Raise `UserError` if data without text, speech or word alignment cannot serve a strategy."""
    needs = STRATEGIES[strategy]
    if needs.needs_text and not text:
        raise UserError(f"{where} has no text, which the strategy {strategy!r} needs; use it for 'speech' only")
    if needs.needs_speech and not speech:
        raise UserError(f"{where} has no speech, which the strategy {strategy!r} needs; use it for 'text' only")
    if needs.needs_alignment and not aligned:
        raise UserError(
            f"{where} has no word alignment (word_text_ends, word_unit_ends), which the strategy {strategy!r} needs;"
            " align it or use it for another strategy"
        )
