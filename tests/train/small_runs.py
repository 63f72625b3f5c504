"""Runs of a model small enough for tests."""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tolktrain_kernels.speech_adapter import pack_segments

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))  # for `corpora`

from corpora import NUM_UNITS, TEXT_VOCAB_SIZE, random_records, write_dataset
from preferences import TOKENS, random_preferences, write_preferences

from tolktrain.checkpoint.slices import Slice, Snapshot
from tolktrain.config import Config
from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.config.load import load_config
from tolktrain.data.batch import Batch, collate
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.strategies import build_sequence
from tolktrain.train.optimizer import LearningRates
from tolktrain.vocabulary import Vocabulary

SEQUENCE_LENGTH = 32
TOKENS_PER_STEP = 8 * SEQUENCE_LENGTH
STEPS_PER_STAGE = (3, 4, 5)
NUM_STEPS = sum(STEPS_PER_STAGE)
SLOWEST_KEYS = [f"slowest_{name}" for name in ("rank", "node", "factor", "part", "data_seconds", "compute_seconds")]
TIMING_KEYS = ("seconds_per_step", "tokens_per_second", "memory_gib", "memory_reserved_gib", *SLOWEST_KEYS)
VOCABULARY = Vocabulary(TEXT_VOCAB_SIZE, 0, NUM_UNITS)

RATES = LearningRates(backbone=0.01, speech=0.02)
MIXED: list[Strategy] = [
    *("text", "text", "speech", "interleaved", "recognition", "recognition", "speech", "synthesis"),
]
# ZeRO stage, precision, strategies of the 8 sequences. In micro batches of 2, MIXED uses other parts on each rank.
ENGINE_CASES: dict[str, tuple[int, str, list[Strategy]]] = {
    **{f"mixed-zero{stage}": (stage, "fp32", MIXED) for stage in (0, 1, 2, 3)},
    **{f"interleaved-zero{stage}": (stage, "fp32", ["interleaved"] * 8) for stage in (1, 2, 3)},
    "mixed-zero1-bf16": (1, "bf16", MIXED),
}

# Each sequence ends before the text that follows the speech, which is all that is scored.
NOTHING_SCORED = (
    "train.sequence_length=2",
    "train.stages.0.mixture={recognition: {sets: {train: 1}}}",
    "train.stages.0.trainable=[backbone, speech]",
)

Line = dict[str, Any]


def write_sets(folder: Path) -> None:
    """The data sets train and held; codebooks, whose speech has two of them; and the same of preferences."""
    write_dataset(folder / "train", random_records(48, seed=0, words=60))
    write_dataset(folder / "held", random_records(9, seed=1, words=60))
    write_dataset(folder / "codebooks", random_records(48, seed=2, words=60, num_codebooks=2))
    for name, count, books in (("preferences", 24, 1), ("held-preferences", 5, 1), ("preferences-codebooks", 24, 2)):
        records = random_preferences(count, len(name), SEQUENCE_LENGTH * books, books)
        write_preferences(folder / name, records, SEQUENCE_LENGTH * books)


def preference_overrides(sets: Path, stage: int, name: str = "preferences") -> list[str]:
    """Overrides with which a stage of `write_config` is one of preferences."""
    return [
        f"model.special_tokens={json.dumps(TOKENS)}",
        f"data.sets.preferences.path={sets / name}",
        f"train.stages.{stage}.mixture={{preference: {{sets: {{preferences: 1}}}}}}",
    ]


