"""Dialogues to records of conversations or preferences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tolktrain.config.data import Strategy
from tolktrain.config.prepare import DialogueConfig, PrepareConfig, RecordingsConfig, SpeechTokenizerConfig
from tolktrain.data.records import Record, SpeechInfo, TextInfo
from tolktrain.data.strategies import STRATEGIES
from tolktrain.data.strategies.conversation import ConversationStrategy
from tolktrain.data.strategies.preference import Preference
from tolktrain.data.text_tokenizer import load_text_tokenizer
from tolktrain.data.turns import Turn
from tolktrain.errors import UserError
from tolktrain.prepare.dialogue.lines import LineRange, find_files, ranges_of
from tolktrain.prepare.dialogue.packing import Packer
from tolktrain.prepare.dialogue.readers import format_of, reader_of
from tolktrain.prepare.dialogue.talk import Context, Said, Talk, object_in
from tolktrain.prepare.job.gpus import uses_models
from tolktrain.prepare.job.passages import Piece
from tolktrain.prepare.job.shards import Packing
from tolktrain.prepare.job.splits import split_of
from tolktrain.prepare.kind import Kind, Part, Preparation
from tolktrain.prepare.recordings.kind import Outcome, RecordingsKind
from tolktrain.prepare.recordings.manifest.lines import json_of, read_lines
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance
from tolktrain.vocabulary import ROLE_TOKEN, Vocabulary

_LINES = 32  # whose audio is encoded together
_RECORDING = -1  # in place of a turn's number


class DialogueKind:
    """Conversations with what each file has of text, speech and word times."""

    def __init__(self, config: PrepareConfig) -> None:
        """Load tokenizers and, for forced alignment, the model. Raises `UserError` if one cannot be loaded."""
        assert config.dialogue is not None
        self._config = config
        self._dialogue = config.dialogue
        self._text = load_text_tokenizer(config.text_tokenizer) if config.text_tokenizer is not None else None
        recordings = _recordings(config.dialogue)
        self._recordings = None
        if recordings is not None:
            whole = config.model_copy(update={"recordings": recordings})
            self._recordings = RecordingsKind(whole, needs_transcripts=False)
        self.text: TextInfo | None = None if self._text is None else self._text.info
        self.speech: SpeechInfo | None = None if self._recordings is None else self._recordings.speech
        self.aligned = self._recordings is not None and self._recordings.aligned
        self._kind: Literal["conversation", "preference"] = "conversation"
        if config.dialogue.strategies == ("preference",):
            self._kind = "preference"
        self.packing: Packing | None = Packing(
            self._kind,
            config.dialogue.strategies,
            config.dialogue.sequence_length,
        )
        self.unused = Unused()
        if self._recordings is not None:
            self._recordings.unused = self.unused

    def fingerprint(self) -> Mapping[str, Any]:
        """Digests of the tokenizers and the aligner."""
        digest = {"text_tokenizer": self.text.sha256 if self.text is not None else None}
        return digest if self._recordings is None else {**digest, **self._recordings.fingerprint()}

    def parts(self) -> tuple[list[Part], list[Failure]]:
        """Ranges of lines; small files share a part."""
        parts: list[Part] = []
        inputs: list[tuple[LineRange, str]] = []
        num_entries, most = 0, self._config.parts.items
        for path, name in find_files(self._dialogue.files):
            kind = self._format(path)
            for lines, count in ranges_of(path, name, most):
                if inputs and num_entries + count > most:
                    parts.append(_part(inputs, num_entries))
                    inputs, num_entries = [], 0
                inputs.append((lines, kind))
                num_entries += count
        if inputs:
            parts.append(_part(inputs, num_entries))
        return parts, []

    def records(self, part: Part) -> Iterator[tuple[str, Record] | Failure | int]:
        """See `Kind`. Conversations of different files are in different records."""
        for lines, kind in zip(part.inputs[::2], part.inputs[1::2], strict=True):
            packers: dict[str, Packer] = {}
            numbered = iter(lines)
            while batch := list(islice(numbered, _LINES)):
                for identity, place, found in self._conversations(lines, kind, batch):
                    if isinstance(found, EntryError):
                        yield Failure(identity, found.reason, found.detail, place)
                        continue
                    split = split_of(self._config.heldout, identity)
                    if split not in packers:
                        packers[split] = self._packer(lines.name)
                    conversations, totals = found
                    if (record := packers[split].add(identity, conversations, totals)) is not None:
                        yield split, record
                yield len(batch)
            for split, packer in packers.items():
                if (record := packer.rest()) is not None:
                    yield split, record

    def _packer(self, name: str) -> Packer:
        books = 1 if self.speech is None else self.speech.num_codebooks
        return Packer(name, self._kind, self._dialogue.sequence_length + 1, books)

    def _format(self, path: str) -> str:
        """The format of a file. Raises `UserError` if it cannot serve the strategies."""
        name: str = self._dialogue.format
        if name == "auto":
            try:
                first = next((json_of(line) for _, line in read_lines(path)), None)
            except EntryError as error:
                raise UserError(f"{path}: the first line cannot be read: {error.detail}") from None
            if first is None:
                raise UserError(f"{path} is empty")
            name = format_of(first, path)
        if reader_of(name).is_preference != (self._kind == "preference"):
            wanted = "preference" if reader_of(name).is_preference else "strategies of answers"
            raise UserError(f"{path} was read as {name}, which serves {wanted}; set dialogue.strategies to that")
        return name

    def _conversations(
        self, lines: LineRange, kind: str, batch: Sequence[tuple[int, bytes]]
    ) -> Iterator[tuple[str, str, tuple[list[list[Turn]], dict[Strategy, int]] | EntryError]]:
        """Name, place and conversations of each line, or what is wrong with it."""
        talks: list[tuple[str, str, Talk | EntryError]] = []
        utterances: list[Utterance] = []
        root = self._dialogue.audio_root or str(Path(lines.path).parent)
        for number, line in batch:
            identity, place = f"{lines.name}:{number}", f"{lines.path} line {number}"
            talk: Talk | EntryError
            try:
                entry = object_in(json_of(line), "the line")
                talk = reader_of(kind).read(entry, Context(self._dialogue, root, self.unused, place))
                utterances += self._utterances(identity, place, talk)
            except EntryError as error:
                talk = error
            talks.append((identity, place, talk))
        outcomes: dict[str, Outcome] = {}
        if self._recordings is not None:
            outcomes = {utterance.id: outcome for utterance, outcome in self._recordings.outcomes(utterances)}
        for identity, place, talk in talks:
            if isinstance(talk, EntryError):
                yield identity, place, talk
                continue
            try:
                yield identity, place, self._checked(identity, self._turns(identity, talk, outcomes), talk)
            except EntryError as error:
                yield identity, place, error

    def _utterances(self, identity: str, place: str, talk: Talk) -> list[Utterance]:
        """What is said in audio. Raises `EntryError` if there is audio and no tokenizer for it."""
        found = [(number, said) for number, said in enumerate(_all(talk)) if said.audio is not None]
        if talk.recording is not None:
            text = " ".join(said.text or "" for said in talk.turns)
            found.append((_RECORDING, Said("", text, talk.recording)))
        if found and self._recordings is None:
            raise EntryError(
                Reason.AUDIO,
                f"turn {found[0][0] + 1} has audio; name the tokenizer of its units: dialogue.speech_tokenizer",
            )
        result = []
        for number, said in found:
            if said.words is not None and self._dialogue.alignment.method != "given":
                self.unused.add("word times, because dialogue.alignment.method is not given", place)
                words = " ".join(word.text for word in said.words)
                said = replace(said, words=None, text=said.text or words)
            result.append(
                Utterance(
                    f"{identity}#{number}",
                    identity,
                    "",
                    said.audio or "",
                    said.offset,
                    said.duration,
                    said.channel,
                    said.text,
                    said.words,
                    place=place,
                )
            )
        return result

    def _turns(self, identity: str, talk: Talk, outcomes: Mapping[str, Outcome]) -> list[Turn]:
        """The turns as ids and units. Raises `EntryError` naming the turn."""
        if talk.recording is not None:
            outcome = outcomes[f"{identity}#{_RECORDING}"]
            if isinstance(outcome, EntryError):
                raise outcome
            return cut(outcome, talk.turns)
        turns = []
        for number, said in enumerate(_all(talk)):
            try:
                turns.append(self._turn(said, outcomes.get(f"{identity}#{number}")))
            except EntryError as error:
                raise EntryError(error.reason, f"turn {number + 1} ({said.role}): {error.detail}") from None
        return turns

    def _turn(self, said: Said, outcome: Outcome | None) -> Turn:
        if isinstance(outcome, EntryError):
            raise outcome
        if outcome is not None:
            return turn_of(said.role, outcome)
        if self._text is None:
            raise EntryError(Reason.TEXT, "it is text; name the tokenizer of its ids: text_tokenizer")
        ids = self._text.tokenizer.encode(said.text or "", add_special_tokens=False).ids
        if not ids:
            raise EntryError(Reason.TEXT, "the tokenizer gives no ids for its text")
        return Turn(said.role, np.asarray(ids, np.uint32), self._no_units)

    @property
    def _no_units(self) -> np.ndarray:
        return np.zeros((0, 1 if self.speech is None else self.speech.num_codebooks), np.uint16)

    def _checked(self, identity: str, turns: list[Turn], talk: Talk) -> tuple[list[list[Turn]], dict[Strategy, int]]:
        """The conversations, and their tokens under each strategy. Raises `EntryError` if one cannot use them."""
        size, vocabulary = self._dialogue.sequence_length + 1, self._vocabulary(turns)
        if talk.answers is not None:
            *before, chosen, rejected = turns
            pair = [[*before, chosen], [*before, rejected]]
            strategy = STRATEGIES["preference"]
            assert isinstance(strategy, Preference)
            try:
                total = strategy.most_tokens(pair, vocabulary)
            except UserError as error:
                raise EntryError(Reason.STRATEGY, str(error)) from None
            if total > size:
                raise EntryError(
                    Reason.STRATEGY,
                    f"both answers, with the turns before them, need up to {total} tokens, and a sequence has {size};"
                    " raise dialogue.sequence_length, or shorten these turns",
                )
            return pair, {"preference": total}
        totals: dict[Strategy, int] = {}
        for name in self._dialogue.strategies:
            found = STRATEGIES[name]
            assert isinstance(found, ConversationStrategy)
            try:
                found.check(turns, vocabulary, size)
                totals[name] = found.most_tokens(turns, vocabulary)
            except UserError as error:
                raise EntryError(Reason.STRATEGY, f"{name}: {error}") from None
            if totals[name] > size:
                self.unused.add(
                    f"parts of conversations that are longer than a sequence under {name}: each sequence has some"
                    " exchanges of them; raise dialogue.sequence_length to use them whole",
                    identity,
                )
        if not turns[-1].is_answer:
            self.unused.add("turns after the last answer", identity)
        return [turns], totals

    def _vocabulary(self, turns: Sequence[Turn]) -> Vocabulary:
        roles = tuple(ROLE_TOKEN.format(role) for role in sorted({turn.role for turn in turns}))
        text, speech = self.text, self.speech
        return Vocabulary(
            1 if text is None else text.vocab_size,
            0 if text is None else text.eos_id,
            1 if speech is None else speech.num_units,
            1 if speech is None else speech.num_codebooks,
            roles,
        )


def turn_of(role: str, piece: Piece) -> Turn:
    """The turn of a role that says a piece of speech."""
    assert piece.units is not None and piece.run_lengths is not None
    turn = Turn(role, units=piece.units, run_lengths=piece.run_lengths)
    if piece.text_ids is not None:
        turn = replace(turn, text_ids=piece.text_ids)
    if piece.word_text_ends is not None and piece.word_unit_ends is not None:
        turn = replace(turn, word_text_ends=piece.word_text_ends, word_unit_ends=piece.word_unit_ends)
    return turn


def cut(piece: Piece, turns: Sequence[Said]) -> list[Turn]:
    """The turns of a recording, which end where their last words do. Raises `EntryError` if words do not match."""
    counts = [len((said.text or "").split()) for said in turns]
    text_ends, unit_ends = piece.word_text_ends, piece.word_unit_ends
    if text_ends is None or unit_ends is None or len(text_ends) != sum(counts):
        found = 0 if text_ends is None else len(text_ends)
        raise EntryError(Reason.ALIGNMENT, f"the recording has {found} aligned words, the turns have {sum(counts)}")
    assert piece.text_ids is not None and piece.units is not None and piece.run_lengths is not None
    result, word, text, unit = [], 0, 0, 0
    for said, count in zip(turns, counts, strict=True):
        words = slice(word, word + count)
        text_end, unit_end = int(text_ends[word + count - 1]), int(unit_ends[word + count - 1])
        result.append(
            Turn(
                said.role,
                piece.text_ids[text:text_end],
                piece.units[unit:unit_end],
                piece.run_lengths[unit:unit_end],
                text_ends[words].astype(np.int64) - text,
                unit_ends[words].astype(np.int64) - unit,
            )
        )
        word, text, unit = word + count, text_end, unit_end
    return result


def _all(talk: Talk) -> tuple[Said, ...]:
    return talk.turns if talk.answers is None else (*talk.turns, *talk.answers)


def _part(inputs: Sequence[tuple[LineRange, str]], num_entries: int) -> Part:
    return Part(tuple(item for pair in inputs for item in pair), num_entries)


def _recordings(dialogue: DialogueConfig) -> RecordingsConfig | None:
    """The settings of audio as those of recordings; None without a speech tokenizer."""
    if dialogue.speech_tokenizer is None:
        return None
    return RecordingsConfig(
        manifest="",
        bounds=dialogue.bounds,
        speech_tokenizer=SpeechTokenizerConfig(path=dialogue.speech_tokenizer),
        alignment=dialogue.alignment,
        device=dialogue.device,
        batch_seconds=dialogue.batch_seconds,
    )


class _DialogueKind(Preparation):
    def make(self, config: PrepareConfig) -> Kind:
        return DialogueKind(config)

    def source(self, config: PrepareConfig) -> str:
        assert config.dialogue is not None
        return ", ".join(config.dialogue.files)

    def speech_tokenizer(self, config: PrepareConfig) -> str | None:
        assert config.dialogue is not None
        return config.dialogue.speech_tokenizer

    def uses_gpu(self, config: PrepareConfig) -> bool:
        assert config.dialogue is not None
        recordings = _recordings(config.dialogue)
        return recordings is not None and recordings.device != "cpu" and uses_models(recordings)

    def without_gpu(self, config: PrepareConfig) -> PrepareConfig:
        assert config.dialogue is not None
        return config.model_copy(update={"dialogue": config.dialogue.model_copy(update={"device": "cpu"})})


PREPARATION = _DialogueKind()
