"""The plan of the embedded corpus: which voice speaks which story, in which split, under which id."""

from collections.abc import Iterator
from dataclasses import dataclass

from sample_corpus.espeak import Voice
from sample_corpus.stories import Story, stories

SEED = 20250305
LICENSE = "CC0-1.0"
NUM_UNITS = 500
TEXT_VOCAB_SIZE = 1024

TRAIN_VOICES = (
    Voice("en-us", rate=185, pitch=45),
    Voice("en-us+f1", rate=190, pitch=50),
    Voice("en-gb-x-rp+m3", rate=180, pitch=55),
    Voice("en-us+m1", rate=195, pitch=50),
)
NEW_VOICES = (Voice("en-us+m6", rate=185, pitch=50), Voice("en-gb-x-rp+f1", rate=190, pitch=50))


@dataclass(frozen=True)
class Split:
    """A part of the corpus: its own stories, spoken by voices in turn."""

    name: str
    num_stories: int
    voices: tuple[Voice, ...]


SPLITS = (
    Split("train", 424, TRAIN_VOICES),
    Split("heldout_stories", 40, TRAIN_VOICES),
    Split("heldout_voices", 20, NEW_VOICES),
)


@dataclass(frozen=True)
class Passage:
    """One story spoken by one voice: one record."""

    id: str
    split: str
    voice: Voice
    story: Story


def passages() -> Iterator[Passage]:
    """All passages of the corpus, in the order of the splits; no story occurs twice."""
    drawn = stories(SEED, sum(split.num_stories for split in SPLITS))
    for split in SPLITS:
        for index in range(split.num_stories):
            yield Passage(f"{split.name}-{index:04d}", split.name, split.voices[index % len(split.voices)], next(drawn))
