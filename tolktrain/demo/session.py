"""A model that continues one prompt at a time for the page, and reports what it draws as events."""

import base64
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tolktrain.data.sequences import IntArray
from tolktrain.demo.streaming import GrowingSpeech
from tolktrain.errors import UserError
from tolktrain.files.writing import wav_bytes
from tolktrain.generate.continuation import Continuation, Continuer, Limits
from tolktrain.generate.decoding import use_accelerator
from tolktrain.generate.requests import Request
from tolktrain.generate.sampling import Sampling
from tolktrain.generate.speaker import Speaker
from tolktrain.generate.text_stream import TextStream
from tolktrain.interop.trained import load_trained
from tolktrain.model.pooling import WeightedAverage
from tolktrain_kernels.layer_pooling import PooledLayers

Event = dict[str, Any]
"""`kind` and what belongs to it: "position" (`text` or `unit`, `layers`), "audio" (`pcm`: 16 bit, base64), "done"."""


class Cancelled(Exception):  # noqa: N818 - no error: nobody listens any more
    """A continuation was given up."""


@dataclass(eq=False)
class Session:
    """A checkpoint with its tokenizers. Not for several threads at a time."""

    run: Path
    step: int | None
    continuer: Continuer
    speaker: Speaker

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
        return cls(run, state.get("step"), continuer, speaker)

    @property
    def speaks(self) -> bool:
        """Whether units can be turned into audio."""
        return self.speaker.vocoder is not None

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
        heard = self.speaker.frames(np.array(found.ids, np.int64)) if found.text is None and found.ids else None
        if heard is not None:
            vocoder, frames = heard
            wav, num_samples = wav_bytes(vocoder.stream(frames), vocoder.sample_rate)
            event["audio_seconds"] = round(num_samples / vocoder.sample_rate, 2)
            event["wav"] = base64.b64encode(wav).decode()
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
