"""The pictures of the report: SVG elements that take their colours from the page, for light and dark screens."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tolktrain.report.drawing import BAND, INK, MUTED, SPEECH, STYLE, TEXT, THIRD, svg_of
from tolktrain.report.rundata import DIRECTIONS, RunData, Stage


def loss_curves(run: RunData) -> str:
    """Training loss per step, validation points and the bigram baselines; a panel for text and one for speech."""
    panels = [(m, c) for m, c in (("text", TEXT), ("speech", SPEECH)) if _values(run, f"{m}_loss")[1].size]
    panels = panels or [("", INK)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.9 * len(panels) + 0.3), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (modality, colour) in zip(axes, panels, strict=True):
            _loss_panel(axis, run, modality, colour)
            _stage_bands(axis, run.stages, names=axis is axes[0])
        axes[-1].set_xlabel("step")
        return svg_of(figure, "Loss curves", "loss")


def learning_rates(run: RunData) -> str:
    """Learning rates of backbone and speech parts per step."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 2.6), layout="constrained")
        axis = figure.subplots()
        # Both rates are often the same: the upper line is dashed, so that the lower one stays visible.
        curves = (
            ("learning_rate", "backbone", TEXT, "-", 2.6),
            ("speech_learning_rate", "speech", SPEECH, "--", 1.6),
        )
        for key, label, colour, line, width in curves:
            steps, values = _values(run, key)
            if values.size:
                axis.plot(steps, values, color=colour, label=label, linestyle=line, linewidth=width)
        _stage_bands(axis, run.stages, names=False)
        axis.set_title("learning rate")
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", scilimits=(-3, 3))
        if axis.lines:
            axis.legend(loc="best")
        return svg_of(figure, "Learning rates", "rates")


def preferences(run: RunData) -> str | None:
    """Loss, accuracy and rewards per step of the stages of preferences; None without any."""
    steps, accuracy = _values(run, "preference_accuracy")
    if not steps.size:
        return None
    losses = np.array([row["loss"] for row in run.steps if row.get("preference_accuracy") is not None], dtype=float)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.8), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        heldout = [v for v in run.validations if v.accuracy is not None and v.loss is not None]
        for axis, values, chance, key in ((left, losses, math.log(2), "loss"), (middle, accuracy, 0.5, "accuracy")):
            axis.plot(steps, values, color=MUTED, linewidth=0.7, alpha=0.4)
            axis.plot(steps, _smooth(values), color=INK, label="training")
            axis.axhline(chance, color=MUTED, linewidth=1.3, linestyle=(0, (5, 3)))
            for name in dict.fromkeys(v.dataset for v in heldout):
                points = [(v.step, getattr(v, key)) for v in heldout if v.dataset == name]
                style = {"linestyle": "none", "markersize": 5.5, "markeredgewidth": 1.4}
                axis.plot(*zip(*points, strict=True), "D", markerfacecolor="none", label=name, color=THIRD, **style)
            axis.legend(loc="best")
        left.set_title("preference loss, nats per pair")
        middle.set_ylim(0, 1.02)
        middle.set_title("chosen answer preferred")
        for key, label, colour in (("chosen_reward", "chosen", TEXT), ("rejected_reward", "rejected", SPEECH)):
            _, values = _values(run, f"preference_{key}")
            right.plot(steps, _smooth(values), color=colour, label=label)
        right.set_title("reward, nats")
        right.legend(loc="best")
        for axis in (left, middle, right):
            axis.set_xlabel("step")
        return svg_of(figure, "Preferences", "preferences")


def throughput(run: RunData) -> str:
    """Tokens per second per step, with the median."""
    steps, values = _values(run, "tokens_per_second")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 2.6), layout="constrained")
        axis = figure.subplots()
        axis.plot(steps, values, color=MUTED, linewidth=0.8, alpha=0.45)
        axis.plot(steps, _smooth(values), color=INK)
        _stage_bands(axis, run.stages, names=False)
        axis.set_title("tokens per second")
        axis.set_xlabel("step")
        # The first step compiles and warms caches; it must not set the scale.
        axis.set_ylim(0, float(np.percentile(values, 98)) * 1.15 if values.size else 1)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return svg_of(figure, "Tokens per second", "speed")


