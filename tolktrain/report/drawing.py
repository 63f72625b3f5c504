"""The style of the pictures of reports: SVG elements that take their colours from the page."""

import html
import io
import re

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Each colour is a placeholder of a CSS variable of the page, which replaces it in the finished SVG.
INK, MUTED, GRID, BAND = "#1b1c1e", "#6b6e74", "#dcdee2", "#f1f2f4"
TEXT, SPEECH, THIRD = "#2b6cd4", "#d2571f", "#188a6c"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    BAND: "--band",
    TEXT: "--text",
    SPEECH: "--speech",
    THIRD: "--third",
}
STYLE = {
    "text.parse_math": False,  # a name with two $ is no formula
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def svg_of(figure: Figure, title: str, salt: str) -> str:
    """The figure as one <svg> element: colours as CSS variables, no metadata, as wide as the page lets it."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # matplotlib numbers its groups alike in every figure, and a page may use an id once only.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # The figure's own background is invisible, so the page shows through.
    svg = re.sub(r"fill: #ffffff", "fill: none", svg)
    # Not as a replacement text of re.sub, in which a backslash of a name would have a meaning.
    head = f'<svg role="img" aria-label="{html.escape(title)}" '
    return re.sub(r'<svg ([^>]*?)width="[^"]*" ', lambda found: head + found[1], svg, count=1).replace(
        'height="', 'data-height="', 1
    )
