"""Predicted throughput against published trainings."""

import pytest
from published import NOT_FITTED, Comparison, comparisons, median_error


@pytest.fixture(scope="module")
def found() -> list[Comparison]:
    return list(comparisons())


def test_half_of_the_predictions_are_close(found: list[Comparison]) -> None:
    assert len(found) > 200
    assert median_error(found) < 0.08


@pytest.mark.parametrize("device", ["a100", "a100-40", "h100"])
def test_no_kind_of_device_is_far_off(found: list[Comparison], device: str) -> None:
    """One constant for each kind is fitted to these rows; sizes from 125M to 70B and 8 to 512 GPUs are not."""
    items = [item for item in found if item.device == device and item.source not in NOT_FITTED]
    assert len(items) > 50
    assert median_error(items) < 0.08
    close = sum(abs(item.error) < 0.25 for item in items)
    assert close > 0.85 * len(items)


def test_sizes_that_nothing_was_fitted_to(found: list[Comparison]) -> None:
    items = [item for item in found if item.source in ("torchtitan", "fms-fsdp") and item.device == "a100"]
    assert len(items) > 10
    assert median_error(items) < 0.15
