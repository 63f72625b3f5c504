"""Questions with answer words of closed sets: a folder with questions.json, the questions, and spoken candidates.

The folder contains a set of conversations for each name in `set`, and the set `candidates` of passages, one for each
voice, whose utterances are candidate answers. questions.json:

    {"candidates": {"hero": [{"word": "Mia", "utterance": 0}, ...]},
     "questions": [{"set": "heldout_stories", "record": "...", "group": "...", "kind": "hero", "answer": "Mia"}, ...]}

The record of a question holds one conversation: a turn of the user, in text and speech, and the answer. Questions of a
group depend on each other. The candidates of a question are those of its kind, in the voice of its record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tolktrain.config.data import DatasetConfig
from tolktrain.data.folder import open_records
from tolktrain.data.records import ASSISTANT, DatasetInfo, Record
from tolktrain.data.turns import Turn, conversations_of
from tolktrain.errors import UserError
from tolktrain.files.reading import TABLE_BYTES, read_json
from tolktrain.vocabulary import Vocabulary

QUESTIONS_FILE = "questions.json"
CANDIDATES = "candidates"

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=200)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CandidateEntry(_Entry):
    """A candidate in questions.json."""

    word: str = Field(min_length=1, description="The answer word.")
    utterance: int = Field(ge=0, description="The utterance of each voice's record that is this answer.")


class QuestionEntry(_Entry):
    """A question in questions.json."""

    set: _Name = Field(description="Folder of the set with its conversation.")
    record: _Name = Field(description="Id of the record; files are named after it.")
    group: str = Field(description="Equal for questions that depend on each other.")
    kind: str = Field(description="Kind of question, which has its own candidates.")
    answer: str = Field(description="The right answer word.")


class QuestionsFile(_Entry):
    """The content of questions.json."""

    candidates: dict[str, list[CandidateEntry]] = Field(description="By kind of question.")
    questions: list[QuestionEntry] = Field(min_length=1, description="The questions.")


@dataclass(frozen=True, eq=False)
class Candidate:
    """An answer: in text, and in speech in the voice of its question."""

    word: str
    turn: Turn


@dataclass(frozen=True, eq=False)
class Question:
    """A question, and the answers among which a model has to choose."""

    id: str
    set: str
    group: str
    kind: str
    answer: str  # a word
    asked: Turn
    candidates: tuple[Candidate, ...]

    @property
    def right(self) -> int:
        """The place of the right candidate."""
        return [candidate.word for candidate in self.candidates].index(self.answer)


def read_questions(folder: str | Path, vocabulary: Vocabulary) -> list[Question]:
    """The questions of a folder, in the order of the file.

    Raises:
        UserError: the folder is incomplete, its parts contradict each other, or its ids are not those of the model.
    """
    path = Path(folder) / QUESTIONS_FILE
    content = _read(path)
    for kind, entries in content.candidates.items():
        words = [entry.word.casefold() for entry in entries]
        if len(words) < 2 or len(set(words)) != len(words):
            raise UserError(f"{path}: the kind {kind!r} needs at least two candidates with different words")
    voices = {record.source: _utterances(record) for record in _records(Path(folder) / CANDIDATES, vocabulary).values()}
    sets = {name: _records(Path(folder) / name, vocabulary) for name in {entry.set for entry in content.questions}}
    return [_question(entry, content.candidates, sets[entry.set], voices, path) for entry in content.questions]


def _read(path: Path) -> QuestionsFile:
    try:
        return QuestionsFile.model_validate(read_json(path, TABLE_BYTES))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a folder with questions, such as data/sample/dialogues") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; build the questions again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); build the questions again") from None


def _records(folder: Path, vocabulary: Vocabulary) -> dict[str, Record]:
    """The records of a set by id, checked against the vocabulary."""
    records = open_records(DatasetConfig(path=str(folder)))
    _check_tokenizers(folder, records.info, vocabulary)
    found = {}
    for number in range(len(records)):
        record = records[number]
        record.check(vocabulary.text_vocab_size, vocabulary.num_units, vocabulary.num_codebooks)
        found[record.id] = record
    return found


def _check_tokenizers(folder: Path, info: DatasetInfo, vocabulary: Vocabulary) -> None:
    for modality, described in (("text", info.text), ("speech", info.speech)):
        if described is None:
            raise UserError(f"{folder} has no {modality}; questions and candidates need text and speech")
        known = vocabulary.tokenizers[modality]
        if known is not None and described.sha256 != known:
            raise UserError(
                f"{folder} was made with the {modality} tokenizer {described.sha256[:12]}, the model with {known[:12]};"
                " build the questions with the tokenizers of the model"
            )


def _utterances(record: Record) -> list[Turn]:
    """The utterances of a passage, as turns of the assistant."""
    text, units = (
        [0, *ends.astype(np.int64).tolist()] for ends in (record.utterance_text_ends, record.utterance_unit_ends)
    )
    return [
        Turn(
            ASSISTANT,
            record.text_ids[text[number] : text[number + 1]],
            record.units[units[number] : units[number + 1]],
            record.run_lengths[units[number] : units[number + 1]],
        )
        for number in range(len(text) - 1)
    ]


def _question(
    entry: QuestionEntry,
    candidates: Mapping[str, Sequence[CandidateEntry]],
    records: Mapping[str, Record],
    voices: Mapping[str, Sequence[Turn]],
    path: Path,
) -> Question:
    where = f"{path}: the question {entry.record!r}"
    record = records.get(entry.record)
    if record is None or record.kind != "conversation":
        raise UserError(f"{where}: the set {entry.set} has no conversation of this id; build the questions again")
    conversations = conversations_of(record)
    asked = conversations[0][0]
    if len(conversations) != 1 or len(conversations[0]) != 2 or not asked.has_text or not asked.has_speech:
        raise UserError(f"{where}: expected one conversation of a turn in text and speech, and its answer")
    if record.source not in voices:
        raise UserError(f"{where}: there are no candidates in its voice, {record.source}; build the questions again")
    entries, spoken = candidates.get(entry.kind, []), voices[record.source]
    if entry.answer not in [candidate.word for candidate in entries]:
        raise UserError(f"{where}: its answer {entry.answer!r} is no candidate of the kind {entry.kind!r}")
    if any(candidate.utterance >= len(spoken) for candidate in entries):
        raise UserError(f"{where}: a candidate is beyond the {len(spoken)} utterances of its voice")
    answers = tuple(Candidate(candidate.word, spoken[candidate.utterance]) for candidate in entries)
    return Question(entry.record, entry.set, entry.group, entry.kind, entry.answer, asked, answers)
