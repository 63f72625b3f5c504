"""Held-out sources and speakers."""

from hypothesis import given
from hypothesis import strategies as st

from tolktrain.config.prepare import HeldOutConfig
from tolktrain.prepare.job.splits import HELDOUT_SOURCES, HELDOUT_SPEAKERS, TRAIN, split_of

ENTRIES = [(f"book {number % 300}", f"reader {number % 90}") for number in range(3000)]


def test_training_shares_no_name_with_what_is_held_out() -> None:
    config = HeldOutConfig(sources=0.1, speakers=0.1)
    items = {
        split: [item for item in ENTRIES if split_of(config, *item) == split]
        for split in (TRAIN, HELDOUT_SPEAKERS, HELDOUT_SOURCES)
    }
    assert sum(map(len, items.values())) == len(ENTRIES) and all(items.values())
    speakers = {split: {speaker for _, speaker in found} for split, found in items.items()}
    sources = {split: {source for source, _ in found} for split, found in items.items()}
    assert not speakers[TRAIN] & speakers[HELDOUT_SPEAKERS] and not sources[TRAIN] & sources[HELDOUT_SOURCES]


def test_shares_are_met() -> None:
    config = HeldOutConfig(sources=0.2, speakers=0.0)
    held_out = sum(split_of(config, f"source {number}") != TRAIN for number in range(20_000))
    assert abs(held_out / 20_000 - 0.2) < 0.01


def test_shares_of_zero_keep_everything_and_other_seeds_choose_others() -> None:
    nothing = HeldOutConfig(sources=0, speakers=0)
    assert all(split_of(nothing, *item) == TRAIN for item in ENTRIES)
    chosen = [
        {item for item in ENTRIES if split_of(HeldOutConfig(sources=0.3, seed=seed), *item) != TRAIN} for seed in (0, 1)
    ]
    assert chosen[0] != chosen[1]


def test_a_larger_share_only_adds_sources() -> None:
    few, many = (
        {item for item in ENTRIES if split_of(HeldOutConfig(sources=share, speakers=0), *item) != TRAIN}
        for share in (0.1, 0.3)
    )
    assert few < many


@given(st.text(), st.text())
def test_any_name_has_a_split(source: str, speaker: str) -> None:
    split = split_of(HeldOutConfig(sources=0.5, speakers=0.5), source, speaker)
    assert split in (TRAIN, HELDOUT_SOURCES, HELDOUT_SPEAKERS) and (speaker or split != HELDOUT_SPEAKERS)
