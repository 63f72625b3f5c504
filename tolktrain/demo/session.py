"""A model that continues one prompt at a time for the page, and reports what it draws as events."""

import base64
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tolktrain.data.sequences import IntArray
from tolktrain.data.turns import Turn
from tolktrain.demo.streaming import GrowingSpeech
from tolktrain.errors import UserError
from tolktrain.files.writing import wav_bytes
from tolktrain.generate.chat.dialogue import ChatLimits, Dialogue, Listener
from tolktrain.generate.chat.forms import FORMS, Form, answers, tuned_form
from tolktrain.generate.chat.run import Chat
from tolktrain.generate.continuation import Continuation, Continuer, Limits
from tolktrain.generate.decoding import use_accelerator
from tolktrain.generate.requests import Request
from tolktrain.generate.sampling import Sampling
from tolktrain.generate.speaker import Speaker
from tolktrain.generate.text_stream import TextStream
from tolktrain.interop.trained import load_trained
from tolktrain.model.pooling import WeightedAverage
from tolktrain.prepare.dialogue.talk import Said as Given
from tolktrain_kernels.layer_pooling import PooledLayers

Event = dict[str, Any]
"""`kind` and what belongs to it: "part" (of an answer: `part`), "position" (`text` or `unit`, `layers`), "audio"
(`pcm`: 16 bit, base64), "done"."""

_MOST_DIALOGUES = 16


class Cancelled(Exception):  # noqa: N818 - no error: nobody listens any more
    """A continuation was given up."""


