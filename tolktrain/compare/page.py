"""`compare.html`: a comparison in the style of a run's report."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from tolktrain.compare.cells import tables
from tolktrain.report.drawing import INK, MUTED, SPEECH, STYLE, TEXT, THIRD, svg_of
from tolktrain.report.page import environment
from tolktrain.report.rundata import DIRECTIONS, printable_tree

_COLOURS = (TEXT, SPEECH, THIRD, MUTED)  # of the runs after the first, in turn
_MOST_DRAWN = 40


def render(result: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    shown = printable_tree(dict(result))
    return (
        environment()
        .get_template("compare.html")
        .render(
            runs=shown["runs"],
            others=[run["name"] for run in shown["runs"][1:]],
            tables=[table._asdict() for table in tables(shown)],
            remarks=shown["remarks"],
            differences=_picture(shown),
        )
    )


def _picture(result: Mapping[str, Any]) -> Markup | None:
    """The differences with their intervals; None if there are none."""
    rows = [(f"{row['set']}, {DIRECTIONS.get(row['direction'], row['direction'])}", row) for row in result["choices"]]
    rows += [
        (f"{row['benchmark']}, {row['set']}, {row['measure']} ({row['rule']})", row) for row in result["benchmarks"]
    ]
    return Markup(_differences(rows[:_MOST_DRAWN])) if rows else None


def _differences(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    others = rows[0][1]["runs"][1:]
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(9.2, 0.16 * len(others) * len(rows) + 0.26 * len(rows) + 0.9), layout="constrained")
        axis = figure.subplots()
        for place, (_, row) in enumerate(rows):
            for number, entry in enumerate(row["runs"][1:]):
                paired = entry["against_first"]
                y = place + 0.6 * ((number + 0.5) / len(others) - 0.5)
                colour = _COLOURS[number % len(_COLOURS)]
                axis.plot([100 * paired["low"], 100 * paired["high"]], [y, y], color=colour, linewidth=1.6)
                label = entry["run"] if not place else None
                axis.plot([100 * paired["difference"]], [y], "o", color=colour, markersize=5, label=label)
        axis.axvline(0, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
        axis.set_yticks(range(len(rows)), [name for name, _ in rows])
        axis.tick_params(axis="y", labelcolor=INK)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel("difference of the accuracies, percentage points")
        axis.spines["left"].set_visible(False)
        if len(others) > 1:
            axis.legend(loc="upper left", bbox_to_anchor=(0, 1.0 + 0.6 / len(rows)), ncols=3)
        return svg_of(figure, "Differences of the accuracies", "differences")
