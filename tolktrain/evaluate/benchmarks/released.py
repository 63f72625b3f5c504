"""The SmolTolk authors' StoryCloze in four directions: token files with `cross-modal_manifest.csv`.

Row i of the manifest (`pair_id,type,correctness`) describes sequence i of TEXT/test.{bin,len} and of
SPEECH/test.{bin,len}: uint16 ids, each sequence ending in EOS, and lengths as uint16 or uint64.
"""

import csv
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import Found, ItemSet, Measure, Modality, Pair, Problems, Segment, TokenIds
from tolktrain.files.reading import decode_text, read_bytes

MANIFEST = "cross-modal_manifest.csv"
RULES = ("continuation_mean_no_context",)
_FOLDERS: tuple[tuple[Modality, str], ...] = (("text", "smollm"), ("speech", "mhubert"))  # beginnings of names
_LARGEST = 1 << 30  # bytes
_COLUMNS = ("pair_id", "type", "correctness")
_PART = {("prompt", "-"): "prompt", ("continuation", "correct"): "correct", ("continuation", "incorrect"): "incorrect"}


def read_released(folder: Path, measures: tuple[Measure, ...]) -> Found:
    """The four directions, matched by `pair_id`.

    Unlike the authors' script, no random text precedes a speech prompt with a text continuation.

    Raises:
        UserError: a file is missing, damaged, or does not belong to the others.
    """
    rows = _manifest(folder / MANIFEST)
    tokens = {}
    for modality, beginning in _FOLDERS:
        place = _token_folder(folder, beginning)
        tokens[modality] = read_sequences(place)
        if len(tokens[modality]) != len(rows):
            raise UserError(
                f"{place} holds {len(tokens[modality])} sequences, but {folder / MANIFEST} has {len(rows)} rows; get"
                " both from the same release"
            )
    stories: dict[str, dict[str, int]] = {}
    doubled = []
    for number, (pair_id, part) in enumerate(rows):
        if part in stories.setdefault(pair_id, {}):
            doubled.append(f"{pair_id} ({part})")
        stories[pair_id].setdefault(part, number)
    missing = [f"{name} ({part})" for name, there in stories.items() for part in _PART.values() if part not in there]
    whole = {name: there for name, there in stories.items() if len(there) == len(_PART)}
    sets = []
    for source in ("text", "speech"):
        for target in ("text", "speech"):
            items, pairs = {}, []
            for name, there in whole.items():
                prompt = Segment("prompt", source, TokenIds(tokens[source][there["prompt"]]))
                for side in ("correct", "incorrect"):
                    ending = Segment("continuation", target, TokenIds(tokens[target][there[side]]))
                    items[f"{name}_{side}"] = (prompt, ending)
                pairs.append(Pair(name, f"{name}_correct", f"{name}_incorrect"))
            sets.append(ItemSet(f"{source} to {target}", items, tuple(pairs), measures, RULES))
    return Found(tuple(sets), Problems(missing=tuple(missing), doubled=tuple(doubled)))


def read_sequences(folder: Path) -> list[npt.NDArray[np.int64]]:
    """The sequences of test.bin and test.len without their last id, EOS: int64 [n] each.

    The lengths are uint16 or uint64; those that add up to the number of ids are taken.

    Raises:
        UserError: files are missing, the lengths fit in neither form, or sequences end in different ids.
    """
    try:
        ids = np.frombuffer(read_bytes(folder / "test.bin", _LARGEST), "<u2").astype(np.int64)
        raw = read_bytes(folder / "test.len", _LARGEST)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: test.bin and test.len cannot be read ({error}); get them from the release"
        ) from None
    for dtype in ("<u2", "<u8"):
        if len(raw) % np.dtype(dtype).itemsize == 0:
            lengths = np.frombuffer(raw, dtype)
            if (lengths <= len(ids)).all() and int(lengths.sum(dtype=np.uint64)) == len(ids) and (lengths > 0).all():
                break
    else:
        raise UserError(
            f"{folder / 'test.len'}: neither as uint16 nor as uint64 do the lengths add up to the {len(ids)} ids of"
            " test.bin; get both from the same release"
        )
    ends = np.cumsum(lengths.astype(np.int64))
    if len(ends) and len(np.unique(ids[ends - 1])) > 1:
        raise UserError(f"{folder / 'test.bin'}: sequences end in different ids, but each should end in EOS")
    return [ids[begin : end - 1] for begin, end in zip(ends - lengths.astype(np.int64), ends, strict=True)]


def undo_running_means(printed: list[float]) -> list[float]:
    """Accuracies of the single directions from the numbers that one released script prints.

    The script keeps one list of scores over all directions, so its k-th number is the mean of the first k; its order
    is speech to speech, text to text, speech to text, text to speech.
    """
    totals = [0.0, *(place * value for place, value in enumerate(printed, start=1))]
    return [after - before for before, after in zip(totals, totals[1:], strict=False)]


def _manifest(path: Path) -> list[tuple[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(decode_text(read_bytes(path)), newline=""), strict=True)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            raise UserError(f"{path} should have the columns {', '.join(_COLUMNS)}; get it from the release")
        rows = [tuple(row[name] or "" for name in _COLUMNS) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error}); get it from the release") from None
    for number, (_, kind, correctness) in enumerate(rows, start=2):
        if (kind, correctness) not in _PART:
            raise UserError(
                f"{path}, line {number}: type {kind!r} with correctness {correctness!r}; expected prompt with -, or"
                " continuation with correct or incorrect"
            )
    return [(pair_id, _PART[kind, correctness]) for pair_id, kind, correctness in rows]


def _token_folder(folder: Path, beginning: str) -> Path:
    found = sorted(path.parent for path in folder.glob(f"{beginning}*/test.bin"))
    if len(found) != 1:
        raise UserError(f"{folder} should hold one folder {beginning}*/ with test.bin; it holds {len(found)}")
    return found[0]
