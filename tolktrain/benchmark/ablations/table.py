"""The table of the sweep, and what it says about the paper's claim."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.benchmark.ablations.items import LOSSES, Items, RunItems
from tolktrain.benchmark.ablations.statistics import Estimate, estimate, estimate_of_seeds
from tolktrain.benchmark.ablations.sweep import FULL, Run
from tolktrain.benchmark.facts import processor_name
from tolktrain.benchmark.versions import versions
from tolktrain.evaluate.choices import DIRECTIONS
from tolktrain.files.reading import TABLE_BYTES, read_json
from tolktrain.report.ablations import HEADS, MEASURES, grid, held_out_sets, sweep_file
from tolktrain.runs.paths import RunPaths

OVERLAP = "overlap"
assert (*(f"{name} loss" for name in LOSSES), *DIRECTIONS, OVERLAP) == MEASURES
_LOWER_IS_BETTER = frozenset(f"{name} loss" for name in LOSSES)


def build_table(found: Mapping[Run, RunItems]) -> dict[str, Any]:
    """Of the finished runs, the measures of each variant, and their differences from the full model on common seeds.

    Returns:
        `tokens`, `step`; `seeds` by variant; `parameters` by variant; `rows`: `set`, `variant`, `measure`, and the
        fields of `Estimate`; `differences`: the same for variant minus full, with `shown`, whether the interval
        excludes 0, and `full_is_better`. The subspace overlap, a mean over layers, is there if all runs of the variant
        were analysed (`tolktrain analyze`); its intervals are over seeds alone, and its `set` is empty.
    """
    variants: dict[str, dict[int, RunItems]] = {}
    for run, items in found.items():
        variants.setdefault(run.variant, {})[run.seed] = items
    overlaps = {run: value for run in found if (value := read_overlap(run)) is not None}
    rows, differences = [], []
    for variant, by_seed in variants.items():
        common = sorted(by_seed.keys() & variants.get(FULL, {}).keys())
        for key in _keys(by_seed):
            name = {"set": key[0], "variant": variant, "measure": key[1]}
            rows.append(name | asdict(estimate([_pick(by_seed[seed], key) for seed in sorted(by_seed)])))
            if variant != FULL and common:
                ours = [_pick(by_seed[seed], key) for seed in common]
                theirs = [_pick(variants[FULL][seed], key) for seed in common]
                differences.append(name | _difference(estimate(ours, theirs), key[1]))
        name = {"set": "", "variant": variant, "measure": OVERLAP}
        own = {run.seed: value for run, value in overlaps.items() if run.variant == variant}
        full = {run.seed: value for run, value in overlaps.items() if run.variant == FULL}
        if own.keys() == by_seed.keys():
            rows.append(name | asdict(estimate_of_seeds([own[seed] for seed in sorted(own)])))
            if variant != FULL and common and full.keys() >= set(common):
                gaps = estimate_of_seeds([own[seed] - full[seed] for seed in common])
                differences.append(name | _difference(gaps, OVERLAP))
    first = next(iter(found.values()))
    return {
        "step": first.step,
        "tokens": first.tokens,
        "seeds": {variant: sorted(by_seed) for variant, by_seed in variants.items()},
        "parameters": {variant: next(iter(by_seed.values())).parameters for variant, by_seed in variants.items()},
        "rows": rows,
        "differences": differences,
    }


def _keys(by_seed: Mapping[int, RunItems]) -> list[tuple[str, str]]:
    return [(items.set, items.measure) for items in next(iter(by_seed.values())).measures]


def _pick(run: RunItems, key: tuple[str, str]) -> Items:
    return next(items for items in run.measures if (items.set, items.measure) == key)


def _difference(found: Estimate, measure: str) -> dict[str, Any]:
    # With one seed, nothing is known about other seeds.
    shown = found.seed_half is not None and abs(found.value) > found.half
    worse = found.value > 0 if measure in _LOWER_IS_BETTER else found.value < 0
    return asdict(found) | {"shown": shown, "full_is_better": shown and worse}


def read_overlap(run: Run) -> float | None:
    """Mean over the layers of the subspace overlap of text and speech; None if the run was not analysed."""
    path = RunPaths(run.out / run.name).analysis
    if not path.is_file():
        return None
    try:
        layers = read_json(path, TABLE_BYTES)["models"]["trained"]["subspaces"]["layers"].values()
        values = [float(layer["overlap"]) for layer in layers]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # an analysis without this measure
    return sum(values) / len(values) if values else None


def markdown(table: Mapping[str, Any]) -> str:
    """The tables of each held-out set, and the answer."""
    parts = []
    for name in held_out_sets(table):
        parts.append(f"**{name}**, after {table['tokens']:,} tokens ({table['step']:,} steps):\n")
        parts.append(_grid(table, "rows", name))
        if any(row["set"] == name for row in table["differences"]):
            parts.append(f"**{name}**, difference from {FULL}; * where the interval excludes 0:\n")
            parts.append(_grid(table, "differences", name))
    parts.append("\n".join(answer(table)) + "\n")
    return "\n".join(parts)


def _grid(table: Mapping[str, Any], kind: str, name: str) -> str:
    columns, cells = grid(table, kind, name)
    lines = [columns, ("---",) * len(columns), *cells]
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|") + "\n"
    )


def answer(table: Mapping[str, Any]) -> list[str]:
    """For each variant a sentence: where the full model is better, where it is worse, and where nothing is shown."""
    lines = []
    variants = list(dict.fromkeys(row["variant"] for row in table["differences"]))
    for variant in variants:
        rows = [row for row in table["differences"] if row["variant"] == variant]
        better = [_named(row) for row in rows if row["full_is_better"]]
        worse = [_named(row) for row in rows if row["shown"] and not row["full_is_better"]]
        open_ = len(rows) - len(better) - len(worse)
        lines.append(
            f"- {FULL} against {variant}: better in {len(better)} of {len(rows)} measures"
            + (f" ({', '.join(better)})" if better else "")
            + f", worse in {len(worse)}"
            + (f" ({', '.join(worse)})" if worse else "")
            + f", no difference shown in {open_}."
        )
    few = [variant for variant, seeds in table["seeds"].items() if len(seeds) < 2]
    if few:
        lines.append(
            f"- One seed each of {', '.join(few)}: the intervals are over items alone, and say nothing about other"
            " seeds. So no difference counts as shown."
        )
    lines += verdict(table)
    if variants:
        lines.append("- Intervals are not corrected for the number of comparisons.")
    return lines


def verdict(table: Mapping[str, Any]) -> list[str]:
    """Two lines: whether the full model is better than the variants, and what would have to grow to show more.

    Nothing without differences; no answer with a single seed. If no more differences favour the full model than
    another variant, the answer is no; if all favour it, yes.
    """
    rows = table["differences"]
    if not rows:
        return []
    question = "- Does the miniature show what the paper claims?"
    if all(row["seed_half"] is None for row in rows):
        return [f"{question} Not answered: one seed says nothing about others; the seeds would have to grow first."]
    better = sum(row["full_is_better"] for row in rows)
    worse = sum(row["shown"] and not row["full_is_better"] for row in rows)
    open_ = [row for row in rows if not row["shown"]]
    word = "no" if better <= worse else "yes" if not worse and not open_ else "in part"
    lines = [
        f"{question} {word.capitalize()}: of {len(rows)} differences, {better} favour {FULL}, {worse} another variant,"
        f" and {len(open_)} are within their intervals."
    ]
    if open_:
        wide = float(np.median([row["half"] / max(abs(row["value"]), 1e-9) for row in open_]))
        by_seeds = sum((row["seed_half"] or 0.0) > row["item_half"] for row in open_)
        grows = "seeds, or steps per run" if 2 * by_seeds >= len(open_) else "held-out items"
        lines.append(
            f"- The median open difference would need an interval {wide:.1f} times narrower. {by_seeds} of these"
            f" {len(open_)} intervals are dominated by seeds; so {grows} would have to grow first."
        )
    return lines


def _named(row: Mapping[str, Any]) -> str:
    head = HEADS[MEASURES.index(row["measure"])].removesuffix(" %")
    return f"{head} on {row['set']}" if row["set"] else head


def write_table(out: Path, table: Mapping[str, Any], command: str) -> None:
    """table.json, table.md and, if there are differences, differences.svg in the folder of the sweep."""
    from tolktrain.files.writing import replace_file

    picture = sweep_file(table)
    if picture is not None:
        replace_file(out / "differences.svg", picture)
    replace_file(out / "table.json", json.dumps(table, indent=1) + "\n")
    circumstances = (
        f"{datetime.now(timezone.utc):%Y-%m-%d}, {processor_name()}, {versions()}; quickstart configuration and corpus."
        " Intervals hold for other seeds and items ([evaluation.md](../../evaluation.md#ablations-in-miniature))."
    )
    parts = ["# Ablations in miniature", f"```bash\n{command}\n```", textwrap.fill(circumstances, 120)]
    if picture is not None:
        parts.append("![Differences from the full model](differences.svg)")
    replace_file(out / "table.md", "\n\n".join([*parts, markdown(table)]))
