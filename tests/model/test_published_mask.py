"""The adapter mask of the published training code: equal to runs where a sequence begins with text, known otherwise."""

import torch

from tolktrain.model.published_mask import published_adapter_mask


def mask_of(pattern: str) -> torch.Tensor:
    return published_adapter_mask(torch.tensor([[letter == "s" for letter in pattern]]))[0, 0]


def seen(mask: torch.Tensor, row: int) -> list[int]:
    return mask[row].nonzero().flatten().tolist()


def test_sequences_that_begin_with_text_attend_inside_runs() -> None:
    mask = mask_of("ttsstsss")
    assert [seen(mask, row) for row in (0, 1, 4)] == [[0], [1], [4]]
    assert [seen(mask, row) for row in (2, 3, 5, 6, 7)] == [[2], [2, 3], [5], [5, 6], [5, 6, 7]]


def test_sequences_that_begin_with_speech_see_the_text_before_later_runs() -> None:
    mask = mask_of("ssttssts")
    assert [seen(mask, row) for row in (0, 1)] == [[0], [0, 1]]
    assert [seen(mask, row) for row in (4, 5, 7)] == [[2, 3, 4], [2, 3, 4, 5], [6, 7]]


def test_the_last_run_sees_nothing_where_the_sequence_begins_with_speech_and_ends_with_text() -> None:
    mask = mask_of("sttsst")
    assert seen(mask, 3) == seen(mask, 4) == []
    assert not mask_of("sst")[:2].any()


def test_speech_alone_is_causal() -> None:
    assert torch.equal(mask_of("ssss"), torch.ones(4, 4, dtype=torch.bool).tril())
