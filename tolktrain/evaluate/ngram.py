"""Interpolated bigram models: the baselines that held-out losses are compared with.

Jelinek-Mercer interpolation: p(y | x) = w2 c(x, y) / c(x) + w1 c(y) / N + w0 / V. The three weights are fitted by
expectation maximization on a tenth of the training records while the counts come from the other nine tenths; the
counts are then taken from all of them. Where a history was never seen (the first token after a switch, for example),
its weight goes to the unigram, so the probabilities sum to one for every history.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

UNKNOWN = -1
"""History of a token whose predecessor is of no known kind, such as a switch token or padding."""

_FOLDS = 10
_EM_STEPS = 200
_EM_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Bigram:
    """An interpolated bigram model over the ids 0..vocab_size-1.

    Attributes:
        vocab_size: number of ids.
        pairs: int64 [P], sorted codes `history * vocab_size + target` of the pairs that were seen.
        pair_counts: float64 [P].
        history_counts: float64 [vocab_size], how often an id was a history.
        target_counts: float64 [vocab_size], how often an id was seen at all.
        weights: weights of bigram, unigram and uniform distribution; they sum to one.
    """

    vocab_size: int
    pairs: IntArray
    pair_counts: FloatArray
    history_counts: FloatArray
    target_counts: FloatArray
    weights: tuple[float, float, float]

    def components(self, history: IntArray, target: IntArray) -> FloatArray:
        """Probabilities [3, N] of `target`: bigram (the unigram's after unseen histories), unigram, uniform."""
        total = self.target_counts.sum()
        unigram = self.target_counts[target] / total if total else np.full(len(target), 1.0 / self.vocab_size)
        known = (history >= 0) & (history < self.vocab_size)
        safe_history = np.where(known, history, 0)
        seen = np.where(known, self.history_counts[safe_history], 0.0)
        bigram = unigram.copy()
        has_history = seen > 0
        bigram[has_history] = self._counts(safe_history[has_history], target[has_history]) / seen[has_history]
        return np.stack([bigram, unigram, np.full(len(target), 1.0 / self.vocab_size)])

    def log_probs(self, history: IntArray, target: IntArray) -> FloatArray:
        """ln p(target | history), float64 [N]; `history` may be `UNKNOWN` or any id outside the vocabulary."""
        if len(target) == 0:
            return np.zeros(0)
        if target.min() < 0 or target.max() >= self.vocab_size:
            raise ValueError(f"targets must be in 0..{self.vocab_size - 1}, got {target.min()}..{target.max()}")
        return np.log(np.asarray(self.weights) @ self.components(history, target))

    def without_history(self) -> "Bigram":
        """The unigram, with the weight that it and the bigram have together."""
        return replace(self, weights=(0.0, self.weights[0] + self.weights[1], self.weights[2]))

    def _counts(self, history: IntArray, target: IntArray) -> FloatArray:
        if len(self.pairs) == 0:
            return np.zeros(len(target))
        codes = history * self.vocab_size + target
        place = np.minimum(np.searchsorted(self.pairs, codes), len(self.pairs) - 1)
        return np.where(self.pairs[place] == codes, self.pair_counts[place], 0.0)


def count(streams: Iterable[IntArray], vocab_size: int) -> Bigram:
    """Counts of the token streams, with equal weights; no pair reaches from one stream into the next."""
    kept = [np.asarray(stream, dtype=np.int64) for stream in streams]
    tokens = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    histories = np.concatenate([s[:-1] for s in kept]) if kept else np.zeros(0, np.int64)
    targets = np.concatenate([s[1:] for s in kept]) if kept else np.zeros(0, np.int64)
    pairs, pair_counts = np.unique(histories * vocab_size + targets, return_counts=True)
    return Bigram(
        vocab_size=vocab_size,
        pairs=pairs,
        pair_counts=pair_counts.astype(np.float64),
        history_counts=np.bincount(histories, minlength=vocab_size).astype(np.float64),
        target_counts=np.bincount(tokens, minlength=vocab_size).astype(np.float64),
        weights=(1 / 3, 1 / 3, 1 / 3),
    )


def fit_weights(bigram: Bigram, streams: Sequence[IntArray]) -> Bigram:
    """The same counts with the weights that make `streams` (which the counts must not contain) most likely."""
    histories = np.concatenate([s[:-1] for s in streams]).astype(np.int64)
    targets = np.concatenate([s[1:] for s in streams]).astype(np.int64)
    if len(targets) == 0:
        return bigram
    components = bigram.components(histories, targets)
    weights = np.full(3, 1 / 3)
    for _ in range(_EM_STEPS):
        joint = weights[:, None] * components
        updated = (joint / joint.sum(axis=0)).mean(axis=1)
        converged = np.abs(updated - weights).max() < _EM_TOLERANCE
        weights = updated
        if converged:
            break
    # The uniform part must not vanish, or a pair that was never seen makes a held-out loss infinite.
    weights = np.maximum(weights, 1e-6)
    weights /= weights.sum()
    return replace(bigram, weights=(float(weights[0]), float(weights[1]), float(weights[2])))


def fit(streams: Sequence[IntArray], held_out: Sequence[bool], vocab_size: int) -> Bigram:
    """Interpolated bigram of `streams`: weights from the ones marked in `held_out` against the rest, counts from all.

    With nothing marked, or everything, the last stream replaces the tenth; a single stream leaves the weights
    equal.
    """
    marked = list(held_out)
    if len(streams) > 1 and (not any(marked) or all(marked)):
        marked = [index == len(streams) - 1 for index in range(len(streams))]
    counted = count(streams, vocab_size)
    if len(streams) < 2:
        return counted
    rest = count([s for s, out in zip(streams, marked, strict=True) if not out], vocab_size)
    weighted = fit_weights(rest, [s for s, out in zip(streams, marked, strict=True) if out])
    return replace(counted, weights=weighted.weights)


def in_held_out_tenth(key: bytes) -> bool:
    """Whether the record with this key belongs to the tenth that weights are fitted on; depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % _FOLDS == 0
