"""The files of a published set: concatenated ids, how many belong to each utterance, and when words end.

What is known from the authors' public programs (https://github.com/vozlms/smoltolk_base: dataset.py reads the files,
scripts/dump_hubert_codes.py and dump_mimi_codes.py write the speech's):

- Speech is in one folder, text in another; files of both that belong together have the same name: `train.bin` and so
  on, or `train_0_8.bin`, ... from several processes. Byte order is little-endian.
- Speech `.bin`: uint16 rows of `n_q` ids, one row of EOS (= number of units) after each utterance. `.len`: rows of each
  utterance, EOS included, in uint64, or in uint16 (as the programs write it for HuBERT). `.dur`: for each row the
  frames that it lasts, in 8 bits; 256 frames wrap to 0 there, more to a wrong number. Sets whose
  repeats are not collapsed, and some whose are, have none. `meta.pkl`: vocab_size (units, EOS and PAD), eos, pad, n_q,
  frame_rate.
- Text `.bin`: ids with an EOS after each utterance, uint16, uint32 for vocabularies above 65,536. `.len` as above.
  `.wrds_tms_len`: text ids of each word, in uint64. `.wrds_tms`: for each word its end in seconds, in float32; some are
  NaN. The EOS of an utterance counts as a word of one id. `meta.pkl`: vocab_size, eos.

The program that wrote `.wrds_tms` is not public. The sampler's use of the times shows that they count from the
beginning of the utterance, and that the time of an EOS has no meaning. A `.dur` in uint16 is an extension of ours.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError
from tolktrain.files.reading import is_count
from tolktrain.prepare.published.safe_pickle import read_plain_pickle

META_FILE = "meta.pkl"
TIMES = ".wrds_tms"

_LENGTH_TYPES = ("<u8", "<u2")
_WORDS_AT_ONCE = 1 << 22

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpeechMeta:
    """meta.pkl of a folder of speech."""

    path: str
    vocab_size: int
    eos: int
    pad: int
    n_q: int
    frame_rate: float


@dataclass(frozen=True)
class TextMeta:
    """meta.pkl of a folder of text."""

    path: str
    vocab_size: int
    eos: int

    @property
    def dtype(self) -> str:
        """How ids are stored."""
        return "<u4" if self.vocab_size > 1 << 16 else "<u2"


def read_speech_meta(folder: str | Path) -> SpeechMeta:
    """Raises `UserError` if meta.pkl is missing, holds anything but plain values, or lacks a key."""
    path, content = _read_meta(folder)
    vocab_size, eos, pad, n_q = (_whole_number(path, content, key) for key in ("vocab_size", "eos", "pad", "n_q"))
    rate = content.get("frame_rate")
    if not isinstance(rate, (int, float)) or not 0 < rate < 1e6:
        raise UserError(f"{path}: frame_rate is {rate!r}; expected frames per second")
    if not 1 <= n_q <= 64:
        raise UserError(f"{path}: n_q is {n_q}; expected the number of codebooks")
    return SpeechMeta(path, vocab_size, eos, pad, n_q, float(rate))


def read_text_meta(folder: str | Path) -> TextMeta:
    """Raises `UserError` if meta.pkl is missing, holds anything but plain values, or lacks a key."""
    path, content = _read_meta(folder)
    return TextMeta(path, _whole_number(path, content, "vocab_size"), _whole_number(path, content, "eos"))


def _read_meta(folder: str | Path) -> tuple[str, dict[Any, Any]]:
    path = os.path.join(folder, META_FILE)
    content = read_plain_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}; expected a dict with vocab_size, eos and others")
    return path, content


def _whole_number(path: str, content: dict[Any, Any], key: str) -> int:
    value = content.get(key)
    if not is_count(value, 1 << 32):
        raise UserError(f"{path}: {key} is {value!r}; expected a whole number")
    return value


def find_stems(folder: str) -> tuple[str, list[str]]:
    """The folder of a set, and the names of its files without suffix, sorted.

    `folder` may also be a prefix: of PREFIX.bin, or else of PREFIX_0_8.bin and so on. Raises `UserError` if there are
    none.
    """
    if os.path.isdir(folder):
        stems = [path.stem for path in Path(folder).glob("*.bin")]
    else:
        folder, prefix = os.path.split(folder)
        pattern = re.compile(re.escape(prefix) + r"_\d+_\d+")
        present = [path.stem for path in Path(folder or ".").glob("*.bin")]
        stems = [prefix] if prefix in present else [stem for stem in present if pattern.fullmatch(stem)]
    if not stems:
        raise UserError(f"published.folder {folder} holds no .bin files; name the folder, or the prefix, of the speech")
    return folder, sorted(stems, key=lambda stem: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", stem)])


def map_file(path: str, dtype: str) -> npt.NDArray[Any]:
    """The numbers in a file, mapped into memory. Raises `UserError` if it is missing or ends inside a number."""
    size = np.dtype(dtype).itemsize
    try:
        length = os.path.getsize(path)
        if length % size:
            raise UserError(f"{path} has {length} bytes, not a multiple of {size}; it is cut off, fetch it again")
        return np.memmap(path, dtype, "r") if length else np.zeros(0, dtype)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); the set needs it") from None


@dataclass(frozen=True)
class Lens:
    """A file of lengths, with their type."""

    path: str
    dtype: str

    def read(self, first: int = 0, count: int | None = None) -> Lengths:
        """Lengths of `count` utterances or words; all that follow if it is None."""
        numbers = map_file(self.path, self.dtype)
        return np.asarray(numbers[first : None if count is None else first + count]).astype(np.int64)


def detect_lengths(path: str, total: int, what: str) -> Lens:
    """The type of a file of lengths: the one in which all are at least 1 and their sum is `total`.

    Raises `UserError` unless there is exactly one.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist; the set needs it")
    fitting = [dtype for dtype in _LENGTH_TYPES if _fits(path, dtype, total)]
    if len(fitting) != 1:
        raise UserError(
            f"{path}: read as uint64 or as uint16, lengths do not add up to the {total} {what}; files of different sets"
            " are mixed, or one is cut off: fetch them again"
        )
    return Lens(path, fitting[0])


