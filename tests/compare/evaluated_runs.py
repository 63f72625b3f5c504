"""Folders of runs whose evaluations are made of chosen numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tolktrain.evaluate.benchmarks.base import Measure, Pair
from tolktrain.evaluate.rules import ItemScore, SegmentScore
from tolktrain.evaluate.score_files import collect, write_scores

MEASURES = (Measure("mean over pairs"), Measure("npi only", ("type", frozenset({"npi"}))), Measure("types", by="type"))
TYPES = ("agreement", "agreement", "agreement", "npi", "reflexive")
TOKENIZERS = {"text": "a" * 64, "speech": "b" * 64}


def pairs(num_ids: int = 30, voices: str = "AB") -> list[Pair]:
    """Ids of three types, in one voice or more."""
    return [
        Pair(str(n), f"{n}{voice}+", f"{n}{voice}-", voice, {"type": TYPES[n % len(TYPES)]})
        for n in range(num_ids)
        for voice in voices[: 1 + n % len(voices)]
    ]


def scores(own: Sequence[Pair], seed: int, skill: float) -> dict[str, float]:
    """Sums of log-likelihoods, small whole numbers so that some tie."""
    rng = np.random.default_rng(seed)
    found = {}
    for pair in own:
        found[pair.correct] = float(rng.integers(-6, 0) + rng.binomial(3, skill))
        found[pair.incorrect] = float(rng.integers(-6, 0))
    return found


def write_benchmark(
    folder: Path,
    own: Sequence[Pair],
    values: Mapping[str, float],
    *,
    label: str = "sblimp",
    rules: Sequence[str] = ("whole_mean", "whole_sum"),
    **header: Any,
) -> Path:
    """scores/LABEL.jsonl with the set `test`; every item has three tokens."""
    items = [
        ItemScore(name, "eos", (SegmentScore("whole", "speech", value, 3),), -1.0) for name, value in values.items()
    ]
    path = folder / "scores" / f"{label}.jsonl"
    head = {"benchmark": "sblimp", "run": folder.name, "step": 7, "scorer": "model", "tokenizers": TOKENIZERS}
    write_scores(path, head | header, {"test": collect(own, items, MEASURES, rules)})
    return path


def write_evaluation(folder: Path, loss: float, seed: int, positions: int = 1000, step: int = 7) -> None:
    """evaluation.json and choices.jsonl: 40 trials of 10 texts in two directions."""
    row = {"set": "stories", "strategy": "text", "speech": None}
    figures = {"loss": loss, "positions": positions, "bigram_loss": 3.5, "ratio": loss / 3.5}
    content = {"format": 1, "run": folder.name, "step": step, "losses": [row | {"text": figures}], "choices": []}
    (folder / "evaluation.json").write_text(json.dumps(content))
    rng = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = [{"kind": "header", "format": 1, "run": folder.name, "step": step}]
    lines[0]["tokenizers"] = TOKENIZERS
    for direction in ("speech_to_text", "text_to_text"):
        for trial in range(40):
            values = rng.integers(-4, 0, 2).astype(float).tolist()
            head = {"kind": "trial", "set": "stories", "direction": direction, "id": f"t{trial}"}
            lines.append(head | {"text": str(trial % 10), "scores": {"model": values}})
    (folder / "choices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(root: Path, name: str, seed: int, skill: float, **changes: Any) -> Path:
    """A run with everything; `changes` are keys of train."""
    folder = root / name
    folder.mkdir(parents=True)
    stages = [{"name": "text", "tokens": 10, "learning_rate": 1e-3}, {"name": "joint", "tokens": 20}]
    tree = {"run": {"name": name, "dir": str(root)}, "train": {"stages": stages, "sequence_length": 256} | changes}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    own = pairs()
    write_benchmark(folder, own, scores(own, seed, skill))
    write_evaluation(folder, 2.0 + seed / 10, seed)
    return folder
