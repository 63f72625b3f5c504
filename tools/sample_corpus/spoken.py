"""From passages to records: speaking, features, units, alignment with the text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr  # type: ignore[import-untyped]
from tokenizers import Tokenizer

from sample_corpus import espeak
from sample_corpus.corpus import Passage
from tolktrain.data.records import Record
from tolktrain.data.text_tokenizer import encode_words
from tolktrain.prepare.recordings.align.units import Ends, frame_ends, unit_ends
from tolktrain.units.base import Frames, RunLengths, collapse
from tolktrain.units.logmel import LogMelTokenizer
from tolktrain.units.mel import Features, LogMelAnalysis


@dataclass(frozen=True, eq=False)
class SpokenSentence:
    """A sentence as the corpus needs it."""

    samples: npt.NDArray[np.int16]  # [n] at the rate of the analysis
    features: Features  # [frames, num_mels]
    word_frame_ends: npt.NDArray[np.int64]  # [words]


@dataclass(frozen=True, eq=False)
class SpokenPassage:
    """A passage and its audio."""

    passage: Passage
    sentences: tuple[SpokenSentence, ...]

    @property
    def num_frames(self) -> int:
        """Frames of all sentences."""
        return sum(len(sentence.features) for sentence in self.sentences)


def analyse(utterance: espeak.Utterance, analysis: LogMelAnalysis) -> SpokenSentence:
    """Resample, round to 16 bits (what a WAV file of the sentence holds), and take the features."""
    waveform = soxr.resample(utterance.samples.astype(np.float64) / 32768, espeak.SAMPLE_RATE, analysis.sample_rate)
    samples = np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)
    features = analysis.features(samples.astype(np.float32) / 32768)
    ends = frame_ends(utterance.word_ends, espeak.SAMPLE_RATE, analysis.frames_per_second, len(features))
    return SpokenSentence(samples, features, ends)


def speak(passages: Sequence[Passage], analysis: LogMelAnalysis, processes: int) -> Iterator[SpokenPassage]:
    """Speak and analyse each passage, in order."""
    tasks = [(passage.voice, passage.story.words) for passage in passages]
    for passage, utterances in zip(passages, espeak.speak_passages(tasks, processes), strict=True):
        yield SpokenPassage(passage, tuple(analyse(utterance, analysis) for utterance in utterances))


def align(sentences: Sequence[SpokenSentence], speech: LogMelTokenizer) -> tuple[Frames, RunLengths, Ends]:
    """Units of consecutive sentences, their run lengths, and where each word ends in the units.

    Repeats are collapsed within a sentence, never across its end.
    """
    units: list[Frames] = []
    runs: list[RunLengths] = []
    word_ends: list[Ends] = []
    for sentence in sentences:
        sentence_units, sentence_runs = collapse(speech.assign(sentence.features))
        word_ends.append(unit_ends(sentence.word_frame_ends, sentence_runs) + sum(map(len, units)))
        units.append(sentence_units)
        runs.append(sentence_runs)
    return np.concatenate(units), np.concatenate(runs), np.concatenate(word_ends).astype(np.uint32)


def make_record(spoken: SpokenPassage, text: Tokenizer, speech: LogMelTokenizer) -> Record:
    """The record of a passage."""
    words = spoken.passage.story.words
    return record_of_sentences(spoken.passage.id, spoken.passage.voice.name, words, spoken.sentences, text, speech)


def record_of_sentences(
    identity: str,
    source: str,
    words: Sequence[Sequence[str]],
    sentences: Sequence[SpokenSentence],
    text: Tokenizer,
    speech: LogMelTokenizer,
) -> Record:
    """The record of sentences, given by their words, each of which is an utterance."""
    text_ids, word_text_ends = encode_words(text, [word for sentence in words for word in sentence])
    units, run_lengths, word_unit_ends = align(sentences, speech)
    last_words = np.cumsum([len(sentence) for sentence in words]) - 1
    return Record(
        id=identity,
        source=source,
        text_ids=text_ids,
        units=units,
        run_lengths=run_lengths,
        word_text_ends=word_text_ends,
        word_unit_ends=word_unit_ends,
        utterance_text_ends=word_text_ends[last_words],
        utterance_unit_ends=word_unit_ends[last_words],
    )
