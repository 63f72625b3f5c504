"""Additive compositionality: how much of a span's vector is a weighted sum of the vectors of its words.

The span and each of its words are read alone, after EOS, and the vector is the state at the end. The model of a span s
is s = b + a_1 w_1 + ... + a_m w_m with a vector b and one weight per place, fitted by least squares over all spans; the
number is the share of variance that it explains, 1 - error / variance. It is the additive form of the tree
reconstruction error (Andreas 2019), with the model's own vectors of words as primitives.
"""

import torch
from torch import Tensor

from tolktrain.analyze.measures.base import Curve, Measure, Numbers, Panel, Task
from tolktrain.analyze.sample import SPAN_WORDS
from tolktrain.data.sequences import IntArray

_SIDES = ("text", "speech")


class AdditiveSums:
    """Sums over spans, in float64. Memory: (m + 1) (D + m + 1) numbers."""

    def __init__(self) -> None:
        self.count = 0
        self._origins: Tensor | None = None  # [m + 1, D]
        self._sums = self._products = torch.zeros(0)

    def add(self, states: Tensor) -> None:
        """States [n, m + 1, D] of the words and the whole."""
        if not len(states):
            return
        states = states.double()
        if self._origins is None:
            self._origins = states.mean(dim=0)
            self._sums = torch.zeros_like(self._origins)
            self._products = states.new_zeros(states.shape[1], states.shape[1])
        states = states - self._origins
        self._sums += states.sum(dim=0)
        self._products += torch.einsum("nid,njd->ij", states, states)
        self.count += len(states)

    def fit(self) -> Numbers:
        """`explained` share of variance, that by the last word alone (`explained_by_last`), and the `weights` [m].

        None in their place if the spans do not vary.
        """
        products = (self._products - self._sums @ self._sums.T / max(self.count, 1)).cpu()
        parts, cross, total = products[:-1, :-1], products[:-1, -1], float(products[-1, -1])
        # Rounding of the sums leaves something of a variance that is zero.
        if self.count < 2 or total <= 1e-12 * float(self._products[-1, -1].clamp(min=1e-300)):
            return {"explained": None, "explained_by_last": None, "weights": None}
        weights = torch.linalg.lstsq(parts, cross[:, None], driver="gelsd").solution[:, 0]
        own = float(parts[-1, -1])
        last = float(cross[-1]) ** 2 / own if own > 0 else 0.0
        return {
            "explained": float(weights @ cross) / total,
            "explained_by_last": last / total,
            "weights": weights.tolist(),
        }


class Additive(Measure):
    """Share of the variance of spans that their words explain. Words that have nothing to do with a span explain 0."""

    title = "Additive compositionality"
    needs = frozenset({"spans"})
    panels = (
        Panel(
            f"spans of {SPAN_WORDS} words, variance explained",
            (
                Curve("text_explained", "text", "text"),
                Curve("speech_explained", "speech", "speech"),
                Curve("text_explained_by_last", "text, last word alone", "text", is_control=True),
                Curve("speech_explained_by_last", "speech, last word alone", "speech", is_control=True),
            ),
        ),
    )
    headline = (("text_explained", "sum text", "share"), ("speech_explained", "sum speech", "share"))

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._sums = {layer: {side: AdditiveSums() for side in _SIDES} for layer in task.layers}

    def add_spans(self, layer: str, text: Tensor, speech: Tensor, spans: IntArray) -> None:
        """Add to the sums."""
        self._sums[layer]["text"].add(text)
        self._sums[layer]["speech"].add(speech)

    def result(self) -> Numbers:
        """`spans`. By layer: SIDE`_explained`, SIDE`_explained_by_last` and SIDE`_weights`, the last word's last."""
        layers: dict[str, Numbers] = {}
        for layer, sides in self._sums.items():
            fits = {side: sums.fit() for side, sums in sides.items() if sums.count}
            layers[layer] = {f"{side}_{key}": value for side, fit in fits.items() for key, value in fit.items()}
        return {"spans": len(self.task.sample.spans), "words": SPAN_WORDS, "layers": layers}


MEASURE = Additive
