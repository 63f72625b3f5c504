"""Sampling of speech and text after a context of both.

Each step runs the model over the whole context again. A context longer than the sequence length of training loses its
oldest positions. Every context has its own random numbers, so what it becomes does not depend on its neighbours in the
batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tolktrain.data.sequences import BoolArray, IntArray, SequenceWriter
from tolktrain.model.smoltolk import NextLogits
from tolktrain.vocabulary import Vocabulary

NextLogitsOf = Callable[[Tensor, Tensor, Tensor], NextLogits]
"""tokens int64 [B, K, T], speech_in bool [B, T], lengths int64 [B] -> logits of what follows position lengths - 1."""

Duration = Callable[[IntArray], float]
"""Seconds that units [n, K] without EOS last."""


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn."""

    temperature: float
    top_k: int  # likeliest ids that are drawn from
    sequence_length: int  # most positions of context
    seed: int


@dataclass(frozen=True, eq=False)
class Context:
    """The context of the model: n positions."""

    tokens: IntArray  # [K, n]
    is_speech: BoolArray  # [n]

    @classmethod
    def of_speech(cls, units: IntArray, vocabulary: Vocabulary, switch: bool = False) -> "Context":
        """A speech segment [n, K], EOS rows included, then the switch token if requested."""
        writer = SequenceWriter(vocabulary, len(units) + vocabulary.num_codebooks - 1 + switch)
        writer.speech(units)
        if switch:
            writer.special(vocabulary.switch)
        return cls(writer.tokens, writer.is_speech)

    def __len__(self) -> int:
        return len(self.is_speech)

    def extended(self, tokens: IntArray, speech: bool) -> "Context":
        """With the positions [K, m] appended."""
        return Context(
            np.concatenate([self.tokens, tokens], axis=1),
            np.concatenate([self.is_speech, np.full(tokens.shape[1], speech)]),
        )

    def last(self, count: int) -> "Context":
        """The last positions."""
        return Context(self.tokens[:, -count:], self.is_speech[-count:])


def draw(logits: Tensor, allowed: Tensor, settings: Sampling, generator: torch.Generator) -> int:
    """Draw one id from logits [V] at the temperature, from the `top_k` likeliest of the allowed ids (bool [V])."""
    scores = logits.double().cpu() / settings.temperature
    scores = scores.masked_fill(~allowed, -torch.inf)
    best, ids = scores.topk(min(settings.top_k, int(allowed.sum())))
    return int(ids[torch.multinomial(torch.softmax(best, dim=0), 1, generator=generator)])


def sample_speech(
    next_logits: NextLogitsOf,
    prompts: Sequence[IntArray],
    vocabulary: Vocabulary,
    settings: Sampling,
    duration: Duration,
    seconds: float,
    most_units: int,
) -> list[IntArray]:
    """Continue each prompt, units [n, K] with EOS rows, by units [m, K] that last `seconds` (EOS counts as nothing).

    Only units and EOS are drawn, never PAD, and EOS never twice in a row. At most `most_units` rows are drawn.
    """
    segments = [_SpeechSegment(prompt, vocabulary, settings, index) for index, prompt in enumerate(prompts)]
    for _ in range(most_units + vocabulary.num_codebooks - 1):
        open_segments = [
            segment for segment in segments if duration(_without_eos(segment.drawn(), vocabulary)) < seconds
        ]
        if not open_segments:
            break
        logits = _batched(next_logits, [segment.context.last(settings.sequence_length) for segment in open_segments])
        for segment, speech in zip(open_segments, logits.speech, strict=True):
            segment.draw(speech)
    return [segment.drawn() for segment in segments]


