"""The distributions of a data set in one picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from tolktrain.data.records import Array
from tolktrain.files.printable import printable
from tolktrain.inspect.statistics import Statistics
from tolktrain.report.drawing import MUTED, SPEECH, STYLE, TEXT

_STYLE = STYLE | {"font.size": 9.5, "axes.titlesize": 10.5, "legend.fontsize": 9}
_WIDEST_PERCENTILE = 99.5  # values beyond would squeeze everything else; the legend has their maximum

Panel = Callable[[Axes], None]
Series = tuple[Array, str, str]  # values, name, colour


def save_picture(statistics: Statistics, path: Path) -> None:
    """Draw the distributions that the data has, three in a row, and save them as PNG."""
    panels = _panels(statistics)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    info = statistics.info
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.6), layout="constrained", dpi=150)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        title = f"{info.name}, {info.split}: {statistics.num_records:,} of {info.num_records:,} records"
        if statistics.seconds:
            title += f", {statistics.seconds / 3600:,.2f} hours of speech"
        # A name with two $ is no formula.
        figure.suptitle(printable(title), x=0.008, ha="left", fontsize=12, fontweight="bold", parse_math=False)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, panel in zip(axes, panels, strict=False):
            panel(axis)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def _panels(statistics: Statistics) -> list[Panel]:
    values = statistics.values
    panels: list[Panel] = []

    def add(title: str, unit: str, of: str, *series: tuple[str, str, str], whole: bool = True) -> None:
        present = [(values(name), label, colour) for name, label, colour in series if len(values(name))]
        if present:
            panels.append(partial(_histogram, title=title, unit=unit, of=of, series=present, whole=whole))

    if statistics.info.speech is not None:
        add("Run lengths", "frames that a unit lasts", "units", ("run_length", "", SPEECH))
        panels.append(partial(_frequencies, statistics))
        add("Rate of units", "units per second", "records", ("units_per_second", "", SPEECH), whole=False)
    add("Word lengths", "tokens of a word", "words", ("text_ids_per_word", "text ids", TEXT),
        ("units_per_word", "units", SPEECH))  # fmt: skip
    add("Spans of interleaved sequences", "words of a span", "spans", ("text_span_words", "text", TEXT),
        ("speech_span_words", "speech", SPEECH))  # fmt: skip
    add("Utterances", "tokens with EOS", "utterances", ("utterance_text", "text ids", TEXT),
        ("utterance_units", "units", SPEECH))  # fmt: skip
    if len(panels) < 5:
        add("Records", "tokens with EOS", "records", ("record_text", "text ids", TEXT),
            ("record_units", "units", SPEECH))  # fmt: skip
    return panels


def _histogram(axis: Axes, title: str, unit: str, of: str, series: list[Series], whole: bool) -> None:
    low = min(float(values.min()) for values, _, _ in series)
    high = max(float(np.percentile(values, _WIDEST_PERCENTILE, method="higher")) for values, _, _ in series)
    edges = _whole_edges(low, high) if whole else np.linspace(low, max(high, low + 1e-3), 31)
    for values, label, colour in series:
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        first, last = np.flatnonzero(shares)[[0, -1]]
        step = shares[first : last + 1], edges[first : last + 2]
        axis.stairs(*step, fill=True, color=colour, alpha=0.35 if len(series) > 1 else 0.75)
        axis.stairs(*step, color=colour, linewidth=1.4)
        # The area's label would be as pale as the area.
        axis.plot([], [], color=colour, linewidth=6, label=_label(label, values))
    axis.set_title(title)
    axis.set_xlabel(unit)
    axis.set_ylabel(f"share of {of}, %")
    axis.set_ylim(0, 1.25 * axis.dataLim.ymax)  # room for the legend
    if whole:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="upper right", handlelength=1.0)


def _label(name: str, values: Array) -> str:
    return f"{name}{', ' if name else ''}median {np.median(values):,.4g}, at most {values.max():,.4g}"


def _whole_edges(low: float, high: float) -> Array:
    """Edges midway between whole numbers, about forty bins of equal width."""
    width = max(1, round((high - low + 1) / 40))
    first = np.floor(low) - 0.5
    count = int(np.ceil((high + 0.5 - first) / width))
    return np.asarray(first + width * np.arange(max(count, 1) + 1))


def _frequencies(statistics: Statistics, axis: Axes) -> None:
    colours = matplotlib.colormaps["copper"](np.linspace(0.75, 0.2, len(statistics.unit_counts)))
    uses = statistics.unit_use()
    several = len(uses) > 1
    for number, (counts, use) in enumerate(zip(statistics.unit_counts, uses, strict=True), start=1):
        shares = 100 * np.sort(counts[counts > 0])[::-1] / counts.sum()
        label = f"{use.used} of {use.num_units} units used, perplexity {use.perplexity:.0f}"
        colour = colours[number - 1] if several else SPEECH
        short = f"{number}: {use.used} used"
        axis.plot(np.arange(1, len(shares) + 1), shares, color=colour, linewidth=1.8, label=short if several else label)
    if not several:
        axis.axhline(100 / uses[0].num_units, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), label="all alike")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title("Frequency of units")
    axis.set_xlabel("rank of the unit")
    axis.set_ylabel("share of all units, %")
    axis.legend(loc="lower left", handlelength=1.0, ncols=1 + (len(uses) > 4))
    for name in ("xaxis", "yaxis"):
        getattr(axis, name).set_major_formatter(lambda value, _: f"{value:g}")
        getattr(axis, name).set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
