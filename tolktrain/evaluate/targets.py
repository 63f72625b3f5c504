"""What a trained model is expected to reach, and whether it did, in sentences."""

from collections.abc import Sequence
from typing import Any

SPEECH_RATIO = 0.75
"""The speech loss is to be at least a quarter below the bigram's."""

CHANCE = 0.5


def targets(losses: Sequence[dict[str, Any]], choices: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each held-out set: speech and text loss against the bigram, and each direction against chance.

    A direction is above chance if its whole 95 % interval is. Each entry has `set`, `name`, `statement` and `reached`.
    """
    found = []
    for row in losses:
        figures = row.get(row["strategy"]) if row["strategy"] in ("text", "speech") else None
        if figures is None or figures["bigram_loss"] is None:
            continue
        modality, loss, bigram = row["strategy"], figures["loss"], figures["bigram_loss"]
        below = 1 - loss / bigram
        side = f"{abs(below):.0%} {'below' if below >= 0 else 'above'} the bigram's {bigram:.3f}"
        goal = f"at least {1 - SPEECH_RATIO:.0%} below" if modality == "speech" else "below"
        reached = loss <= SPEECH_RATIO * bigram if modality == "speech" else loss < bigram
        statement = f"{row['set']}: {modality} loss {loss:.3f} is {side} (expected: {goal})"
        found.append({"set": row["set"], "name": f"{modality}_loss", "statement": statement, "reached": reached})
    for row in choices:
        source, target = row["direction"].split("_to_")
        span = f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %"
        statement = (
            f"{row['set']}: {source} prompt, {target} continuation: {100 * row['accuracy']:.1f} % right,"
            f" 95 % interval {span} (expected: above chance, 50 %)"
        )
        reached = row["low"] > CHANCE
        found.append({"set": row["set"], "name": row["direction"], "statement": statement, "reached": reached})
    return found