def sample_text(
    next_logits: NextLogitsOf,
    contexts: Sequence[Context],
    vocabulary: Vocabulary,
    settings: Sampling,
    most_tokens: int,
    utterances: int,
) -> list[list[int]]:
    """Continue each context by text ids, EOS included, until so many utterances have ended, or by `most_tokens`."""
    generators = [_generator(settings, "text", index) for index in range(len(contexts))]
    allowed = torch.ones(vocabulary.text_vocab_size, dtype=torch.bool)
    grown = list(contexts)
    texts: list[list[int]] = [[] for _ in contexts]
    for _ in range(most_tokens):
        open_texts = [i for i, text in enumerate(texts) if text.count(vocabulary.text_eos) < utterances]
        if not open_texts:
            break
        logits = _batched(next_logits, [grown[i].last(settings.sequence_length) for i in open_texts])
        for row, i in enumerate(open_texts):
            token = draw(logits.text[row], allowed, settings, generators[i])
            column = np.zeros((vocabulary.num_codebooks, 1), np.int64)
            column[0] = token
            grown[i] = grown[i].extended(column, speech=False)
            texts[i].append(token)
    return texts


class _SpeechSegment:
    """A speech segment that grows by one position per step; codebook k of frame f is at position f + k."""

    def __init__(self, prompt: IntArray, vocabulary: Vocabulary, settings: Sampling, index: int) -> None:
        self._vocabulary = vocabulary
        self._settings = settings
        self._generator = _generator(settings, "speech", index)
        self._prompt = prompt
        # The last positions of the prompt hold its delayed codebooks and PAD; the continuation replaces both.
        full = Context.of_speech(prompt, vocabulary)
        self.context = Context(full.tokens[:, : len(prompt)], full.is_speech[: len(prompt)])

    def draw(self, logits: Tensor) -> None:
        """Draw and append a position from logits [K, V_s]."""
        position, column = len(self.context), np.full((self._vocabulary.num_codebooks, 1), self._vocabulary.speech_pad)
        for codebook in range(min(self._vocabulary.num_codebooks, position + 1)):
            frame = position - codebook
            if frame < len(self._prompt):
                column[codebook] = self._prompt[frame, codebook]
            else:
                allowed = self._allowed(codebook, frame)
                column[codebook] = draw(logits[codebook], allowed, self._settings, self._generator)
        self.context = self.context.extended(column, speech=True)

    def drawn(self) -> IntArray:
        """The frames that are complete and not of the prompt: [m, K]."""
        delay = self._vocabulary.num_codebooks - 1
        begin, end = len(self._prompt), len(self.context) - delay
        columns = [self.context.tokens[k, begin + k : max(end, begin) + k] for k in range(delay + 1)]
        return np.stack(columns, axis=1)

    def _allowed(self, codebook: int, frame: int) -> Tensor:
        """Units, and EOS in all codebooks of a frame or in none; never after EOS."""
        eos = self._vocabulary.speech_eos
        allowed = torch.zeros(eos + 2, dtype=torch.bool)
        if codebook and self.context.tokens[0, frame] == eos:
            allowed[eos] = True
            return allowed
        allowed[:eos] = True
        follows_eos = frame > 0 and self.context.tokens[0, frame - 1] == eos
        allowed[eos] = codebook == 0 and not follows_eos
        return allowed


def _without_eos(units: IntArray, vocabulary: Vocabulary) -> IntArray:
    return units[units[:, 0] != vocabulary.speech_eos]


def _batched(next_logits: NextLogitsOf, contexts: Sequence[Context]) -> NextLogits:
    """Contexts padded at their ends and continued together."""
    lengths = [len(context) for context in contexts]
    longest, num_codebooks = max(lengths), contexts[0].tokens.shape[0]
    tokens = np.zeros((len(contexts), num_codebooks, longest), np.int64)
    is_speech = np.zeros((len(contexts), longest), np.bool_)
    for row, context in enumerate(contexts):
        tokens[row, :, : len(context)] = context.tokens
        is_speech[row, : len(context)] = context.is_speech
    return next_logits(torch.from_numpy(tokens), torch.from_numpy(is_speech), torch.tensor(lengths))


def _generator(settings: Sampling, purpose: str, index: int) -> torch.Generator:
    words = np.random.SeedSequence([settings.seed, len(purpose), index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
