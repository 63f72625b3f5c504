"""Synthetic batches look like real ones."""

import pytest
import torch

from tolktrain.benchmark.synthetic import Speech, random_batches, units_per_word
from tolktrain.config.data import InterleavingConfig
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError

PUBLISHED = InterleavingConfig()


def make(share: float, codebooks: int = 1, seed: int = 0, spans: InterleavingConfig = PUBLISHED) -> list[Batch]:
    speech = Speech(500, codebooks, units_per_word(share, spans, codebooks))
    return random_batches(3, 8, 1024, 49152, speech, spans, seed)


@pytest.mark.parametrize("codebooks", [1, 4])
@pytest.mark.parametrize("share", [0.4, 0.46, 0.7, 0.9])
def test_the_share_of_speech(share: float, codebooks: int) -> None:
    batches = make(share, codebooks)
    found = sum(batch.segments.num_positions for batch in batches) / (3 * 8 * 1024)
    assert found == pytest.approx(share, abs=0.03)


def test_batches_are_whole_and_follow_from_the_seed() -> None:
    batches, again, other = make(0.46), make(0.46), make(0.46, seed=1)
    for batch, same in zip(batches, again, strict=True):
        assert batch.tokens.shape == (8, 1, 1024)
        assert torch.equal(batch.tokens, same.tokens)
        # Switches alone are not scored: no sequence was padded.
        switches = (batch.targets[:, 0] == 49154) & ~batch.text_pred & ~batch.speech_pred
        assert batch.num_text_scored + batch.num_speech_scored + int(switches.sum()) == 8 * 1024
    assert not torch.equal(batches[0].tokens, batches[1].tokens)
    assert not torch.equal(batches[0].tokens, other[0].tokens)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 0.05])
def test_shares_that_cannot_be_made(share: float) -> None:
    with pytest.raises(UserError, match="--speech-share"):
        units_per_word(share, PUBLISHED, 1)


def test_the_least_share_is_named() -> None:
    with pytest.raises(UserError, match=r"use 0\.27 or more"):
        units_per_word(0.2, PUBLISHED, 1)
    assert units_per_word(0.27, PUBLISHED, 1) >= 1
