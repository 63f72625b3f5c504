"""Bootstrap intervals of shares."""

import numpy as np
import pytest
from scipy.stats import beta, norm

from tolktrain.evaluate.intervals import share_interval


def test_independent_choices_have_the_width_of_the_normal_approximation() -> None:
    values = (np.arange(400) % 4 > 0).astype(float)
    low, high = share_interval(values, range(400))
    half = norm.ppf(0.975) * np.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.005) and high == pytest.approx(0.75 + half, abs=0.005)


def test_copies_of_a_choice_add_nothing() -> None:
    values = (np.arange(40) % 4 > 0).astype(float)
    once = share_interval(values, range(40))
    assert share_interval(np.repeat(values, 25), np.repeat(np.arange(40), 25).tolist()) == pytest.approx(once)
    # Counted as independent, they would narrow the interval fivefold.
    low, high = share_interval(np.repeat(values, 25), range(1000))
    assert high - low < (once[1] - once[0]) / 4


def test_order_of_groups_does_not_matter_for_equal_groups() -> None:
    assert share_interval(np.full(30, 0.5), range(30)) == (0.5, 0.5)


def test_all_right_or_all_wrong_is_clopper_pearson_over_the_groups() -> None:
    groups = np.repeat(np.arange(40), 5).tolist()
    assert share_interval(np.ones(200), groups) == (pytest.approx(beta.ppf(0.025, 40, 1)), 1.0)
    assert share_interval(np.zeros(200), groups) == (0.0, pytest.approx(beta.ppf(0.975, 1, 40)))
