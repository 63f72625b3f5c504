"""Where the tokens of a sequence come from."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from corpora import NUM_UNITS, TEXT_VOCAB_SIZE, random_record

from tolktrain.config.data import InterleavingConfig, Strategy
from tolktrain.data.records import Record
from tolktrain.data.sequences import sequence_rng
from tolktrain.data.strategies import STRATEGIES, build_sequence
from tolktrain.inspect.spans import DELAY, EOS, Part, parts_of, take_apart
from tolktrain.vocabulary import Vocabulary

SPANS = InterleavingConfig(text_words=(1, 6), speech_words=(1, 4))
SPECIAL = {"prefix": 0, "prefix-end": 1, "switch": 2}


def record_of(seed: int, num_codebooks: int = 1) -> Record:
    return random_record(np.random.default_rng(seed), f"r{seed}", 30, num_codebooks=num_codebooks)


@pytest.mark.parametrize("strategy", [name for name in get_args(Strategy) if STRATEGIES[name].reads == "passage"])
@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize("length", [20, 60, 900])
def test_the_spans_spell_the_sequence(strategy: Strategy, num_codebooks: int, length: int) -> None:
    vocabulary = Vocabulary(TEXT_VOCAB_SIZE, 0, NUM_UNITS, num_codebooks)
    for seed in range(6):
        record = record_of(seed, num_codebooks)
        apart = take_apart(record, strategy, vocabulary, length, SPANS, seed)
        spelled: list[int] = []
        for span in apart.spans:
            assert span.begin == len(spelled)
            if span.kind == "text":
                spelled += [int(record.text_ids[p]) if p >= 0 else vocabulary.text_eos for p in span.places]
            elif span.kind == "speech":
                own = {EOS: vocabulary.speech_eos, DELAY: vocabulary.speech_pad}
                spelled += [own.get(p, -1) if p < 0 else int(record.units[p, 0]) for p in span.places.tolist()]
            elif span.kind == "padding":
                spelled += [vocabulary.text_eos] * span.num_tokens
            else:
                spelled += [TEXT_VOCAB_SIZE + SPECIAL[span.kind]] * span.num_tokens
        drawn = build_sequence(
            record, strategy, vocabulary, length, SPANS, sequence_rng(seed, record.id, 0, "sequence")
        )
        assert spelled == drawn.tokens[0].tolist()
        assert apart.num_scored == drawn.scored[1:].sum()


def test_places_do_not_depend_on_ids() -> None:
    record = record_of(1)
    vocabulary = Vocabulary(1000, 0, 1000)
    # Ids that differ tell the places by themselves; text id 0 is EOS here.
    telling = replace(
        record,
        text_ids=np.arange(1, len(record.text_ids) + 1),
        units=np.arange(len(record.units))[:, None],
    )
    alike = replace(record, text_ids=record.text_ids * 0 + 7, units=record.units * 0)
    expected = take_apart(telling, "interleaved", vocabulary, 80, SPANS, 5)
    found = take_apart(alike, "interleaved", vocabulary, 80, SPANS, 5)
    for ours, theirs in zip(found.spans, expected.spans, strict=True):
        assert ours.kind == theirs.kind
        tokens = expected.sequence.tokens[0, ours.begin : ours.begin + ours.num_tokens]
        inside = ours.places >= 0
        assert np.array_equal(ours.places[inside] + (ours.kind == "text"), tokens[inside])


def test_parts_of_a_span_that_begins_and_ends_inside_words() -> None:
    record = replace(record_of(0), word_unit_ends=np.array([3, 5, 9]), utterance_unit_ends=np.array([5, 9]))
    apart = take_apart(record_of(0), "speech", Vocabulary(TEXT_VOCAB_SIZE, 0, NUM_UNITS), 6, SPANS, 0)
    span = replace(apart.spans[0], places=np.array([1, 2, 3, 4, EOS, 5, 6, DELAY]))
    assert parts_of(span, record.word_unit_ends) == [
        Part(0, 1, 3, cut_before=True, cut_after=False),
        Part(1, 3, 5, cut_before=False, cut_after=False),
        Part(EOS, 0, 0, cut_before=False, cut_after=False),
        Part(2, 5, 7, cut_before=False, cut_after=True),
    ]
    assert span.num_content == 6
