"""Joins consecutive utterances, or documents, to passages; each becomes a record."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tolktrain.config.prepare import PassagesConfig
from tolktrain.data.records import Array, Record

_NO_ENDS = np.zeros(0, np.uint32)


@dataclass(frozen=True, eq=False)
class Piece:
    """One utterance or document. Ends count from its own beginning; they are cumulative and exclusive."""

    id: str  # unique in the set
    text_ids: Array | None = None  # [N]
    units: Array | None = None  # [n, K], repeats collapsed
    run_lengths: Array | None = None  # [n]
    word_text_ends: Array | None = None  # [W]; None or empty where words are not aligned
    word_unit_ends: Array | None = None  # [W]

    def __post_init__(self) -> None:
        assert self.text_ids is None or len(self.text_ids), "text without ids ends nowhere"
        assert self.units is None or len(self.units), "speech without units ends nowhere"
        assert self.text_ids is not None or self.units is not None, "a piece has text, speech or both"
        assert (self.units is None) == (self.run_lengths is None)

    @property
    def modalities(self) -> tuple[bool, bool, bool]:
        """Whether it has text, speech and word alignment."""
        aligned = self.word_text_ends is not None and len(self.word_text_ends) > 0
        return self.text_ids is not None, self.units is not None, aligned


class PassageBuilder:
    """Joins the pieces of one source, in order, and returns a record whenever they suffice for one.

    Text and speech are counted with one EOS for each piece, as in training sequences. All pieces have the
    same modalities. What is left at the end of a source and shorter than half a passage lengthens the passage before
    it: a record of its own would mostly give padding.
    """

    def __init__(self, config: PassagesConfig, source: str) -> None:
        self.source = source
        self.dropped: list[str] = []
        """Ids of the pieces that `rest` has left out."""
        self._shortest = config.shortest_tokens
        self._enough = max(config.tokens, config.shortest_tokens)
        self._whole: list[Piece] = []  # a passage, held back for what may be left
        self._pieces: list[Piece] = []
        self._text = 0
        self._speech = 0

    def add(self, piece: Piece) -> Record | None:
        """Add a piece. If it completes a passage, returns the passage before that one, if there is one."""
        assert not self._pieces or piece.modalities == self._pieces[0].modalities, "pieces of one kind are joined"
        self._pieces.append(piece)
        self._text += 0 if piece.text_ids is None else len(piece.text_ids) + 1
        self._speech += 0 if piece.units is None else len(piece.units) + 1
        if self._least() < self._enough:
            return None
        before, self._whole = self._whole, self._pieces
        self._clear()
        return _join(before, self.source) if before else None

    def rest(self) -> list[Record]:
        """The passages that are left at the end of a source.

        Pieces that would make too short a passage, and follow none, are left out; their ids are added to `dropped`.
        """
        passages = [self._whole] if self._whole else []
        if self._pieces and self._whole and 2 * self._least() < self._enough:
            passages = [[*self._whole, *self._pieces]]
        elif self._pieces and self._length() >= self._shortest:
            passages.append(self._pieces)
        else:
            self.dropped.extend(piece.id for piece in self._pieces)
        self._whole = []
        self._clear()
        return [_join(pieces, self.source) for pieces in passages]

    def _least(self) -> int:
        """Tokens of the modality that has fewer so far."""
        has_text, has_speech, _ = self._pieces[0].modalities
        return min([self._text] * has_text + [self._speech] * has_speech)

    def _length(self) -> int:
        """Tokens of the speech; of a text without speech, its own."""
        return self._speech or self._text

    def _clear(self) -> None:
        self._pieces, self._text, self._speech = [], 0, 0


def _join(pieces: Sequence[Piece], source: str) -> Record:
    has_text, has_speech, is_aligned = pieces[0].modalities
    text_ids, text_ends = _concatenate([piece.text_ids for piece in pieces]) if has_text else (_NO_ENDS, _NO_ENDS)
    units, unit_ends = (
        _concatenate([piece.units for piece in pieces]) if has_speech else (np.zeros((0, 1), np.uint16), _NO_ENDS)
    )
    run_lengths = _concatenate([piece.run_lengths for piece in pieces])[0] if has_speech else np.zeros(0, np.uint16)
    return Record(
        id=pieces[0].id,
        source=source,
        text_ids=text_ids.astype(np.uint32),
        units=units.astype(np.uint16),
        run_lengths=run_lengths.astype(np.uint16),
        word_text_ends=_moved([piece.word_text_ends for piece in pieces], text_ends) if is_aligned else _NO_ENDS,
        word_unit_ends=_moved([piece.word_unit_ends for piece in pieces], unit_ends) if is_aligned else _NO_ENDS,
        utterance_text_ends=text_ends,
        utterance_unit_ends=unit_ends,
    )


def _concatenate(arrays: Sequence[Array | None]) -> tuple[Array, npt.NDArray[np.uint32]]:
    """The concatenated arrays, and where each ends."""
    present = [array for array in arrays if array is not None]
    assert len(present) == len(arrays)
    return np.concatenate(present), np.cumsum([len(array) for array in present]).astype(np.uint32)


def _moved(ends: Sequence[Array | None], piece_ends: Array) -> npt.NDArray[np.uint32]:
    """Ends of words counted from the beginning of the passage."""
    begins = np.concatenate(([0], piece_ends[:-1])).astype(np.int64)
    parts = [words.astype(np.int64) + begin for words, begin in zip(ends, begins, strict=True) if words is not None]
    assert len(parts) == len(ends)
    return np.concatenate(parts).astype(np.uint32)
