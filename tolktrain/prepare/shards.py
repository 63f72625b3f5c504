"""Writing a data set folder: MDS shards and dataset.json."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tolktrain.data.records import DatasetInfo, Record, SpeechInfo, TextInfo, columns_of

SHARD_BYTES = 1 << 20  # before compression
COMPRESSION = "zstd:19"
HASHES = ("sha1", "xxh64")


def write_dataset(
    folder: Path,
    records: Sequence[Record],
    *,
    name: str,
    split: str,
    license: str,
    text: TextInfo | None,
    speech: SpeechInfo | None,
) -> DatasetInfo:
    """Check the records, write them as MDS shards with hashes, and describe them; dataset.json comes last.

    All records have the same modalities. Raises `UserError` if a record does not fit the vocabularies.
    """
    from streaming import MDSWriter

    assert records, "a data set has at least one record"
    for record in records:
        record.check(
            text.vocab_size if text else None,
            speech.num_units if speech else None,
            speech.num_codebooks if speech else 1,
        )
    first = records[0]
    columns = columns_of(first.has_text, first.has_speech, first.is_aligned)
    with MDSWriter(
        out=str(folder),
        columns=columns,
        compression=COMPRESSION,
        hashes=list(HASHES),
        size_limit=SHARD_BYTES,
        exist_ok=False,
    ) as writer:
        for record in records:
            writer.write(record.to_sample())
    frames = sum(int(record.run_lengths.astype(np.int64).sum()) for record in records)
    info = DatasetInfo(
        name=name,
        split=split,
        license=license,
        num_records=len(records),
        num_words=sum(len(record.word_text_ends) for record in records),
        num_text_tokens=sum(len(record.text_ids) for record in records),
        num_units=sum(len(record.units) for record in records),
        hours=round(frames / speech.frames_per_second / 3600, 4) if speech else 0.0,
        longest_text=max(len(record.text_ids) + len(record.utterance_text_ends) for record in records),
        longest_speech=max(len(record.units) + len(record.utterance_unit_ends) for record in records),
        text=text,
        speech=speech,
    )
    info.write(folder)
    return info
