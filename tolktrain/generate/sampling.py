"""Sampling of speech and text after a context of both.

Every context has its own random numbers, so what it becomes does not depend on its neighbours in the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tolktrain.data.sequences import IntArray
from tolktrain.generate.context import Context
from tolktrain.generate.decoding import Steps
from tolktrain.vocabulary import Vocabulary

Duration = Callable[[IntArray], float]
"""Seconds that units [n, K] without EOS last."""

_COLDEST = 1e-9  # below, quotients could overflow, and the likeliest id has all of the probability

OnStep = Callable[[int, IntArray], None]
"""Called with a row of the batch and each position [K] that is drawn for it."""


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn."""

    temperature: float  # 0 for the likeliest id
    top_k: int  # likeliest ids that are drawn from
    seed: int
    top_p: float = 1.0  # drawn from the fewest likeliest ids with this share of the probability
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class SpeechLimits:
    """When speech ends; at the first limit that is reached."""

    duration: Duration
    seconds: float
    most_units: int
    utterances: int | None = None  # ends after so many EOS


@dataclass(frozen=True)
class TextLimits:
    """When text ends; at the first limit that is reached."""

    most_tokens: int
    utterances: int  # ends after so many EOS
    stops: Callable[[Sequence[int]], bool] = lambda ids: False  # of the ids so far


def draw(
    logits: Tensor,
    allowed: Tensor,
    settings: Sampling,
    generator: torch.Generator,
    seen: Sequence[int] = (),
) -> int:
    """Draw one id from logits [V] at the temperature, from the `top_k` likeliest of the allowed ids (bool [V]).

    With `top_p`, only from the fewest of these whose probabilities add up to it (nucleus sampling, arXiv 1904.09751).
    With `repetition_penalty`, positive logits of the ids in `seen` are divided by it and others multiplied (CTRL, arXiv
    1909.05858).
    """
    scores = logits.double().cpu()
    if settings.repetition_penalty != 1.0 and len(seen):
        ids = torch.tensor(sorted(set(seen)))
        penalized = scores[ids]
        factor = settings.repetition_penalty
        scores = scores.index_copy(0, ids, torch.where(penalized > 0, penalized / factor, penalized * factor))
    scores = scores.masked_fill(~allowed, -torch.inf)
    if settings.temperature < _COLDEST:
        return int(scores.argmax())
    best, ids = (scores / settings.temperature).topk(min(settings.top_k, int(allowed.sum())))
    probs = torch.softmax(best, dim=0)
    if settings.top_p < 1.0:
        before = probs.cumsum(0) - probs
        probs = probs.masked_fill(before >= settings.top_p, 0.0)
    return int(ids[torch.multinomial(probs, 1, generator=generator)])


def sample_speech(
    decoder: Steps,
    prompts: Sequence[IntArray],
    vocabulary: Vocabulary,
    settings: Sampling,
    limits: SpeechLimits,
    before: Sequence[Context] | None = None,
    streams: Sequence[tuple[int, ...]] | None = None,
    on_step: OnStep = lambda row, column: None,
) -> list[IntArray]:
    """Continue each prompt, units [n, K] with EOS rows, by units [m, K] that last `limits.seconds` (EOS counts as
    nothing).

    Only units and EOS are drawn, never PAD, and EOS never twice in a row.

    Args:
        decoder: of speech.
        prompts: the begins of the speech segments, which may be empty if there is a context before them.
        vocabulary: of the model.
        settings: of drawing.
        limits: when the speech ends.
        before: contexts that precede the segments.
        streams: numbers of each context's random numbers; its place if not given.
        on_step: called as positions are drawn.
    """
    rows = [
        _SpeechSegment(
            prompt,
            vocabulary,
            settings,
            limits,
            _generator(settings, "speech", streams[index] if streams is not None else (index,)),
            None if before is None else before[index],
        )
        for index, prompt in enumerate(prompts)
    ]
    _run(decoder, rows, limits.most_units + vocabulary.num_codebooks - 1, on_step)
    return [row.drawn() for row in rows]


def sample_text(
    decoder: Steps,
    contexts: Sequence[Context],
    vocabulary: Vocabulary,
    settings: Sampling,
    limits: TextLimits,
    streams: Sequence[tuple[int, ...]] | None = None,
    on_step: OnStep = lambda row, column: None,
) -> list[list[int]]:
    """Continue each context by text ids, EOS included; arguments as in `sample_speech`, with a decoder of text."""
    rows = [
        _Text(
            context,
            vocabulary,
            settings,
            limits,
            _generator(settings, "text", streams[index] if streams is not None else (index,)),
        )
        for index, context in enumerate(contexts)
    ]
    _run(decoder, rows, limits.most_tokens, on_step)
    return [row.ids for row in rows]


class _Row(ABC):
    """What grows after one context."""

    context: Context  # at the begin

    @abstractmethod
    def draw(self, logits: Tensor) -> IntArray:
        """Draw and keep the next position: [K]."""

    @abstractmethod
    def is_finished(self) -> bool:
        """Whether a limit is reached."""


