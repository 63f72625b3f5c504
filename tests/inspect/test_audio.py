"""The frames that a sequence's speech sounds for."""

from dataclasses import replace

import numpy as np
from corpora import TEXT_VOCAB_SIZE, random_record

from tolktrain.config.data import InterleavingConfig
from tolktrain.inspect.audio import speech_frames
from tolktrain.inspect.spans import take_apart
from tolktrain.vocabulary import Vocabulary

SPANS = InterleavingConfig(text_words=(1, 6), speech_words=(3, 5))


def test_units_sound_for_their_run_lengths() -> None:
    record = random_record(np.random.default_rng(3), "r", 40)
    record = replace(record, units=np.arange(len(record.units), dtype=np.uint16)[:, None])
    vocabulary = Vocabulary(TEXT_VOCAB_SIZE, 0, len(record.units))
    apart = take_apart(record, "interleaved", vocabulary, 90, SPANS, 0)
    expected: list[list[int]] = [[]]
    for token, is_speech in zip(apart.sequence.tokens[0].tolist(), apart.sequence.is_speech, strict=True):
        if not is_speech:
            expected += [[]] if expected[-1] else []
        elif token != vocabulary.speech_eos:
            expected[-1] += [token] * int(record.run_lengths[token])  # each unit occurs once, at the place of its id
    expected = [stretch for stretch in expected if stretch]
    assert len(expected) > 2
    found = speech_frames(apart, 10_000)
    assert [stretch[:, 0].tolist() for stretch in found] == expected

    most = len(expected[0]) + 2
    shortened = speech_frames(apart, most)
    assert [stretch[:, 0].tolist() for stretch in shortened] == [expected[0], expected[1][:2]]
    assert speech_frames(apart, 0) == []
