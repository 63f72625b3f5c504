"""`tolktrain generate --chat`: conversations at the terminal, and those of JSON lines."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tolktrain.data.records import ASSISTANT, SYSTEM, USER
from tolktrain.data.sequences import IntArray
from tolktrain.data.turns import Turn
from tolktrain.errors import UserError
from tolktrain.files.printable import printable
from tolktrain.files.writing import AppendedFile, replace_file, write_wav_pieces
from tolktrain.generate.answer import SETTINGS_FILE, require_empty
from tolktrain.generate.chat.dialogue import Answer, ChatLimits, Dialogue, Listener, Said
from tolktrain.generate.chat.forms import Form, chosen_form, require_answers
from tolktrain.generate.chat.scripts import Script
from tolktrain.generate.continuation import Continuer
from tolktrain.generate.mixed_decoding import MixedDecoder
from tolktrain.generate.sampling import Sampling
from tolktrain.generate.settings import Drawing, Hearing
from tolktrain.generate.speaker import Speaker
from tolktrain.generate.tensor_ranks import load_part, make_mixed_decoder
from tolktrain.parallel.layout import Layout
from tolktrain.prepare.dialogue.talk import Said as Given

LINES_FILE = "conversations.jsonl"
HELP = "/audio FILE says what is in a file, /new begins a new conversation, /end ends (as Ctrl-D does)"

Show = Callable[[str], None]


@dataclass(frozen=True)
class Chatting:
    """How conversations are held; None for what the run's configuration says."""

    step: int | None = None
    form: Form | None = None  # None for that of the training
    system: str | None = None  # the first turn of each conversation that has no instruction
    drawing: Drawing = Drawing()
    hearing: Hearing = Hearing()
    limits: ChatLimits = ChatLimits()
    into: Path | None = None
    overrides: tuple[str, ...] = ()  # of a folder of weights


@dataclass(eq=False)
class Chat:
    """A tuned model that holds one conversation after the other."""

    continuer: Continuer
    speaker: Speaker
    decoder: MixedDecoder

    @classmethod
    def of(cls, continuer: Continuer, speaker: Speaker, source: str) -> "Chat":
        """Raises UserError, naming the source, for a model without the tokens of roles."""
        require_answers(continuer.model.architecture, source)
        return cls(continuer, speaker, make_mixed_decoder(continuer.model, continuer.window))

    def dialogue(self, form: Form, settings: Sampling, limits: ChatLimits, number: int = 0) -> Dialogue:
        """A new conversation. Raises UserError if a limit in seconds, or the spans of speech, need durations of units
        that are not known."""
        if limits.seconds is not None or form == "interleaved":
            self.continuer.durations = self.speaker.durations
        return Dialogue(self.continuer, self.decoder, form, settings, limits, number)

    def turn(self, given: Given, source: str) -> Turn:
        """What is said, as ids and units. Raises UserError, naming the source, if it cannot be read."""
        books = self.continuer.model.architecture.num_codebooks
        units, run_lengths = np.zeros((0, books), np.int64), np.zeros(0, np.int64)
        if given.audio is not None:
            units, run_lengths = self.continuer.encode_audio(given.audio, source)
        ids = np.zeros(0, np.int64)
        if given.audio is not None and (given.text or "").strip():
            ids = self.continuer.encode_transcript(given.text or "", source)
        elif given.audio is None:
            ids = np.array(self.continuer.encode_text(given.text or "", source), np.int64)
        return Turn(given.role, ids, units, run_lengths)


@dataclass(eq=False)
class _Opened:
    """A chat with its settings."""

    chat: Chat
    form: Form
    settings: Sampling
    options: Chatting
    output: "_Output | None"

    @classmethod
    def of(cls, run_dir: Path, options: Chatting, layout: Layout | None) -> "_Opened":
        if options.into is not None:
            require_empty(options.into)
        model, config, state = load_part(run_dir, options.step, options.overrides, layout)
        continuer = Continuer(model, config, state.get("tokenizers", {}))
        require_answers(model.architecture, str(run_dir))
        speaker = options.hearing.of(continuer)
        form, settings = chosen_form(options.form, config, str(run_dir)), options.drawing.sampling(config)
        output = None
        if options.into is not None:
            header = {"run": str(run_dir), "step": state.get("step"), "answer": form, "system": options.system}
            output = _Output(options.into, speaker, header | asdict(settings) | {"limits": asdict(options.limits)})
        return cls(Chat.of(continuer, speaker, str(run_dir)), form, settings, options, output)

    def dialogue(self, form: Form | None, number: int) -> Dialogue:
        return self.chat.dialogue(form or self.form, self.settings, self.options.limits, number)

    def instruct(self, dialogue: Dialogue) -> None:
        """Begin with the instruction of the command line, if there is one."""
        if self.options.system is not None:
            dialogue.add(self.chat.turn(Given(SYSTEM, self.options.system), "--system"))


