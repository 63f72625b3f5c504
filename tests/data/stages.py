"""The batches of a stage, for any number of data ranks, which are emulated one after the other."""

from typing import Any

from corpora import TEXT_EOS, TEXT_VOCAB_SIZE

from tolktrain.config import Config
from tolktrain.data.batch import Batch
from tolktrain.data.loader import StageLoader
from tolktrain.data.skipping import SkippedSteps
from tolktrain.vocabulary import Vocabulary

VOCABULARY = Vocabulary(TEXT_VOCAB_SIZE, TEXT_EOS, 50)
NUM_CANONICAL_NODES = 4


def stage_loader(
    config: Config, step: int = 0, rank: int = 0, size: int = 1, seed: int = 5, skipped: SkippedSteps | None = None
) -> StageLoader:
    mixture = config.train.stages[0].mixture
    return StageLoader(
        config, mixture, VOCABULARY, seed=seed, data_rank=rank, data_size=size, step=step, skipped=skipped
    )


def rows(batches: list[Batch]) -> list[tuple[Any, ...]]:
    """Everything in the rows of some micro batches."""
    return [
        (
            batch.record_ids[b],
            batch.strategies[b],
            batch.tokens[b].numpy().tobytes(),
            batch.targets[b].numpy().tobytes(),
        )
        + tuple(mask[b].numpy().tobytes() for mask in (batch.speech_in, batch.speech_pred, batch.text_pred))
        for batch in batches
        for b in range(len(batch.record_ids))
    ]


def global_batches(
    config: Config,
    steps: int,
    start: int = 0,
    size: int = 1,
    seed: int = 5,
    skipped: SkippedSteps | None = None,
) -> list[list[Any]]:
    """The global batch of each step, its rows sorted; all data ranks are emulated here one after the other."""
    result: list[list[Any]] = [[] for _ in range(steps)]
    micro = config.train.micro_batch_size
    for rank in range(size):
        with stage_loader(config, start, rank, size, seed, skipped) as loader:
            for step in range(steps):
                batches = next(loader)
                assert [len(batch.record_ids) for batch in batches] == [micro] * (12 // size // micro)
                result[step] += rows(batches)
    return [sorted(batch) for batch in result]
