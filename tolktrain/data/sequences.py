"""From a record to a training sequence, a pure function of (record, seed, epoch) (arXiv 2503.06211, section 4).

A sequence has T + 1 tokens: the first T are the input, the last T the targets. Specials (prefix-begin, prefix-end,
switch) are text ids after the text vocabulary; EOS ends every utterance in the modality it is in.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.records import Array, Record
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sequence:
    """One training sequence of T + 1 tokens, padded with text EOS when its record is short."""

    tokens: IntArray  # [K, T + 1]; a text position holds its id in row 0 and zeros below
    is_speech: BoolArray  # [T + 1]
    scored: BoolArray  # [T + 1]: may be scored as a target; specials, padding and prefix conditions may not
    length: int  # tokens before the padding
    record_id: str
    strategy: Strategy


class _Key(np.random.bit_generator.ISeedSequence):
    """A Philox key as it is.

    `Philox(key=...)` gives the same numbers, but asks the system for entropy it never uses.
    """

    def __init__(self, digest: bytes) -> None:
        self._words = np.frombuffer(digest, "<u8")

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> Array:
        assert n_words == len(self._words) and dtype == np.uint64
        return self._words


def sequence_rng(seed: int, record_id: str, epoch: int, purpose: str) -> np.random.Generator:
    """Random numbers that depend on nothing but the arguments (Philox, keyed by a digest of them)."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}/{record_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(_Key(digest)))  # type: ignore[arg-type]  # numpy's stub is too narrow


def build_sequence(
    record: Record,
    strategy: Strategy,
    vocabulary: Vocabulary,
    sequence_length: int,
    interleaving: InterleavingConfig,
    rng: np.random.Generator,
) -> Sequence:
    """Make the sequence of a record.

    It starts at random, but so early that the rest of the record fills it, if the record is long enough; every part
    of a record is drawn about equally often. Tokens beyond `sequence_length` + 1 are cut off, in the middle of a word
    if need be.

    Raises:
        UserError: the record lacks what the strategy needs, or its ids lie outside the vocabulary.
    """
    require_modalities(strategy, record.has_text, record.has_speech, record.is_aligned, f"record {record.id!r}")
    writer = SequenceWriter(vocabulary, sequence_length + 1)
    if strategy == "text":
        _write_text(writer, record, rng)
    elif strategy == "speech":
        _write_speech(writer, record, rng)
    elif strategy == "interleaved":
        _write_interleaved(writer, record, interleaving, rng)
    else:
        _write_prefix(writer, record, strategy == "recognition", rng)
    return writer.finish(record.id, strategy)


def require_modalities(strategy: Strategy, text: bool, speech: bool, aligned: bool, where: str) -> None:
    """Raise `UserError` if data without text, speech or word alignment cannot serve a strategy."""
    if strategy != "speech" and not text:
        raise UserError(f"{where} has no text, which the strategy {strategy!r} needs; use it for 'speech' only")
    if strategy != "text" and not speech:
        raise UserError(f"{where} has no speech, which the strategy {strategy!r} needs; use it for 'text' only")
    if strategy == "interleaved" and not aligned:
        raise UserError(
            f"{where} has no word alignment (word_text_ends, word_unit_ends), which the strategy 'interleaved' needs;"
            " align it or use it for another strategy"
        )


class SequenceWriter:
    """Fills a sequence from the left and drops what does not fit."""

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self.vocabulary = vocabulary
        self.size = size
        self.length = 0
        self.tokens: IntArray = np.zeros((vocabulary.num_codebooks, size), np.int64)
        self.is_speech: BoolArray = np.zeros(size, np.bool_)
        self.scored: BoolArray = np.zeros(size, np.bool_)

    @property
    def delay(self) -> int:
        """Positions that the codebook delay adds to a run of speech."""
        return self.vocabulary.num_codebooks - 1

    def text(self, ids: IntArray, scored: bool = True) -> None:
        """Append text ids [n]."""
        begin, end = self._advance(len(ids))
        self.tokens[0, begin:end] = ids[: end - begin]
        self.scored[begin:end] = scored

    def speech(self, units: IntArray, scored: bool = True) -> None:
        """Append a run of speech [n, K]: codebook k is delayed by k positions, PAD fills the corners."""
        begin, end = self._advance(len(units) + self.delay)
        if self.delay:
            self.tokens[:, begin:end] = self.vocabulary.speech_pad
        for k in range(self.vocabulary.num_codebooks):
            count = max(min(len(units), end - begin - k), 0)
            self.tokens[k, begin + k : begin + k + count] = units[:count, k]
        self.is_speech[begin:end] = True
        self.scored[begin:end] = scored

    def special(self, token: int) -> None:
        """Append one special id, never scored."""
        begin, end = self._advance(1)
        self.tokens[0, begin:end] = token

    def finish(self, record_id: str, strategy: Strategy) -> Sequence:
        """The sequence, the rest padded."""
        self.tokens[0, self.length :] = self.vocabulary.text_eos
        return Sequence(self.tokens, self.is_speech, self.scored, self.length, record_id, strategy)

    def _advance(self, count: int) -> tuple[int, int]:
        begin = self.length
        self.length = min(begin + count, self.size)
        return begin, self.length


