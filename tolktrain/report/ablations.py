"""The figure and the table of a sweep of ablations (table.json), for the page of its runs and for documents."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tolktrain.report.drawing import INK, MUTED, SPEECH, STYLE, TEXT, THIRD, svg_of

Row = Mapping[str, Any]

MEASURES = (
    *("speech loss", "text loss", "interleaved loss"),
    *("text_to_text", "text_to_speech", "speech_to_text", "speech_to_speech", "overlap"),
)
"""The columns, in order."""

HEADS = ("speech loss", "text loss", "interleaved loss", "T→T %", "T→S %", "S→T %", "S→S %", "overlap")
_SHARES = MEASURES[3:7]  # shown in percent
_COLOURS = (TEXT, SPEECH, THIRD, MUTED)  # of the held-out sets in turn
_COLUMNS = 4
_LONGEST_NAME = 24  # longer ones of a foreign file would leave no room for the axes


def cell(row: Row, signed: bool) -> str:
    """A value with half the width of its interval; * if a difference is shown."""
    is_share = row["measure"] in _SHARES
    scale, digits = (100, 1) if is_share else (1, 3)
    sign = "+" if signed else ""
    mark = "*" if row.get("shown") else ""
    unknown = row["seed_half"] is None and row["item_half"] == 0.0
    half = "" if unknown else f" ± {scale * row['half']:.{digits}f}"
    return f"{scale * row['value']:{sign}.{digits}f}{half}{mark}"


def held_out_sets(table: Row) -> list[str]:
    """Names of the held-out sets, in order."""
    return list(dict.fromkeys(row["set"] for row in table["rows"] if row["set"]))


def grid(table: Row, kind: str, name: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and lines of the `rows` or the `differences` on a held-out set."""
    cells: dict[str, dict[str, str]] = {}
    for row in table[kind]:
        if row["set"] in (name, ""):
            cells.setdefault(row["variant"], {})[row["measure"]] = cell(row, kind == "differences")
    used = [place for place, measure in enumerate(MEASURES) if any(measure in row for row in cells.values())]
    lines = []
    for variant, row in cells.items():
        figures = [row.get(MEASURES[place], "–") for place in used]
        lines.append((variant, f"{table['parameters'][variant]:,}", str(len(table["seeds"][variant])), *figures))
    return ("variant", "parameters", "seeds", *(HEADS[place] for place in used)), lines


def sweep_picture(table: Row) -> str | None:
    """The differences as an SVG element with the colours of the page; None if there are none."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = _differences(table)
        return None if figure is None else svg_of(figure, "Differences from the full model", "ablations")


def sweep_file(table: Row) -> bytes | None:
    """The same as an SVG file."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x", "svg.hashsalt": "ablations"}):
        figure = _differences(table)
        if figure is None:
            return None
        figure.patch.set_facecolor("white")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()


def _differences(table: Row) -> Figure | None:
    """A panel per measure; in it, a line per variant and set with the interval of its difference."""
    rows = table["differences"]
    used = [measure for measure in MEASURES if any(row["measure"] == measure for row in rows)]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    if not used:
        return None
    columns = min(_COLUMNS, len(used))
    lines = -(-len(used) // columns)
    figure = Figure(figsize=(9.2, lines * (0.34 * len(variants) + 1.0)), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axis, measure in zip(axes, used, strict=False):
        _panel(axis, [row for row in rows if row["measure"] == measure], variants, held_out_sets(table))
        scale = ", points" if measure in _SHARES else ", nats" if "loss" in measure else ""
        axis.set_title(HEADS[MEASURES.index(measure)].removesuffix(" %") + scale, fontsize=10)
    for axis in axes[len(used) :]:
        axis.set_visible(False)
    handles, names = axes[0].get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def _panel(axis: Axes, rows: Sequence[Row], variants: Sequence[str], sets: Sequence[str]) -> None:
    for number, name in enumerate(sets):
        colour = _COLOURS[number % len(_COLOURS)]
        own = [row for row in rows if row["set"] == name or (not row["set"] and not number)]
        for x, half, y in _points(own, variants, (number + 0.5) / len(sets) - 0.5):
            axis.plot([x - half, x + half], [y, y], color=colour, linewidth=1.6)
            axis.plot([x], [y], "o", color=colour, markersize=4.5)
        axis.plot([], [], "o-", color=colour, markersize=4.5, label=name[:_LONGEST_NAME])
    axis.axvline(0, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(variants)), [name[:_LONGEST_NAME] for name in variants])
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set_ylim(len(variants) - 0.5, -0.5)
    axis.locator_params(axis="x", nbins=4)
    axis.spines["left"].set_visible(False)


def _points(rows: Sequence[Row], variants: Sequence[str], shift: float) -> Iterator[tuple[float, float, float]]:
    for row in rows:
        scale = 100 if row["measure"] in _SHARES else 1
        yield scale * row["value"], scale * row["half"], variants.index(row["variant"]) + 0.5 * shift
