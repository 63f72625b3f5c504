"""Strategies: ways to make a training sequence from a record, as a pure function of (record, seed, epoch).

The names are those of `tolktrain.config.data.Strategy`; each is a file here.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast, get_args

import numpy as np

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.records import Record, RecordKind
from tolktrain.data.sequences import Sequence, SequenceWriter
from tolktrain.data.strategies.base import SequenceStrategy
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary

STRATEGIES: Mapping[Strategy, SequenceStrategy] = MappingProxyType(
    {name: importlib.import_module(f"{__name__}.{name}").STRATEGY for name in get_args(Strategy)}
)
# Order of strategies in tables.
DISPLAY_ORDER = tuple(
    cast(
        list[Strategy],
        sorted(STRATEGIES, key=lambda name: (STRATEGIES[name].reads != "passage", STRATEGIES[name].needs_speech)),
    )
)


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
    require_record(strategy, record, f"record {record.id!r}")
    writer = SequenceWriter(vocabulary, sequence_length + 1)
    try:
        STRATEGIES[strategy].write(writer, record, interleaving, rng)
    except UserError as error:
        where = "" if repr(record.id) in str(error) else f"record {record.id!r}, strategy {strategy!r}: "
        raise UserError(f"{where}{error}") from None
    return writer.finish(record.id, strategy)


def require_record(strategy: Strategy, record: Record, where: str) -> None:
    """Raise `UserError` if a record is not of the kind that a strategy reads, or lacks what it needs."""
    require_modalities(strategy, record.has_text, record.has_speech, record.is_aligned, where, record.kind)


def require_modalities(
    strategy: Strategy, text: bool, speech: bool, aligned: bool, where: str, kind: RecordKind = "passage"
) -> None:
    """Raise `UserError` if data of another kind, or without text, speech or word alignment, cannot serve a strategy."""
    needs = STRATEGIES[strategy]
    if needs.reads != kind:
        served = ", ".join(name for name, other in STRATEGIES.items() if other.reads == kind)
        raise UserError(
            f"{where} holds records of the kind {kind!r}, and the strategy {strategy!r} reads the kind {needs.reads!r};"
            f" use it for {served}"
        )
    if needs.needs_text and not text:
        raise UserError(f"{where} has no text, which the strategy {strategy!r} needs; use it for 'speech' only")
    if needs.needs_speech and not speech:
        raise UserError(f"{where} has no speech, which the strategy {strategy!r} needs; use it for 'text' only")
    if needs.needs_alignment and not aligned:
        raise UserError(
            f"{where} has no word alignment (word_text_ends, word_unit_ends), which the strategy {strategy!r} needs;"
            " align it or use it for another strategy"
        )
