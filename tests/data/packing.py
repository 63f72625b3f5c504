"""Batches whose sequences are cut into documents."""

from collections.abc import Sequence as AbstractSequence

import numpy as np

from tolktrain.data.batch import Batch, collate
from tolktrain.data.sequences import Sequence


def cut_into_documents(batch: Batch, starts: AbstractSequence[tuple[int, ...]]) -> Batch:
    """The same tokens, with documents that begin at `starts` of each sequence."""
    tokens = np.concatenate((batch.tokens.numpy(), batch.targets.numpy()[..., -1:]), axis=2)
    speech_pred = batch.speech_pred.numpy()
    is_speech = np.concatenate((batch.speech_in.numpy(), speech_pred[:, -1:]), axis=1)
    scored = np.pad(speech_pred | batch.text_pred.numpy(), ((0, 0), (1, 0)))
    labels = zip(batch.record_ids, batch.strategies, strict=True)
    return collate(
        [
            Sequence(tokens[row], is_speech[row], scored[row], tokens.shape[2], *label, starts[row])  # type: ignore[arg-type]
            for row, label in enumerate(labels)
        ]
    )


def random_starts(batch: Batch, seed: int) -> list[tuple[int, ...]]:
    """Begins of up to four documents in each sequence, which depend on its record only."""
    found = []
    for record in batch.record_ids:
        rng = np.random.default_rng([seed, *record.encode()])
        found.append((0, *sorted({int(place) for place in rng.integers(1, batch.tokens.shape[2], rng.integers(4))})))
    return found
