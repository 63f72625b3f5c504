"""The targets of a trained model, and whether it reached them, in sentences."""

from collections.abc import Sequence
from typing import Any

SPEECH_RATIO = 0.75
"""The speech loss is to be at least a quarter below the bigram's."""

CHANCE = 0.5
FLOORS = ("unigram", "bigram")

_LEAST_LOSS = 1e-6  # nats per token; less is no model's loss but a defect


def targets(losses: Sequence[dict[str, Any]], choices: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each held-out set: speech and text loss against the bigram, and each direction against chance and n-grams.

    A direction reaches its goal if its whole 95 % interval is above 50 % and above the accuracies of unigram and bigram
    on the same trials. Each entry has `set`, `name`, `statement` and `reached`.
    """
    found = []
    for row in losses:
        modality = row["strategy"]
        figures = row[modality] if modality in ("text", "speech") else None
        if figures is not None and figures["bigram_loss"] is not None:
            found.append({"set": row["set"], "name": f"{modality}_loss"} | _loss_target(modality, figures))
    for row in choices:
        source, target = row["direction"].split("_to_")
        statement = (
            f"{source} → {target}: {100 * row['accuracy']:.1f} % of choices right,"
            f" {100 * row['low']:.1f} to {100 * row['high']:.1f} % (goal: above {_floor_in_words(row)})"
        )
        reached = row["low"] > max(CHANCE, *(row.get(name, CHANCE) for name in FLOORS))
        found.append({"set": row["set"], "name": row["direction"], "statement": statement, "reached": reached})
    return found


def _floor_in_words(row: dict[str, Any]) -> str:
    name = max(FLOORS, key=lambda floor: row.get(floor, 0.0))
    if row.get(name, 0.0) <= CHANCE:
        return "50 %"
    return f"the {name}'s {100 * row[name]:.1f} %"


def _loss_target(modality: str, figures: dict[str, Any]) -> dict[str, Any]:
    loss, bigram = figures["loss"], figures["bigram_loss"]
    if not loss > _LEAST_LOSS:
        return {"statement": f"{modality} loss {loss:g}, which no model of {modality} has", "reached": False}
    below = 1 - loss / bigram
    side = f"{100 * abs(below):.0f} % {'below' if below >= 0 else 'above'} the bigram's {bigram:.3f}"
    if modality == "speech":
        goal, reached = f"{100 * (1 - SPEECH_RATIO):.0f} % below", loss <= SPEECH_RATIO * bigram
    else:
        goal, reached = "below", loss < bigram
    return {"statement": f"{modality} loss {loss:.3f}, {side} (goal: {goal})", "reached": reached}