def _fits(path: str, dtype: str, total: int) -> bool:
    if os.path.getsize(path) % np.dtype(dtype).itemsize:
        return False
    numbers = map_file(path, dtype)
    if not len(numbers) or len(numbers) > total or int(numbers.max()) > total or int(numbers.min()) < 1:
        return False
    # No sum can overflow: at most `total` numbers up to `total`, which is the length of a file.
    return sum(_chunk_sums(numbers)) == total


def _chunk_sums(numbers: npt.NDArray[Any]) -> list[int]:
    return [int(numbers[i : i + _WORDS_AT_ONCE].sum(dtype=np.uint64)) for i in range(0, len(numbers), _WORDS_AT_ONCE)]


@dataclass(frozen=True)
class SpeechFiles:
    """Speech of one name."""

    prefix: str
    n_q: int
    lengths: Lens
    duration_type: str | None  # None: there is no .dur

    @classmethod
    def find(cls, prefix: str, n_q: int, durations: bool) -> "SpeechFiles":
        """Raises `UserError` if a file is missing or their sizes disagree."""
        length = map_file(prefix + ".bin", "<u2").size
        if length % n_q:
            raise UserError(
                f"{prefix}.bin has {length} ids, not a multiple of n_q {n_q}; it is cut off, fetch it again"
            )
        rows = length // n_q
        duration_type = _duration_type(prefix, rows) if durations else None
        return cls(prefix, n_q, detect_lengths(prefix + ".len", rows, f"rows of {prefix}.bin"), duration_type)

    def rows(self) -> npt.NDArray[np.uint16]:
        """All rows [n, n_q]."""
        return map_file(self.prefix + ".bin", "<u2").reshape(-1, self.n_q)

    def durations(self) -> npt.NDArray[Any]:
        """Frames of each row [n]."""
        assert self.duration_type is not None
        return map_file(self.prefix + ".dur", self.duration_type)


def _duration_type(prefix: str, rows: int) -> str:
    path = prefix + ".dur"
    if not os.path.isfile(path):
        raise UserError(
            f"{path} does not exist; if repeats are not collapsed in this set, set published.durations to frames; if"
            " they are and their durations are lost, to unknown"
        )
    types = {rows: "u1", 2 * rows: "<u2"}
    size = os.path.getsize(path)
    if size not in types:
        raise UserError(f"{path} has {size} bytes; {prefix}.bin has {rows} rows, so that {rows} are expected")
    return types[size]


@dataclass(frozen=True)
class TextFiles:
    """Text of one name."""

    prefix: str
    dtype: str
    lengths: Lens
    words: Lens | None  # ids of each word; None: there are no times

    @classmethod
    def find(cls, prefix: str, dtype: str) -> "TextFiles":
        """Raises `UserError` if a file is missing or their sizes disagree."""
        num_ids = len(map_file(prefix + ".bin", dtype))
        lengths = detect_lengths(prefix + ".len", num_ids, f"ids of {prefix}.bin")
        if not os.path.isfile(prefix + TIMES):
            return cls(prefix, dtype, lengths, None)
        num_times = len(map_file(prefix + TIMES, "<f4"))
        words = detect_lengths(prefix + TIMES + "_len", num_ids, f"ids of {prefix}.bin")
        if len(map_file(words.path, words.dtype)) != num_times:
            raise UserError(
                f"{words.path} and {prefix}{TIMES}, with {num_times} times, have different numbers of words"
            )
        return cls(prefix, dtype, lengths, words)

    def ids(self) -> npt.NDArray[Any]:
        """All ids."""
        return map_file(self.prefix + ".bin", self.dtype)

    def times(self) -> npt.NDArray[np.float32]:
        """When each word ends, in seconds."""
        return map_file(self.prefix + TIMES, "<f4")


def words_from(words: Lens, ids: Lengths) -> tuple[Lengths, Lengths]:
    """For rising places among the ids, the first word that does not begin before each, and where it begins.

    A place after the last word has the number of words.
    """
    numbers = map_file(words.path, words.dtype)
    found, begins_at = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    base = done = 0
    for start in range(0, len(numbers), _WORDS_AT_ONCE):
        ends = base + np.cumsum(np.asarray(numbers[start : start + _WORDS_AT_ONCE]).astype(np.int64))
        begins = np.concatenate(([base], ends))
        upto = int(np.searchsorted(ids, ends[-1], side="right"))
        index = np.searchsorted(begins, ids[done:upto])
        found[done:upto], begins_at[done:upto] = start + index, begins[index]
        base, done = int(ends[-1]), upto
    assert done == len(ids), "places are among the ids"
    return found, begins_at