def _run(decoder: Steps, rows: Sequence[_Row], most_steps: int, on_step: OnStep) -> None:
    """Let all rows grow until they are finished."""
    numbers = [number for number, row in enumerate(rows) if not row.is_finished()]
    if not numbers or most_steps < 1:
        return
    logits = decoder.begin([rows[number].context for number in numbers])
    for step in range(most_steps):
        logits = logits.cpu()  # one copy for all rows
        columns = np.stack([rows[number].draw(logits[place]) for place, number in enumerate(numbers)])
        for number, column in zip(numbers, columns, strict=True):
            on_step(number, column)
        unfinished = [place for place, number in enumerate(numbers) if not rows[number].is_finished()]
        if not unfinished or step == most_steps - 1:
            return
        if len(unfinished) < len(numbers):
            decoder.keep(unfinished)
            columns, numbers = columns[unfinished], [numbers[place] for place in unfinished]
        logits = decoder.extend(columns)


class _Text(_Row):
    """Text that grows by one id per step."""

    def __init__(
        self,
        context: Context,
        vocabulary: Vocabulary,
        settings: Sampling,
        limits: TextLimits,
        generator: torch.Generator,
    ) -> None:
        self.context = context
        self.ids: list[int] = []
        self._vocabulary, self._settings, self._limits, self._generator = vocabulary, settings, limits, generator
        self._allowed = torch.ones(vocabulary.text_vocab_size, dtype=torch.bool)
        # Special ids are no text.
        read = context.tokens[0][~context.is_speech]
        self._seen = read[read < vocabulary.text_vocab_size].tolist() if settings.repetition_penalty != 1.0 else []

    def draw(self, logits: Tensor) -> IntArray:
        token = draw(logits, self._allowed, self._settings, self._generator, self._seen)
        self.ids.append(token)
        if self._settings.repetition_penalty != 1.0:
            self._seen.append(token)
        column = np.zeros(self._vocabulary.num_codebooks, np.int64)
        column[0] = token
        return column

    def is_finished(self) -> bool:
        ended = self.ids.count(self._vocabulary.text_eos) >= self._limits.utterances
        return ended or self._limits.stops(self.ids)


class _SpeechSegment(_Row):
    """A speech segment that grows by one position per step; codebook k of frame f is at position f + k."""

    def __init__(
        self,
        prompt: IntArray,
        vocabulary: Vocabulary,
        settings: Sampling,
        limits: SpeechLimits,
        generator: torch.Generator,
        before: Context | None,
    ) -> None:
        self._vocabulary, self._settings, self._limits, self._generator = vocabulary, settings, limits, generator
        self._prompt = prompt
        # The last positions of the prompt hold its delayed codebooks and PAD; the continuation replaces both.
        full = Context.of_speech(prompt, vocabulary)
        self._length = len(prompt)
        self._tokens = full.tokens[:, : self._length]  # [K, >= length] of the segment
        self.context = Context(self._tokens, full.is_speech[: self._length])
        if before is not None:
            self.context = Context(
                np.concatenate([before.tokens, self._tokens], axis=1),
                np.concatenate([before.is_speech, self.context.is_speech]),
            )

    def draw(self, logits: Tensor) -> IntArray:
        """Draw and keep a position from logits [K, V_s]."""
        num_codebooks = self._vocabulary.num_codebooks
        position, column = self._length, np.full(num_codebooks, self._vocabulary.speech_pad)
        for codebook in range(min(num_codebooks, position + 1)):
            frame = position - codebook
            if frame < len(self._prompt):
                column[codebook] = self._prompt[frame, codebook]
            else:
                allowed, seen = self._allowed(codebook, frame), self._seen(codebook)
                column[codebook] = draw(logits[codebook], allowed, self._settings, self._generator, seen)
        if position == self._tokens.shape[1]:
            self._tokens = np.pad(self._tokens, ((0, 0), (0, max(position, 64))))
        self._tokens[:, position] = column
        self._length += 1
        return column

    def is_finished(self) -> bool:
        drawn, limits = self.drawn(), self._limits
        is_eos = drawn[:, 0] == self._vocabulary.speech_eos
        if limits.utterances is not None and int(is_eos.sum()) >= limits.utterances:
            return True
        return limits.duration(drawn[~is_eos]) >= limits.seconds or len(drawn) >= limits.most_units

    def drawn(self) -> IntArray:
        """The frames that are complete and not of the prompt: [m, K]."""
        delay = self._vocabulary.num_codebooks - 1
        begin, end = len(self._prompt), self._length - delay
        columns = [self._tokens[k, begin + k : max(end, begin) + k] for k in range(delay + 1)]
        return np.stack(columns, axis=1)

    def _allowed(self, codebook: int, frame: int) -> Tensor:
        """Units, and EOS in all codebooks of a frame or in none; never after EOS."""
        eos = self._vocabulary.speech_eos
        allowed = torch.zeros(eos + 2, dtype=torch.bool)
        if codebook and self._tokens[0, frame] == eos:
            allowed[eos] = True
            return allowed
        allowed[:eos] = True
        follows_eos = frame > 0 and self._tokens[0, frame - 1] == eos
        allowed[eos] = codebook == 0 and not follows_eos
        return allowed

    def _seen(self, codebook: int) -> list[int]:
        if self._settings.repetition_penalty == 1.0:
            return []
        ids = self._tokens[codebook, : self._length]
        return ids[ids < self._vocabulary.num_units].tolist()


def _generator(settings: Sampling, purpose: str, stream: tuple[int, ...]) -> torch.Generator:
    words = np.random.SeedSequence([settings.seed, len(purpose), *stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