def answer_scripts(
    run_dir: Path, scripts: Iterable[Script], options: Chatting, show: Show, layout: Layout | None = None
) -> None:
    """Let a tuned model say the open turns of conversations, and show them as they are drawn.

    With `options.into`, a new or empty folder, it gets settings.json and conversations.jsonl. A conversation is added
    when it is complete: its messages, with those of the model in the same form, and for each answer its text, units and
    timing. Spoken answers are written before, as NAME-turn-N.wav, if there is a vocoder.

    With a layout of several ranks, for rank 0, while the others run `tensor_ranks.follow`.

    Raises UserError when the run has no such checkpoint, the model has no tokens of roles, or a turn cannot be read;
    names the line and the turn.
    """
    opened = _Opened.of(run_dir, options, layout)
    for number, script in enumerate(scripts):
        _answer_script(opened, script, number, show)


def _answer_script(opened: _Opened, script: Script, number: int, show: Show) -> None:
    try:
        dialogue = opened.dialogue(script.form, number)
        first = script.messages[0].turns
        if not (first and first[0].role == SYSTEM):
            opened.instruct(dialogue)
        messages, answers = [], []
        for place, message in enumerate(script.messages, start=1):
            for given in message.turns:
                dialogue.add(opened.chat.turn(given, f"turn {place}"))
            if not message.is_open:
                messages.append(message.given)
                continue
            shown = _Shown(f"{script.name}, turn {place}", show)
            found = dialogue.answer(shown.listener)
            file = None if opened.output is None else opened.output.write_audio(f"{script.name}-turn-{place}", found)
            shown.end(found, file)
            messages.append({"role": ASSISTANT, "content": _parts(found, file)})
            answers.append({"turn": place} | _line(found, file))
    except UserError as error:
        where = "" if script.source in str(error) else f"{script.source}: "
        raise UserError(f"{where}{error}") from None
    if opened.output is not None:
        opened.output.add({"name": script.name, "messages": messages, "answers": answers})


def converse(run_dir: Path, lines: Iterable[str], options: Chatting, show: Show, layout: Layout | None = None) -> None:
    """Hold a conversation: each line is a turn of the user or a command, and is answered.

    What cannot be read is shown, and the conversation continues. With `options.into`, the conversation is written as
    `answer_scripts` does. Raises UserError likewise, except for turns.
    """
    opened = _Opened.of(run_dir, options, layout)
    show(f"{HELP}\n")
    number = 0
    held = _Held(opened, number)
    try:
        for line in lines:
            said = line.strip()
            if said == "/end":
                return
            if said == "/new":
                held.write()
                number += 1
                held = _Held(opened, number)
            elif said:
                try:
                    held.say(said, show)
                except UserError as error:
                    show(printable(f"{error}\n"))
    finally:
        held.write()


class _Held:
    """A conversation at the terminal."""

    def __init__(self, opened: _Opened, number: int) -> None:
        self._opened, self._name = opened, f"conversation-{number + 1}"
        self._dialogue = opened.dialogue(None, number)
        opened.instruct(self._dialogue)
        self._messages: list[dict[str, Any]] = []
        self._answers: list[dict[str, Any]] = []
        if opened.options.system is not None:
            self._messages.append({"role": SYSTEM, "content": opened.options.system})

    def say(self, line: str, show: Show) -> None:
        """Add a turn of the user, and answer it."""
        command, _, rest = line.partition(" ")
        if command == "/audio":
            path = rest.strip()
            given, content = Given(USER, audio=path), [{"type": "audio", "path": path}]
        elif line.startswith("/"):
            raise UserError(f"unknown command {command!r}; {HELP}")
        else:
            given, content = Given(USER, line), [{"type": "text", "text": line}]
        shown = _Shown(ASSISTANT, show)
        found = self._dialogue.answer_to(self._opened.chat.turn(given, "this turn"), shown.listener)
        self._messages.append({"role": USER, "content": content})
        place, file = len(self._messages) + 1, None
        if self._opened.output is not None:
            file = self._opened.output.write_audio(f"{self._name}-turn-{place}", found)
        shown.end(found, file)
        self._messages.append({"role": ASSISTANT, "content": _parts(found, file)})
        self._answers.append({"turn": place} | _line(found, file))

    def write(self) -> None:
        """Write the conversation, if something was said."""
        if self._opened.output is not None and self._answers:
            line = {"name": self._name, "messages": self._messages, "answers": self._answers}
            self._opened.output.add(line)


