"""Figures of analysis.json: curves over the layers, and the weights of the layer pooling."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import BaseModel, Field, ValidationError

from tolktrain.errors import UserError
from tolktrain.report.drawing import INK, MUTED, SPEECH, STYLE, TEXT, THIRD, svg_of
from tolktrain.report.figures import weight_rows

_COLOURS = {"text": TEXT, "speech": SPEECH, "third": THIRD, "ink": INK, "muted": MUTED}
_SHORT = {"embedding": "emb", "input adapter": "in", "pooled": "pool", "output adapter": "out"}
_MOST_TICKS = 14
_NARROW = 4.6  # width of a panel in inches
_TRAINED, _START = "trained", "start"
# Longer texts of a foreign file would leave no room for the axes.
_LONGEST_TITLE, _LONGEST_LABEL, _LONGEST_TICK = 60, 36, 8
_WEIGHTS = "pooling"  # the measure without curves


class CurveOfAnalysis(BaseModel):
    """A number of each layer."""

    key: str
    label: str
    colour: Literal["text", "speech", "third", "ink", "muted"]
    is_control: bool


class PanelOfAnalysis(BaseModel):
    """Curves that share an axis."""

    title: str
    scale: Literal["share", "degrees", "rank"]
    curves: list[CurveOfAnalysis]


class ColumnOfAnalysis(BaseModel):
    """A number of each layer in the terminal."""

    key: str
    label: str
    scale: Literal["share", "degrees", "rank"]


class MeasureOfAnalysis(BaseModel):
    """How the numbers of a measure are shown."""

    title: str
    panels: list[PanelOfAnalysis]
    headline: list[ColumnOfAnalysis]


class NumbersOfMeasure(BaseModel):
    """The numbers of a measure that are shown; those of layers by layer and key."""

    layers: dict[str, dict[str, Any]]
    static: list[float] | None = None
    kinds: dict[str, list[float] | None] = Field(default={})


class Analysis(BaseModel):
    """What is shown of analysis.json. `tolktrain.analyze.run.analyze` describes the whole file."""

    step: int
    sample: dict[str, int | str]
    layers: list[str] = Field(min_length=1)
    start: str | None
    measures: dict[str, MeasureOfAnalysis]
    models: dict[str, dict[str, NumbersOfMeasure]]

    def number(self, model: str, measure: str, layer: str, key: str) -> float | None:
        """A finite number of a layer, None if there is none."""
        numbers = self.models.get(model, {}).get(measure)
        value = None if numbers is None else numbers.layers.get(layer, {}).get(key)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def parse_analysis(content: Any, path: Path) -> Analysis:
    """The analysis in the content of a file. Raises `UserError` if it is none."""
    try:
        return Analysis.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: {where}: {first['msg']}; delete the file and make it again with tolktrain analyze"
        ) from None


@dataclass(frozen=True)
class Picture:
    """The figure of a measure, with the colours of the page."""

    title: str
    svg: str
    is_wide: bool


def analysis_figures(analysis: Analysis) -> list[Picture]:
    """A picture for each measure."""
    with matplotlib.rc_context(STYLE):
        return [
            Picture(title, svg_of(figure, title, f"analysis-{name}"), figure.get_figwidth() > _NARROW)
            for name, title, figure in _figures(analysis)
        ]


def standalone_figures(analysis: Analysis) -> dict[str, bytes]:
    """SVG files by the name of the measure."""
    found = {}
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "analysis", "figure.facecolor": "white"}):
        for name, _, figure in _figures(analysis):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
            found[name] = buffer.getvalue()
    return found


def _figures(analysis: Analysis) -> Iterator[tuple[str, str, Figure]]:
    """Name, title and figure of each measure that has numbers."""
    for name, measure in analysis.measures.items():
        if name == _WEIGHTS:
            figure = _weights(analysis)
            if figure is not None:
                yield name, measure.title, figure
        elif measure.panels:
            count = len(measure.panels)
            figure = Figure(figsize=(_NARROW * count, 3.7), layout="constrained")
            for axis, panel in zip(figure.subplots(1, count, squeeze=False)[0], measure.panels, strict=True):
                _panel(axis, analysis, name, panel)
            yield name, measure.title, figure


def _panel(axis: Axes, analysis: Analysis, measure: str, panel: PanelOfAnalysis) -> None:
    """Curves of the trained model, and dashed those of the model before training."""
    has_start = False
    for curve in panel.curves:
        colour = _COLOURS[curve.colour]
        for model in (_START, _TRAINED):
            values = [analysis.number(model, measure, layer, curve.key) for layer in analysis.layers]
            places = [place for place, value in enumerate(values) if value is not None]
            shown = [values[place] for place in places]
            if not places or (model == _START and curve.is_control):
                continue
            if model == _START:
                has_start = True
                axis.plot(places, shown, color=colour, linewidth=1.1, linestyle=(0, (4, 2.5)), alpha=0.7)
            elif curve.is_control:
                axis.plot(
                    places,
                    shown,
                    color=colour,
                    linewidth=1.3,
                    linestyle=(0, (1, 2)),
                    label=_cut(curve.label, _LONGEST_LABEL),
                )
            else:
                axis.plot(places, shown, "o-", color=colour, markersize=3.6, label=_cut(curve.label, _LONGEST_LABEL))
    if has_start:
        axis.plot([], [], color=MUTED, linewidth=1.1, linestyle=(0, (4, 2.5)), label="before training")
    axis.set_title(_cut(panel.title, _LONGEST_TITLE), fontsize=10)
    _layer_ticks(axis, analysis.layers)
    _value_axis(axis, panel.scale)
    if axis.lines:
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8.5, handlelength=1.8, labelspacing=0.3
        )


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _layer_ticks(axis: Axes, layers: Sequence[str]) -> None:
    labels = [_SHORT.get(layer, _cut(layer.removeprefix("layer "), _LONGEST_TICK)) for layer in layers]
    step = 1 if len(layers) <= _MOST_TICKS else math.ceil(len(layers) / 8)
    places = [p for p, layer in enumerate(layers) if layer in _SHORT or step == 1 or (p - 1) % step == 0]
    if step > 1:
        # Numbers that would touch a name are left out.
        named = {p for p in places if layers[p] in _SHORT}
        places = [p for p in places if p in named or not any(abs(p - other) < step / 2 for other in named)]
    axis.set_xticks(places, [labels[place] for place in places])
    axis.set_xlim(-0.5, len(layers) - 0.5)
    axis.set_xlabel("layer")


def _value_axis(axis: Axes, scale: str) -> None:
    if scale == "rank":
        axis.set_yscale("log")
        axis.invert_yaxis()
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.yaxis.set_minor_formatter(lambda value, _: "")
        return
    if scale == "degrees":
        axis.set_ylim(0, 92)
        axis.set_yticks(range(0, 91, 30), [f"{value}°" for value in range(0, 91, 30)])
        return
    low, high = axis.dataLim.intervaly if axis.has_data() else (0.0, 1.0)
    top = max(1.08 * high, 0.05)
    axis.set_ylim(min(1.2 * low, -0.03 * top), top)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def _weights(analysis: Analysis) -> Figure | None:
    numbers: Mapping[str, NumbersOfMeasure] = analysis.models.get(_TRAINED, {})
    found = numbers.get(_WEIGHTS)
    if found is None:
        return None
    rows = [("static weights", found.static)] if found.static else []
    rows += [(f"selector, {kind}", values) for kind, values in found.kinds.items() if values]
    return weight_rows(rows) if rows else None
