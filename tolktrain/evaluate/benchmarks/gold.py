"""Benchmarks of the ZeroSpeech toolbox: recordings with meaningless names, and a gold.csv that explains them."""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import (
    AudioFile,
    Found,
    ItemSet,
    Measure,
    Pair,
    Problems,
    Segment,
    list_folder,
)
from tolktrain.files.names import all_inside
from tolktrain.files.reading import decode_text, read_bytes

GOLD = "gold.csv"
_LARGEST_GOLD = 1 << 28  # bytes
_SUFFIXES = (".wav", ".flac")
_CORRECT = {"1": True, "1.0": True, "True": True, "0": False, "0.0": False, "False": False}

Row = Mapping[str, str]


@dataclass(frozen=True)
class GoldLayout:
    """How a benchmark of the toolbox is arranged."""

    task: str  # folder below that of the data set, such as lexical
    splits: tuple[str, ...]  # folders below
    columns: tuple[str, ...]  # of gold.csv that are read, besides `GOLD_COLUMNS`
    key: tuple[str, ...]  # columns that identify a pair, without the voice
    labels: Callable[[Row], dict[str, str]]
    measures: tuple[Measure, ...]
    rules: tuple[str, ...]
    submission: str  # with {split}
    archive: str
    without_gold: str  # which archive has recordings but no gold file


GOLD_COLUMNS = ("filename", "id", "voice", "correct")


def read_gold_benchmark(folder: Path, layout: GoldLayout) -> Found:
    """The splits of a benchmark that are in the folder, matched by file name, id and voice, never by order.

    Raises:
        UserError: there is no split, none has a gold file, or a gold file cannot be read.
    """
    base = folder / layout.task if (folder / layout.task).is_dir() else folder
    present = [name for name in layout.splits if (base / name).is_dir()]
    if not present:
        expected = " or ".join(str(Path(layout.task, name)) for name in layout.splits)
        raise UserError(f"{folder} holds no folder {expected}; name the folder of {layout.archive}")
    with_gold = [name for name in present if (base / name / GOLD).is_file()]
    bare = [name for name in present if name not in with_gold]
    if not with_gold:
        raise UserError(
            f"{base / bare[0]} has recordings but no {GOLD}, so nothing says which are correct; {layout.without_gold}"
            f" has none: use {layout.archive}"
        )
    sets, problems = [], Problems()
    for name in with_gold:
        found, wrong = _read_split(base / name, name, layout)
        sets.append(found)
        problems += wrong
    notes = tuple(f"{base / name} has no {GOLD} and is not scored" for name in bare)
    return Found(tuple(sets), problems, notes)


def _read_split(folder: Path, split: str, layout: GoldLayout) -> tuple[ItemSet, Problems]:
    rows = _read_rows(folder / GOLD, (*GOLD_COLUMNS, *layout.columns))
    all_inside(folder, {row["filename"] for row in rows}, folder / GOLD)
    doubled, missing = [], []
    files: dict[str, str] = {}
    for name in list_folder(folder):
        if name.lower().endswith(_SUFFIXES) and files.setdefault(Path(name).stem, name) != name:
            doubled.append(f"{split}/{name}")  # the same recording in two formats
    sides: dict[tuple[str, ...], dict[bool, Row]] = {}
    seen: set[str] = set()
    for row in rows:
        name, correct = row["filename"], _CORRECT[row["correct"]]
        pair = sides.setdefault((*(row[column] for column in layout.key), row["voice"]), {})
        if name in seen or correct in pair:
            doubled.append(f"{split}/{name}")
            continue
        seen.add(name)
        pair[correct] = row
        if name not in files:
            missing.append(f"{split}/{name}")
    pairs, items = [], {}
    for key, pair in sides.items():
        if len(pair) < 2:
            other = "incorrect" if True in pair else "correct"
            missing.append(f"{split}: the {other} recording of {'/'.join(key[:-1])}, voice {key[-1]}")
        elif all(row["filename"] in files for row in pair.values()):
            right, wrong = pair[True], pair[False]
            names = (right["filename"], wrong["filename"])
            pairs.append(Pair("/".join(key[:-1]), names[0], names[1], key[-1], layout.labels(right)))
            for name in names:
                items[name] = (Segment("whole", "speech", AudioFile(folder / files[name])),)
    extra = [f"{split}/{files[name]}" for name in sorted(files.keys() - seen)]
    found = ItemSet(split, items, tuple(pairs), layout.measures, layout.rules, layout.submission.format(split=split))
    return found, Problems(tuple(missing), tuple(doubled), tuple(extra))


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[Row]:
    try:
        text = decode_text(read_bytes(path, _LARGEST_GOLD))
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        absent = [name for name in columns if name not in names]
        if absent:
            raise UserError(
                f"{path} has no column {', '.join(absent)}; its columns are {', '.join(names)[:200]}. Get the file from"
                " its source again"
            )
        twice = [name for name in columns if names.count(name) > 1]
        if twice:
            raise UserError(f"{path} has the column {twice[0]} twice; get the file from its source again")
        rows = [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error}); get it from its source again") from None
    for number, row in enumerate(rows, start=2):
        suffix = next((suffix for suffix in _SUFFIXES if row["filename"].lower().endswith(suffix)), "")
        row["filename"] = row["filename"][: len(row["filename"]) - len(suffix)]
        if row["correct"] not in _CORRECT:
            raise UserError(f"{path}, line {number}: correct is {row['correct']!r}; expected 1 or 0")
    return list[Row](rows)