def text_with_eos(record: Record, vocabulary: Vocabulary) -> IntArray:
    """Text ids of a record with EOS after each utterance: [N + U]. Raises `UserError` for foreign ids."""
    _require_below(record, "text_ids", record.text_ids, vocabulary.text_vocab_size, "text vocabulary")
    return _with_eos(record.text_ids[:, None], record.utterance_text_ends, vocabulary.text_eos)[:, 0]


def units_with_eos(record: Record, vocabulary: Vocabulary) -> IntArray:
    """Units of a record with EOS after each utterance: [n + U, K]. Raises `UserError` if they do not fit the model."""
    if record.units.shape[1] != vocabulary.num_codebooks:
        raise UserError(
            f"record {record.id!r} has {record.units.shape[1]} codebooks but the model has {vocabulary.num_codebooks};"
            " set model.speech.num_codebooks to the data's"
        )
    _require_below(record, "units", record.units, vocabulary.num_units, "speech vocabulary")
    return _with_eos(record.units, record.utterance_unit_ends, vocabulary.speech_eos)


def _require_below(record: Record, name: str, ids: Array, size: int, vocabulary: str) -> None:
    largest = int(ids.max())
    if largest >= size:
        raise UserError(
            f"record {record.id!r}: {name} holds {largest}, which is outside the model's {vocabulary} of {size} ids"
        )


def _with_eos(rows: Array, utterance_ends: Array, eos: int) -> IntArray:
    """Rows [n, K] with a row of EOS after each utterance: [n + U, K]."""
    num_utterances = len(utterance_ends)
    eos_rows = utterance_ends.astype(np.int64) + np.arange(num_utterances)
    result = np.empty((len(rows) + num_utterances, rows.shape[1]), np.int64)
    is_unit = np.ones(len(result), np.bool_)
    is_unit[eos_rows] = False
    result[is_unit] = rows
    result[eos_rows] = eos
    return result


def part_offsets(ends: Array, utterance_ends: Array) -> IntArray:
    """Where each part begins, and the last one ends, among rows with EOS; the EOS belongs to the part before it."""
    offsets = np.zeros(len(ends) + 1, np.int64)
    offsets[1:] = ends + np.searchsorted(utterance_ends, ends, side="right")
    return offsets


def _random_start(total: int, size: int, rng: np.random.Generator) -> int:
    """First of `size` consecutive tokens out of `total`; windows that would overhang an end are moved inside."""
    start = int(rng.integers(1 - size, total))
    return max(min(start, total - size), 0)


def _begin_of_part(offsets: IntArray, row: int) -> int:
    return int(offsets[np.searchsorted(offsets, row, side="right") - 1])


def _write_text(writer: SequenceWriter, record: Record, rng: np.random.Generator) -> None:
    ids = text_with_eos(record, writer.vocabulary)
    start = _random_start(len(ids), writer.size, rng)
    if record.is_aligned:
        start = _begin_of_part(part_offsets(record.word_text_ends, record.utterance_text_ends), start)
    writer.text(ids[start : start + writer.size])


def _write_speech(writer: SequenceWriter, record: Record, rng: np.random.Generator) -> None:
    units = units_with_eos(record, writer.vocabulary)
    start = _random_start(len(units), writer.size, rng)
    if record.is_aligned:
        start = _begin_of_part(part_offsets(record.word_unit_ends, record.utterance_unit_ends), start)
    writer.speech(units[start : start + writer.size])


