"""Published sets in the layout of the SmolTolk authors to records."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.records import Array, Record, SpeechInfo, TextInfo
from tolktrain.data.text_tokenizer import load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.prepare.job.passages import PassageBuilder, Piece
from tolktrain.prepare.job.shards import Packing
from tolktrain.prepare.job.splits import HELDOUT_SOURCES, TRAIN
from tolktrain.prepare.kind import Kind, Part, Preparation
from tolktrain.prepare.published.files import (
    TIMES,
    Lengths,
    SpeechFiles,
    SpeechMeta,
    TextFiles,
    TextMeta,
    find_stems,
    read_speech_meta,
    read_text_meta,
    words_from,
)
from tolktrain.prepare.recordings.align.units import frame_ends, unit_ends
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Failure, Reason
from tolktrain.units.base import collapse, expand
from tolktrain.units.load import describe_speech_tokenizer

_HELD_OUT = re.compile(r"(val|valid|validation|dev|test)([^a-z].*)?")
_SLACK_SECONDS = 0.2  # a word may end so long after the last frame: tokenizers leave out what fills no frame


@dataclass(frozen=True)
class Stretch:
    """Consecutive utterances of one pair of files: the input of a part."""

    stem: str
    speech: SpeechFiles
    text: TextFiles | None
    first: int  # utterance
    count: int
    row: int  # first of its rows
    text_id: int  # first of its text ids
    word: int  # the first word that does not begin before these
    word_text_id: int  # where that begins
    word_end: int  # the same for the utterance after the last


@dataclass(frozen=True, eq=False)
class WordTimes:
    """The words of a stretch, the EOS of utterances among them."""

    bounds: Lengths  # [words + 1], where words begin among all text ids, and where the last ends
    times: npt.NDArray[np.float32]  # [words], seconds


class PublishedKind:
    """The utterances of a published set to records with speech and, where there is a folder of text, text.

    Words are aligned where their times are there. The authors' own split is kept: files whose names begin with val, dev
    or test are held out, all others are for training. The layout contains neither sources nor speakers, so that no more
    can be held out, and passages may join the end of one recording with the beginning of the next.
    """

    def __init__(self, config: PrepareConfig) -> None:
        """Read the descriptions. Raises `UserError` where these or the tokenizers contradict each other."""
        assert config.published is not None
        self._config = config
        self._published = config.published
        if (self._published.text_folder is None) != (config.text_tokenizer is None):
            raise UserError(
                "published.text_folder and text_tokenizer go together: give both, or neither to import speech only"
            )
        speech = SpeechInfo(**asdict(describe_speech_tokenizer(self._published.speech_tokenizer)))
        self.speech: SpeechInfo | None = speech
        self.text: TextInfo | None = None
        if config.text_tokenizer is not None:
            self.text = load_text_tokenizer(config.text_tokenizer).info
        self._folder, self._stems = find_stems(self._published.folder)
        self._speech_meta = read_speech_meta(self._folder)
        self._text_meta: TextMeta | None = None
        _check_speech(self._speech_meta, speech)
        if self._published.text_folder is not None:
            assert self.text is not None
            self._text_meta = read_text_meta(self._published.text_folder)
            _check_text(self._text_meta, self.text)
        self.aligned = self._is_aligned()
        self.packing: Packing | None = None
        self.unused = Unused()
        self._num_units, self._num_codebooks = speech.num_units, speech.num_codebooks
        self._frames_per_second = speech.frames_per_second

    def fingerprint(self) -> Mapping[str, Any]:
        """Digests of the tokenizers."""
        assert self.speech is not None
        text = self.text.sha256 if self.text is not None else None
        return {"speech_tokenizer": self.speech.sha256, "text_tokenizer": text}

    def parts(self) -> tuple[list[Part], list[Failure]]:
        """Stretches of consecutive utterances."""
        parts: list[Part] = []
        for stem in self._stems:
            parts += [Part((stretch,), stretch.count) for stretch in self._stretches(stem, *self._find(stem))]
        return parts, []

    def records(self, part: Part) -> Iterator[tuple[str, Record] | Failure | int]:
        """See `Kind`."""
        for stretch in part.inputs:
            split = HELDOUT_SOURCES if _HELD_OUT.fullmatch(stretch.stem) else TRAIN
            builder = PassageBuilder(self._config.passages, stretch.stem)
            for name, piece in self._pieces(stretch):
                if isinstance(piece, EntryError):
                    yield Failure(name, piece.reason, piece.detail)
                elif (record := builder.add(piece)) is not None:
                    yield split, record
                yield 1
            for record in builder.rest():
                yield split, record
            for name in builder.dropped:
                yield Failure(name, Reason.SHORT, "what remains of its part makes no passage of its own")

    def _find(self, stem: str) -> tuple[SpeechFiles, TextFiles | None]:
        meta = self._speech_meta
        speech = SpeechFiles.find(os.path.join(self._folder, stem), meta.n_q, self._published.durations == "file")
        if self._text_meta is None or self._published.text_folder is None:
            return speech, None
        return speech, TextFiles.find(os.path.join(self._published.text_folder, stem), self._text_meta.dtype)

    def _is_aligned(self) -> bool:
        folder = self._published.text_folder
        if folder is None:
            return False
        missing = [stem for stem in self._stems if not os.path.isfile(os.path.join(folder, stem + TIMES))]
        if missing and len(missing) < len(self._stems):
            raise UserError(
                f"{os.path.join(folder, missing[0])}{TIMES} does not exist, but those of other names do; import files"
                " with and without word times as two sets, each by its prefix"
            )
        return not missing and self._published.durations != "unknown"

    def _stretches(self, stem: str, speech: SpeechFiles, text: TextFiles | None) -> Iterator[Stretch]:
        rows = speech.lengths.read()
        total = len(rows)
        places = np.append(np.arange(0, total, self._config.parts.items), total)
        row_bounds = np.concatenate(([0], np.cumsum(rows)))[places]
        id_bounds = words = word_ids = np.zeros_like(row_bounds)
        if text is not None:
            ids = text.lengths.read()
            if len(ids) != total:
                raise UserError(
                    f"{text.lengths.path} has {len(ids)} utterances, {speech.lengths.path} {total}; give folders"
                    " of one set"
                )
            id_bounds = np.concatenate(([0], np.cumsum(ids)))[places]
            if text.words is not None:
                words, word_ids = words_from(text.words, id_bounds)
        for index in range(len(places) - 1):
            yield Stretch(
                stem=stem,
                speech=speech,
                text=text,
                first=int(places[index]),
                count=int(places[index + 1] - places[index]),
                row=int(row_bounds[index]),
                text_id=int(id_bounds[index]),
                word=int(words[index]),
                word_text_id=int(word_ids[index]),
                word_end=int(words[index + 1]),
            )

    def _pieces(self, stretch: Stretch) -> Iterator[tuple[str, Piece | EntryError]]:
        rows, durations = stretch.speech.rows(), None
        if stretch.speech.duration_type is not None:
            durations = stretch.speech.durations()
        row_bounds = _bounds(stretch.row, stretch.speech.lengths.read(stretch.first, stretch.count))
        id_bounds, ids, words = row_bounds, None, None
        if stretch.text is not None:
            ids = stretch.text.ids()
            id_bounds = _bounds(stretch.text_id, stretch.text.lengths.read(stretch.first, stretch.count))
            words = self._words(stretch, stretch.text)
        for index in range(stretch.count):
            name = f"{stretch.stem}:{stretch.first + index}"
            utterance = slice(*row_bounds[index : index + 2])
            begin, end = id_bounds[index : index + 2]
            try:
                units, run_lengths = self._units(
                    rows[utterance], durations[utterance] if durations is not None else None, stretch.speech.prefix
                )
                if ids is None:
                    yield name, Piece(name, units=units, run_lengths=run_lengths)
                    continue
                text_ids = self._text_ids(ids[begin:end], stretch.text)
                aligned: Sequence[Array | None] = (None, None)
                if words is not None:
                    aligned = self._aligned(words, int(begin), int(end), run_lengths)
                yield name, Piece(name, text_ids, units, run_lengths, *aligned)
            except EntryError as error:
                detail = f"{stretch.speech.prefix}, utterance {stretch.first + index}: {error.detail}"
                yield name, EntryError(error.reason, detail)

    def _words(self, stretch: Stretch, text: TextFiles) -> WordTimes | None:
        if text.words is None or not self.aligned:
            return None
        lengths = text.words.read(stretch.word, stretch.word_end - stretch.word)
        times = np.asarray(text.times()[stretch.word : stretch.word_end])
        return WordTimes(_bounds(stretch.word_text_id, lengths), times)

    def _units(self, rows: Array, durations: Array | None, prefix: str) -> tuple[Array, Array]:
        """Units [n, K] and run lengths [n] of rows that end with EOS."""
        eos = self._speech_meta.eos
        if not (rows[-1] == eos).all():
            raise EntryError(Reason.RECORD, f"it ends with {rows[-1].tolist()}, not with EOS {eos}")
        if len(rows) == 1:
            raise EntryError(Reason.EMPTY, "it has no units")
        units = np.array(rows[:-1, : self._num_codebooks], np.uint16)
        if int(rows[:-1].max()) >= self._num_units:
            raise EntryError(
                Reason.RECORD, f"it holds the unit {int(rows[:-1].max())}; the tokenizer has {self._num_units}"
            )
        if self._published.durations == "frames":
            return collapse(units)
        if durations is None:
            return units, np.ones(len(units), np.uint16)
        run_lengths = np.array(durations[:-1], np.uint16)
        if int(run_lengths.min()) < 1:
            raise EntryError(
                Reason.RECORD, f"a unit in {prefix}.dur lasts 0 frames; 256 frames wrap to 0 in the authors' 8 bits"
            )
        if self._num_codebooks < rows.shape[1] or (units[1:] == units[:-1]).all(axis=1).any():
            return collapse(expand(units, run_lengths))
        return units, run_lengths

    def _text_ids(self, ids: Array, text: TextFiles | None) -> Array:
        """Ids without their EOS."""
        assert self.text is not None and text is not None
        if int(ids[-1]) != self.text.eos_id:
            raise EntryError(
                Reason.TEXT, f"its text in {text.prefix}.bin ends with {ids[-1]}, not EOS {self.text.eos_id}"
            )
        ids = np.array(ids[:-1], np.uint32)
        if not len(ids):
            raise EntryError(Reason.TEXT, "it has no text")
        if int(ids.max()) >= self.text.vocab_size:
            raise EntryError(
                Reason.TEXT, f"{text.prefix}.bin holds {int(ids.max())}; the tokenizer has {self.text.vocab_size} ids"
            )
        if (ids == self.text.eos_id).any():
            raise EntryError(Reason.TEXT, f"EOS is inside its text in {text.prefix}.bin")
        return ids

    def _aligned(self, words: WordTimes, begin: int, end: int, run_lengths: Array) -> tuple[Array, Array]:
        """Where words end among the text ids and the units of an utterance whose text ids are `begin` to `end`."""
        first, last = np.searchsorted(words.bounds, [begin, end - 1])
        if last + 1 >= len(words.bounds) or (words.bounds[[first, last, last + 1]] != (begin, end - 1, end)).any():
            raise EntryError(
                Reason.WORD_TIMES,
                ".wrds_tms_len has no words that begin and end with its text, with a word for its EOS",
            )
        text_ends = words.bounds[first + 1 : last + 1] - begin
        times = words.times[first:last].astype(np.float64)
        frames = int(run_lengths.astype(np.int64).sum())
        seconds = frames / self._frames_per_second
        if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) < 0).any():
            raise EntryError(Reason.WORD_TIMES, "ends of words in .wrds_tms are not numbers that rise from 0")
        if times[-1] > seconds + _SLACK_SECONDS:
            raise EntryError(
                Reason.WORD_TIMES,
                f"its last word ends at {times[-1]:.2f} s in .wrds_tms; its units last {seconds:.2f} s",
            )
        try:
            return text_ends, unit_ends(frame_ends(times, 1, self._frames_per_second, frames), run_lengths)
        except UserError as error:
            raise EntryError(Reason.ALIGNMENT, str(error)) from None


def _bounds(begin: int, lengths: Lengths) -> Lengths:
    return begin + np.concatenate(([0], np.cumsum(lengths)))


def _check_speech(meta: SpeechMeta, speech: SpeechInfo) -> None:
    expected = {
        "eos": (meta.eos, speech.num_units),
        "pad": (meta.pad, speech.num_units + 1),
        "vocab_size": (meta.vocab_size, speech.num_units + 2),
        "frame_rate": (meta.frame_rate, speech.frames_per_second),
        "n_q": (min(meta.n_q, speech.num_codebooks), speech.num_codebooks),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise UserError(
                f"{meta.path}: {key} is {found:g}, but the tokenizer {speech.name} of published.speech_tokenizer asks"
                f" for {wanted:g}; name the tokenizer that the set was made with"
            )


def _check_text(meta: TextMeta, text: TextInfo) -> None:
    if meta.eos != text.eos_id:
        raise UserError(
            f"{meta.path}: eos is {meta.eos}, but text_tokenizer ends a text with {text.eos_id}; name the tokenizer"
            " that the set was made with"
        )


class _PublishedKind(Preparation):
    def make(self, config: PrepareConfig) -> Kind:
        return PublishedKind(config)

    def source(self, config: PrepareConfig) -> str:
        assert config.published is not None
        return config.published.folder

    def speech_tokenizer(self, config: PrepareConfig) -> str | None:
        assert config.published is not None
        return config.published.speech_tokenizer


PREPARATION = _PublishedKind()
