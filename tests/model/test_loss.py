"""What is trained is what is reported."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.model.loss import LossCounts, LossSums, StepResult, loss_from_sums, loss_to_train

SUMS = st.floats(0, 1e6)
COUNTS = st.integers(0, 10_000)


@given(SUMS, SUMS, SUMS, COUNTS, COUNTS, COUNTS, st.sampled_from([0.0, 0.01, 0.5]))
def test_the_reported_loss_is_the_trained_one(
    text: float, speech: float, entropy: float, num_text: int, num_speech: int, num_entropy: int, weight: float
) -> None:
    """Both are written down, since rounding differs: one is float32 with gradients, the other float64 of all ranks."""
    counts = LossCounts(num_text, num_speech, num_entropy)
    sums = LossSums(*(torch.tensor(value, dtype=torch.float64) for value in (text, speech, entropy)))
    trained = loss_from_sums(sums, counts.num_scored, counts.num_entropy, weight)
    reported = StepResult(text, speech, entropy, counts, grad_norm=1.0, skipped=False).loss(weight)
    assert reported == pytest.approx(float(trained), rel=1e-12, abs=1e-9)


def test_the_shares_of_micro_batches_add_up() -> None:
    counts, generator = LossCounts(30, 20, 40), torch.Generator().manual_seed(0)
    micro_batches = [LossSums(*torch.rand(3, generator=generator, dtype=torch.float64)) for _ in range(4)]
    whole = LossSums(*(torch.stack(parts).sum() for parts in zip(*micro_batches, strict=True)))
    shares = sum(float(loss_to_train(sums, counts, 0.1)) for sums in micro_batches)
    assert shares == pytest.approx(float(loss_to_train(whole, counts, 0.1)), rel=1e-12)
