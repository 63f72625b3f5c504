"""Debiased linear CKA of text and speech: HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)).

CKA is Kornblith et al.'s (2019) with the unbiased estimate of HSIC (Song et al. 2012), as Nguyen et al. (2021) use it.
The plain estimate is far above 0 for unrelated vectors if there are not many more words than dimensions.
"""

import math

from tolktrain.analyze.measures.base import Curve, Measure, Numbers, Panel
from tolktrain.analyze.moments import PairMoments


def debiased_cka(moments: PairMoments) -> float | None:
    """1 for vectors that are equal up to rotation, shift and scale; about 0 for unrelated ones; None if those of one
    side do not vary."""
    between, first, second = moments.hsic()
    if first <= 0 or second <= 0:
        return None
    return between / math.sqrt(first * second)


class Cka(Measure):
    """How alike the distances between words are in both modalities."""

    title = "CKA"
    needs = frozenset({"moments"})
    panels = (Panel("debiased linear CKA, text and speech", (Curve("cka", "CKA", "ink"),)),)
    headline = (("cka", "CKA", "share"),)

    def result(self) -> Numbers:
        """By layer: `cka`; its chance is 0."""
        return {"layers": {layer: {"cka": debiased_cka(self.task.moments[layer])} for layer in self.task.layers}}


MEASURE = Cka
