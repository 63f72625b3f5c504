"""Times of the models of a device, against the same by hand."""

import pytest

from tolktrain.cluster.accelerators import ACCELERATORS
from tolktrain.cluster.device_models import (
    ATTENTION,
    ATTENTION_BACKWARD,
    BOUND,
    LIKELY,
    MEMORY,
    PRODUCT,
    SUSTAINED,
    VOCABULARY_PRODUCT,
    Work,
)

H100 = next(device for device in ACCELERATORS if device.name == "h100")


def test_products_take_what_their_width_allows() -> None:
    work = Work(PRODUCT, bytes=1e6, flops=989.4e12, width=576)
    assert LIKELY.seconds(work, H100) == pytest.approx(1 / 0.50 + 1e-6)
    assert BOUND.seconds(work, H100) == pytest.approx(1 / 0.70)
    wider = Work(PRODUCT, bytes=1e6, flops=989.4e12, width=(960 + 2048) / 2)
    assert LIKELY.seconds(wider, H100) == pytest.approx(1 / 0.63 + 1e-6)
    narrow = Work(PRODUCT, bytes=1e6, flops=989.4e12, width=128)
    assert LIKELY.seconds(narrow, H100) == pytest.approx(1 / 0.16 + 1e-6)
    table = Work(VOCABULARY_PRODUCT, bytes=1e6, flops=989.4e12, width=576)
    assert LIKELY.seconds(table, H100) == pytest.approx(1 / 0.58 + 1e-6)


def test_everything_else_takes_what_it_moves_and_its_launches() -> None:
    work = Work(MEMORY, bytes=3.35e12, launches=1000)
    assert BOUND.seconds(work, H100) == pytest.approx(1 / 0.892)
    assert LIKELY.seconds(work, H100) == pytest.approx(1 / (0.92 * 0.892) + 1e-3)
    assert BOUND.seconds(Work(MEMORY, bytes=4.0, launches=2), H100) == pytest.approx(6e-6)
    # A product that computes little takes the time of its bytes.
    assert BOUND.seconds(Work(PRODUCT, bytes=3.35e12, flops=1.0, width=64), H100) == pytest.approx(1 / 0.892)


def test_measured_rates_replace_those_that_were_measured() -> None:
    """They are fractions of the data sheet's figures. What was measured is not scaled by what trainings sustain."""
    measured = SUSTAINED.measured({"copy": 0.5, "attention": 0.4, "products": (0.6,) * 6})
    assert measured.name == "sustained, measured rates"
    assert measured.seconds(Work(MEMORY, bytes=3.35e12), H100) == pytest.approx(2 + 1e-6)
    assert measured.seconds(Work(ATTENTION, bytes=1.0, flops=989.4e12), H100) == pytest.approx(1 / 0.4 + 1e-6)
    for kind in (PRODUCT, VOCABULARY_PRODUCT):
        product = Work(kind, bytes=1.0, flops=989.4e12, width=576)
        assert measured.seconds(product, H100) == pytest.approx(1 / 0.6 + 1e-6)
    backward = Work(ATTENTION_BACKWARD, bytes=1.0, flops=989.4e12)
    assert measured.seconds(backward, H100) == SUSTAINED.seconds(backward, H100)
    assert LIKELY.measured({}) == LIKELY


def test_trainings_sustain_a_fraction_of_products_and_attention() -> None:
    for kind in (PRODUCT, VOCABULARY_PRODUCT, ATTENTION, ATTENTION_BACKWARD):
        work = Work(kind, bytes=1.0, flops=989.4e12, width=2048, launches=0)
        assert SUSTAINED.seconds(work, H100) == pytest.approx(LIKELY.seconds(work, H100) / H100.sustained)
    moved = Work(MEMORY, bytes=3.35e12, launches=0)
    assert SUSTAINED.seconds(moved, H100) == pytest.approx(1 / 0.65)
