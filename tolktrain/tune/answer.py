"""What a search leaves for others: an override for `train`, and a calibration for `plan`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.config.document import parse, write_document
from tolktrain.files.writing import replace_file
from tolktrain.plan.assumptions import CALIBRATION_FORMAT
from tolktrain.tune.predict import Device, Predictor
from tolktrain.tune.search import Found
from tolktrain.tune.setting import Setting
from tolktrain.tune.trials import DEEPSPEED

OVERRIDE = "override.yaml"


@dataclass(frozen=True)
class StageResult:
    """The search of one stage of the recipe."""

    name: str
    tokens: int  # positions of the stage
    predictor: Predictor
    found: Found


def write_answer(folder: Path, config: str, overrides: Sequence[str], setting: Setting) -> Path:
    """Write `deepspeed.json` and `override.yaml`, a configuration that `tolktrain train` takes as it is.

    Args:
        folder: is made.
        config: the configuration that was tuned.
        overrides: of the command line; they are part of the answer.
        setting: the answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = {**setting.entries}
    entries["zero_optimization"] = {**setting.zero, "stage": setting.zero_stage}
    file = (folder / DEEPSPEED).absolute()
    replace_file(file, json.dumps(entries, indent=2) + "\n")
    tree: dict[str, Any] = {"base": str(Path(config).absolute())}
    for text in (*overrides, *(f"{key}={value}" for key, value in setting.overrides.items())):
        key, _, value = text.partition("=")
        _put(tree, key.split("."), parse(value, None).plain())
    _put(tree, ["deepspeed", "config"], str(file))
    override = folder / OVERRIDE
    replace_file(override, f"# {setting.name}\n{write_document(tree)}")
    return override


def _put(tree: dict[Any, Any], keys: Sequence[str], value: Any) -> None:
    # Mappings with numbers as keys change single items of a list.
    first: str | int = int(keys[0]) if keys[0].isdigit() else keys[0]
    if len(keys) == 1:
        tree[first] = value
        return
    below = tree.get(first)
    if not isinstance(below, dict):
        below = tree[first] = {}
    _put(below, keys[1:], value)


def calibration(
    config: str, device: Device, world_size: int, versions: Mapping[str, str], stages: Sequence[StageResult]
) -> dict[str, Any]:
    """Measured against predicted rates and memory, for `tolktrain plan`; plain values."""
    measurements = [entry for stage in stages for entry in _measurements(config, stage)]
    factors = [entry["predicted_tokens_per_second"] / entry["tokens_per_second"] for entry in measurements]
    factor = math.exp(math.fsum(map(math.log, factors)) / len(factors)) if factors else 1.0
    return {
        "format": CALIBRATION_FORMAT,
        "device": device.name,
        "world_size": world_size,
        "versions": dict(versions),
        "measurements": measurements,
        "time_factor": factor,
    }


def _measurements(config: str, stage: StageResult) -> list[dict[str, Any]]:
    found, predictor = stage.found, stage.predictor
    entries = []
    for setting in dict.fromkeys(trial.setting for trial in found.trials):
        trials, rate = found.of(setting, found.full), found.rate(setting)
        if not trials or rate is None:
            continue
        candidate = predictor.candidate(setting)
        peaks = [trial.outcome.peak_memory_gib for trial in trials if trial.outcome.peak_memory_gib is not None]
        positions = trials[0].outcome.tokens_per_step
        entries.append(
            {
                "config": config,
                "stage": stage.name,
                "layout": {
                    "tensor": setting.tensor,
                    "pipeline": setting.pipeline,
                    "data": candidate.data,
                    "zero_stage": setting.zero_stage,
                    "offload": setting.offload,
                    "recompute": setting.recompute,
                    "compile": setting.compile,
                },
                "micro_batch_size": setting.micro_batch_size,
                "tokens_per_second": rate,
                "predicted_tokens_per_second": positions / predictor.seconds(setting),
                "peak_memory_bytes": round(max(peaks) * 2**30) if peaks else None,
                "predicted_memory_bytes": round(predictor.memory_gib(setting) * 2**30),
            }
        )
    return entries


def write_calibration(path: Path, content: Mapping[str, Any]) -> None:
    """Write the calibration as JSON."""
    replace_file(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
