"""espeak-ng as a library: word times, and the same audio again."""

import numpy as np
import pytest

from sample_corpus import espeak
from sample_corpus.corpus import NEW_VOICES, TRAIN_VOICES
from sample_corpus.espeak import SAMPLE_RATE, Utterance, Voice, speak_passages
from tolktrain.errors import UserError

VOICE = Voice("en-us", 180, 50)
SENTENCE = ["Mia", "the", "cat", "lost", "the", "red", "ball", "in", "the", "garden."]


def _speak(voice: Voice, *sentences: list[str]) -> list[Utterance]:
    return next(speak_passages([(voice, sentences)]))


def _spectrum(samples: np.ndarray) -> np.ndarray:
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 4096)) ** 2
    return np.log(power[:1024].reshape(64, 16).mean(axis=1) + 1)


@pytest.mark.usefixtures("speaking")
@pytest.mark.parametrize("voice", TRAIN_VOICES + NEW_VOICES, ids=lambda voice: voice.name)
def test_word_ends_rise_to_the_end_of_the_audio(voice: Voice) -> None:
    utterance = _speak(voice, SENTENCE)[0]
    assert len(utterance.word_ends) == len(SENTENCE)
    assert (np.diff(utterance.word_ends, prepend=0) > 0.02 * SAMPLE_RATE).all()
    assert utterance.word_ends[-1] == len(utterance.samples)
    assert 1.5 * SAMPLE_RATE < len(utterance.samples) < 5 * SAMPLE_RATE


@pytest.mark.usefixtures("speaking")
def test_words_lie_where_their_waveform_is() -> None:
    """Two sentences that differ in one word have the same audio before it and another audio in it."""
    other = ["black" if word == "red" else word for word in SENTENCE]
    position = SENTENCE.index("red")
    (a,), (b,) = _speak(VOICE, SENTENCE), _speak(VOICE, other)
    start = int(a.word_ends[position - 1])
    assert abs(start - int(b.word_ends[position - 1])) < 0.01 * SAMPLE_RATE
    before = int(a.word_ends[position - 2])
    assert np.abs(_spectrum(a.samples[before:start]) - _spectrum(b.samples[before:start])).mean() < 0.5
    inside = slice(start + 1000, start + 3000)
    assert np.abs(_spectrum(a.samples[inside]) - _spectrum(b.samples[inside])).mean() > 1.0


@pytest.mark.usefixtures("speaking")
def test_s_is_heard_in_the_words_that_have_it() -> None:
    """Only words with a fricative have much power above 4 kHz."""
    words = ["Tom", "saw", "Anna", "look", "one", "mile", "away."]
    utterance = _speak(VOICE, words)[0]
    shares = []
    for start, end in zip([0, *utterance.word_ends[:-1]], utterance.word_ends, strict=True):
        power = np.abs(np.fft.rfft(utterance.samples[start:end].astype(np.float64))) ** 2
        shares.append(power[int(len(power) * 4000 / (SAMPLE_RATE / 2)) :].sum() / power.sum())
    assert int(np.argmax(shares)) == words.index("saw")


@pytest.mark.usefixtures("speaking")
def test_pause_after_a_comma_belongs_to_the_word_before_it() -> None:
    utterance = _speak(VOICE, ["Tom", "the", "dog,", "Mia", "the", "cat"])[0]
    end = int(utterance.word_ends[2])
    pause = utterance.samples[end - int(0.05 * SAMPLE_RATE) : end].astype(np.float64)
    assert np.sqrt((pause**2).mean()) < 0.05 * np.sqrt((utterance.samples.astype(np.float64) ** 2).mean())


@pytest.mark.usefixtures("speaking")
def test_a_passage_sounds_the_same_whatever_was_spoken_before() -> None:
    passage = (TRAIN_VOICES[1], (SENTENCE, SENTENCE[:4]))
    other = (TRAIN_VOICES[0], (SENTENCE[3:],))
    alone = list(speak_passages([passage]))[0]
    *_, last = speak_passages([other, passage, other, passage], processes=2)
    for a, b in zip(alone, last, strict=True):
        assert np.array_equal(a.samples, b.samples) and np.array_equal(a.word_ends, b.word_ends)


@pytest.mark.usefixtures("speaking")
def test_unknown_voice() -> None:
    with pytest.raises(UserError, match="no voice 'xx-martian'"):
        _speak(Voice("xx-martian", 180, 50), SENTENCE)


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "LIBRARY", "libespeak-ng-absent.so")
    with pytest.raises(UserError, match="apt-get install libespeak-ng1"):
        espeak.version()
