"""Speech with known word times for the aligner: sentences spoken by espeak-ng, joined and disturbed at random."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.signal import fftconvolve, firwin, resample_poly

from sample_corpus.corpus import NEW_VOICES, TRAIN_VOICES
from sample_corpus.espeak import SAMPLE_RATE as ESPEAK_RATE
from sample_corpus.espeak import Utterance, Voice, speak_passages
from sample_corpus.stories import stories

SAMPLE_RATE = 16_000
SENTENCES = 30  # of a passage
SILENCE = 0.01  # of the peak: what stays below is silence

ACCENTS = ("en-us", "en-us", "en-us", "en-gb-x-rp", "en-gb-x-rp", "en", "en-gb-scotland")
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m7", "m8", "f1", "f2", "f3", "f5", "Alex", "Annie", "Michael", "Denis", "Diogo"),
    *("Henrique", "Hugo", "Marco", "Mike", "antonio", "belinda", "benjamin", "caleb", "david", "ed", "edward"),
    *("linda", "max", "pablo", "paul", "quincy", "rob", "robert", "sandro", "shelby", "travis", "zac"),
)
# Variants that no training passage uses, and an accent and variant that never meet there.
HELDOUT_VOICES = (*NEW_VOICES, Voice("en-us+f4", 180, 50), Voice("en-us+Andy", 190, 45), Voice("en+steph", 175, 55))

WORDS = tuple((Path(__file__).parent / "words.txt").read_text().split())


@dataclass(frozen=True, eq=False)
class Sentence:
    """A spoken sentence, begun at its first word; silence follows its last one."""

    samples: npt.NDArray[np.int16]  # [n] at SAMPLE_RATE
    words: tuple[str, ...]  # a to z and apostrophes
    starts: npt.NDArray[np.int64]  # [words], in samples
    speech_end: int  # where the silence begins


@dataclass(frozen=True, eq=False)
class Example:
    """One or more sentences of a voice, with silence around them."""

    samples: npt.NDArray[np.float32]  # [n]
    words: tuple[str, ...]
    starts: npt.NDArray[np.float64]  # [words], in samples
    ends: npt.NDArray[np.float64]  # [words], in samples; the next word's start, or where silence begins
    closed: npt.NDArray[np.bool_]  # [words], whether a word follows at once: its end is an event of espeak-ng


def normalize(word: str) -> str:
    """The word as the aligner spells it."""
    return "".join(c for c in word.lower() if c.isalpha() or c == "'")


def _random_sentence(rng: np.random.Generator) -> list[str]:
    return [WORDS[int(i)] for i in rng.integers(len(WORDS), size=int(rng.integers(4, 13)))]


def training_voices(count: int, seed: int) -> list[Voice]:
    """The voices of the embedded corpus' training split, then mixtures of accent, variant, rate and pitch."""
    rng = np.random.Generator(np.random.Philox(seed))
    voices = [TRAIN_VOICES[i % len(TRAIN_VOICES)] for i in range(count // 4)]
    barred = {voice.name for voice in HELDOUT_VOICES}
    while len(voices) < count:
        name = f"{ACCENTS[int(rng.integers(len(ACCENTS)))]}+{VARIANTS[int(rng.integers(len(VARIANTS)))]}"
        if name not in barred:
            voices.append(Voice(name, int(rng.integers(150, 216)), int(rng.integers(30, 71))))
    return voices


def speak(voices: Sequence[Voice], seed: int) -> Iterator[list[Sentence]]:
    """A passage by each voice: half its sentences from stories, half of random words."""
    rng = np.random.Generator(np.random.Philox(seed))
    passages = []
    for voice, story in zip(voices, stories(seed, len(voices)), strict=True):
        chosen = rng.permutation(len(story.words))[: SENTENCES // 2]
        sentences = [story.words[int(i)] for i in chosen]
        passages.append((voice, sentences + [_random_sentence(rng) for _ in range(SENTENCES - len(sentences))]))
    for (_, sentences), utterances in zip(passages, speak_passages(passages), strict=True):
        yield [hear(words, u) for words, u in zip(sentences, utterances, strict=True)]


def hear(words: Sequence[str], utterance: Utterance) -> Sentence:
    """The sentence at SAMPLE_RATE, with its words' starts and the end of its audio."""
    ratio = SAMPLE_RATE / ESPEAK_RATE
    waveform = resample_poly(utterance.samples.astype(np.float32), 320, 441)
    loud = np.flatnonzero(np.abs(waveform) > SILENCE * np.abs(waveform).max())
    starts = np.rint(np.concatenate([[loud[0] / ratio], utterance.word_ends[:-1]]) * ratio).astype(np.int64)
    clipped = np.clip(np.rint(waveform), -32768, 32767).astype(np.int16)
    return Sentence(clipped, tuple(map(normalize, words)), starts, int(loud[-1]) + 1)


def join(sentences: Sequence[Sentence], gaps: Sequence[float]) -> Example:
    """Sentences with a gap of silence, in seconds, before each, and a short one after the last."""
    pieces: list[npt.NDArray[np.float32]] = []
    starts, ends, closed, at = [], [], [], 0
    for sentence, gap in zip(sentences, gaps, strict=True):
        pieces += [np.zeros(int(gap * SAMPLE_RATE), np.float32), sentence.samples[: sentence.speech_end] / 32768]
        starts.append(sentence.starts + at + len(pieces[-2]))
        ends.append(np.append(sentence.starts[1:], sentence.speech_end) + at + len(pieces[-2]))
        closed += [True] * (len(sentence.words) - 1) + [False]
        at += len(pieces[-2]) + len(pieces[-1])
    pieces.append(np.zeros(SAMPLE_RATE // 5, np.float32))
    words = tuple(word for sentence in sentences for word in sentence.words)
    return Example(
        np.concatenate(pieces).astype(np.float32),
        words,
        np.concatenate(starts).astype(float),
        np.concatenate(ends).astype(float),
        np.array(closed),
    )


def standardize(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean 0 and variance 1, as the feature extractor does it."""
    return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)


def add_noise(samples: npt.NDArray[np.float32], ratio_db: float, seed: int) -> npt.NDArray[np.float32]:
    """White noise at a signal-to-noise ratio."""
    noise = np.random.Generator(np.random.Philox(seed)).standard_normal(len(samples), np.float32)
    return samples + noise * np.float32(samples.std() * 10 ** (-ratio_db / 20))


def low_pass(samples: npt.NDArray[np.float32], cutoff: float) -> npt.NDArray[np.float32]:
    """Frequencies above `cutoff` Hz removed, without delay."""
    return fftconvolve(samples, firwin(101, cutoff, fs=SAMPLE_RATE), mode="same").astype(np.float32)


def stretch(example: Example, speed: float) -> Example:
    """Played faster or slower, the pitch and the vocal tract changing with it."""
    positions = np.arange(int(len(example.samples) / speed)) * speed
    samples = np.interp(positions, np.arange(len(example.samples)), example.samples).astype(np.float32)
    return Example(samples, example.words, example.starts / speed, example.ends / speed, example.closed)


def disturb(samples: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Tilt the spectrum, remove high tones, add noise; each at times."""
    if rng.random() < 0.4:
        samples = samples - np.float32(rng.uniform(-0.6, 0.8)) * np.append(np.float32(0), samples[:-1])
    if rng.random() < 0.3:
        samples = low_pass(samples, rng.uniform(3000, 7500))
    if rng.random() < 0.8:
        samples = add_noise(samples, rng.uniform(12, 50), int(rng.integers(2**31)))
    return samples
