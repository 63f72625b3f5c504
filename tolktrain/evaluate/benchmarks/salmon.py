"""SALMon: a natural recording against one whose speaker, room, background or sentiment does not fit.

Two forms: folders PART/sample_INDEX_0.wav (positive) and _1.wav (negative), and the Parquet files of the Hugging Face
data set slprl/SALMon. There is no total: parts are reported one by one.
"""

import re
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import (
    AudioFile,
    Benchmark,
    Found,
    ItemSet,
    Measure,
    Pair,
    ParquetAudio,
    Problems,
    Published,
    Segment,
    list_folder,
)

PARTS = (
    "sentiment_consistency",
    "speaker_consistency",
    "gender_consistency",
    "bg_domain_consistency",
    "bg_all_consistency",
    "rir_consistency",
    "sentiment_alignment",
    "bg_alignment",
)
_ARCHIVE = "SALMon (its salmon_benchmark folder, or the Parquet files of slprl/SALMon on Hugging Face)"
_SAMPLE = re.compile(r"sample_(\d+)_(\d+)\.wav")
_RULES = ("whole_mean_no_context", "whole_mean")
_MEASURES = (Measure("accuracy"),)
_SIDES = (("positive", "correct"), ("negative", "incorrect"))  # parts of the names of columns


def read(folder: Path) -> Found:
    """The parts in a folder. Raises `UserError` if there is none, or a Parquet file is not readable."""
    present = [name for name in PARTS if (folder / name).is_dir()]
    if not present:
        raise UserError(f"{folder} holds none of the folders {', '.join(PARTS)}; name the folder of {_ARCHIVE}")
    sets, problems = [], Problems()
    for part in present:
        parquet = [name for name in list_folder(folder / part) if name.endswith(".parquet")]
        if parquet:
            sets.append(_read_parquet(folder / part, part, parquet))
        else:
            found, wrong = _read_files(folder / part, part)
            sets.append(found)
            problems += wrong
    return Found(tuple(sets), problems)


def _read_files(folder: Path, part: str) -> tuple[ItemSet, Problems]:
    files: dict[int, dict[int, str]] = {}
    extra, doubled = [], []
    for name in list_folder(folder):
        match = _SAMPLE.fullmatch(name)
        if match is None or int(match[2]) > 1:
            extra += [f"{part}/{name}"] if name.endswith(".wav") else []
            continue
        sample = files.setdefault(int(match[1]), {})
        if int(match[2]) in sample:  # sample_1_0 and sample_01_0
            doubled.append(f"{part}/{name}")
        sample.setdefault(int(match[2]), name)
    missing = [
        f"{part}/sample_{index}_{side}.wav" for index, sample in files.items() for side in (0, 1) if side not in sample
    ]
    pairs, items = [], {}
    for index, sample in sorted(files.items()):
        if len(sample) == 2:
            names = [f"{part}/{sample[side]}" for side in (0, 1)]
            pairs.append(Pair(str(index), names[0], names[1]))
            for name, file in zip(names, (sample[0], sample[1]), strict=True):
                items[name] = (Segment("whole", "speech", AudioFile(folder / file)),)
    found = ItemSet(part, items, tuple(pairs), _MEASURES, _RULES)
    return found, Problems(tuple(missing), tuple(doubled), tuple(extra))


def _read_parquet(folder: Path, part: str, names: list[str]) -> ItemSet:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading Parquet files needs pyarrow; pip install 'tolktrain[text]'") from None
    pairs, items = [], {}
    for name in names:
        path = folder / name
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                columns, rows = list(file.schema_arrow.names), file.metadata.num_rows
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} is no readable Parquet file ({error}); download it again") from None
        chosen = [_column(path, columns, words) for words in _SIDES]
        for row in range(rows):
            ids = [f"{part}/{name}/{row}/{side}" for side in (0, 1)]
            pairs.append(Pair(f"{name}/{row}", ids[0], ids[1]))
            for item, column in zip(ids, chosen, strict=True):
                items[item] = (Segment("whole", "speech", ParquetAudio(path, row, column)),)
    return ItemSet(part, items, tuple(pairs), _MEASURES, _RULES)


def _column(path: Path, columns: list[str], words: tuple[str, str]) -> str:
    found = [name for name in columns if any(re.search(rf"(^|_){word}($|_)", name) for word in words)]
    if len(found) != 1:
        raise UserError(
            f"{path} should have one column named after {' or '.join(words)}, such as {words[0]}_audio; its columns are"
            f" {', '.join(columns)[:200]}"
        )
    return found[0]


_TWIST = (61.5, 71.0, 70.0, 55.0, 60.5, 62.0, 51.5, 54.5)

BENCHMARK = Benchmark(
    "salmon",
    "SALMon",
    _ARCHIVE,
    read,
    tuple(
        Published("TWIST-7B", part, "accuracy", "whole_mean_no_context", percent, "SALMon, README.md")
        for part, percent in zip(PARTS, _TWIST, strict=True)
    ),
)
