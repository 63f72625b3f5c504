"""The positions that a model has read: ids and modality of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tolktrain.data.sequences import BoolArray, IntArray, SequenceWriter
from tolktrain.data.strategies.conversation import Segment
from tolktrain.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Context:
    """The context of the model: n positions."""

    tokens: IntArray  # [K, n]
    is_speech: BoolArray  # [n]

    @classmethod
    def of_speech(cls, units: IntArray, vocabulary: Vocabulary, switch: bool = False) -> "Context":
        """A speech segment [n, K], EOS rows included, then the switch token if requested."""
        writer = SequenceWriter(vocabulary, len(units) + vocabulary.num_codebooks - 1 + switch)
        writer.speech(units)
        if switch:
            writer.special(vocabulary.switch)
        return cls(writer.tokens, writer.is_speech)

    @classmethod
    def of_text(cls, ids: Sequence[int], vocabulary: Vocabulary, switch: bool = False) -> "Context":
        """Text ids, EOS included, then the switch token if requested."""
        writer = SequenceWriter(vocabulary, len(ids) + switch)
        writer.text(np.asarray(ids, np.int64))
        if switch:
            writer.special(vocabulary.switch)
        return cls(writer.tokens, writer.is_speech)

    @classmethod
    def of_segments(cls, segments: Sequence[Segment], vocabulary: Vocabulary) -> "Context":
        """What the strategies write."""
        writer = SequenceWriter(vocabulary, sum(part.num_tokens(vocabulary.num_codebooks - 1) for part in segments))
        for segment in segments:
            segment.write(writer)
        return cls(writer.tokens, writer.is_speech)

    def __len__(self) -> int:
        return len(self.is_speech)

    def last(self, count: int) -> "Context":
        """The last positions."""
        return Context(self.tokens[:, -count:], self.is_speech[-count:])


class GrowingContexts:
    """Contexts that grow together, each inside a window of positions.

    A context that would exceed the window continues with its last half window. So a model with caches reads half a
    window again only once every half window, and not at every step.
    """

    def __init__(self, contexts: Sequence[Context], window: int) -> None:
        """Contexts longer than the window lose their oldest positions."""
        self.window = window
        contexts = [context.last(window) for context in contexts]
        self.lengths: IntArray = np.array([len(context) for context in contexts], np.int64)
        shape = (len(contexts), contexts[0].tokens.shape[0], max(self.lengths))
        self._tokens: IntArray = np.zeros(shape, np.int64)
        self._is_speech: BoolArray = np.zeros((shape[0], shape[2]), np.bool_)
        for row, context in enumerate(contexts):
            self._tokens[row, :, : len(context)] = context.tokens
            self._is_speech[row, : len(context)] = context.is_speech

    def __len__(self) -> int:
        return len(self.lengths)

    def extend(self, columns: IntArray, speech: bool) -> IntArray:
        """Add a position [B, K] to each; returns the rows of the contexts that were cut: [n]."""
        size = self._is_speech.shape[1]
        if max(self.lengths) == size < self.window:
            more = min(self.window, max(2 * size, 64)) - size
            self._tokens = np.pad(self._tokens, ((0, 0), (0, 0), (0, more)))
            self._is_speech = np.pad(self._is_speech, ((0, 0), (0, more)))
        cut = np.flatnonzero(self.lengths == self.window)
        kept = max(self.window // 2, 1) - 1
        for row in cut:
            begin = self.window - kept
            self._tokens[row, :, :kept] = self._tokens[row, :, begin:].copy()
            self._is_speech[row, :kept] = self._is_speech[row, begin:].copy()
        self.lengths[cut] = kept
        rows = np.arange(len(self))
        self._tokens[rows, :, self.lengths] = columns
        self._is_speech[rows, self.lengths] = speech
        self.lengths += 1
        return cut

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these contexts, in this order; one that is named several times grows in several ways."""
        chosen = np.asarray(rows)
        self.lengths, self._tokens = self.lengths[chosen], self._tokens[chosen]
        self._is_speech = self._is_speech[chosen]

    def arrays(self, rows: IntArray) -> tuple[IntArray, BoolArray, IntArray]:
        """Of some contexts, padded at their ends with text: tokens [n, K, T], is_speech [n, T], lengths [n]."""
        lengths = self.lengths[rows]
        longest = int(max(lengths))
        tokens, is_speech = self._tokens[rows, :, :longest], self._is_speech[rows, :longest]
        padding = np.arange(longest) >= lengths[:, None]
        return np.where(padding[:, None], 0, tokens), is_speech & ~padding, lengths

    def segment_lengths(self, rows: IntArray) -> IntArray:
        """Positions of the speech segment that each context ends with: [n], 0 after text."""
        _, is_speech, lengths = self.arrays(rows)
        from_end = [is_speech[row, :length][::-1] for row, length in enumerate(lengths)]
        return np.array([len(row) if row.all() else int(np.argmin(row)) for row in from_end], np.int64)