@dataclass(eq=False)
class Session:
    """A checkpoint with its tokenizers. Not for several threads at a time."""

    run: Path
    step: int | None
    continuer: Continuer
    speaker: Speaker
    _chat: Chat | None = field(default=None, init=False)  # of a model that answers
    _dialogues: dict[str, Dialogue] = field(default_factory=dict, init=False)  # by the page's name, the latest last

    @classmethod
    def load(cls, run: Path, step: int | None = None, overrides: tuple[str, ...] = ()) -> "Session":
        """The checkpoint of a step, by default the latest valid one; or a folder of weights with `overrides`.

        Raises UserError when there is none, or a tokenizer is missing or another one.
        """
        model, config, state = load_trained(run, step, overrides)
        continuer = Continuer(use_accelerator(model), config, state.get("tokenizers", {}))
        if config.data.text_tokenizer is None and config.data.speech_tokenizer is None:
            raise UserError(f"{run}: the configuration names no tokenizer, so nothing can be typed or heard")
        speaker = Speaker(continuer)
        if speaker.vocoder is not None:
            continuer.durations = speaker.durations
        session = cls(run, state.get("step"), continuer, speaker)
        if answers(continuer.model.architecture):
            session._chat = Chat.of(continuer, speaker, str(run))
        return session

    @property
    def speaks(self) -> bool:
        """Whether units can be turned into audio."""
        return self.speaker.vocoder is not None

    @property
    def forms(self) -> list[Form]:
        """The forms of answers that a conversation may have; none if the model does not answer."""
        data = self.continuer.config.data
        if self._chat is None:
            return []
        has_text, has_speech = data.text_tokenizer is not None, data.speech_tokenizer is not None
        return [form for form in FORMS if (has_text or form == "speech") and (has_speech or form == "text")]

    def describe(self) -> Event:
        """What the page shows of the model."""
        sizes, config = self.continuer.model.architecture, self.continuer.config
        pooling = next(iter(_pooling(self.continuer.model)), None)
        static = None if pooling is None else pooling.layer_weights
        return {
            "run": config.run.name,
            "step": self.step,
            "reads_text": config.data.text_tokenizer is not None,
            "hears": config.data.speech_tokenizer is not None,
            "speaks": self.speaks,
            "sample_rate": None if self.speaker.vocoder is None else self.speaker.vocoder.sample_rate,
            "num_layers": sizes.num_layers,
            "layer_pooling": sizes.layer_pooling,
            "static_weights": None if static is None else _rounded(torch.softmax(static.detach().float(), dim=0)),
            "window": self.continuer.window,
            "answers": self.forms,
            "answer": tuned_form(config),
            "temperature": config.evaluation.temperature,
            "top_k": config.evaluation.top_k,
            "seed": config.run.seed,
        }

    def answer(self, request: Request, settings: Sampling, limits: Limits, emit: Callable[[Event], None]) -> None:
        """Continue a prompt; `emit` gets each event, and may raise `Cancelled`.

        The continuation, and the audio of "done", are those of `tolktrain generate` with the same settings.

        Raises UserError when the prompt cannot be used.
        """
        speech = None
        if self.speaker.vocoder is not None:
            speech = GrowingSpeech(self.speaker.vocoder, self.speaker.durations, self.speaker.frames_per_second)
        text = TextStream(self.continuer.text.tokenizer) if request.to == "text" else None
        num_units, delay = (
            self.continuer.model.architecture.num_units,
            self.continuer.model.architecture.num_codebooks - 1,
        )
        columns: list[IntArray] = []
        layers: list[float] | None = None

        def note(pooled: PooledLayers) -> None:
            nonlocal layers
            layers = None if pooled.probs is None else _rounded(pooled.probs.detach().flatten(0, -2)[-1].cpu())

        def on_position(place: int, sample: int, column: IntArray) -> None:
            if text is not None:
                emit({"kind": "position", "text": text.piece(int(column[0]))})
                return
            columns.append(column)
            if len(columns) <= delay:
                return
            frame = np.array([columns[k - delay - 1][k] for k in range(delay + 1)], np.int64)
            if int(frame[0]) < num_units:  # not EOS
                emit({"kind": "position", "unit": int(frame[0]), "layers": layers})
                piece = speech.add(frame) if speech is not None else None
                if piece is not None:
                    emit({"kind": "audio", "pcm": _pcm(piece)})

        with _watched(self.continuer.model, note):
            (found,) = self.continuer.run([request], [0], 1, settings, limits, on_position)
        if text is not None and (rest := text.rest()):
            emit({"kind": "position", "text": rest})
        if speech is not None and request.to == "speech" and len(piece := speech.rest()):
            emit({"kind": "audio", "pcm": _pcm(piece)})
        emit(self._done(found))

    def converse(
        self,
        name: str,
        is_first: bool,
        said: Sequence[Given],
        form: Form,
        settings: Sampling,
        limits: ChatLimits,
        emit: Callable[[Event], None],
    ) -> None:
        """Answer the last turn of what is said in a conversation; `emit` gets each event, and may raise `Cancelled`.

        The answers, and the audio of "done", are those of `tolktrain generate --chat` with the same settings. A turn
        without an answer is forgotten.

        Args:
            name: of the conversation.
            is_first: whether it begins. Otherwise it continues, if it is among the latest ones.
            said: the instruction, if there is one, and the turn of the user.
            form: of the answer.
            settings: of drawing.
            limits: of the answer.
            emit: gets the events.

        Raises:
            UserError: the model does not answer, the conversation is not known, or a turn cannot be read.
        """
        if self._chat is None:
            raise UserError("the model has no tokens of the roles user and assistant; only prompts can be continued")
        dialogue = None if is_first else self._dialogues.get(name)
        if dialogue is None and not is_first:
            raise UserError("this conversation is no longer known; begin a new one")
        fresh = self._chat.dialogue(form, settings, limits)  # checks the form and the limits
        if dialogue is None:
            dialogue = fresh
        dialogue.form, dialogue.settings, dialogue.limits = form, settings, limits
        with dialogue.whole():  # until its audio was given, too: the page forgets a turn that it stops
            self._answer(dialogue, [self._chat.turn(one, "this turn") for one in said], emit)
        self._dialogues.pop(name, None)
        self._dialogues[name] = dialogue
        while len(self._dialogues) > _MOST_DIALOGUES:
            del self._dialogues[next(iter(self._dialogues))]

    def _answer(self, dialogue: Dialogue, turns: Sequence[Turn], emit: Callable[[Event], None]) -> None:
        """Add turns, and answer the last one."""
        *before, last = turns
        for turn in before:
            dialogue.add(turn)
        speech = None
        if self.speaker.vocoder is not None and dialogue.form != "text":
            speech = GrowingSpeech(self.speaker.vocoder, self.speaker.durations, self.speaker.frames_per_second)

        def on_unit(frame: IntArray) -> None:
            emit({"kind": "position", "unit": int(frame[0]), "layers": None})
            piece = speech.add(frame) if speech is not None else None
            if piece is not None:
                emit({"kind": "audio", "pcm": _pcm(piece)})

        listener = Listener(
            lambda part: emit({"kind": "part", "part": part}),
            lambda text: emit({"kind": "position", "text": text}),
            on_unit,
        )
        found = dialogue.answer_to(last, listener)
        if speech is not None and len(found.units) and len(piece := speech.rest()):
            emit({"kind": "audio", "pcm": _pcm(piece)})
        event: Event = {
            "kind": "done",
            "heard": list(found.heard),
            "text": found.text,
            "remark": found.remark,
            "left_out": found.left_out,
            "prompt_positions": found.prompt_positions,
            "positions": found.num_positions,
            "seconds": round(found.seconds, 3),
        }
        emit(event | self._wav(found.units))

    def _wav(self, units: IntArray) -> Event:
        """The audio of units [n, K], if there are some and a vocoder."""
        heard = self.speaker.frames(units) if len(units) else None
        if heard is None:
            return {}
        vocoder, frames = heard
        wav, num_samples = wav_bytes(vocoder.stream(frames), vocoder.sample_rate)
        seconds = round(num_samples / vocoder.sample_rate, 2)
        return {"audio_seconds": seconds, "wav": base64.b64encode(wav).decode()}

    def _done(self, found: Continuation) -> Event:
        timing = found.timing
        event: Event = {
            "kind": "done",
            "text": found.text,
            "prompt_positions": found.prompt_positions,
            "positions": timing.num_positions,
            "seconds": round(timing.total, 3),
            "ms_per_position": None if timing.ms_per_position is None else round(timing.ms_per_position, 1),
        }
        if found.text is None:
            event |= self._wav(np.array(found.ids, np.int64))
        return event


def _pooling(model: nn.Module) -> list[WeightedAverage]:
    return [module for module in model.modules() if isinstance(module, WeightedAverage)]


@contextlib.contextmanager
def _watched(model: nn.Module, note: Callable[[PooledLayers], None]) -> Iterator[None]:
    """In this block, `note` gets what the pooling computes."""

    def hook(module: nn.Module, inputs: Any, pooled: PooledLayers) -> None:
        note(pooled)

    handles = [module.register_forward_hook(hook) for module in _pooling(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rounded(weights: torch.Tensor) -> list[float]:
    return [round(float(weight), 4) for weight in weights]


def _pcm(samples: "np.ndarray") -> str:
    """16-bit little-endian samples in base64."""
    return base64.b64encode((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()).decode()
