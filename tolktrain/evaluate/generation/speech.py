"""Speech to judge: what the model and a bigram say after a prompt, and what the recording says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tolktrain.data.sequences import IntArray, SequenceWriter
from tolktrain.errors import UserError
from tolktrain.evaluate.generation.recordings import Recording
from tolktrain.evaluate.ngram import Bigram
from tolktrain.generate.context import Context
from tolktrain.generate.continuation import Continuer, Limits
from tolktrain.generate.prompts import read_waveform
from tolktrain.generate.requests import request
from tolktrain.generate.sampling import Sampling, SpeechLimits, draw, sample_speech
from tolktrain.generate.speaker import Speaker
from tolktrain.generate.tensor_ranks import make_decoder
from tolktrain.units.base import Frames, Samples, collapse, decode

_LONGEST_READING = 20  # units per word of a text that is read


@dataclass(frozen=True, eq=False)
class Spoken:
    """Speech of one kind (`summary.KINDS`)."""

    kind: str
    seconds: float  # without the prompt
    units: int  # without the prompt
    frames: Frames | None  # [frames, K], with the prompt; None for the recording


@dataclass(frozen=True, eq=False)
class Encoded:
    """A recording as frames of units."""

    number: int  # of the recording, for the random numbers
    recording: Recording
    seconds: float
    frames: Frames  # [frames, K]
    prompt: Frames  # of its beginning


class Speech:
    """Makes the speech of all kinds with one model."""

    def __init__(self, continuer: Continuer, settings: Sampling, most_units: int, bigram: Bigram | None) -> None:
        """`bigram`: of the units of a single codebook; None: there is no floor."""
        self.speaker = Speaker(continuer)
        self._continuer = continuer
        self._settings = settings
        self._most_units = most_units
        self._bigram = bigram
        stages = continuer.config.train.stages
        self._reads = any("synthesis" in stage.mixture for stage in stages)

    def encode(self, number: int, recording: Recording, prompt_seconds: float) -> Encoded:
        """The units of a recording. Raises UserError if it cannot be read, or is too short to have units."""
        tokenizer = self._continuer.speech
        samples = self.waveform(recording, tokenizer.sample_rate)
        prompt = tokenizer.encode(samples[: round(prompt_seconds * tokenizer.sample_rate)])
        if not len(prompt):
            raise UserError(f"{recording.path} is too short to have units")
        frames = tokenizer.encode(samples)
        return Encoded(number, recording, len(samples) / tokenizer.sample_rate, frames, prompt)

    def waveform(self, recording: Recording, sample_rate: int) -> Samples:
        """Its samples. Raises UserError like `encode`."""
        return read_waveform(recording.path, sample_rate)

    def audio(self, frames: Frames) -> tuple[Samples, int]:
        """Samples and sample rate. Raises UserError if the units cannot be turned into audio."""
        vocoder = self.speaker.vocoder
        if vocoder is None:
            raise UserError(
                "the run's units cannot be turned into audio, which --asr needs; name a vocoder with data.vocoder.path"
            )
        return decode(vocoder, frames), vocoder.sample_rate

    def of(self, batch: Sequence[Encoded]) -> Iterator[tuple[Encoded, Spoken]]:
        """The speech of all kinds of some recordings, which are computed together."""
        prompts = [collapse(entry.prompt)[0].astype(np.int64) for entry in batch]
        for entry, prompt, drawn in zip(batch, prompts, self._continued(batch, prompts), strict=True):
            yield entry, self._after("generated", entry, prompt, drawn)
        if self._bigram is not None:
            for entry, prompt in zip(batch, prompts, strict=True):
                yield entry, self._after("bigram", entry, prompt, self._by_bigram(self._bigram, entry, prompt))
        if self._reads:
            yield from self._read([entry for entry in batch if entry.recording.text is not None])
        for entry in batch:
            units = len(collapse(entry.frames)[0])
            yield entry, Spoken("resynthesis", entry.seconds, units, entry.frames)
            yield entry, Spoken("recording", entry.seconds, units, None)

    def _continued(self, batch: Sequence[Encoded], prompts: Sequence[IntArray]) -> list[IntArray]:
        requests = [
            request("units", prompt.tolist(), "speech", False, entry.recording.id, str(entry.recording.path))
            for entry, prompt in zip(batch, prompts, strict=True)
        ]
        numbers = [entry.number for entry in batch]
        found = self._continuer.run(requests, numbers, 1, self._settings, Limits(self._most_units))
        width = self._continuer.model.architecture.num_codebooks
        return [np.array(continuation.ids, np.int64).reshape(-1, width) for continuation in found]

    def _by_bigram(self, bigram: Bigram, entry: Encoded, prompt: IntArray) -> IntArray:
        """Units [m, 1] drawn as the model's are, EOS left out."""
        eos = self._continuer.vocabulary.speech_eos
        words = np.random.SeedSequence([self._settings.seed, entry.number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        targets = np.arange(eos + 1)
        allowed = torch.ones(eos + 1, dtype=torch.bool)
        drawn: list[int] = []
        last = int(prompt[-1, 0])
        for _ in range(self._most_units):
            allowed[eos] = last != eos
            scores = torch.from_numpy(bigram.log_probs(np.full(len(targets), last), targets))
            last = draw(scores, allowed, self._settings, generator)
            drawn.append(last)
        return np.array([unit for unit in drawn if unit != eos], np.int64)[:, None]

    def _after(self, kind: str, entry: Encoded, prompt: IntArray, drawn: IntArray) -> Spoken:
        whole = np.concatenate([prompt, drawn])
        lengths = self.speaker.durations.run_lengths(whole)[len(prompt) :]
        frames = np.concatenate([entry.prompt, np.repeat(drawn, lengths, axis=0).astype(np.uint16)])
        return Spoken(kind, float(lengths.sum()) / self.speaker.frames_per_second, len(drawn), frames)

    def _read(self, batch: Sequence[Encoded]) -> Iterator[tuple[Encoded, Spoken]]:
        """The transcripts of recordings, read by the model as in the strategy `synthesis`."""
        if not batch:
            return
        vocabulary, tokenizer = self._continuer.vocabulary, self._continuer.text.tokenizer
        contexts = []
        for entry in batch:
            ids = tokenizer.encode(entry.recording.text, add_special_tokens=False).ids
            writer = SequenceWriter(vocabulary, len(ids) + 2)
            writer.special(vocabulary.prefix_begin)
            writer.text(np.array(ids, np.int64), scored=False)
            writer.special(vocabulary.prefix_end)
            contexts.append(Context(writer.tokens[:, : writer.length], writer.is_speech[: writer.length]))
        longest = [_LONGEST_READING * len((entry.recording.text or "").split()) for entry in batch]
        limits = SpeechLimits(lambda units: 0.0, float("inf"), max(longest), utterances=1)
        nothing = [np.zeros((0, vocabulary.num_codebooks), np.int64)] * len(batch)
        decoder = make_decoder(self._continuer.model, "speech", self._continuer.window)
        streams = [(entry.number, 1) for entry in batch]
        spoken = sample_speech(decoder, nothing, vocabulary, self._settings, limits, contexts, streams)
        for entry, drawn, most in zip(batch, spoken, longest, strict=True):
            own = drawn[:most]  # so that the others of the batch do not matter
            units = own[own[:, 0] != vocabulary.speech_eos]
            lengths = self.speaker.durations.run_lengths(units)
            frames = np.repeat(units, lengths, axis=0).astype(np.uint16)
            yield entry, Spoken("synthesis", float(lengths.sum()) / self.speaker.frames_per_second, len(units), frames)
