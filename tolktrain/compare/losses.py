"""Held-out losses of several runs side by side."""

from collections.abc import Sequence
from typing import Any

from tolktrain.compare.inputs import EvaluatedRun, Row
from tolktrain.data.strategies import DISPLAY_ORDER
from tolktrain.errors import UserError

MODALITIES = ("text", "speech")


def compare_losses(runs: Sequence[EvaluatedRun]) -> tuple[list[Row], list[str]]:
    """A row per held-out set, strategy and modality, and remarks.

    The `runs` of a row have `loss` in nats per scored token, `bigram_loss`, and `difference`, the loss less that of the
    first run. The difference is None for the first run, and where the runs were not scored on the same positions; a run
    that was not measured has None for all.

    Raises:
        UserError: evaluation.json of a run is damaged.
    """
    found = [_losses(run) for run in runs]
    keys = dict.fromkeys(key for own in found for key in own)
    order = {str(name): place for place, name in enumerate(DISPLAY_ORDER)}
    rows: list[Row] = []
    remarks: list[str] = []
    for name, strategy, modality in sorted(
        keys, key=lambda key: (key[0], order.get(key[1], len(order)), MODALITIES.index(key[2]))
    ):
        own = [losses.get((name, strategy, modality)) for losses in found]
        row: Row = {"set": name, "strategy": strategy, "modality": modality, "runs": []}
        for run, figures in zip(runs, own, strict=True):
            difference = None
            if run is not runs[0] and figures is not None and own[0] is not None:
                if _same_positions(runs[0], own[0], run, figures, modality):
                    difference = figures["loss"] - own[0]["loss"]
                else:
                    remarks.append(
                        f"{runs[0].name} and {run.name} were not scored on the same {modality} tokens of {name}"
                    )
            entry = {"run": run.name, "loss": None, "bigram_loss": None, "difference": difference}
            if figures is not None:
                entry |= {"loss": figures["loss"], "bigram_loss": figures.get("bigram_loss")}
            row["runs"].append(entry)
        rows.append(row)
    return rows, list(dict.fromkeys(remarks))


def _losses(run: EvaluatedRun) -> dict[tuple[str, str, str], dict[str, Any]]:
    try:
        return {
            (str(row["set"]), str(row["strategy"]), modality): row[modality] | {"loss": float(row[modality]["loss"])}
            for row in (run.evaluation or {}).get("losses", ())
            for modality in MODALITIES
            if row.get(modality) is not None
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{run}/evaluation.json has no readable losses ({type(error).__name__}: {error});"
            f" `tolktrain evaluate {run}` writes it"
        ) from None


def _same_positions(first: EvaluatedRun, mine: Row, other: EvaluatedRun, its: Row, modality: str) -> bool:
    """Whether two losses are of the same tokens, as far as their number and the digests of the tokenizers tell."""
    digests = [(run.tokenizers or {}).get(modality) for run in (first, other)]
    return mine.get("positions") == its.get("positions") and digests[0] == digests[1]