def _write_interleaved(
    writer: SequenceWriter, record: Record, interleaving: InterleavingConfig, rng: np.random.Generator
) -> None:
    """Spans of words, text and speech in turn, a switch between them.

    A span ends after its drawn number of words, at the end of the record, or where the sequence is full; an utterance
    end puts EOS into the span but does not end it.
    """
    text, units = text_with_eos(record, writer.vocabulary), units_with_eos(record, writer.vocabulary)
    text_offsets = part_offsets(record.word_text_ends, record.utterance_text_ends)
    unit_offsets = part_offsets(record.word_unit_ends, record.utterance_unit_ends)
    num_words = len(record.word_text_ends)
    first_is_speech = bool(rng.integers(2))
    # Each word has at least one token, so no more than `size` words fit.
    boundaries = _span_boundaries(min(num_words, writer.size), first_is_speech, interleaving, rng)

    def layout(start: int) -> tuple[IntArray, IntArray]:
        """Words that bound the spans after a first word, and the tokens up to the end of each span."""
        words = np.minimum(boundaries + start, num_words)
        words = words[: int(np.searchsorted(words, num_words)) + 1]
        lengths = np.diff(text_offsets[words]) + 1
        begins_speech = 0 if first_is_speech else 1
        lengths[begins_speech::2] = np.diff(unit_offsets[words])[begins_speech::2] + 1 + writer.delay
        return words, np.cumsum(lengths) - 1

    mean_offsets = (text_offsets + unit_offsets) // 2
    row = _random_start(int(mean_offsets[-1]), writer.size, rng)
    start = int(np.searchsorted(mean_offsets[:-1], row, side="right")) - 1
    words, ends = layout(start)
    while start > 0 and ends[-1] < writer.size:
        missing_words = int(writer.size - ends[-1]) * num_words // int(mean_offsets[-1])
        start = max(start - max(missing_words, 1), 0)
        words, ends = layout(start)

    num_spans = min(int(np.searchsorted(ends, writer.size)) + 1, len(ends))
    for span in range(num_spans):
        if span:
            writer.special(writer.vocabulary.switch)
        first, last = words[span], words[span + 1]
        if (span % 2 == 0) == first_is_speech:
            writer.speech(units[unit_offsets[first] : unit_offsets[last]])
        else:
            writer.text(text[text_offsets[first] : text_offsets[last]])


def _span_boundaries(
    num_words: int, first_is_speech: bool, interleaving: InterleavingConfig, rng: np.random.Generator
) -> IntArray:
    """Cumulative words of alternating spans, from 0 to at least `num_words`."""
    (text_low, text_high), (speech_low, speech_high) = interleaving.text_words, interleaving.speech_words
    num_pairs = num_words // (text_low + speech_low) + 1
    boundaries = np.zeros(2 * num_pairs + 1, np.int64)
    speech_slot = 1 if first_is_speech else 2
    boundaries[speech_slot::2] = rng.integers(speech_low, speech_high + 1, num_pairs)
    boundaries[3 - speech_slot :: 2] = rng.integers(text_low, text_high + 1, num_pairs)
    return np.cumsum(boundaries)


def _write_prefix(writer: SequenceWriter, record: Record, speech_first: bool, rng: np.random.Generator) -> None:
    """Consecutive utterances, each as prefix-begin, condition, prefix-end, target, EOS."""
    text, units = text_with_eos(record, writer.vocabulary), units_with_eos(record, writer.vocabulary)
    text_offsets = part_offsets(record.utterance_text_ends, record.utterance_text_ends)
    unit_offsets = part_offsets(record.utterance_unit_ends, record.utterance_unit_ends)
    # The condition goes without its EOS; two specials and the codebook delay are added.
    lengths = np.diff(text_offsets) + np.diff(unit_offsets) + 1 + writer.delay
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    first = _first_utterance(offsets, writer.size, rng)
    for utterance in range(first, len(lengths)):
        if writer.length == writer.size:
            break
        text_begin, text_end = text_offsets[utterance], text_offsets[utterance + 1]
        unit_begin, unit_end = unit_offsets[utterance], unit_offsets[utterance + 1]
        writer.special(writer.vocabulary.prefix_begin)
        if speech_first:
            writer.speech(units[unit_begin : unit_end - 1], scored=False)
            writer.special(writer.vocabulary.prefix_end)
            writer.text(text[text_begin:text_end])
        else:
            writer.text(text[text_begin : text_end - 1], scored=False)
            writer.special(writer.vocabulary.prefix_end)
            writer.speech(units[unit_begin:unit_end])


def _first_utterance(offsets: IntArray, size: int, rng: np.random.Generator) -> int:
    """A random utterance that fits into `size` tokens, if any does, with `size` tokens to come from it, if possible."""
    fitting = np.flatnonzero(np.diff(offsets) <= size)
    if not len(fitting):
        fitting = np.arange(len(offsets) - 1)
    row = _random_start(int(offsets[-1]), size, rng)
    return int(fitting[max(int(np.searchsorted(offsets[fitting], row, side="right")) - 1, 0)])
