"""Formats parts of reports: ranks, nodes, figures with units."""

from collections.abc import Callable, Mapping, Sequence

from tolktrain.cluster.health.reports import RankReport

_MOST_NAMED = 4


def ranks_text(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 0-3, 7"."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    listed = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank{'s' * (len(ranks) > 1)} {listed}"


def nodes_of(reports: Sequence[RankReport]) -> tuple[str, ...]:
    """The distinct nodes of the reports."""
    return tuple(dict.fromkeys(report.node for report in reports))


def where(reports: Sequence[RankReport]) -> str:
    """ "node7 (ranks 8-15)"; beyond four nodes, only their number."""
    nodes = nodes_of(reports)
    named = ", ".join(nodes[:_MOST_NAMED]) + (
        f" and {len(nodes) - _MOST_NAMED} more nodes" if len(nodes) > _MOST_NAMED else ""
    )
    return f"{named} ({ranks_text([report.rank for report in reports])})"


def span(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Smallest and largest value: "31-33 GFLOP/s"."""
    low, high = shown(min(values)), shown(max(values))
    if low == high:
        return low
    same_unit = low.split()[1] == high.split()[1]
    return f"{low.split()[0] if same_unit else low}-{high}"


def flops(number: float) -> str:
    """ "652 TFLOP/s"."""
    return _with_unit(number, {"TFLOP/s": 1e12, "GFLOP/s": 1e9, "MFLOP/s": 1e6})


def bytes_text(number: float) -> str:
    """ "1.2 GiB"."""
    return _with_unit(number, {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10})


def _with_unit(number: float, units: Mapping[str, float]) -> str:
    unit = next((unit for unit, size in units.items() if number >= size), list(units)[-1])
    value = number / units[unit]
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
