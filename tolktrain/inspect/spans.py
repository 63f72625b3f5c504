"""A training sequence taken apart: its spans, and the place in the record that each of its tokens comes from."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.records import Array, Record
from tolktrain.data.sequences import IntArray, Sequence, sequence_rng
from tolktrain.data.strategies import build_sequence
from tolktrain.vocabulary import Vocabulary

SpanKind = Literal["text", "speech", "prefix", "prefix-end", "switch", "token", "padding"]

EOS = -1
DELAY = -2


@dataclass(frozen=True, eq=False)
class Span:
    """Consecutive tokens of one modality, one special token, or the padding."""

    kind: SpanKind
    begin: int  # first position in the sequence
    num_tokens: int
    num_scored: int  # tokens that are scored as targets
    places: IntArray  # [num_tokens] indices into text_ids or units; EOS and DELAY (codebook 0 is PAD) are negative
    name: str = ""  # of a named special token

    @property
    def num_content(self) -> int:
        """Text ids or rows of units, without EOS and delay."""
        return int((self.places >= 0).sum())


@dataclass(frozen=True)
class Part:
    """The part of one word or utterance in a span; or an EOS."""

    number: int  # of the word or utterance in its record; EOS is negative
    begin: int  # first place in the record
    end: int  # after the last place
    cut_before: bool  # the word or utterance begins before the span
    cut_after: bool  # it continues after the span


@dataclass(frozen=True, eq=False)
class TakenApart:
    """A sequence and its spans."""

    record: Record
    sequence: Sequence
    spans: list[Span]

    @property
    def num_scored(self) -> int:
        """Scored targets; the first token of a sequence is input only."""
        return sum(span.num_scored for span in self.spans)


def take_apart(
    record: Record,
    strategy: Strategy,
    vocabulary: Vocabulary,
    sequence_length: int,
    interleaving: InterleavingConfig,
    seed: int,
) -> TakenApart:
    """The training sequence of the record in the first epoch with this seed, and its spans.

    Raises `UserError` as `build_sequence` does.
    """
    sequence = build_sequence(
        record, strategy, vocabulary, sequence_length, interleaving, sequence_rng(seed, record.id, 0, "sequence")
    )
    # How a sequence is laid out depends on lengths only, never on ids. The same record with every id replaced by its
    # index is therefore laid out alike, and its tokens are the origins of the tokens of the true sequence.
    num_text, num_rows = len(record.text_ids), len(record.units)
    indices = replace(
        record,
        text_ids=np.arange(num_text),
        units=np.repeat(np.arange(num_rows)[:, None], record.units.shape[1], axis=1),
    )
    index_vocabulary = Vocabulary(
        num_text + 1, num_text, max(num_rows, 1), vocabulary.num_codebooks, vocabulary.special_tokens
    )
    twin = build_sequence(
        indices, strategy, index_vocabulary, sequence_length, interleaving, sequence_rng(seed, record.id, 0, "sequence")
    )
    assert np.array_equal(twin.is_speech, sequence.is_speech) and twin.length == sequence.length
    places = _places(twin, index_vocabulary)
    _assert_same_ids(record, sequence, places)
    return TakenApart(record, sequence, _spans(sequence, vocabulary, places))


def _places(twin: Sequence, vocabulary: Vocabulary) -> IntArray:
    places = twin.tokens[0].copy()
    places[twin.is_speech & (twin.tokens[0] == vocabulary.speech_eos)] = EOS
    places[twin.is_speech & (twin.tokens[0] == vocabulary.speech_pad)] = DELAY
    # Special ids follow the text ids; no span shows their places.
    places[~twin.is_speech & (twin.tokens[0] >= vocabulary.text_eos)] = EOS
    return places


def _assert_same_ids(record: Record, sequence: Sequence, places: IntArray) -> None:
    inside = places >= 0
    text, speech = inside & ~sequence.is_speech, inside & sequence.is_speech
    assert np.array_equal(record.text_ids[places[text]], sequence.tokens[0, text])
    assert np.array_equal(record.units[places[speech], 0], sequence.tokens[0, speech])


def _spans(sequence: Sequence, vocabulary: Vocabulary, places: IntArray) -> list[Span]:
    specials: dict[int, SpanKind] = {
        vocabulary.prefix_begin: "prefix",
        vocabulary.prefix_end: "prefix-end",
        vocabulary.switch: "switch",
    }
    names = {vocabulary.special_token(name): name for name in vocabulary.special_tokens}
    specials |= dict.fromkeys(names, "token")
    kinds: list[SpanKind] = []
    for position, (token, is_speech) in enumerate(zip(sequence.tokens[0].tolist(), sequence.is_speech, strict=True)):
        if position >= sequence.length:
            kinds.append("padding")
        else:
            kinds.append("speech" if is_speech else specials.get(token, "text"))
    scored = sequence.scored.copy()
    scored[0] = False  # nothing predicts the first token
    spans = []
    begin = 0
    for end in range(1, len(kinds) + 1):
        if end < len(kinds) and kinds[end] == kinds[begin] and kinds[end] != "token":
            continue
        own = places[begin:end] if kinds[begin] in ("text", "speech") else np.zeros(0, np.int64)
        name = names[int(sequence.tokens[0, begin])] if kinds[begin] == "token" else ""
        spans.append(Span(kinds[begin], begin, end - begin, int(scored[begin:end].sum()), own, name))
        begin = end
    return spans


def parts_of(span: Span, ends: Array) -> list[Part]:
    """Words (or utterances) of a text or speech span, and EOS between them, in order.

    `ends` are those of the span's modality in the record: of words, or of utterances.
    """
    places = span.places[span.places != DELAY]
    numbers = np.where(places < 0, EOS, np.searchsorted(ends, places, side="right"))
    changes = np.flatnonzero(np.diff(numbers)) + 1
    parts = []
    for begin, end in zip([0, *changes], [*changes, len(places)], strict=True):
        number = int(numbers[begin]) if end > begin else EOS
        if number == EOS:
            parts += [Part(EOS, 0, 0, False, False)] * (end - begin)
            continue
        first, after = int(places[begin]), int(places[end - 1]) + 1
        start = int(ends[number - 1]) if number else 0
        parts.append(Part(number, first, after, first > start, after < int(ends[number])))
    return parts


def part_ends(record: Record) -> tuple[Array, Array]:
    """Ends of the parts that are shown, in text ids and in units: words, or utterances whose words are not aligned."""
    if record.kind == "passage":
        if record.is_aligned:
            return record.word_text_ends, record.word_unit_ends
        return record.utterance_text_ends, record.utterance_unit_ends
    words = record.turn_word_ends.astype(np.int64)
    text_ends, unit_ends = [], []
    for turn, (begin, end) in enumerate(zip([0, *words[:-1]], words, strict=True)):
        is_aligned = end > begin
        text_ends.append(
            record.word_text_ends[begin:end] if is_aligned else record.utterance_text_ends[turn : turn + 1]
        )
        unit_ends.append(
            record.word_unit_ends[begin:end] if is_aligned else record.utterance_unit_ends[turn : turn + 1]
        )
    return np.concatenate(text_ends), np.concatenate(unit_ends)


def part_text(record: Record, number: int) -> Array:
    """Text ids of a part of `part_ends`."""
    ends = part_ends(record)[0]
    begin = int(ends[number - 1]) if number else 0
    return record.text_ids[begin : int(ends[number])]
