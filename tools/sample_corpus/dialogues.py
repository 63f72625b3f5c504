"""Dialogues of the embedded corpus: a short story and questions about it, whose answers are words of the story.

A tale is a few sentences of a story of the grammar: of the beats `TALE`, which name the hero, at times a companion, one
object and one place. A question asks for the hero, the object or the place, and contains none of the answers. So it can
be answered from the story only, and nothing said later in the dialogue gives an answer away. Each kind of question has
the same answer apart from the answer word, which is of a closed set. After the questions, some dialogues ask for the
story again: this says which words the story has, more than three answers do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from sample_corpus import corpus
from sample_corpus.beats import BEATS, CHARACTERS, OBJECTS, PLACES
from sample_corpus.corpus import NEW_VOICES, TRAIN_VOICES
from sample_corpus.espeak import Voice
from sample_corpus.stories import Cast, tell
from tolktrain.config.data import Strategy
from tolktrain.data.records import ASSISTANT, USER

SEED = corpus.SEED + 1
TALE_WORDS = 24  # most
SEQUENCE_LENGTH = 512  # for which dialogues are packed
QUESTIONS_FILE = "questions.json"
TALE: Mapping[str, float] = MappingProxyType({"hero": 0.5, "companion": 0.3, "find": 1.0})  # shares of the beats
BEATS_OF_TALE = tuple(beat._replace(share=TALE[beat.name]) for beat in BEATS if beat.name in TALE)
AGAIN = ("Tell me the story again.", "Please repeat the story.")


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
    Kind("place", ("Where was it?", "Where was the hero?"), "It is the {}.", tuple(place for _, place in PLACES)),
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
    again: str | None  # how the tale is asked for at the end, if it is

    @property
    def key(self) -> tuple[str, ...]:
        """The words that are asked for."""
        return tuple(answer_word(kind, self.cast) for kind in KINDS)

    @property
    def turns(self) -> list[tuple[str, list[str]]]:
        """Roles and sentences: the tale with the first question, its answer, the other questions and answers."""
        turns = []
        for number, question in enumerate(self.questions):
            turns.append((USER, [*(self.tale if number == 0 else ()), question.text]))
            turns.append((ASSISTANT, [question.answer]))
        if self.again is not None:
            turns += [(USER, [self.again]), (ASSISTANT, list(self.tale))]
        return turns

    def begun_with(self, number: int) -> "Dialogue":
        """The tale with one of the questions."""
        return Dialogue(self.cast, self.tale, (self.questions[number],), None)


@dataclass(frozen=True)
class Split:
    """A part of the dialogues, drawn from its own random numbers."""

    name: str
    num_tales: int
    voices: tuple[Voice, ...]  # in turn; of none, the dialogues are written
    strategies: tuple[Strategy, ...]
    tells_again: bool = False
    heldout: bool = False

    @property
    def spoken_roles(self) -> tuple[str, ...]:
        """The roles that speak."""
        if not self.voices:
            return ()
        return (USER,) if self.strategies == ("answer_text",) else (USER, ASSISTANT)


_HELDOUT: tuple[Strategy, ...] = ("answer_text", "answer_speech", "answer_interleaved", "answer_chain")
SPLITS = (
    Split("heldout_stories", 60, TRAIN_VOICES, _HELDOUT, heldout=True),
    Split("heldout_voices", 30, NEW_VOICES, _HELDOUT, heldout=True),
    Split("train", 1600, TRAIN_VOICES, ("answer_text",), tells_again=True),
    Split("train_spoken", 600, TRAIN_VOICES, ("answer_speech",)),
    Split("train_written", 3000, (), ("answer_text",), tells_again=True),
)


@dataclass(frozen=True)
class Passage:
    """A dialogue, and the voice in which all of it is spoken."""

    id: str
    group: str  # the same for dialogues about the same tale
    split: Split
    voice: Voice | None
    dialogue: Dialogue


def draw_dialogue(rng: np.random.Generator, tells_again: bool = False) -> Dialogue:
    """One dialogue, drawn from `rng`; the tale is drawn again until it has at most TALE_WORDS."""
    cast, sentences = tell(rng, BEATS_OF_TALE)
    while sum(len(sentence.split(" ")) for sentence in sentences) > TALE_WORDS:
        cast, sentences = tell(rng, BEATS_OF_TALE)
    kinds = [KINDS[int(place)] for place in rng.permutation(len(KINDS))]
    questions = tuple(
        Question(kind, kind.wordings[int(rng.integers(len(kind.wordings)))], answer_word(kind, cast)) for kind in kinds
    )
    again = AGAIN[int(rng.integers(len(AGAIN)))] if tells_again else None
    return Dialogue(cast, sentences, questions, again)


def passages(splits: Sequence[Split] | None = None) -> Iterator[Passage]:
    """The dialogues of all splits, of those held out one for each question.

    Those held out have a hero, object and place that no other dialogue has together.
    """
    taken: set[tuple[str, ...]] = set()
    for number, split in enumerate(SPLITS if splits is None else splits):
        rng = np.random.Generator(np.random.Philox(SEED + number))
        for index in range(split.num_tales):
            dialogue = draw_dialogue(rng, split.tells_again)
            while dialogue.key in taken:
                dialogue = draw_dialogue(rng, split.tells_again)
            if split.heldout:
                taken.add(dialogue.key)
            voice = split.voices[index % len(split.voices)] if split.voices else None
            group = f"dialogue-{split.name}-{index:04d}"
            if not split.heldout:
                yield Passage(group, group, split, voice, dialogue)
                continue
            for place, question in enumerate(dialogue.questions):
                yield Passage(f"{group}-{question.kind.name}", group, split, voice, dialogue.begun_with(place))


def spoken_sentences(passage: Passage) -> list[list[str]]:
    """The words of each sentence that is spoken, punctuation attached, in their order."""
    turns = [sentences for role, sentences in passage.dialogue.turns if role in passage.split.spoken_roles]
    return [sentence.split(" ") for sentences in turns for sentence in sentences]


def candidate_sentences() -> list[tuple[Kind, str, str]]:
    """Every answer: the kind of its question, its answer word, and the sentence."""
    return [(kind, word, kind.answer.format(word)) for kind in KINDS for word in kind.candidates]
