"""Continues prompts of text, audio or units in text or speech."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.config import Config
from tolktrain.data.sequences import IntArray
from tolktrain.data.strategies.base import Modality
from tolktrain.data.text_tokenizer import TextTokenizer, encode_words, load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.generate.context import Context
from tolktrain.generate.durations import Durations
from tolktrain.generate.prompts import read_waveform
from tolktrain.generate.requests import Request
from tolktrain.generate.sampling import Sampling, SpeechLimits, TextLimits, sample_speech, sample_text
from tolktrain.generate.tensor_ranks import make_decoder
from tolktrain.generate.text_stream import spelled, text_before
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.prepare.recordings.kind import split_words
from tolktrain.units.base import SpeechTokenizer, collapse
from tolktrain.units.description import SpeechTokenizerInfo
from tolktrain.units.load import describe_speech_tokenizer, load_speech_tokenizer
from tolktrain.vocabulary import Vocabulary


@dataclass(frozen=True)
class Limits:
    """When a continuation ends; at the first limit that is reached."""

    most_positions: int  # text ids or units
    seconds: float | None = None  # of speech; needs durations of units
    utterances: int | None = None  # ends of utterances (EOS)
    stops: tuple[str, ...] = ()  # text ends with the first of these


@dataclass(frozen=True)
class Timing:
    """How long a batch took, in seconds of wall time."""

    first_position: float  # to read the prompts and draw the first position
    total: float
    num_positions: int  # of the longest continuation

    @property
    def ms_per_position(self) -> float | None:
        """Of the positions after the first; None if there is none."""
        later = self.num_positions - 1
        return 1000 * (self.total - self.first_position) / later if later > 0 else None


@dataclass(frozen=True, eq=False)
class Continuation:
    """What follows a prompt."""

    request: Request
    sample: int  # its number among those of the prompt
    text: str | None  # of a text continuation
    ids: list[Any]  # text ids, or units as lists of K; EOS left out
    prompt_positions: int
    timing: Timing


@dataclass(eq=False)
class Continuer:
    """A model with the tokenizers of its run, which are loaded when they are first needed."""

    model: SmolTolk
    config: Config
    tokenizers: dict[str, str | None]  # SHA-256 by modality, as the checkpoint records them
    durations: Durations | None = None
    _text: TextTokenizer | None = field(default=None, init=False)
    _speech: SpeechTokenizer | None = field(default=None, init=False)

    @property
    def window(self) -> int:
        """Most positions of context."""
        return self.config.train.sequence_length

    @property
    def text(self) -> TextTokenizer:
        """The text tokenizer. Raises UserError if there is none, or the model was trained with another one."""
        if self._text is None:
            folder = self.config.data.text_tokenizer
            if folder is None:
                raise UserError(
                    "data.text_tokenizer is not set in the run's configuration, so text cannot be read or written; name"
                    " the tokenizer's folder in config.yaml of the run"
                )
            found = load_text_tokenizer(folder)
            if found.info.vocab_size > self.model.architecture.text_vocab_size:
                raise UserError(
                    f"{folder} has {found.info.vocab_size} ids, more than the model's"
                    f" {self.model.architecture.text_vocab_size}; name the tokenizer that the data sets were made with"
                )
            self._check("text", folder, found.info.sha256)
            self._text = found
        return self._text

    @property
    def speech(self) -> SpeechTokenizer:
        """The speech tokenizer. Raises UserError like `text`."""
        if self._speech is None:
            _, folder = self.describe_speech()
            self._speech = load_speech_tokenizer(folder)
        return self._speech

    def describe_speech(self) -> tuple[SpeechTokenizerInfo, str]:
        """The description of the speech tokenizer, and its folder. Raises UserError like `text`."""
        folder = self.config.data.speech_tokenizer
        if folder is None:
            raise UserError(
                "data.speech_tokenizer is not set in the run's configuration, so audio cannot be read or written;"
                " name the tokenizer's folder in config.yaml of the run"
            )
        found = describe_speech_tokenizer(folder)
        sizes = self.model.architecture
        if (found.num_units, found.num_codebooks) != (sizes.num_units, sizes.num_codebooks):
            raise UserError(
                f"{folder} has {found.num_units} units and {found.num_codebooks} codebooks, the model"
                f" {sizes.num_units} and {sizes.num_codebooks}; name the tokenizer of the data sets"
            )
        self._check("speech", folder, found.sha256)
        return found, folder

    def _check(self, modality: Modality, folder: str, digest: str) -> None:
        trained_with = self.tokenizers.get(modality)
        if trained_with is not None and trained_with != digest:
            raise UserError(
                f"data.{modality}_tokenizer ({folder}) has sha256 {digest[:12]}, the model was trained with"
                f" {trained_with[:12]}; name that tokenizer's folder in config.yaml of the run"
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """Ids of the model."""
        sizes = self.model.architecture
        text_eos = self.text.info.eos_id if self.config.data.text_tokenizer is not None else 0
        return Vocabulary(sizes.text_vocab_size, text_eos, sizes.num_units, sizes.num_codebooks, sizes.special_tokens)

    def run(
        self,
        requests: Sequence[Request],
        numbers: Sequence[int],
        num_samples: int,
        settings: Sampling,
        limits: Limits,
        on_position: Callable[[int, int, IntArray], None] = lambda request, sample, column: None,
    ) -> Iterator[Continuation]:
        """Continue prompts together, each of them `num_samples` times.

        Args:
            requests: the prompts; those with the same target are computed in one batch.
            numbers: of the requests; random numbers depend on these, the sample and the seed only.
            num_samples: continuations of each prompt.
            settings: of drawing.
            limits: of each continuation.
            on_position: called with the place of the request, the sample and each position [K] as it is drawn.

        Raises:
            UserError: a prompt is unreadable, has ids outside the vocabulary, or is longer than the context.
        """
        prepared = [self._prepare(request) for request in requests]
        for modality in ("text", "speech"):
            places = [place for place, request in enumerate(requests) if request.to == modality]
            rows = [(place, sample) for place in places for sample in range(num_samples)]
            if not rows:
                continue
            clock = _Clock()

            def note(row: int, column: IntArray, rows: Any = rows, clock: "_Clock" = clock) -> None:
                clock.note(row)
                place, sample = rows[row]
                on_position(place, sample, column)

            streams = [(numbers[place], sample) for place, sample in rows]
            contexts = [prepared[place] for place, _ in rows]
            if modality == "text":
                drawn = self._write(contexts, settings, limits, streams, note)
            else:
                drawn = self._speak(contexts, settings, limits, streams, note)
            timing = clock.timing()
            for (place, sample), (text, ids), context in zip(rows, drawn, contexts, strict=True):
                yield Continuation(requests[place], sample, text, ids, len(context), timing)

    def _write(
        self, prompts: list["_Prepared"], settings: Sampling, limits: Limits, streams: Any, note: Any
    ) -> list[tuple[str | None, list[Any]]]:
        vocabulary, tokenizer = self.vocabulary, self.text.tokenizer

        def stopped(ids: Sequence[int]) -> bool:
            # The last ids suffice: a stop spans few of them.
            longest = max(map(len, limits.stops), default=0)
            return bool(longest) and any(stop in tokenizer.decode(ids[-4 * longest :]) for stop in limits.stops)

        within = TextLimits(limits.most_positions, limits.utterances or limits.most_positions + 1, stopped)
        decoder = make_decoder(self.model, "text", self.window)
        contexts = [prompt.whole for prompt in prompts]
        texts = sample_text(decoder, contexts, vocabulary, settings, within, streams, note)
        kept = [[token for token in ids if token != vocabulary.text_eos] for ids in texts]
        shown = [text_before(spelled(tokenizer, ids, vocabulary.text_eos), limits.stops) for ids in texts]
        return list(zip(shown, kept, strict=True))

    def _speak(
        self, prompts: list["_Prepared"], settings: Sampling, limits: Limits, streams: Any, note: Any
    ) -> list[tuple[str | None, list[Any]]]:
        vocabulary = self.vocabulary
        if limits.seconds is not None and self.durations is None:
            raise UserError("a limit in seconds needs the durations of units; give a number of units instead")
        seconds = self.durations.seconds if self.durations is not None else lambda units: 0.0
        most_seconds = limits.seconds if limits.seconds is not None else float("inf")
        within = SpeechLimits(seconds, most_seconds, limits.most_positions, limits.utterances)
        decoder = make_decoder(self.model, "speech", self.window)
        units = [prompt.units for prompt in prompts]
        before = [prompt.before for prompt in prompts]
        spoken = sample_speech(decoder, units, vocabulary, settings, within, before, streams, note)
        return [(None, frames[frames[:, 0] != vocabulary.speech_eos].tolist()) for frames in spoken]

    def _prepare(self, request: Request) -> "_Prepared":
        """The context of a prompt, checked."""
        vocabulary = self.vocabulary
        nothing = Context(np.zeros((vocabulary.num_codebooks, 0), np.int64), np.zeros(0, np.bool_))
        units = np.zeros((0, vocabulary.num_codebooks), np.int64)
        if request.kind == "text":
            prompt = Context.of_text(self._encode_text(request), vocabulary, switch=request.to == "speech")
            prepared = _Prepared(prompt, units)
        else:
            units = self._encode_speech(request)
            if request.to == "speech":
                prepared = _Prepared(nothing, units)
            else:
                prepared = _Prepared(Context.of_speech(units, vocabulary, switch=True), units[:0])
        if len(prepared) > self.window:
            raise UserError(
                f"{request.source}: the prompt has {len(prepared):,} positions, and the context of the model"
                f" (train.sequence_length) is {self.window:,}; shorten the prompt"
            )
        return prepared

    def encode_text(self, text: str, source: str) -> list[int]:
        """Ids of a text. Raises UserError, naming the source, if it has none, and like `text`."""
        ids = list(self.text.tokenizer.encode(text, add_special_tokens=False).ids)
        if not ids:
            raise UserError(f"{source}: the text has no ids; expected a word at least")
        return ids

    def encode_transcript(self, text: str, source: str) -> IntArray:
        """Ids [n] of what is said in speech, word by word as `tolktrain prepare` encodes it. Raises UserError, naming
        the source, if a word has none."""
        words = split_words(text)
        try:
            ids, _ = encode_words(self.text.tokenizer, words.words, words.spaced)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        return ids.astype(np.int64)

    def encode_audio(self, path: str, source: str) -> tuple[IntArray, IntArray]:
        """Units [n, K] of an audio file, and their run lengths [n]. Raises UserError, naming the source, if it is
        unreadable or short, and like `speech`."""
        tokenizer = self.speech
        frames = tokenizer.encode(read_waveform(Path(path), tokenizer.sample_rate))
        if not len(frames):
            raise UserError(f"{source}: {path} is shorter than a unit; expected a spoken prompt")
        units, run_lengths = collapse(frames)
        return units.astype(np.int64), run_lengths.astype(np.int64)

    def _encode_text(self, request: Request) -> list[int]:
        ids = self.encode_text(request.content, request.source)
        return [*ids, self.text.info.eos_id] if request.ends_utterance else ids

    def _encode_speech(self, request: Request) -> IntArray:
        sizes = self.model.architecture
        if request.kind == "audio":
            units, _ = self.encode_audio(request.content, request.source)
        else:
            units = np.array(request.content, np.int64)
            if units.shape[1] != sizes.num_codebooks:
                raise UserError(
                    f"{request.source}: units of {units.shape[1]} codebooks, the model has {sizes.num_codebooks}; give"
                    " a list of that many units for each frame"
                )
            if int(units.max()) >= sizes.num_units:
                raise UserError(
                    f"{request.source}: the unit {int(units.max())} is outside the model's {sizes.num_units} units;"
                    f" expected 0 to {sizes.num_units - 1}"
                )
        if request.ends_utterance:
            units = np.concatenate([units, np.full((1, units.shape[1]), sizes.speech_eos)])
        return units


@dataclass(frozen=True, eq=False)
class _Prepared:
    """The context of a prompt: what is before the speech segment that is continued, and the begin of the segment."""

    before: Context
    units: IntArray  # [n, K]; empty if text is continued

    def __len__(self) -> int:
        return len(self.before) + len(self.units)

    @property
    def whole(self) -> Context:
        """The context of text."""
        assert not len(self.units)
        return self.before


class _Clock:
    """Notes when positions are drawn."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._first: float | None = None
        self._last = self._begun
        self._counts: dict[int, int] = {}

    def note(self, row: int) -> None:
        """A row has a further position."""
        self._last = time.perf_counter()
        self._first = self._last if self._first is None else self._first
        self._counts[row] = self._counts.get(row, 0) + 1

    def timing(self) -> Timing:
        """What was noted."""
        first = self._begun if self._first is None else self._first
        most = max(self._counts.values(), default=0)
        return Timing(first - self._begun, self._last - self._begun, most)