def choices(rows: Sequence[dict[str, Any]], dataset: str) -> str:
    """Accuracies of the four directions on one data set, with 95 % intervals, the bigram's, and the line of chance."""
    kept = [row for name in DIRECTIONS for row in rows if row["set"] == dataset and row["direction"] == name]
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(5.4, 0.5 * len(kept) + 0.8), layout="constrained")
        axis = figure.subplots()
        for place, row in enumerate(kept):
            colour = SPEECH if row["direction"].endswith("speech") else TEXT
            accuracy, low, high = (100 * row[key] for key in ("accuracy", "low", "high"))
            axis.barh(place, accuracy, height=0.56, color=colour, alpha=0.85)
            axis.plot([low, high], [place, place], color=INK, linewidth=1.4)
            axis.plot([low, low, high, high], [place] * 4, "|", color=INK, markersize=7)
            if "bigram" in row:
                axis.plot([100 * row["bigram"]], [place], "D", color=INK, markersize=4, markerfacecolor="white")
            axis.text(high + 2, place, f"{accuracy:.1f} %", va="center", fontweight="bold")
        axis.axvline(50, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
        _annotate(axis, "chance", 50, (4, 2))
        axis.set_yticks(range(len(kept)), [DIRECTIONS[row["direction"]] for row in kept])
        axis.tick_params(axis="y", labelcolor=INK)
        axis.invert_yaxis()
        axis.set_xlim(0, 120)
        axis.set_xticks(range(0, 101, 25), [f"{value} %" for value in range(0, 101, 25)])
        axis.spines["left"].set_visible(False)
        return svg_of(figure, f"Accuracy of true against random continuation on {dataset}", f"choices-{dataset}")


def layer_weights(layers: dict[str, list[float] | None]) -> str:
    """Pooling weights: a column per backbone layer; rows are static weights, text positions and speech positions."""
    titles = {"static": "static weights", "text": "selector, text", "speech": "selector, speech"}
    with matplotlib.rc_context(STYLE):
        figure = weight_rows([(title, layers[key] or []) for key, title in titles.items() if layers.get(key)])
        return svg_of(figure, "Layer-pooling weights", "layers")


def weight_rows(rows: Sequence[tuple[str, Sequence[float]]]) -> Figure:
    """Weights of the backbone's layers: a row for each name, a column for each layer."""
    number = max(len(values) for _, values in rows)
    most = max(max(values) for _, values in rows)
    with matplotlib.rc_context({"axes.grid": False}):
        figure = Figure(figsize=(9.2, 0.52 * len(rows) + 0.75), layout="constrained")
        axis = figure.subplots()
        for place, (_, values) in enumerate(rows):
            for layer, value in enumerate(values):
                box = matplotlib.patches.Rectangle(
                    (layer + 0.53, place - 0.46), 0.94, 0.92, facecolor=SPEECH, alpha=0.04 + 0.7 * value / most
                )
                axis.add_patch(box)
                if number <= 16:
                    axis.text(layer + 1, place, f"{value:.2f}", ha="center", va="center", fontsize=9.5)
        axis.set_xlim(0.5, number + 0.5)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_yticks(range(len(rows)), [title for title, _ in rows])
        axis.tick_params(axis="y", labelcolor=INK)
        axis.set_xticks(range(1, number + 1, 1 if number <= 16 else 4))
        axis.set_xlabel("backbone layer")
        for spine in axis.spines.values():
            spine.set_visible(False)
        return figure


def _loss_panel(axis: Axes, run: RunData, modality: str, colour: str) -> None:
    key = f"{modality}_loss" if modality else "loss"
    steps, values = _values(run, key)
    axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.25)
    axis.plot(steps, _smooth(values), color=colour, label="training")
    dataset = run.primary_set
    shown = [values]
    for strategy, marker, edge in ((modality, "o", INK), ("interleaved", "D", THIRD)):
        points = [(v.step, getattr(v, key)) for v in run.validations if v.strategy == strategy and v.dataset == dataset]
        points = [(step, value) for step, value in points if value is not None]
        if points:
            where, losses = (np.array(column) for column in zip(*points, strict=True))
            style = {"linestyle": "none", "markersize": 5.5, "markeredgewidth": 1.4, "color": edge}
            axis.plot(where, losses, marker, markerfacecolor="none", label=f"held out, {strategy}", **style)
            shown.append(losses)
    baseline = (run.evaluated(dataset, modality, modality) or {}).get("bigram_loss")
    if baseline is not None:
        axis.axhline(
            baseline, color=MUTED, linewidth=1.3, linestyle=(0, (5, 3)), label=f"bigram, held out ({baseline:.2f})"
        )
        shown.append(np.array([baseline]))
    low = min(float(part.min()) for part in shown if part.size)
    high = max(float(np.percentile(part, 99.5)) for part in shown if part.size)
    margin = (high - low) or 1.0
    axis.set_ylim(max(0.0, low - 0.12 * margin), high + 0.08 * margin)
    axis.set_title(f"{modality} loss, nats per token" if modality else "loss, nats per token", pad=16)
    axis.legend(loc="upper right", ncols=2)


def _stage_bands(axis: Axes, stages: Sequence[Stage], names: bool) -> None:
    first, last = stages[0].first_step, stages[-1].last_step
    margin = max(0.5, 0.006 * (last - first))
    axis.set_xlim(first - margin, last + margin)
    for place, stage in enumerate(stages):
        if place % 2:
            axis.axvspan(stage.first_step - 0.5, stage.last_step + 0.5, color=BAND, linewidth=0, zorder=0)
        if names:
            _annotate(axis, stage.name, (stage.first_step + stage.last_step) / 2, (0, 3), ha="center", fontsize=9.5)


def _annotate(axis: Axes, text: str, x: float, offset: tuple[float, float], **style: Any) -> None:
    """Text above the axes at the position x, shifted by points."""
    coordinates = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axis.annotate(text, (x, 1), offset, **coordinates, color=MUTED, **style)


def _values(run: RunData, key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[key]) for row in run.steps if row.get(key) is not None]
    return np.array([p[0] for p in pairs], dtype=float), np.array([p[1] for p in pairs], dtype=float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential average over about a fiftieth of the curve, corrected for its first value."""
    decay = 1 - 1 / max(1.0, len(values) / 50)
    smoothed = np.zeros_like(values)
    average, weight = 0.0, 0.0
    for index, value in enumerate(values):
        average, weight = decay * average + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed[index] = average / weight
    return smoothed