class _Shown:
    """Shows an answer as it grows: what was heard in parentheses, text, and units of the first codebook in brackets."""

    _OPENING: ClassVar[Mapping[Said, str]] = {"heard": "(heard: ", "text": "", "speech": "["}
    _CLOSING: ClassVar[Mapping[Said, str]] = {"heard": ") ", "text": " ", "speech": "] "}

    def __init__(self, name: str, show: Show) -> None:
        self._name, self._show = name, show
        self._last: Said | None = None
        self.listener = Listener(self._begin, self._text, self._unit)

    def _begin(self, kind: Said) -> None:
        before = f"{printable(self._name)}: " if self._last is None else self._CLOSING[self._last]
        self._show(f"{before}{self._OPENING[kind]}")
        self._last = kind

    def _text(self, piece: str) -> None:
        self._show(printable(piece))

    def _unit(self, frame: IntArray) -> None:
        self._show(f"{int(frame[0])} ")

    def end(self, answer: Answer, file: str | None) -> None:
        """Show where the speech was written, and what is to be said of the answer."""
        closing = "" if self._last is None else self._CLOSING[self._last].rstrip()
        self._show(f"{closing}{'' if file is None else f' {file}'}\n")
        if answer.left_out:
            self._show(f"({answer.left_out} turns no longer fit into the context)\n")
        if answer.remark is not None:
            self._show(f"({answer.remark})\n")


def _parts(answer: Answer, file: str | None) -> list[dict[str, Any]]:
    """An answer as the content of a message."""
    parts: list[dict[str, Any]] = []
    if file is not None:
        parts.append({"type": "audio", "path": file})
    if answer.text:
        if file is not None and answer.form == "chain":
            parts[0]["text"] = answer.text  # what is said in the audio
        else:
            parts.append({"type": "text", "text": answer.text})
    return parts or [{"type": "text", "text": answer.text}]


def _line(answer: Answer, file: str | None) -> dict[str, Any]:
    return {
        "answer": answer.form,
        "heard": list(answer.heard),
        "text": answer.text,
        "ids": answer.text_ids,
        "units": answer.units.tolist(),
        "file": file,
        "ended": answer.ending,
        "left_out": answer.left_out,
        "timing": {
            "prompt_positions": answer.prompt_positions,
            "positions": answer.num_positions,
            "seconds": round(answer.seconds, 4),
        },
    }


class _Output:
    """The folder that conversations are written into; made with the first answer."""

    def __init__(self, folder: Path, speaker: Speaker, settings: dict[str, Any]) -> None:
        self._folder, self._speaker, self._settings = folder, speaker, settings
        self._lines: AppendedFile | None = None

    def _made(self) -> AppendedFile:
        if self._lines is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._folder / SETTINGS_FILE, json.dumps(self._settings, indent=1) + "\n")
            self._lines = AppendedFile(self._folder / LINES_FILE)
        return self._lines

    def write_audio(self, name: str, answer: Answer) -> str | None:
        """Write the speech of an answer; the name of the file, or None without speech or a vocoder."""
        units: IntArray = answer.units
        heard = self._speaker.frames(units) if len(units) else None
        self._made()
        if heard is None:
            return None
        vocoder, frames = heard
        write_wav_pieces(self._folder / f"{name}.wav", vocoder.stream(frames), vocoder.sample_rate)
        return f"{name}.wav"

    def add(self, line: dict[str, Any]) -> None:
        """Append a conversation."""
        self._made().append(json.dumps(line, ensure_ascii=False) + "\n")
