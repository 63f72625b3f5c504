"""Dialogues as data sets: records of conversations, and the spoken candidates of answers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track
from tokenizers import Tokenizer

from sample_corpus import corpus, dialogues, espeak
from sample_corpus.dialogues import (
    QUESTIONS_FILE,
    SEQUENCE_LENGTH,
    Passage,
    Split,
    candidate_sentences,
    passages,
    spoken_sentences,
)
from sample_corpus.espeak import Voice
from sample_corpus.spoken import SpokenSentence, align, analyse, record_of_sentences
from tolktrain.config.data import Strategy
from tolktrain.data.records import DatasetInfo, Record, SpeechInfo, TextInfo
from tolktrain.data.strategies import STRATEGIES
from tolktrain.data.strategies.conversation import ConversationStrategy
from tolktrain.data.text_tokenizer import encode_words
from tolktrain.data.turns import Turn, record_of
from tolktrain.files.terminal import Console
from tolktrain.files.writing import write_synced
from tolktrain.prepare.dialogue.packing import Packer
from tolktrain.prepare.job.shards import Packing, speech_info, write_dataset
from tolktrain.units.logmel import LogMelTokenizer
from tolktrain.units.mel import LogMelAnalysis
from tolktrain.vocabulary import ROLE_TOKEN, Vocabulary

NAME = "spoken-dialogues"
CANDIDATES_FOLDER = "candidates"
TOGETHER = 25  # dialogues that are spoken in one process


def make_turns(
    passage: Passage, spoken: Sequence[SpokenSentence], text: Tokenizer, speech: LogMelTokenizer
) -> list[Turn]:
    """The turns of a dialogue; `spoken` has its `spoken_sentences`."""
    turns, place = [], 0
    for role, sentences in passage.dialogue.turns:
        words = [word for sentence in sentences for word in sentence.split(" ")]
        text_ids, word_text_ends = encode_words(text, words)
        if role not in passage.split.spoken_roles:
            turns.append(Turn(role, text_ids))
            continue
        units, run_lengths, word_unit_ends = align(spoken[place : place + len(sentences)], speech)
        place += len(sentences)
        turns.append(Turn(role, text_ids, units, run_lengths, word_text_ends, word_unit_ends))
    return turns


def make_records(
    split: Split, made: Sequence[tuple[Passage, list[Turn]]], text: TextInfo, speech: SpeechInfo
) -> tuple[list[Record], Packing]:
    """Records of the dialogues of a split, packed unless they are held out.

    A dialogue that does not fit into a sequence would be trained on without its story.
    """
    packing = Packing("conversation", split.strategies, SEQUENCE_LENGTH)
    tokens = tuple(ROLE_TOKEN.format(role) for role in ("user", "assistant"))
    vocabulary = Vocabulary(text.vocab_size, text.eos_id, speech.num_units, 1, tokens)
    source = "written" if not split.voices else split.name
    packer = Packer(source, "conversation", SEQUENCE_LENGTH + 1, 1)
    records: list[Record | None] = []
    for passage, turns in made:
        lengths: dict[Strategy, int] = {}
        for name in packing.strategies:
            strategy = STRATEGIES[name]
            assert isinstance(strategy, ConversationStrategy)
            lengths[name] = strategy.most_tokens(turns, vocabulary)
        assert max(lengths.values()) <= SEQUENCE_LENGTH + 1, f"{passage.id} is longer than a sequence: {lengths}"
        if split.heldout:
            assert passage.voice is not None
            records.append(record_of(passage.id, passage.voice.name, [turns], 1, "conversation"))
        else:
            records.append(packer.add(passage.id, [turns], lengths))
    records.append(packer.rest())
    return [record for record in records if record is not None], packing


def candidate_records(
    spoken: Mapping[str, Sequence[SpokenSentence]], text: Tokenizer, speech: LogMelTokenizer
) -> list[Record]:
    """A record for each voice, whose utterances are `candidate_sentences`."""
    words = [sentence.split(" ") for _, _, sentence in candidate_sentences()]
    return [
        record_of_sentences(f"candidates-{voice}", voice, words, sentences, text, speech)
        for voice, sentences in spoken.items()
    ]


def questions_of(made: Sequence[Passage]) -> dict[str, Any]:
    """The content of questions.json: by kind of question, words and utterances of the candidates; and the questions."""
    candidates: dict[str, list[dict[str, Any]]] = {}
    for utterance, (kind, word, _) in enumerate(candidate_sentences()):
        candidates.setdefault(kind.name, []).append({"word": word, "utterance": utterance})
    entries = []
    for passage in made:
        if passage.split.heldout:
            (question,) = passage.dialogue.questions
            entries.append(
                {
                    "set": passage.split.name,
                    "record": passage.id,
                    "group": passage.group,
                    "kind": question.kind.name,
                    "answer": question.word,
                }
            )
    return {"candidates": candidates, "questions": entries}


def speech_tasks(made: Sequence[Passage]) -> list[list[int]]:
    """The places of the dialogues that are spoken in one process: `TOGETHER` of a split in the same voice."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, passage in enumerate(made):
        if passage.voice is not None:
            places.setdefault((passage.split.name, passage.voice.name), []).append(place)
    return [
        of_voice[begin : begin + TOGETHER]
        for of_voice in places.values()
        for begin in range(0, len(of_voice), TOGETHER)
    ]


