"""The overlap of the principal subspaces of text and speech, and their principal angles.

U and V are the k principal axes of the word vectors of text and of speech. The cosines of the principal angles are the
singular values of U'V; the overlap is the mean of their squares, ||U'V||^2 / k. It is 1 for equal subspaces, and k / D
on average for random ones.
"""

import torch
from torch import Tensor

from tolktrain.analyze.measures.base import Curve, Measure, Numbers, Panel
from tolktrain.analyze.moments import PairMoments

_VARIANCE = 0.9


def principal_cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of the principal angles between the spans of orthonormal columns [D, k], largest first: [k]."""
    return torch.linalg.svdvals(first.T @ second).clamp(max=1.0)


def chance_angle(width: int, dimensions: int, seed: int) -> float:
    """Mean principal angle of two random subspaces in degrees, of a draw."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(width, dimensions, generator=generator, dtype=torch.float64) for _ in range(2)]
    cosines = principal_cosines(*(torch.linalg.qr(matrix)[0] for matrix in drawn))
    return float(torch.rad2deg(torch.acos(cosines)).mean())


class Subspaces(Measure):
    """Overlap with k fixed, and with as many dimensions as hold 90 % of the variance of both modalities."""

    title = "Subspaces"
    needs = frozenset({"moments"})
    panels = (
        Panel(
            "subspace overlap, text and speech",
            (Curve("overlap", "overlap", "ink"), Curve("chance", "chance, k / D", "muted", is_control=True)),
        ),
        Panel(
            "mean principal angle",
            (Curve("angle", "angle", "ink"), Curve("chance_angle", "random subspaces", "muted", is_control=True)),
            "degrees",
        ),
    )
    headline = (("overlap", "overlap", "share"),)

    def result(self) -> Numbers:
        """By layer: `dimensions`, `overlap`, `chance`, `angles` (degrees, smallest first), `angle` (their mean),
        `chance_angle`; `dimensions_90`, `overlap_90`, `chance_90`."""
        task = self.task
        random = chance_angle(task.architecture.hidden_size, task.dimensions, task.seed)
        layers = {layer: self._numbers(task.moments[layer]) | {"chance_angle": random} for layer in task.layers}
        return {"layers": layers}

    def _numbers(self, moments: PairMoments) -> Numbers:
        k = self.task.dimensions
        (text_variances, text), (speech_variances, speech) = moments.axes
        cosines = principal_cosines(text[:, :k], speech[:, :k])
        angles = torch.rad2deg(torch.acos(cosines))
        enough = max(_dimensions(text_variances), _dimensions(speech_variances))
        wide = principal_cosines(text[:, :enough], speech[:, :enough])
        return {
            "dimensions": k,
            "overlap": float(cosines.square().mean()),
            "chance": k / moments.width,
            "angles": angles.tolist(),
            "angle": float(angles.mean()),
            "dimensions_90": enough,
            "overlap_90": float(wide.square().mean()),
            "chance_90": enough / moments.width,
        }


def _dimensions(variances: Tensor) -> int:
    """The fewest principal axes that hold 90 % of the variance."""
    shares = variances.cumsum(0) / variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)
    return min(int((shares < _VARIANCE).sum()) + 1, len(variances))


MEASURE = Subspaces
