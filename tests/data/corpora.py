"""Small random data sets for the tests of the data package."""

from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter

from tolktrain.data.records import DatasetInfo, Record, SpeechInfo, TextInfo, columns_of

TEXT_VOCAB_SIZE, TEXT_EOS, NUM_UNITS = 100, 0, 50


def random_record(
    rng: np.random.Generator,
    record_id: str,
    words: int = 40,
    *,
    text: bool = True,
    speech: bool = True,
    aligned: bool = True,
    num_codebooks: int = 1,
    utterance_words: tuple[int, int] = (1, 12),
    text_per_word: tuple[int, int] = (1, 3),
    units_per_word: tuple[int, int] = (1, 8),
) -> Record:
    """A record whose ids are random; text EOS (0) does not occur in it."""
    text_ends = np.cumsum(rng.integers(text_per_word[0], text_per_word[1] + 1, words)).astype(np.uint32)
    unit_ends = np.cumsum(rng.integers(units_per_word[0], units_per_word[1] + 1, words)).astype(np.uint32)
    cuts = np.cumsum(rng.integers(utterance_words[0], utterance_words[1] + 1, words))
    last_words = np.append(cuts[cuts < words], words) - 1
    none = np.zeros(0, np.uint32)
    num_rows = int(unit_ends[-1]) if speech else 0
    return Record(
        id=record_id,
        source="voice",
        text_ids=rng.integers(1, TEXT_VOCAB_SIZE, int(text_ends[-1]) if text else 0).astype(np.uint32),
        units=rng.integers(0, NUM_UNITS, (num_rows, num_codebooks)).astype(np.uint16),
        run_lengths=rng.integers(1, 5, num_rows).astype(np.uint16),
        word_text_ends=text_ends if aligned else none,
        word_unit_ends=unit_ends if aligned else none,
        utterance_text_ends=text_ends[last_words] if text else none,
        utterance_unit_ends=unit_ends[last_words] if speech else none,
    )


def random_records(count: int, seed: int = 0, words: int = 40, **options: Any) -> list[Record]:
    """Records named r0000, r0001, ..."""
    rng = np.random.default_rng(seed)
    return [random_record(rng, f"r{i:04}", words, **options) for i in range(count)]


def describe(records: list[Record]) -> DatasetInfo:
    """The description of a set of records."""
    first = records[0]
    return DatasetInfo(
        name="random",
        split="train",
        license="none",
        num_records=len(records),
        num_words=sum(len(record.word_text_ends) for record in records),
        num_text_tokens=sum(len(record.text_ids) for record in records),
        num_units=sum(len(record.units) for record in records),
        hours=0.1,
        longest_text=max(len(record.text_ids) + len(record.utterance_text_ends) for record in records),
        longest_speech=max(len(record.units) + len(record.utterance_unit_ends) for record in records),
        text=TextInfo(vocab_size=TEXT_VOCAB_SIZE, eos_id=TEXT_EOS, sha256="text") if first.has_text else None,
        speech=SpeechInfo(
            name="random",
            version="1",
            num_units=NUM_UNITS,
            num_codebooks=first.units.shape[1],
            frames_per_second=25.0,
            sha256="speech",
        )
        if first.has_speech
        else None,
    )


def write_dataset(folder: Path, records: list[Record], shard_bytes: int = 1 << 14, packed: bool = True) -> Path:
    """Write a data set folder with several shards."""
    first = records[0]
    with MDSWriter(
        out=str(folder),
        columns=columns_of(first.has_text, first.has_speech, first.is_aligned),
        compression="zstd" if packed else None,
        hashes=["sha1", "xxh64"],
        size_limit=shard_bytes,
    ) as writer:
        for record in records:
            writer.write(record.to_sample())
    describe(records).write(folder)
    return folder


def packed_copy(folder: Path, target: Path) -> Path:
    """A data set folder as it was written, without the shards that readers have unpacked since."""
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix in (".zstd", ".json"):
            (target / path.name).write_bytes(path.read_bytes())
    return target