def speak_dialogues(
    made: Sequence[Passage], tasks: Sequence[Sequence[int]], processes: int, analysis: LogMelAnalysis
) -> Iterator[tuple[int, list[SpokenSentence]]]:
    """The place of each dialogue of the tasks, and its sentences."""
    voiced = []
    for task in tasks:
        voice = made[task[0]].voice
        assert voice is not None
        voiced.append((voice, [words for place in task for words in spoken_sentences(made[place])]))
    for task, utterances in zip(tasks, espeak.speak_passages(voiced, processes), strict=True):
        left = iter(utterances)
        for place in task:
            yield place, [analyse(next(left), analysis) for _ in spoken_sentences(made[place])]


def speak_candidates(voices: Sequence[Voice], processes: int, analysis: LogMelAnalysis) -> list[list[SpokenSentence]]:
    """`candidate_sentences` in each of the voices."""
    words = [sentence.split(" ") for _, _, sentence in candidate_sentences()]
    spoken = espeak.speak_passages([(voice, words) for voice in voices], processes)
    return [[analyse(utterance, analysis) for utterance in utterances] for utterances in spoken]


def build_dialogues(
    folder: Path,
    text: Tokenizer,
    text_info: TextInfo,
    speech: LogMelTokenizer,
    processes: int,
    console: Console,
) -> dict[str, DatasetInfo]:
    """Build all data sets of dialogues into a new folder; their descriptions by name."""
    analysis = LogMelAnalysis()
    made = list(passages())
    tasks = speech_tasks(made)
    spoken = track(
        speak_dialogues(made, tasks, processes, analysis),
        "Speaking dialogues",
        total=sum(map(len, tasks)),
        console=console,
        transient=True,
    )
    spoken_turns = {place: make_turns(made[place], sentences, text, speech) for place, sentences in spoken}
    turns = [spoken_turns.get(place) or make_turns(passage, [], text, speech) for place, passage in enumerate(made)]
    common: dict[str, Any] = {"name": NAME, "license": corpus.LICENSE, "text": text_info}
    described = speech_info(speech)
    infos = {}
    for split in dialogues.SPLITS:
        chosen = [pair for pair in zip(made, turns, strict=True) if pair[0].split == split]
        records, packing = make_records(split, chosen, text_info, described)
        has_speech = described if split.voices else None
        path = folder / split.name
        infos[split.name] = write_dataset(path, records, split=split.name, speech=has_speech, packing=packing, **common)
    voices = list(dict.fromkeys(voice for split in dialogues.SPLITS for voice in split.voices))
    sentences = speak_candidates(voices, processes, analysis)
    candidates = candidate_records(dict(zip((voice.name for voice in voices), sentences, strict=True)), text, speech)
    infos[CANDIDATES_FOLDER] = write_dataset(
        folder / CANDIDATES_FOLDER, candidates, split=CANDIDATES_FOLDER, speech=described, **common
    )
    questions = json.dumps(questions_of(made), indent=1) + "\n"
    write_synced(folder / QUESTIONS_FILE, questions.encode())
    return infos
