"""Predictions of `plan` for published trainings of text models that nobody here made, as a table.

    PYTHONPATH=tests/plan python tests/plan/published.py [FILE.md]

`published_throughput.csv` holds the facts, each with its address. The models are plain Llama or MPT decoders: ours
without the speech parts. MPT's feed-forward layer has two matrices instead of three, so its width counts two thirds.
"""

import csv
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tolktrain.cluster.accelerators import ACCELERATORS
from tolktrain.config import Config
from tolktrain.config.deepspeed import DeepSpeedFile
from tolktrain.config.load import load_config
from tolktrain.config.model import BackboneConfig, ModelConfig, SpeechConfig
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.work import StepCounts
from tolktrain.plan.assumptions import Assumptions
from tolktrain.plan.candidates import Candidate, Cluster, candidates
from tolktrain.plan.memory import estimate_memory
from tolktrain.plan.time import Shape, estimate_step

TABLE = Path(__file__).parent / "published_throughput.csv"
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "bench" / "smoltolk-2b.yaml"
# Their layout engines differ too much from this one: see docs/planning.md.
NOT_FITTED = ("torchtitan", "fms-fsdp", "nanotron", "TinyLlama")


@dataclass(frozen=True)
class Comparison:
    """One published training and what is predicted for it."""

    source: str
    device: str
    model: str
    layout: str
    published: float  # tokens a second of one GPU
    predicted: float
    published_gib: float | None
    predicted_gib: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted / self.published - 1


def comparisons() -> Iterator[Comparison]:
    """Predictions for all published trainings whose layout exists here."""
    base = load_config(CONFIG, [])
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            found = _compare(base, row)
            if found is not None:
                yield found


def _compare(base: Config, row: dict[str, str]) -> Comparison | None:
    numbers = {name: int(value) for name, value in row.items() if value.isdigit()}
    architecture = _architecture(row, numbers)
    data = numbers["gpus"] // (numbers["tensor"] * numbers["pipeline"])
    step = {
        "global_batch_size": numbers["micro_batch_size"] * numbers["accumulation"] * data,
        "sequence_length": numbers["sequence_length"],
    }
    config = base.model_copy(update={"train": base.train.model_copy(update=step)})
    candidate = _candidate(config, architecture, row, numbers)
    if candidate is None:
        return None
    counts = StepCounts.average(step["sequence_length"], 0.0, 0.0, 1)
    shape = Shape(architecture, counts, step["sequence_length"], ("backbone", "pooling", "speech"))
    device = next(kind for kind in ACCELERATORS if kind.name == row["device"])
    seconds = estimate_step(shape, candidate, device, Assumptions()).seconds
    return Comparison(
        row["source"],
        row["device"],
        row["model"],
        f"{row['gpus']} GPUs, {candidate.name}, T {row['sequence_length']}",
        float(row["tokens_per_second_per_gpu"]),
        step["global_batch_size"] * step["sequence_length"] / seconds / numbers["gpus"],
        float(row["peak_gib"]) if row["peak_gib"] else None,
        estimate_memory(shape, candidate, Assumptions(), 0.0).allocated_gib,
    )


def _architecture(row: dict[str, str], numbers: dict[str, int]) -> Architecture:
    backbone = BackboneConfig(
        hidden_size=numbers["hidden_size"],
        num_layers=numbers["layers"],
        num_attention_heads=numbers["heads"],
        num_key_value_heads=numbers["kv_heads"],
        ffn_hidden_size=numbers["ffn_hidden_size"] * numbers["ffn_matrices"] // 3,
        text_vocab_size=numbers["vocab"],
        tie_text_embeddings=row["tied"] == "yes",
    )
    speech = SpeechConfig(
        num_units=8, input_adapter_layers=0, output_adapter_layers=0, layer_pooling="none", residual=False
    )
    return Architecture.from_config(ModelConfig(backbone=backbone, speech=speech))


def _candidate(
    config: Config, architecture: Architecture, row: dict[str, str], numbers: dict[str, int]
) -> Candidate | None:
    cluster = Cluster(numbers["gpus"], min(numbers["gpus"], 8))
    found, _ = candidates(config, architecture, cluster, {stage: DeepSpeedFile(None, {}) for stage in range(4)})
    wanted = tuple(numbers[name] for name in ("tensor", "pipeline", "zero_stage", "micro_batch_size"))
    for candidate in found:
        held = candidate.tensor, candidate.pipeline, candidate.zero_stage, candidate.micro_batch_size
        if held == wanted and candidate.recompute == (row["recompute"] == "full"):
            return candidate
    return None


def median_error(found: Iterable[Comparison]) -> float:
    """Median of the absolute errors."""
    return statistics.median(abs(item.error) for item in found)


def table() -> str:
    """Markdown."""
    found = list(comparisons())
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for item in found:
        groups.setdefault((item.source, item.device), []).append(item)
    lines = [
        "| source | device | trainings | median error | median of the absolute error | worst |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for (source, device), items in groups.items():
        worst = max(items, key=lambda item: abs(item.error))
        middle = statistics.median(item.error for item in items)
        lines.append(
            f"| {source} | {device} | {len(items)} | {middle:+.1%} | {median_error(items):.1%} | {worst.error:+.0%}"
            f" ({worst.model}, {worst.layout}) |"
        )
    lines.append(f"| all | | {len(found)} | | {median_error(found):.1%} | |")
    lines += ["", "| source | model | layout | published GiB | computed GiB | error |", "|---|---|---|---:|---:|---:|"]
    errors = []
    for item in found:
        if item.published_gib is not None:
            errors.append(item.predicted_gib / item.published_gib - 1)
            memory = f"{item.published_gib:.1f} | {item.predicted_gib:.1f} | {errors[-1]:+.0%}"
            lines.append(f"| {item.source} | {item.model} | {item.layout} | {memory} |")
    lines.append(f"| all {len(errors)} | | median | | | {statistics.median(errors):+.0%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(table())
    else:
        print(table(), end="")
