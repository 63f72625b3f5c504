"""The story grammar: its stories keep to their cast, and the same seed tells the same ones."""

import itertools
import string

import pytest

from sample_corpus import beats
from sample_corpus.stories import SENTENCES, WORDS, Story, stories

KINDS = dict(beats.CHARACTERS)
STORIES = tuple(stories(11, 60))


def _words(text: str) -> list[str]:
    return [word.strip(".,") for word in text.split()]


def _cast_words(story: Story) -> set[str]:
    cast = story.cast
    people = itertools.chain(cast.hero, cast.companion, cast.helper)
    return {*people, cast.colour, cast.thing, cast.home[1], cast.far[1], cast.weather}


def test_a_seed_tells_the_same_stories() -> None:
    assert [story.text for story in stories(11, 60)] == [story.text for story in STORIES]
    assert [story.text for story in stories(11, 5)] == [story.text for story in STORIES[:5]]
    assert not {story.text for story in stories(12, 60)} & {story.text for story in STORIES}


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.cast.hero[0])
def test_names_kinds_colours_things_and_places_belong_to_the_cast(story: Story) -> None:
    closed = {*KINDS, *KINDS.values(), *beats.COLOURS, *beats.OBJECTS, *(place for _, place in beats.PLACES)}
    closed |= set(beats.WEATHER)
    used = closed & set(_words(story.text))
    assert used <= _cast_words(story)
    assert {story.cast.hero[0], story.cast.colour, story.cast.thing, story.cast.home[1]} <= used


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.cast.hero[0])
def test_a_name_keeps_its_kind(story: Story) -> None:
    words = _words(story.text)
    for name, the, kind in zip(words, words[1:], words[2:], strict=False):
        if name in KINDS and the == "the" and kind in KINDS.values():
            assert kind == KINDS[name]


def test_nearly_every_sentence_names_what_the_story_is_about() -> None:
    mentions = []
    for story in STORIES:
        cast = _cast_words(story)
        mentions += [len(cast & set(_words(sentence))) for sentence in story.sentences]
    assert min(mentions) >= 1
    assert sum(count >= 3 for count in mentions) / len(mentions) > 0.8


def test_lengths() -> None:
    for story in STORIES:
        assert SENTENCES[0] <= len(story.sentences) <= SENTENCES[1]
        assert WORDS[0] <= sum(map(len, story.words)) <= WORDS[1]
        assert all(7 <= len(sentence) <= 18 for sentence in story.words)


def test_sentences_are_well_formed() -> None:
    for sentence in itertools.chain.from_iterable(story.sentences for story in STORIES):
        assert sentence[0].isupper() and sentence.endswith(".") and "  " not in sentence
        assert set(sentence) <= set(string.ascii_letters + " .,")


def test_every_wording_is_used_and_fills_its_slots() -> None:
    slots = {*STORIES[0].cast.slots(), "adv", "glad", "sad", "when"}
    for beat in beats.BEATS:
        for variant in beat.variants:
            fields = {field for _, field, _, _ in string.Formatter().parse(variant) if field}
            assert fields and fields <= slots, variant


def test_vocabulary_is_a_few_hundred_words() -> None:
    vocabulary = {word.lower() for story in stories(3, 400) for word in _words(story.text)}
    assert 250 <= len(vocabulary) <= 500
