"""A story grammar: short stories whose characters, object, colour, places and weather stay the same throughout.

The plot is fixed (find, play, lose, search, ask, find again, return), its beats are phrased in one of several
wordings, and some beats may be missing. So a story's next word is seldom certain, but a continuation taken from
another story can be recognized by its names, things and places.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from sample_corpus.beats import (
    ADVERBS,
    BEATS,
    CHARACTERS,
    COLOURS,
    GLAD,
    OBJECTS,
    PLACES,
    SAD,
    TIMES,
    WEATHER,
    Beat,
)

SENTENCES = (25, 32)
WORDS = (275, 325)
FULL_NAME_SHARE = 0.3  # of the mentions of a character, "Mia the cat" rather than "Mia"
VARYING: Mapping[str, tuple[str, ...]] = MappingProxyType({"adv": ADVERBS, "glad": GLAD, "sad": SAD, "when": TIMES})


@dataclass(frozen=True)
class Cast:
    """The choices that are the same throughout a story."""

    hero: tuple[str, str]  # name, kind
    companion: tuple[str, str]
    helper: tuple[str, str]
    colour: str
    thing: str
    home: tuple[str, str]  # preposition, place
    far: tuple[str, str]
    weather: str

    def slots(self) -> dict[str, str]:
        """The grammar's slots that belong to the story."""
        people = {"h": self.hero, "c": self.companion, "s": self.helper}
        slots = {key: name for key, (name, _) in people.items()}
        slots |= {key.upper(): f"{name} the {kind}" for key, (name, kind) in people.items()}
        for key, (preposition, place) in {"home": self.home, "far": self.far}.items():
            slots[key] = f"{preposition} the {place}"
            slots[key.capitalize()] = f"the {place}"
        slots["far_start"] = slots["far"].capitalize()
        slots |= {"O": f"{self.colour} {self.thing}", "o": self.thing, "colour": self.colour, "weather": self.weather}
        return slots


@dataclass(frozen=True)
class Story:
    """One story: its cast and its sentences, which begin with a capital and end with a full stop."""

    cast: Cast
    sentences: tuple[str, ...]

    @property
    def words(self) -> list[list[str]]:
        """The words of each sentence, punctuation attached."""
        return [sentence.split(" ") for sentence in self.sentences]

    @property
    def text(self) -> str:
        """The whole story."""
        return " ".join(self.sentences)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _cast(rng: np.random.Generator) -> Cast:
    hero, companion, helper = (CHARACTERS[int(i)] for i in rng.choice(len(CHARACTERS), 3, replace=False))
    home, far = (PLACES[int(i)] for i in rng.choice(len(PLACES), 2, replace=False))
    colour, thing, weather = (_pick(rng, options) for options in (COLOURS, OBJECTS, WEATHER))
    return Cast(hero, companion, helper, colour, thing, home, far, weather)


def tell(rng: np.random.Generator, beats: Sequence[Beat]) -> tuple[Cast, tuple[str, ...]]:
    """A cast and the sentences of the beats that are drawn, in their order."""
    cast = _cast(rng)
    fixed = cast.slots()
    sentences = []
    for beat in beats:
        if rng.random() >= beat.share:
            continue
        varying = {slot: _pick(rng, options) for slot, options in VARYING.items()}
        varying |= {slot: fixed[slot if rng.random() < FULL_NAME_SHARE else slot.lower()] for slot in "HCS"}
        sentence = _pick(rng, beat.variants).format(**(fixed | varying))
        sentences.append(sentence[0].upper() + sentence[1:])
    return cast, tuple(sentences)


def draw_story(rng: np.random.Generator) -> Story:
    """One story, drawn from `rng`; drawn again until its length is within SENTENCES and WORDS."""
    while True:
        story = Story(*tell(rng, BEATS))
        num_words = sum(map(len, story.words))
        if SENTENCES[0] <= len(story.sentences) <= SENTENCES[1] and WORDS[0] <= num_words <= WORDS[1]:
            return story


def stories(seed: int, count: int) -> Iterator[Story]:
    """`count` different stories, always the same ones for a seed."""
    rng = np.random.Generator(np.random.Philox(seed))
    seen: set[str] = set()
    while len(seen) < count:
        story = draw_story(rng)
        if story.text not in seen:
            seen.add(story.text)
            yield story
