"""Data sets and configurations for the tests of this folder."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `corpora`

from corpora import NUM_UNITS, TEXT_VOCAB_SIZE, packed_copy, random_records, write_dataset
from s3_server import S3Server

from tolktrain.config import Config


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 103 aligned records in several packed shards. Tests must not change it."""
    return write_dataset(tmp_path_factory.mktemp("data") / "stories", random_records(103))


@pytest.fixture(scope="session")
def stored_stories(stories: Path, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the same data set in a bucket. Tests must not change it."""
    address = f"{s3_server.make_bucket()}/sets/stories"
    s3_server.put_folder(packed_copy(stories, tmp_path_factory.mktemp("data") / "stories"), address)
    return address


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """Makes a configuration from data set folders, a mixture {strategy: {set: share}} and a batch."""

    def make(
        sets: dict[str, Path | dict[str, str]],
        mixture: dict[str, dict[str, float]] | None = None,
        *,
        global_batch_size: int = 12,
        micro_batch_size: int = 2,
        sequence_length: int = 32,
        validation: dict[str, Any] | None = None,
        speech: dict[str, Any] | None = None,
        **data: Any,
    ) -> Config:
        first = next(iter(sets))
        mixture = mixture or {"text": {first: 1.0}, "speech": {first: 1.0}, "interleaved": {first: 2.0}}
        backbone = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
        backbone |= {"ffn_hidden_size": 8, "text_vocab_size": TEXT_VOCAB_SIZE}
        paths = {name: {"path": str(value)} if isinstance(value, Path) else value for name, value in sets.items()}
        stage = {"name": "joint", "tokens": 1000, "learning_rate": 0.1}
        stage["mixture"] = {strategy: {"sets": shares} for strategy, shares in mixture.items()}
        return Config.model_validate(
            {
                "run": {"name": "test"},
                "model": {"backbone": backbone, "speech": {"num_units": NUM_UNITS, **(speech or {})}},
                "data": {"sets": paths, **data},
                "train": {
                    "global_batch_size": global_batch_size,
                    "micro_batch_size": micro_batch_size,
                    "sequence_length": sequence_length,
                    "stages": [stage],
                    "validation": validation or {},
                },
            }
        )

    return make
