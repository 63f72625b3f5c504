"""The loss of preferences: DPO (arXiv 2305.18290), optionally with log-probabilities per scored position.

    reward(answer) = beta * (log p(answer) - log p_reference(answer))
    loss = mean over pairs of -log sigmoid(reward(chosen) - reward(rejected))

Normalized by length, the reward is divided by the scored positions of the answer.

The heads derive sums over rows only (`linear_cross_entropy`). So the terms are computed first without gradients; from
them follows the derivative of the loss by the log-likelihood of each document, which is the factor of its rows in a
second pass. The gradient of that sum is exactly that of the loss.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tolktrain_kernels.preference_pairs import PreferencePairs


class PreferenceSums(NamedTuple):
    """Sums over the pairs of a micro batch, in nats. Float64, []."""

    loss: Tensor  # the only one with a gradient
    chosen_reward: Tensor
    rejected_reward: Tensor
    num_correct: Tensor  # pairs whose chosen answer has the higher reward


class Comparison(NamedTuple):
    """What follows from the terms of a micro batch."""

    sums: PreferenceSums  # without gradients
    text_factors: Tensor  # [N_t] float32: derivative of the loss by the negative log-likelihood of each row
    speech_factors: Tensor  # [N_s] float32
    log_probs: Tensor  # [2P] float64: of the documents


@dataclass(frozen=True)
class Preference:
    """The pairs of a micro batch, their log-probabilities under the reference, and the constants of the loss."""

    pairs: PreferencePairs
    reference: Tensor  # [2P] float64, nats
    beta: float
    length_normalized: bool

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Preference":
        """The same with tensors on another device."""
        return replace(
            self,
            pairs=self.pairs.to(device, non_blocking=non_blocking),
            reference=self.reference.to(device, non_blocking=non_blocking),
        )

    @torch.no_grad()
    def compare(self, text_terms: Tensor, speech_terms: Tensor) -> Comparison:
        """Compare the documents of each pair, from negative log-likelihoods of the scored rows [N_t] and [N_s]."""
        pairs = self.pairs
        log_probs = torch.zeros_like(self.reference)
        log_probs.index_add_(0, pairs.text, -text_terms.double())
        log_probs.index_add_(0, pairs.speech, -speech_terms.double())
        scale = self.beta / pairs.lengths if self.length_normalized else torch.full_like(pairs.lengths, self.beta)
        chosen, rejected = ((log_probs - self.reference) * scale).view(-1, 2).unbind(1)
        margin = chosen - rejected
        sums = PreferenceSums(
            -functional.logsigmoid(margin).sum(), chosen.sum(), rejected.sum(), (margin > 0).double().sum()
        )
        slope = torch.sigmoid(-margin)
        factors = torch.stack((slope, -slope), dim=1).flatten() * scale
        text, speech = (factors.index_select(0, rows).float() for rows in (pairs.text, pairs.speech))
        return Comparison(sums, text, speech, log_probs)
