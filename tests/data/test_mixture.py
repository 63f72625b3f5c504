"""Shares of data sets and strategies."""

import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tolktrain.config.data import Mixture, MixtureEntry
from tolktrain.data.mixture import MixturePlan


def mixture(**entries: tuple[float, dict[str, float]]) -> Mixture:
    return {name: MixtureEntry(weight=weight, sets=sets) for name, (weight, sets) in entries.items()}  # type: ignore[misc]


RECIPE = mixture(
    speech=(1.0, {"libri": 3.0, "tales": 1.0}),
    text=(1.0, {"web": 1.0}),
    interleaved=(2.0, {"tales": 0.5, "libri": 0.5}),
)


def test_shares_multiply() -> None:
    plan = MixturePlan.from_config(RECIPE)
    assert plan.names == ("libri", "tales", "web")
    assert plan.shares == pytest.approx((0.25 * 0.75 + 0.25, 0.25 * 0.25 + 0.25, 0.25))
    assert plan.strategies == (("speech", "interleaved"), ("speech", "interleaved"), ("text",))
    assert plan.cumulative[0] == pytest.approx((0.1875 / 0.4375, 1.0))


def test_the_order_of_keys_has_no_effect() -> None:
    backwards = {
        name: MixtureEntry(weight=entry.weight, sets=dict(reversed(entry.sets.items())))
        for name, entry in reversed(RECIPE.items())
    }
    assert MixturePlan.from_config(backwards) == MixturePlan.from_config(RECIPE)


def test_strategies_are_drawn_by_their_shares_from_record_epoch_and_seed() -> None:
    plan = MixturePlan.from_config(RECIPE)
    drawn = [plan.strategy(0, f"r{i}", i % 3, 1) for i in range(3000)]
    assert drawn == [plan.strategy(0, f"r{i}", i % 3, 1) for i in range(3000)]
    share = Counter(drawn)["speech"] / 3000
    assert share == pytest.approx(0.1875 / 0.4375, abs=0.03)
    for other in ([plan.strategy(0, f"r{i}", i % 3 + 1, 1) for i in range(3000)],
                  [plan.strategy(0, f"r{i}", i % 3, 2) for i in range(3000)]):  # fmt: skip
        assert 0.4 < np.mean([a == b for a, b in zip(drawn, other, strict=True)]) < 0.6
    assert plan.strategy(2, "r", 0, 0) == "text"


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    multiple=st.integers(1, 100),
)
def test_an_epoch_takes_no_record_twice(sizes: list[int], weights: list[float], multiple: int) -> None:
    names = [f"s{i}" for i in range(len(sizes))]
    plan = MixturePlan.from_config(mixture(text=(1.0, dict(zip(names, weights, strict=False)))))
    counts = plan.counts(sizes, multiple)
    epoch = sum(counts)
    assert epoch % multiple == 0
    largest = min(size / share for size, share in zip(sizes, plan.shares, strict=True))
    if largest >= max(multiple, len(sizes)):
        assert epoch > largest - multiple - 1
        assert all(count <= size for count, size in zip(counts, sizes, strict=True))
    if epoch >= len(sizes):
        assert all(abs(c - epoch * share) < len(sizes) or c == 1 for c, share in zip(counts, plan.shares, strict=True))


def test_whole_sets_are_used() -> None:
    assert MixturePlan.from_config(mixture(text=(1.0, {"a": 1.0}))).counts([430], 16) == (416,)
    thirds = MixturePlan.from_config(mixture(text=(1.0, {"a": 1.0, "b": 2.0})))
    assert thirds.counts([160, 320], 16) == (160, 320)


def test_repeats_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    plan = MixturePlan.from_config(mixture(text=(1.0, {"a": 1.0, "b": 1.0})))
    with caplog.at_level(logging.WARNING):
        assert plan.counts([5, 100], 16) == (8, 8)
    assert "data set a has 5 records, but an epoch of 16 sequences takes 8" in caplog.text
