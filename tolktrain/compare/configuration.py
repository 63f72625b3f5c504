"""What differs in the configurations of several runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tolktrain.compare.inputs import EvaluatedRun, Row
from tolktrain.config.changes import with_defaults
from tolktrain.config.mistakes import dotted

_NAMES = ("run.name", "run.dir")  # every run has its own


def compare_configurations(runs: Sequence[EvaluatedRun]) -> list[Row]:
    """`key`, dotted as an override spells it, and `values`, one per run, of the keys whose values differ; None also
    means an absent key. Keys that are absent have their default."""
    flat = [dict(_leaves(with_defaults(run.config))) for run in runs if run.config is not None]
    if len(flat) < len(runs):
        return []
    keys = sorted({key for leaves in flat for key in leaves})
    rows = [{"key": key, "values": [leaves.get(key) for leaves in flat]} for key in keys if key not in _NAMES]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def _leaves(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values. The items of a list are numbered if they are mappings; other lists are values."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list) and tree and all(isinstance(item, Mapping) for item in tree):
        for place, item in enumerate(tree):
            yield from _leaves(item, (*path, place))
    else:
        yield dotted(path), tree
