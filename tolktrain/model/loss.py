"""The loss: (text nll + speech nll) / scored positions - weight * entropy / positions that predict speech.

The entropy is that of all positions of the documents with a scored speech target. A sequence is one document, unless it
is packed; the padding at its end belongs to the last one.

All counts are those of the whole global batch, over all ranks and micro batches. So the loss and the gradients do not
depend on the micro batch, the accumulation and the layout.

Of preferences, the loss is that of `model.preference`, divided by the pairs of the global batch, without the entropy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tolktrain.model.preference import PreferenceSums


class LossSums(NamedTuple):
    """Sums over a micro batch, so that any split of a global batch adds up to the same loss. Float32, []."""

    text_nll: Tensor  # nats, over the positions scored as text
    speech_nll: Tensor  # nats, over the positions scored as speech, codebooks summed
    entropy: Tensor  # nats, of the layer selector over all positions of the documents that predict speech

    def detached(self) -> Tensor:
        """The three sums without their gradients, float64 [3]."""
        return torch.stack([part.detach().double() for part in self])


class ComparedSums(NamedTuple):
    """The sums of a micro batch of preferences."""

    plain: LossSums  # without gradients
    preference: PreferenceSums
    log_probs: Tensor  # [2P] float64: of each document, in nats, without gradient

    def detached(self) -> Tensor:
        """All sums without their gradients, float64 [7]."""
        return torch.cat((self.plain.detached(), torch.stack([part.detach() for part in self.preference])))


def num_sums(has_pairs: bool) -> int:
    """How many sums `detached` returns."""
    return len(LossSums._fields) + has_pairs * len(PreferenceSums._fields)


class LossCounts(NamedTuple):
    """The divisors of the loss: counts of the whole global batch, over all ranks and micro batches."""

    num_text: int  # positions scored as text
    num_speech: int  # positions scored as speech
    num_entropy: int  # positions of the documents that predict speech
    num_pairs: int = 0  # of preferences

    @property
    def num_scored(self) -> int:
        """Positions scored as text or speech."""
        return self.num_text + self.num_speech


def loss_from_sums(sums: LossSums, num_scored: int, num_entropy_positions: int, entropy_weight: float) -> Tensor:
    """A micro batch's share of the loss. The shares of all micro batches add up to the loss of the global batch.

    Args:
        sums: of the micro batch.
        num_scored: positions scored as text or speech in the global batch.
        num_entropy_positions: positions of the documents that predict speech in the global batch; may be 0.
        entropy_weight: of the selector's entropy, in nats.
    """
    loss = (sums.text_nll + sums.speech_nll) / max(num_scored, 1)
    if num_entropy_positions == 0 or entropy_weight == 0.0:
        return loss
    return loss - sums.entropy * (entropy_weight / num_entropy_positions)


def loss_to_train(sums: LossSums | ComparedSums, counts: LossCounts, entropy_weight: float) -> Tensor:
    """A micro batch's share of the loss, of either kind, and NaN if it is not finite.

    A non-finite loss may have finite gradients, and DeepSpeed checks only gradients. NaN gradients reach all ranks in
    the reduction and the norm, so that all ranks skip the step.
    """
    if isinstance(sums, ComparedSums):
        loss = (sums.preference.loss / max(counts.num_pairs, 1)).to(sums.plain.text_nll.dtype)
    else:
        loss = loss_from_sums(sums, counts.num_scored, counts.num_entropy, entropy_weight)
    return loss * torch.where(torch.isfinite(loss), 1.0, math.nan)


@dataclass(frozen=True)
class PreferenceResult:
    """The result of a step on preferences: means over the pairs of the global batch."""

    loss: float  # nats
    chosen_reward: float
    rejected_reward: float
    accuracy: float  # share of pairs whose chosen answer has the higher reward

    @property
    def margin(self) -> float:
        """The reward of the chosen answer less that of the rejected one."""
        return self.chosen_reward - self.rejected_reward


@dataclass(frozen=True)
class StepResult:
    """The result of a step on a global batch: sums over all micro batches and ranks in float64, in nats."""

    text_nll: float
    speech_nll: float
    entropy: float
    counts: LossCounts
    grad_norm: float  # before clipping; infinite or NaN if the step was skipped
    skipped: bool  # the loss of a rank or the gradients were not finite, so nothing was updated
    preference: PreferenceResult | None = None  # of a step on preferences

    @classmethod
    def of(cls, sums: Sequence[float], counts: LossCounts, grad_norm: float, skipped: bool) -> "StepResult":
        """From the sums of `detached` over the global batch."""
        text_nll, speech_nll, entropy, *compared = sums
        means = [value / max(counts.num_pairs, 1) for value in compared]
        preference = PreferenceResult(*means) if compared else None
        return cls(text_nll, speech_nll, entropy, counts, grad_norm, skipped, preference)

    @property
    def text_loss(self) -> float | None:
        """Nats per position scored as text, None if there is none."""
        return self.text_nll / self.counts.num_text if self.counts.num_text else None

    @property
    def speech_loss(self) -> float | None:
        """Nats per position scored as speech (codebooks summed), None if there is none."""
        return self.speech_nll / self.counts.num_speech if self.counts.num_speech else None

    @property
    def layer_entropy(self) -> float | None:
        """Entropy of the layer selector in nats, mean over positions, None if no speech is predicted."""
        return self.entropy / self.counts.num_entropy if self.counts.num_entropy else None

    def loss(self, entropy_weight: float) -> float:
        """The trained loss: nats per scored position, less the entropy bonus; of preferences, nats per pair."""
        if self.preference is not None:
            return self.preference.loss
        mean = (self.text_nll + self.speech_nll) / max(self.counts.num_scored, 1)
        return mean - entropy_weight * (self.layer_entropy or 0.0)
