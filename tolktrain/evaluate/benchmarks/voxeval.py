"""VoxEval (arXiv 2501.04962): questions of MMLU with their choices, spoken in several voices and conditions.

`test/SUBJECT.csv` has the columns of MMLU without a head: the question, four choices, and the letter of the correct
one. `test/SETTING/SUBJECT/NUMBER_question.mp3` is the spoken question with its choices, NUMBER the row from 0 with
eight digits. `NUMBER_answer.mp3`, the spoken correct answer, is not used, because other choices have none.
"""

import csv
import io
import re
from pathlib import Path

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import (
    AudioFile,
    Benchmark,
    Found,
    ItemSet,
    Measure,
    Problems,
    list_folder,
)
from tolktrain.evaluate.benchmarks.questions import Asked, sets_of
from tolktrain.files.reading import decode_text, read_bytes

LETTERS = "ABCD"
_ARCHIVE = "VoxEval (the folder of the Hugging Face data set qqjz/VoxEval)"
_LARGEST_TABLE = 1 << 26  # bytes
_FILE = re.compile(r"(\d{8})_(question|answer|CoT_answer)\.(mp3|wav|flac)", re.IGNORECASE)
_MEASURES = (Measure("accuracy", choice=True), Measure("mean over subjects", by="subject", choice=True))


def read(folder: Path) -> Found:
    """A set for each setting, such as a voice. Raises `UserError` if there is no table, or one cannot be read."""
    base = folder / "test" if (folder / "test").is_dir() else folder
    names = list_folder(base)
    tables = {name[: -len(".csv")]: _read_table(base / name) for name in names if name.endswith(".csv")}
    settings = [name for name in names if (base / name).is_dir()]
    if not tables or not settings:
        raise UserError(
            f"{base} holds no tables SUBJECT.csv, or no folders SETTING/SUBJECT with recordings; name the folder of"
            f" {_ARCHIVE}"
        )
    sets: list[ItemSet] = []
    problems = Problems()
    for setting in settings:
        asked = []
        for subject, rows in tables.items():
            found, wrong = _read_subject(base, setting, subject, rows)
            asked += found
            problems += wrong
        unknown = [name for name in list_folder(base / setting) if name not in tables]
        problems += Problems(extra=tuple(f"{setting}/{name}" for name in unknown))
        sets += sets_of(setting, asked, (("speech", "text"),), _MEASURES)
    return Found(tuple(sets), problems)


def _read_subject(base: Path, setting: str, subject: str, rows: list[list[str]]) -> tuple[list[Asked], Problems]:
    folder = base / setting / subject
    files: dict[int, str] = {}
    doubled, extra = [], []
    for name in list_folder(folder) if folder.is_dir() else ():
        match, place = _FILE.fullmatch(name), f"{setting}/{subject}/{name}"
        if match is None or int(match[1]) >= len(rows):
            extra.append(place)
        elif match[2].lower() == "question" and files.setdefault(int(match[1]), name) != name:
            doubled.append(place)  # the same recording in two formats
    missing = [f"{setting}/{subject}/{row:08d}_question.mp3" for row in range(len(rows)) if row not in files]
    asked = [
        Asked(
            f"{subject}/{row}",
            dict(zip(LETTERS, rows[row][1:5], strict=True)),
            rows[row][5],
            audio=AudioFile(folder / name),
            voice=setting,
            labels={"subject": subject},
        )
        for row, name in sorted(files.items())
    ]
    return asked, Problems(tuple(missing), tuple(doubled), tuple(extra))


def _read_table(path: Path) -> list[list[str]]:
    """The rows of six columns. Raises `UserError` naming file and row."""
    try:
        text = decode_text(read_bytes(path, _LARGEST_TABLE))
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); get it from its source again") from None
    for number, row in enumerate(rows):
        if len(row) != 6 or not all(row[:5]) or row[5] not in LETTERS or len(row[5]) != 1:
            raise UserError(
                f"{path}, row {number}: expected a question, four choices and the letter of the correct one, found"
                f" {str(row):.120}; get the file from its source again"
            )
    return rows


BENCHMARK = Benchmark("voxeval", "VoxEval", _ARCHIVE, read)
