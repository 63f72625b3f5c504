"""Training sequences, and the writer that the strategies of `data.strategies` use (arXiv 2503.06211, section 4).

A sequence has T + 1 tokens: the first T are the input, the last T the targets. Specials (prefix-begin, prefix-end,
switch) are text ids after the text vocabulary; EOS of its modality ends every utterance.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tolktrain.config.data import Strategy
from tolktrain.data.records import Array, Record
from tolktrain.errors import UserError
from tolktrain.vocabulary import Vocabulary

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sequence:
    """One training sequence of T + 1 tokens, padded with text EOS if its record is short."""

    tokens: IntArray  # [K, T + 1]; a text position holds its id in row 0 and zeros below
    is_speech: BoolArray  # [T + 1]
    scored: BoolArray  # [T + 1]: may be scored as a target; specials, padding and prefix conditions may not
    length: int  # tokens before the padding
    record_id: str
    strategy: Strategy
    document_starts: tuple[int, ...] = (0,)  # first token of each document; a document is a sequence of its own


class _Key(np.random.bit_generator.ISeedSequence):
    """A Philox key without a seed sequence.

    `Philox(key=...)` gives the same numbers, but reads entropy from the system that it never uses.
    """

    def __init__(self, digest: bytes) -> None:
        self._words = np.frombuffer(digest, "<u8")

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> Array:
        assert n_words == len(self._words) and dtype == np.uint64
        return self._words


def sequence_rng(seed: int, record_id: str, epoch: int, purpose: str) -> np.random.Generator:
    """Random numbers that depend on the arguments only (Philox with a digest of them as key)."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}/{record_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(_Key(digest)))  # type: ignore[arg-type]  # numpy's stub is too narrow


class SequenceWriter:
    """Fills a sequence from the left and drops what does not fit."""

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self.vocabulary = vocabulary
        self.size = size
        self.length = 0
        self.tokens: IntArray = np.zeros((vocabulary.num_codebooks, size), np.int64)
        self.is_speech: BoolArray = np.zeros(size, np.bool_)
        self.scored: BoolArray = np.zeros(size, np.bool_)
        self._document_starts = [0]

    @property
    def delay(self) -> int:
        """Positions that the codebook delay adds to a speech segment."""
        return self.vocabulary.num_codebooks - 1

    def text(self, ids: IntArray, scored: bool = True) -> None:
        """Append text ids [n]."""
        begin, end = self._advance(len(ids))
        self.tokens[0, begin:end] = ids[: end - begin]
        self.scored[begin:end] = scored

    def speech(self, units: IntArray, scored: bool = True) -> None:
        """Append a speech segment [n, K]: codebook k is delayed by k positions, PAD fills the corners."""
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

    def begin_document(self) -> None:
        """Begin a document at the present position: it must not see earlier tokens."""
        if self._document_starts[-1] < self.length < self.size:
            self._document_starts.append(self.length)

    def finish(self, record_id: str, strategy: Strategy) -> Sequence:
        """The padded sequence."""
        self.tokens[0, self.length :] = self.vocabulary.text_eos
        return Sequence(
            self.tokens, self.is_speech, self.scored, self.length, record_id, strategy, tuple(self._document_starts)
        )

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
    """The begins of all parts and the end of the last one, in rows with EOS; an EOS belongs to the part before it."""
    offsets = np.zeros(len(ends) + 1, np.int64)
    offsets[1:] = ends + np.searchsorted(utterance_ends, ends, side="right")
    return offsets


def random_start(total: int, size: int, rng: np.random.Generator) -> int:
    """First of `size` consecutive tokens out of `total`; windows that exceed an end are moved inside."""
    start = int(rng.integers(1 - size, total))
    return max(min(start, total - size), 0)


def begin_of_part(offsets: IntArray, row: int) -> int:
    """The begin of the part that contains a row."""
    return int(offsets[np.searchsorted(offsets, row, side="right") - 1])
