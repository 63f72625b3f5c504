"""Dialogues of the embedded corpus: a short story and questions about it, whose answers are words of the story.

A tale is the beginning of a story of the grammar: sentences of the beats `TALE`, which name the hero, a companion, one
object and one place. A question asks for the hero, the object or the place, and contains none of the answers. So it can
be answered from the story only, and nothing said later in the dialogue gives an answer away. Each kind of question has
the same answer apart from the answer word, which is of a closed set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sample_corpus import corpus
from sample_corpus.beats import BEATS, CHARACTERS, OBJECTS, PLACES
from sample_corpus.corpus import NEW_VOICES, TRAIN_VOICES
from sample_corpus.espeak import Voice
from sample_corpus.stories import Cast, tell

SEED = corpus.SEED + 1
TALE_WORDS = 34  # most
SEQUENCE_LENGTH = 384  # for which dialogues are packed
QUESTIONS_FILE = "questions.json"
TALE = ("hero", "companion", "find")
BEATS_OF_TALE = tuple(beat for beat in BEATS if beat.name in TALE)


@dataclass(frozen=True)
class Kind:
    """A kind of question."""

    name: str
    wordings: tuple[str, ...]
    answer: str  # with the answer word in place of {}
    candidates: tuple[str, ...]  # words that an answer may have


KINDS = (
    Kind("hero", ("Who is the hero?", "Who is the story about?"), "It is {}.", tuple(name for name, _ in CHARACTERS)),
    Kind("object", ("What was found?", "What did the hero find?"), "It is the {}.", OBJECTS),
    Kind("place", ("Where was it?", "Where did the hero live?"), "It is the {}.", tuple(place for _, place in PLACES)),
)


def answer_word(kind: Kind, cast: Cast) -> str:
    """The word of the story that answers a question."""
    return {"hero": cast.hero[0], "object": cast.thing, "place": cast.home[1]}[kind.name]


@dataclass(frozen=True)
class Question:
    """A question and its answer."""

    kind: Kind
    text: str
    word: str  # the answer word

    @property
    def answer(self) -> str:
        """The answer."""
        return self.kind.answer.format(self.word)


@dataclass(frozen=True)
class Dialogue:
    """A tale and questions about it: one of each kind, in random order."""

    cast: Cast
    tale: tuple[str, ...]  # sentences
    questions: tuple[Question, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """The words that are asked for."""
        return tuple(answer_word(kind, self.cast) for kind in KINDS)

    @property
    def turns(self) -> list[tuple[str, list[str]]]:
        """Roles and sentences: the tale with the first question, its answer, the other questions and answers."""
        turns = []
        for number, question in enumerate(self.questions):
            turns.append(("user", [*(self.tale if number == 0 else ()), question.text]))
            turns.append(("assistant", [question.answer]))
        return turns

    def begun_with(self, number: int) -> "Dialogue":
        """The tale with one of the questions."""
        return Dialogue(self.cast, self.tale, (self.questions[number],))


@dataclass(frozen=True)
class Split:
    """A part of the dialogues, drawn from its own random numbers."""

    name: str
    num_tales: int
    voices: tuple[Voice, ...]  # in turn; of none, the dialogues are written
    heldout: bool = False


SPLITS = (
    Split("heldout_stories", 60, TRAIN_VOICES, heldout=True),
    Split("heldout_voices", 30, NEW_VOICES, heldout=True),
    Split("train", 1200, TRAIN_VOICES),
    Split("train_written", 1800, ()),
)


@dataclass(frozen=True)
class Passage:
    """A dialogue, and the voice in which all of it is spoken."""

    id: str
    group: str  # the same for dialogues about the same tale
    split: Split
    voice: Voice | None
    dialogue: Dialogue


def draw_dialogue(rng: np.random.Generator) -> Dialogue:
    """One dialogue, drawn from `rng`; the tale is drawn again until it has at most TALE_WORDS."""
    cast, sentences = tell(rng, BEATS_OF_TALE)
    while sum(len(sentence.split(" ")) for sentence in sentences) > TALE_WORDS:
        cast, sentences = tell(rng, BEATS_OF_TALE)
    kinds = [KINDS[int(place)] for place in rng.permutation(len(KINDS))]
    questions = tuple(
        Question(kind, kind.wordings[int(rng.integers(len(kind.wordings)))], answer_word(kind, cast)) for kind in kinds
    )
    return Dialogue(cast, sentences, questions)


def passages(splits: Sequence[Split] | None = None) -> Iterator[Passage]:
    """The dialogues of all splits, of those held out one for each question.

    Those held out have a hero, object and place that no other dialogue has together.
    """
    taken: set[tuple[str, ...]] = set()
    for number, split in enumerate(SPLITS if splits is None else splits):
        rng = np.random.Generator(np.random.Philox(SEED + number))
        for index in range(split.num_tales):
            dialogue = draw_dialogue(rng)
            while dialogue.key in taken:
                dialogue = draw_dialogue(rng)
            if split.heldout:
                taken.add(dialogue.key)
            voice = split.voices[index % len(split.voices)] if split.voices else None
            group = f"dialogue-{split.name}-{index:04d}"
            if not split.heldout:
                yield Passage(group, group, split, voice, dialogue)
                continue
            for place, question in enumerate(dialogue.questions):
                yield Passage(f"{group}-{question.kind.name}", group, split, voice, dialogue.begun_with(place))


def sentences_of(dialogue: Dialogue) -> list[list[str]]:
    """The words of each sentence, punctuation attached, in the order in which they are spoken."""
    return [sentence.split(" ") for _, sentences in dialogue.turns for sentence in sentences]


def candidate_sentences() -> list[tuple[Kind, str, str]]:
    """Every answer: the kind of its question, its answer word, and the sentence."""
    return [(kind, word, kind.answer.format(word)) for kind in KINDS for word in kind.candidates]
