"""The cells of the tables of a comparison, the same in the terminal and on the page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from tolktrain.report.page import nats
from tolktrain.report.rundata import DIRECTIONS
from tolktrain.runs.changes import shown_value

Row = Mapping[str, Any]


class Table(NamedTuple):
    """A table as text."""

    title: str
    note: str
    columns: tuple[str, ...]
    num_left: int  # columns that are aligned to the left
    groups: tuple[tuple[tuple[str, ...], ...], ...]  # lines of cells, in groups that belong together


_ACCURACIES = ("run", "accuracy", "95 % interval", "difference", "95 % interval", "better : worse", "p")
_PAIRED = (
    "Difference: accuracy less that of the first run, with the interval of a paired bootstrap over {units}. Better :"
    " worse: {units} in which the run has more and fewer points than the first one; p: McNemar's exact test of these"
    " counts. p values are not corrected for the number of comparisons."
)


def tables(result: Row) -> Iterator[Table]:
    """The tables of a comparison; none without rows."""
    if result["benchmarks"]:
        yield Table(
            "Benchmarks",
            _PAIRED.format(units="pair ids") + " Ties count 0.5. A mean over types has no p: it weights the ids.",
            ("benchmark", "aggregation, rule", *_ACCURACIES),
            3,
            _accuracy_groups(
                result["benchmarks"],
                lambda row: (f"{row['benchmark']}, {row['set']}", row["measure"]),
                lambda row: ("", f"{row['rule']}, {row['ids']} ids"),
            ),
        )
    if result["choices"]:
        yield Table(
            "Choice between continuations",
            _PAIRED.format(units="texts"),
            ("held-out set", "prompt → continuation", *_ACCURACIES),
            3,
            _accuracy_groups(
                result["choices"],
                lambda row: (row["set"], str(DIRECTIONS.get(row["direction"], row["direction"]))),
                lambda row: ("", f"{row['trials']} trials, {row['texts']} texts"),
            ),
        )
    if result["losses"]:
        yield Table(
            "Held-out losses",
            "Nats per scored token, and the difference from the first run if both were scored on the same tokens.",
            ("held-out set", "sequences", "tokens", *_per_run(result, "", "difference"), "bigram"),
            3,
            _loss_groups(result["losses"]),
        )
    if result["configuration"]:
        yield Table(
            "What differs in the configurations",
            "",
            ("key", *(run["name"] for run in result["runs"])),
            len(result["runs"]) + 1,
            (tuple((row["key"], *map(shown_value, row["values"])) for row in result["configuration"]),),
        )


def _accuracy_groups(
    rows: Sequence[Row], names: Callable[[Row], tuple[str, str]], counts: Callable[[Row], tuple[str, str]]
) -> tuple[tuple[tuple[str, ...], ...], ...]:
    groups = []
    for row in rows:
        heads = [names(row), counts(row)] + [("", "")] * len(row["runs"])
        groups.append(
            tuple((*head, entry["run"], *_accuracy(entry)) for head, entry in zip(heads, row["runs"], strict=False))
        )
    return tuple(groups)


def _accuracy(entry: Row) -> tuple[str, ...]:
    own = (f"{100 * entry['accuracy']:.1f}", f"{100 * entry['low']:.1f} – {100 * entry['high']:.1f}")
    paired = entry["against_first"]
    if paired is None:
        return *own, "", "", "", ""
    interval = f"{100 * paired['low']:+.1f} to {100 * paired['high']:+.1f}"
    p = "–" if paired["p"] is None else f"{paired['p']:.2g}"
    return *own, f"{100 * paired['difference']:+.1f}", interval, f"{paired['better']} : {paired['worse']}", p


def _per_run(result: Row, *kinds: str) -> Iterator[str]:
    for place, run in enumerate(result["runs"]):
        for kind in kinds:
            if place or not kind:
                yield f"{kind} of {run['name']}" if kind and len(result["runs"]) > 2 else kind or run["name"]


def _loss_groups(rows: Sequence[Row]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    groups = []
    for name, own in groupby(rows, key=lambda row: row["set"]):
        lines: list[tuple[str, ...]] = []
        for row in own:
            cells = [nats(row["runs"][0]["loss"])]
            for entry in row["runs"][1:]:
                difference = entry["difference"]
                cells += [nats(entry["loss"]), "–" if difference is None else f"{difference:+.3f}"]
            bigrams = [entry["bigram_loss"] for entry in row["runs"] if entry["bigram_loss"] is not None]
            head = name if not lines else ""
            bigram = nats(bigrams[0] if bigrams else None)
            lines.append((head, row["strategy"], row["modality"], *cells, bigram))
        groups.append(tuple(lines))
    return tuple(groups)
