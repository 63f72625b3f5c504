"""Likelihoods of token sequences, batched by length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np

from tolktrain.data.batch import Batch, collate
from tolktrain.data.sequences import Sequence as TokenSequence
from tolktrain.errors import UserError
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.parallel.collectives import all_gather_objects

TokenNll = Callable[[Batch], FloatArray]
"""Negative log-likelihood of the targets of a batch in nats, [B, T]; 0 where nothing is scored."""

TIE = 0.5
"""Points of a choice between two equal scores, as in the scorers of ZeroSpeech, SALMon and slamkit."""

_ROUNDING = 1e-9
"""Relative difference up to which two scores are equal: a float64 mean of equal numbers is not always that number."""


T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The part of the work that this process does: every `world_size`-th batch, whatever it costs."""

    rank: int = 0
    world_size: int = 1
    touch: Callable[[], None] = lambda: None  # called after each batch, for the watchdog

    def of(self, batches: Sequence[T]) -> Sequence[T]:
        """This rank's."""
        return batches[self.rank :: self.world_size]

    def gather(self, own: Callable[[], T]) -> list[T]:
        """What `own` returns on all ranks, in their order. Raises UserError on all of them if one rank does."""
        if self.world_size == 1:
            return [own()]
        try:
            result: tuple[T | None, str | None] = own(), None
        except UserError as error:
            result = None, str(error)
        gathered = all_gather_objects(result)
        for _, message in gathered:
            if message is not None:
                raise UserError(message)
        return [cast(T, value) for value, _ in gathered]


WHOLE = Share()


def points(better: FloatArray, worse: FloatArray) -> FloatArray:
    """1 where `better` is greater, `TIE` where both are equal, else 0; float64, in the shape of the arrays.

    Raises AssertionError for NaN, which callers report with the name of the item.
    """
    assert not np.isnan(better).any() and not np.isnan(worse).any(), "NaN is reported before scores are compared"
    equal = np.isclose(better, worse, rtol=_ROUNDING, atol=0.0)
    return np.where(equal, TIE, (better > worse).astype(np.float64))


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of sequences in batches of at most `batch_tokens` positions with padding (or one sequence), longest
    first."""
    order = np.argsort(lengths, kind="stable")[::-1].tolist()
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[begin]]))
        batches.append(order[begin : begin + size])
        begin += size
    return batches


def nll_rows(
    sequences: Sequence[TokenSequence],
    token_nll: TokenNll,
    text_eos: int,
    batch_tokens: int,
    share: Share = WHOLE,
) -> Iterator[tuple[int, FloatArray]]:
    """Index of each sequence and the negative log-likelihoods of its targets: float64 [length - 1] in nats, 0 where
    nothing is scored. Entry i belongs to token i + 1. In the order of `length_batches`; of a share, only its batches.

    Raises:
        UserError: a likelihood is not a finite number; names the sequence by its `record_id`.
    """
    for rows in share.of(length_batches([sequence.length for sequence in sequences], batch_tokens)):
        longest = max(sequences[row].length for row in rows)
        batch = collate([padded(sequences[row], longest, text_eos) for row in rows])
        nll = token_nll(batch) * (batch.text_pred | batch.speech_pred).numpy()
        for row, values in zip(rows, nll, strict=True):
            kept = values[: sequences[row].length - 1]
            if not np.isfinite(kept).all():
                raise UserError(
                    f"{sequences[row].record_id}: the likelihood of a token is not a finite number; the weights of this"
                    " checkpoint are damaged or training has diverged: evaluate an earlier checkpoint"
                )
            yield row, kept


def mean_log_likelihoods(
    sequences: Sequence[TokenSequence],
    token_nll: TokenNll,
    text_eos: int,
    batch_tokens: int,
    share: Share = WHOLE,
) -> FloatArray:
    """Mean log-likelihood per scored position of each sequence, float64 [n], on every rank. Collective if the work is
    shared. Raises UserError as `nll_rows`."""

    def own() -> dict[int, float]:
        found = {}
        for row, nll in nll_rows(sequences, token_nll, text_eos, batch_tokens, share):
            scored = sequences[row].scored[1 : sequences[row].length]
            found[row] = float(-nll.sum() / scored.sum())
            share.touch()
        return found

    scores = np.zeros(len(sequences))
    for part in share.gather(own):
        for row, value in part.items():
            scores[row] = value
    return scores


def padded(sequence: TokenSequence, size: int, text_eos: int) -> TokenSequence:
    """The sequence with `size` tokens, EOS of text after its own; nothing of the padding is scored."""
    missing = size - sequence.length
    tokens = np.pad(sequence.tokens[:, : sequence.length], ((0, 0), (0, missing)))
    tokens[0, sequence.length :] = text_eos
    return replace(
        sequence,
        tokens=tokens,
        is_speech=np.pad(sequence.is_speech[: sequence.length], (0, missing)),
        scored=np.pad(sequence.scored[: sequence.length], (0, missing)),
    )
