"""The dialogues of the corpus: answerable from their story alone, held out, and what the committed records hold."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sample_corpus import beats, corpus
from sample_corpus.corpus import NEW_VOICES, TRAIN_VOICES
from sample_corpus.dialogues import KINDS, SEQUENCE_LENGTH, SPLITS, Passage, candidate_sentences, passages
from sample_corpus.spoken_dialogues import make_turns, questions_of, speak_dialogues, speech_tasks
from tolktrain.data.records import DatasetInfo, Record
from tolktrain.data.text_tokenizer import load_tokenizer
from tolktrain.data.turns import conversations_of
from tolktrain.units.logmel import LogMelTokenizer
from tolktrain.units.mel import LogMelAnalysis

SAMPLE = Path(__file__).parents[3] / "data" / "sample"
FOLDER = SAMPLE / "dialogues"
NAMES = {name for name, _ in beats.CHARACTERS}
PLACES = {place for _, place in beats.PLACES}


@pytest.fixture(scope="module")
def made() -> list[Passage]:
    return list(passages())


def _words(text: str) -> list[str]:
    return [word.strip(".,?") for word in text.split()]


def test_the_same_dialogues_again(made: list[Passage]) -> None:
    again = [passage.dialogue.turns for passage in passages((SPLITS[0],))]
    assert again == [passage.dialogue.turns for passage in made[: len(again)]]
    assert len({passage.id for passage in made}) == len(made)


def test_every_question_is_answered_by_its_story(made: list[Passage]) -> None:
    """By rules that do not know the cast: the only object, the only place, and who is named first and finds it."""
    for passage in made:
        tale = [_words(sentence) for sentence in passage.dialogue.tale]
        words = [word for sentence in tale for word in sentence]
        finder = next(word for word in tale[-1] if word in NAMES)
        right = {
            "object": {word for word in words if word in beats.OBJECTS},
            "place": {word for word in words if word in PLACES},
            "hero": {finder},
        }
        assert finder in tale[0]
        for question in passage.dialogue.questions:
            assert right[question.kind.name] == {question.word}, passage.dialogue
            assert question.word in question.kind.candidates and question.word in _words(question.answer)


def test_no_turn_gives_the_answer_to_another_question_away(made: list[Passage]) -> None:
    closed = {word for kind in KINDS for word in kind.candidates}
    for kind in KINDS:
        assert not closed & {word for wording in kind.wordings for word in _words(wording)}
    for passage in made:
        again = passage.dialogue.turns[2 * len(passage.dialogue.questions) :]
        assert passage.split.tells_again == bool(again)
        if again:  # after all questions
            assert again[1] == ("assistant", list(passage.dialogue.tale)) and not closed & set(_words(again[0][1][0]))
        answers = [question.word for question in passage.dialogue.questions]
        kinds = [question.kind for question in passage.dialogue.questions]
        assert len(set(kinds)) == len(kinds)
        for number, kind in enumerate(kinds):
            assert not set(answers[:number]) & set(kind.candidates)


def test_what_is_held_out(made: list[Passage]) -> None:
    keys: dict[bool, set[tuple[str, ...]]] = {True: set(), False: set()}
    for passage in made:
        keys[passage.split.heldout].add(passage.dialogue.key)
    assert keys[True] and not keys[True] & keys[False]
    voices = {split.name: {voice.name for voice in split.voices} for split in SPLITS}
    assert (
        voices["heldout_stories"] == voices["train"] == voices["train_spoken"] == {voice.name for voice in TRAIN_VOICES}
    )
    assert voices["heldout_voices"] == {voice.name for voice in NEW_VOICES} and not voices["train_written"]
    stories = "\n".join(passage.story.text for passage in corpus.passages())
    assert not any(" ".join(passage.dialogue.tale) in stories for passage in made if passage.split.heldout)


def test_answers_are_balanced(made: list[Passage]) -> None:
    """No word is so frequent that it answers many questions."""
    for kind in KINDS:
        counts = Counter(q.word for p in made for q in p.dialogue.questions if q.kind == kind)
        assert set(counts) == set(kind.candidates)
        assert max(counts.values()) / sum(counts.values()) < 2 / len(kind.candidates)


def test_records_hold_the_dialogues(made: list[Passage], dialogue_records: dict[str, list[Record]]) -> None:
    tokenizer = load_tokenizer(SAMPLE / "text_tokenizer")
    for split in SPLITS:
        info = DatasetInfo.read(FOLDER / split.name)
        assert info.conversations is not None and info.conversations.sequence_length == SEQUENCE_LENGTH
        expected = [passage for passage in made if passage.split == split]
        found = []
        for record in dialogue_records[split.name]:
            record.check(1024, 500)
            found += conversations_of(record)
        assert len(found) == len(expected) == info.conversations.num_conversations
        for passage, conversation in zip(expected, found, strict=True):
            turns = [(turn.role, tokenizer.decode(turn.text_ids.tolist())) for turn in conversation]
            assert turns == [(role, " " + " ".join(sentences)) for role, sentences in passage.dialogue.turns]
            speaks = {"train_written": (), "train": ("user",)}.get(split.name, ("user", "assistant"))
            assert all(turn.has_speech == turn.is_aligned == (turn.role in speaks) for turn in conversation)
        if split.heldout:
            pairs = [(record.id, record.source) for record in dialogue_records[split.name]]
            assert pairs == [(passage.id, passage.voice.name) for passage in expected if passage.voice]


def test_candidates_are_all_answers_in_all_voices(
    made: list[Passage], dialogue_records: dict[str, list[Record]]
) -> None:
    tokenizer = load_tokenizer(SAMPLE / "text_tokenizer")
    assert {record.source for record in dialogue_records["candidates"]} == {
        v.name for v in (*TRAIN_VOICES, *NEW_VOICES)
    }
    sentences = [sentence for _, _, sentence in candidate_sentences()]
    for record in dialogue_records["candidates"]:
        parts = np.split(record.text_ids, record.utterance_text_ends[:-1].astype(np.int64))
        assert [tokenizer.decode(part.tolist()) for part in parts] == [" " + sentence for sentence in sentences]
    content = json.loads((FOLDER / "questions.json").read_text())
    assert content == questions_of(made)
    for kind, entries in content["candidates"].items():
        for entry in entries:
            assert entry["word"] in sentences[entry["utterance"]]
        assert len(entries) == len({kind.name: kind for kind in KINDS}[kind].candidates)


@pytest.mark.usefixtures("speaking")
def test_speech_is_rebuilt_exactly(made: list[Passage], dialogue_records: dict[str, list[Record]]) -> None:
    text = load_tokenizer(SAMPLE / "text_tokenizer")
    speech = LogMelTokenizer.load(SAMPLE / "speech_tokenizer")
    task = next(task for task in speech_tasks(made) if made[task[0]].split.name == "heldout_voices")
    committed = {record.id: record for record in dialogue_records["heldout_voices"]}
    for place, sentences in speak_dialogues(made, [task], 1, LogMelAnalysis()):
        turns = make_turns(made[place], sentences, text, speech)
        (expected,) = conversations_of(committed[made[place].id])
        for turn, other in zip(turns, expected, strict=True):
            for name in ("units", "run_lengths", "word_unit_ends", "word_text_ends"):
                assert np.array_equal(getattr(turn, name), getattr(other, name)), made[place].id


def test_readme_states_the_measured_numbers() -> None:
    readme = (FOLDER / "README.md").read_text()
    for name in (*(split.name for split in SPLITS), "candidates"):
        info = DatasetInfo.read(FOLDER / name)
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}`"))
        size = sum(path.stat().st_size for path in Path(FOLDER / name).iterdir() if path.suffix != ".mds")
        for number in (info.num_records, info.num_text_tokens, info.num_units, size):
            assert f"{number:,}" in row
