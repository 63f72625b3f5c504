"""Recordings and their transcripts: from the utterances of a manifest to records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.records import Record, SpeechInfo
from tolktrain.data.text_tokenizer import encode_words, load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.prepare.job.gpus import uses_models
from tolktrain.prepare.job.passages import PassageBuilder, Piece
from tolktrain.prepare.job.shards import Packing, speech_info
from tolktrain.prepare.job.splits import SPLITS, split_of
from tolktrain.prepare.kind import Kind, Part, Preparation
from tolktrain.prepare.recordings.align.ctc import CtcAligner, checked
from tolktrain.prepare.recordings.align.given_times import align_given
from tolktrain.prepare.recordings.align.scripts import blank_between
from tolktrain.prepare.recordings.align.spoken_numbers import CURRENCY_SIGNS
from tolktrain.prepare.recordings.align.units import frame_ends, unit_ends
from tolktrain.prepare.recordings.align.word_times import Named, check_words, read_word_times
from tolktrain.prepare.recordings.audio import AudioReader, resampled
from tolktrain.prepare.recordings.bounds import check_pace, check_unit_ends
from tolktrain.prepare.recordings.fitting import fit_if_missing
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import Aligned, EntryError, Failure, Reason, Utterance
from tolktrain.units.base import Frames, Samples, collapse
from tolktrain.units.load import load_speech_tokenizer
from tolktrain.units.pretrained import checked_device

_SPOKEN_SIGNS = frozenset(f"&%@#+=°²³{CURRENCY_SIGNS}")  # alone, as "&" in a list of signs

Outcome = Piece | EntryError


class RecordingsKind:
    """Utterances to records with speech and, where there is a text tokenizer, text and word alignment."""

    def __init__(self, config: PrepareConfig, needs_transcripts: bool = True) -> None:
        """Load tokenizers and, for forced alignment, the model. Raises `UserError` if one cannot be loaded.

        Without `needs_transcripts`, utterances may lack a transcript or word times that others have.
        """
        recordings = config.recordings
        assert recordings is not None
        self._config = config
        self._recordings = recordings
        self._needs_transcripts = needs_transcripts
        device = checked_device(recordings.device)
        # On a CPU waveforms are encoded one by one: as fast, and bitwise identical whatever the batch holds.
        together = recordings.batch_seconds if device == "cuda" else None
        self._speech = load_speech_tokenizer(recordings.speech_tokenizer.path, device, together)
        self._text = load_text_tokenizer(config.text_tokenizer) if config.text_tokenizer is not None else None
        method = recordings.alignment.method if self._text is not None else "none"
        self._gives_times = method == "given"
        self._aligner = CtcAligner(recordings.alignment, device) if method == "ctc" else None
        self.speech: SpeechInfo | None = speech_info(self._speech)
        self.text = self._text.info if self._text is not None else None
        self.aligned = method != "none"
        self.packing: Packing | None = None
        self.unused = Unused()

    def fingerprint(self) -> Mapping[str, Any]:
        """Digests of the tokenizers and the aligner."""
        return {
            "speech_tokenizer": self._speech.sha256,
            "text_tokenizer": self.text.sha256 if self.text is not None else None,
            "aligner": self._aligner.digest if self._aligner is not None else None,
        }

    def parts(self) -> tuple[list[Part], list[Failure]]:
        """Slices of the manifest, each of one split, cut between sources where these are not too long."""
        utterances, failures = read_manifest(self._recordings, self.unused)
        for utterance in utterances:
            if self._text is None and utterance.text is not None:
                self.unused.add("transcripts, because no text_tokenizer is set", utterance.id)
            if not self._gives_times and (utterance.words is not None or utterance.word_times is not None):
                self.unused.add("word times, because recordings.alignment.method is not given", utterance.id)
        splits: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
        for utterance in utterances:
            splits[self._split(utterance)].append(utterance)
        slices = [part for split in SPLITS for part in self._slices(splits[split])]
        return [Part(tuple(part), len(part)) for part in slices], failures

    def records(self, part: Part) -> Iterator[tuple[str, Record] | Failure | int]:
        """See `Kind`."""
        for _, outcomes in groupby(self.outcomes(part.inputs), key=lambda item: item[0].source):
            builder: PassageBuilder | None = None
            places: dict[str, str] = {}
            for utterance, outcome in outcomes:
                builder = builder or PassageBuilder(self._config.passages, utterance.speaker or utterance.source)
                places[utterance.id] = utterance.place
                if isinstance(outcome, EntryError):
                    yield Failure(utterance.id, outcome.reason, outcome.detail, utterance.place)
                elif (record := builder.add(outcome)) is not None:
                    yield self._split(utterance), record
                yield 1
            assert builder is not None
            for record in builder.rest():
                yield self._split(utterance), record
            for identity in builder.dropped:
                yield Failure(
                    identity,
                    Reason.SHORT,
                    "what remains of its source makes no passage of its own",
                    places[identity],
                )

    def _split(self, utterance: Utterance) -> str:
        return split_of(self._config.heldout, utterance.source, utterance.speaker)

    def _slices(self, utterances: Sequence[Utterance]) -> Iterator[list[Utterance]]:
        limits = self._config.parts
        current: list[Utterance] = []
        hours = 0.0
        for _, group in groupby(utterances, key=lambda utterance: utterance.source):
            source = list(group)
            lengths = [(utterance.duration or 0.0) / 3600 for utterance in source]
            if current and (len(current) + len(source) > limits.items or hours + sum(lengths) > limits.hours):
                yield current
                current, hours = [], 0.0
            for utterance, length in zip(source, lengths, strict=True):
                if current and (len(current) == limits.items or hours + length > limits.hours):
                    yield current
                    current, hours = [], 0.0
                current.append(utterance)
                hours += length
        if current:
            yield current

    def outcomes(self, utterances: Sequence[Utterance]) -> Iterator[tuple[Utterance, Outcome]]:
        """The outcome of each utterance, in order; waveforms are encoded and aligned in batches."""
        batch: list[tuple[Utterance, Samples]] = []
        longest = 0
        waiting: list[tuple[Utterance, EntryError | None]] = []
        with AudioReader(self._recordings.channel, self._recordings.bounds) as reader:
            for utterance in utterances:
                waveform = _attempt(self._waveform, reader, utterance)
                if isinstance(waveform, EntryError):
                    waiting.append((utterance, waveform))
                    continue
                if batch and (len(batch) + 1) * max(longest, len(waveform)) > self._batch_samples:
                    yield from self._done(waiting, batch)
                    waiting, batch, longest = [], [], 0
                batch.append((utterance, waveform))
                waiting.append((utterance, None))
                longest = max(longest, len(waveform))
        yield from self._done(waiting, batch)

    def _waveform(self, reader: AudioReader, utterance: Utterance) -> Samples:
        waveform = reader.read(utterance, self._speech.sample_rate)
        if self._text is not None:
            # Before alignment, which fails with a less specific reason.
            seconds = len(waveform) / self._speech.sample_rate
            check_pace((utterance.text or "").split(), seconds, self._recordings.bounds)
        return waveform

    @property
    def _batch_samples(self) -> float:
        return self._recordings.batch_seconds * self._speech.sample_rate

    def _done(
        self, waiting: Sequence[tuple[Utterance, EntryError | None]], batch: Sequence[tuple[Utterance, Samples]]
    ) -> Iterator[tuple[Utterance, Outcome]]:
        """Errors and the results of a batch, in the order of the manifest."""
        frames = self._speech.encode_batch([waveform for _, waveform in batch])
        aligned = self._align(batch)
        results = iter(
            [
                _attempt(self._piece, utterance, units, words)
                for (utterance, _), units, words in zip(batch, frames, aligned, strict=True)
            ]
        )
        for utterance, error in waiting:
            yield utterance, next(results) if error is None else error

    def _align(self, batch: Sequence[tuple[Utterance, Samples]]) -> "list[Aligned | EntryError]":
        """The words of each utterance and, if the set is aligned, where they end."""
        if self._text is None:
            return [Aligned((), np.zeros(0)) for _ in batch]
        if self._gives_times:
            seconds = [len(waveform) / self._speech.sample_rate for _, waveform in batch]
            return [
                _attempt(self._given, utterance, length) for (utterance, _), length in zip(batch, seconds, strict=True)
            ]
        present = [(utterance, waveform) for utterance, waveform in batch if (utterance.text or "").strip()]
        results: Iterator[Aligned | EntryError]
        if self._aligner is None:
            results = iter([_attempt(_without_times, utterance) for utterance, _ in present])
        else:
            results = iter(self._forced(self._aligner, present))
        missing = _no_text() if self._needs_transcripts else Aligned((), np.zeros(0))
        return [next(results) if (utterance.text or "").strip() else missing for utterance, _ in batch]

    def _given(self, utterance: Utterance, seconds: float) -> "Aligned | EntryError":
        words = utterance.words
        if words is None and utterance.word_times is not None:
            words = read_word_times(
                utterance.word_times,
                utterance.id,
                self._recordings.channel if utterance.channel is None else utterance.channel,
                utterance.speaker,
                self.unused,
                Named(utterance.audio, utterance.offset, utterance.namesake),
            )
        if words is None and not self._needs_transcripts:
            has_text = bool((utterance.text or "").strip())
            return _without_times(utterance) if has_text else Aligned((), np.zeros(0))
        if words is None:
            raise EntryError(
                Reason.WORD_TIMES,
                "the manifest gives no word times; add words or word_times, or set recordings.alignment.method to ctc",
            )
        try:
            check_words(words, seconds)
        except EntryError as error:
            place = f"{utterance.word_times}: " if utterance.words is None else ""
            raise EntryError(error.reason, place + error.detail) from None
        if utterance.text is None:
            check_pace([word.text for word in words], seconds, self._recordings.bounds)
        return align_given(utterance.text, words, self._recordings.alignment.language)

    def _forced(self, aligner: CtcAligner, batch: Sequence[tuple[Utterance, Samples]]) -> "list[Aligned | EntryError]":
        waveforms = [resampled(waveform, self._speech.sample_rate, aligner.sample_rate) for _, waveform in batch]
        found = aligner.align(waveforms, [utterance.text or "" for utterance, _ in batch])
        least = self._recordings.alignment.min_confidence
        return [item if isinstance(item, EntryError) else _attempt(checked, item, least) for item in found]

    def _piece(self, utterance: Utterance, frames: Frames, aligned: "Aligned | EntryError") -> Outcome:
        """The utterance as a piece of a passage, or the error. Raises `EntryError` if it exceeds the bounds."""
        if isinstance(aligned, EntryError):
            return aligned
        if not len(frames):
            return EntryError(Reason.EMPTY, f"{utterance.audio} is shorter than a frame of units")
        units, run_lengths = collapse(frames)
        if self._text is None or not aligned.words:
            return Piece(utterance.id, units=units, run_lengths=run_lengths)
        try:
            ids, word_text_ends = encode_words(self._text.tokenizer, aligned.words, aligned.spaced)
        except UserError as error:
            return EntryError(Reason.TEXT, str(error))
        if not len(aligned.ends):
            return Piece(utterance.id, ids, units, run_lengths)
        rate = self._speech.frames_per_second
        try:
            ends = unit_ends(frame_ends(aligned.ends, 1, rate, len(frames)), run_lengths)
        except UserError as error:
            return EntryError(Reason.ALIGNMENT, str(error))
        check_unit_ends(ends, len(frames) / rate, self._recordings.bounds)
        return Piece(utterance.id, ids, units, run_lengths, word_text_ends, ends)


def _attempt(function: Any, *arguments: Any) -> Any:
    """The result, or the error of this one item."""
    try:
        return function(*arguments)
    except EntryError as error:
        return error


def split_words(text: str) -> Aligned:
    """The words of a text without times."""
    words = tuple(text.split())
    spaced = tuple(place > 0 or blank_between("", word) for place, word in enumerate(words))
    return Aligned(words, np.zeros(0), spaced=spaced)


def _without_times(utterance: Utterance) -> Aligned:
    """The words of a transcript. Raises `EntryError` if nothing of it can be spoken, as subtitles have "..." or notes
    of music where nobody speaks."""
    text = utterance.text or ""
    if not any(char.isalnum() or char in _SPOKEN_SIGNS for char in text):
        raise EntryError(Reason.TEXT, f"its transcript {text.strip()!r:.80} has no letter or digit")
    return split_words(text)


def _no_text() -> EntryError:
    return EntryError(Reason.TEXT, "its transcript is missing or empty")


class _RecordingsKind(Preparation):
    def make(self, config: PrepareConfig) -> Kind:
        return RecordingsKind(config)

    def fit(self, config: PrepareConfig, report: Callable[[str], None]) -> None:
        fit_if_missing(config, report)

    def source(self, config: PrepareConfig) -> str:
        assert config.recordings is not None
        return config.recordings.manifest

    def speech_tokenizer(self, config: PrepareConfig) -> str | None:
        assert config.recordings is not None
        return config.recordings.speech_tokenizer.path

    def uses_gpu(self, config: PrepareConfig) -> bool:
        assert config.recordings is not None
        return config.recordings.device != "cpu" and uses_models(config.recordings)

    def without_gpu(self, config: PrepareConfig) -> PrepareConfig:
        assert config.recordings is not None
        return config.model_copy(update={"recordings": config.recordings.model_copy(update={"device": "cpu"})})


PREPARATION = _RecordingsKind()