def write_config(folder: Path, sets: Path, name: str = "small") -> Path:
    """A YAML file of a run in three stages; its run directory is <folder>/runs/<name>."""
    everything = {"sets": {"train": 1}}
    stages: list[dict[str, Any]] = [
        {"name": "text", "trainable": ["backbone"], "mixture": {"text": everything}},
        {"name": "adapter", "trainable": ["pooling", "speech"], "mixture": {"interleaved": everything}},
        {"name": "joint", "mixture": {kind: everything for kind in ("speech", "text", "interleaved")}},
    ]
    for stage, steps in zip(stages, STEPS_PER_STAGE, strict=True):
        stage |= {"tokens": steps * TOKENS_PER_STEP, "learning_rate": 0.01, "speech_learning_rate": 0.02}
        stage["schedule"] = {"warmup_steps": 2, "decay_steps": 2}
    backbone = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    tree = {
        "run": {"name": name, "dir": str(folder / "runs")},
        "model": {
            "backbone": {**backbone, "ffn_hidden_size": 48, "text_vocab_size": TEXT_VOCAB_SIZE},
            "speech": {"num_units": NUM_UNITS, "input_adapter_layers": 1, "output_adapter_layers": 1},
        },
        "data": {
            "sets": {name: {"path": str(sets / name)} for name in ("train", "held")},
            "num_canonical_nodes": 1,
            "interleaving": {"text_words": [2, 4], "speech_words": [1, 3]},
        },
        "train": {
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "sequence_length": SEQUENCE_LENGTH,
            "precision": "fp32",
            "stages": stages,
            "validation": {"every_steps": 5, "sequences": 3, "sets": ["held"]},
            "log_every_steps": 1,
            "cpu_threads": 1,
        },
        "deepspeed": {"zero_stage": 1},
        "checkpoint": {"every_steps": 4, "keep_last": 20},
        "logging": {"tensorboard": False},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    # Two ranks may write it at once.
    own = path.with_suffix(f".{os.getpid()}")
    own.write_text(yaml.dump(tree, Dumper=yaml.CSafeDumper))
    return own.replace(path)


def small_config(folder: Path, sets: Path, *overrides: str, name: str = "small") -> Config:
    """The configuration of `write_config`."""
    return load_config(write_config(folder, sets, name), overrides)


def assert_close(line: Line, other: Line, rel: float) -> None:
    """Losses and gradient norms of two lines of metrics agree."""
    assert (line["step"], line.keys()) == (other["step"], other.keys())
    for key, value in line.items():
        if key in ("loss", "text_loss", "speech_loss", "layer_entropy", "grad_norm") or key.startswith("validation."):
            expected = None if other[key] is None else pytest.approx(other[key], rel=rel)
            assert value == expected, (line["step"], key)


def read_metrics(run_dir: Path) -> list[Line]:
    """metrics.jsonl without what two equal runs differ in."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in lines]


def make_batch(strategies: list[Strategy], seed: int = 0) -> Batch:
    """A batch with one sequence for each entry of `strategies`."""
    records = random_records(len(strategies), seed=seed, words=60)
    interleaving = InterleavingConfig(text_words=(2, 4), speech_words=(1, 3))
    return collate(
        [
            build_sequence(
                record, strategy, VOCABULARY, SEQUENCE_LENGTH, interleaving, sequence_rng(seed, record.id, 0, "test")
            )
            for record, strategy in zip(records, strategies, strict=True)
        ]
    )


def cut_batch(whole: Batch, count: int) -> list[Batch]:
    """The sequences of a batch as `count` micro batches."""
    return [_part(whole, rows) for rows in torch.arange(len(whole.tokens)).chunk(count)]


def shorten(whole: Batch) -> list[Batch]:
    """The first half of each sequence of a batch, each a micro batch of its own."""
    length = whole.tokens.shape[2] // 2
    return [_part(whole, rows, length) for rows in torch.arange(len(whole.tokens)).split(1)]


def _part(whole: Batch, rows: torch.Tensor, length: int = SEQUENCE_LENGTH) -> Batch:
    names = ("tokens", "targets", "speech_in", "speech_pred", "text_pred")
    cut = {name: getattr(whole, name)[rows][..., :length].contiguous() for name in names}
    counts = {
        "num_text_scored": int(cut["text_pred"].sum()),
        "num_speech_scored": int(cut["speech_pred"].sum()),
        "num_entropy_positions": length * int(cut["speech_pred"].any(dim=1).sum()),
    }
    labels = {
        "record_ids": [whole.record_ids[row] for row in rows],
        "strategies": [whole.strategies[row] for row in rows],
    }
    return replace(whole, **cut, **counts, **labels, segments=pack_segments(cut["speech_in"]), documents=None)


def case_overrides(zero_stage: int, precision: str, micro_batch_size: int) -> list[str]:
    """Overrides of a case of ENGINE_CASES."""
    return [
        f"deepspeed.zero_stage={zero_stage}",
        f"train.precision={precision}",
        f"train.micro_batch_size={micro_batch_size}",
        # Where a gradient is next to nothing, Adam would otherwise turn its rounding into an update of full size.
        "train.optimizer.eps=1e-5",
    ]


Tensors = dict[str, torch.Tensor]
Plain = tuple[torch.Tensor, tuple[int, ...], tuple[int, ...]]


def plain(slices: Mapping[str, Slice]) -> dict[str, Plain]:
    """Slices as what torch.load takes without executing code."""
    return {name: (block.tensor.clone(), block.offsets, block.shape) for name, block in slices.items()}


def assembled(parts: Iterable[Mapping[str, Slice | Plain]]) -> Tensors:
    """Whole tensors from the slices of all ranks, each element from exactly one of them."""
    result: Tensors = {}
    filled: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, given in part.items():
            block = given if isinstance(given, Slice) else Slice(*given)
            whole = result.setdefault(name, torch.full(block.shape, math.nan))
            count = filled.setdefault(name, torch.zeros(block.shape, dtype=torch.int64))
            where = tuple(slice(o, o + n) for o, n in zip(block.offsets, block.sizes, strict=True))
            whole[where] = block.tensor
            count[where] += 1
    assert all(bool((count == 1).all()) for count in filled.values())
    return result


def tensors_of(snapshot: Snapshot) -> dict[str, Tensors]:
    """Whole tensors of the snapshot of a single process, by kind."""
    return {kind: assembled([slices]) for kind, slices in snapshot.kinds().items()}


class Memory:
    """Whole tensors, as an engine reads them from a checkpoint."""

    def __init__(self, kinds: Mapping[str, Tensors]) -> None:
        self._kinds = kinds

    def shapes(self, kind: str) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: tuple(tensor.shape) for name, tensor in self._kinds[kind].items()}

    def read(self, kind: str, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
        """A block of a tensor."""
        return self._kinds[kind][name][tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]


class StopAfter:
    """A request to stop that arrives during step `step`, counted from where the run continues."""

    reason = "SIGTEST"
    age_seconds = None

    def __init__(self, step: int) -> None:
        self._left = step

    @property
    def requested(self) -> bool:
        """Whether the step has come; asked once per step."""
        self._left -= 1
        return self._left <= 0
