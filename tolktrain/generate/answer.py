"""`tolktrain generate` with prompts of the command line or of a file: streams continuations, and writes them."""

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.data.sequences import IntArray
from tolktrain.errors import UserError
from tolktrain.files.printable import printable
from tolktrain.files.writing import AppendedFile, replace_file, write_wav_pieces
from tolktrain.generate.continuation import Continuation, Continuer, Limits
from tolktrain.generate.requests import Request
from tolktrain.generate.settings import Drawing, Hearing
from tolktrain.generate.speaker import Speaker
from tolktrain.generate.tensor_ranks import load_part
from tolktrain.generate.text_stream import UtteranceStream
from tolktrain.parallel.layout import Layout
from tolktrain.units.base import Frames, Vocoder

SETTINGS_FILE = "settings.json"
LINES_FILE = "continuations.jsonl"


@dataclass(frozen=True)
class Answering:
    """How prompts are continued; None for what the run's configuration says."""

    step: int | None = None
    drawing: Drawing = Drawing()
    num_samples: int = 1
    batch_size: int = 1  # prompts that are continued together
    limits: Limits = Limits(300, utterances=1)
    into: Path | None = None
    hearing: Hearing = Hearing()
    overrides: tuple[str, ...] = ()  # of a folder of weights


def answer(
    run_dir: Path,
    requests: Iterable[Request],
    options: Answering,
    show: Callable[[str], None],
    layout: Layout | None = None,
) -> None:
    """Continue prompts with a checkpoint of a run, and show the continuations.

    A single prompt with a single continuation is shown as it is drawn, others when they are complete.

    With `options.into`, a new or empty folder, it gets settings.json and continuations.jsonl, to which each
    continuation is appended with its text or units and timings, after its WAV file NAME-SAMPLE.wav was written. Speech
    is written as audio if there is a vocoder: `options.hearing`, data.vocoder of the configuration, or that of the
    run's speech tokenizer. Each unit lasts what the vocoder predicts, or else the median of its durations in the
    training records.

    With a layout of several ranks, for rank 0, while the others run `tensor_ranks.follow`.

    Raises UserError when the run has no such checkpoint, a tokenizer is missing or another one, the vocoder is that of
    another tokenizer, or a prompt cannot be used (`Continuer.run`).
    """
    if options.into is not None:
        require_empty(options.into)
    model, config, state = load_part(run_dir, options.step, options.overrides, layout)
    continuer = Continuer(model, config, state.get("tokenizers", {}))
    settings = options.drawing.sampling(config)
    output = None
    speaker = options.hearing.of(continuer)
    if options.into is not None:
        header = {"run": str(run_dir), "step": state.get("step"), **asdict(settings), "limits": asdict(options.limits)}
        output = _Output(options.into, continuer, speaker, header)
    if options.limits.seconds is not None:
        continuer.durations = speaker.durations
    numbers = itertools.count()
    for batch in _batched(requests, options.batch_size):
        chosen = [next(numbers) for _ in batch]
        live = None
        if len(batch) == 1 and options.num_samples == 1:
            live = _Live(continuer, batch[0], options.limits.stops, show)
        on_position = _ignore if live is None else live.add
        for found in continuer.run(batch, chosen, options.num_samples, settings, options.limits, on_position):
            if live is not None:
                live.end()
            else:
                text = found.text if found.text is not None else " ".join(str(frame[0]) for frame in found.ids)
                show(printable(f"{found.request.name}, sample {found.sample}: {text}\n"))
            if output is not None:
                output.add(found)


def _ignore(place: int, sample: int, column: IntArray) -> None:
    """Show nothing."""


class _Live:
    """Shows the continuation of one prompt as it grows: its text up to a stop, or its units of the first codebook."""

    def __init__(
        self, continuer: Continuer, request: Request, stops: Sequence[str], show: Callable[[str], None]
    ) -> None:
        sizes = continuer.model.architecture
        self._show = show
        self._num_units = sizes.num_units
        self._delay = sizes.num_codebooks - 1
        self._waiting: deque[int] = deque()  # units of frames that lack codebooks
        self._text = None
        if request.to == "text":
            self._text = UtteranceStream(continuer.text.tokenizer, continuer.vocabulary.text_eos, stops)
        self._name = f"{printable(request.name)}: "  # shown with the first position: the prompt may be refused

    def add(self, place: int, sample: int, column: IntArray) -> None:
        """Show what a position [K] completes."""
        self._begin()
        if self._text is not None:
            self._show(printable(self._text.piece(int(column[0]))))
            return
        self._waiting.append(int(column[0]))
        if len(self._waiting) > self._delay:
            unit = self._waiting.popleft()
            if unit < self._num_units:  # not EOS
                self._show(f"{unit} ")

    def end(self) -> None:
        """Show the rest of the text, and end the line."""
        self._begin()
        rest = "" if self._text is None else self._text.rest()
        self._show(f"{printable(rest)}\n")

    def _begin(self) -> None:
        if self._name:
            self._show(self._name)
            self._name = ""


def require_empty(folder: Path) -> None:
    """Raise UserError unless a folder is new or empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; name a new one")


class _Output:
    """The folder that continuations are written into; made with the first one."""

    def __init__(self, folder: Path, continuer: Continuer, speaker: Speaker, settings: dict[str, Any]) -> None:
        self._folder, self._continuer, self._speaker, self._settings = folder, continuer, speaker, settings
        self._lines: AppendedFile | None = None

    def _make(self) -> AppendedFile:
        if self._lines is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._folder / SETTINGS_FILE, json.dumps(self._settings, indent=1) + "\n")
            self._lines = AppendedFile(self._folder / LINES_FILE)
        return self._lines

    def add(self, found: Continuation) -> None:
        """Write the audio of a continuation, then its line."""
        units = np.array(found.ids if found.text is None else [], np.int64)
        units = units.reshape(-1, self._continuer.model.architecture.num_codebooks)
        heard = self._speaker.frames(units) if len(units) else None  # before the folder is made: it may be refused
        lines = self._make()
        line: dict[str, Any] = {
            "name": found.request.name,
            "sample": found.sample,
            "prompt": {found.request.kind: found.request.content},
            "ends_utterance": found.request.ends_utterance,
            "to": found.request.to,
        }
        if found.text is None:
            line["units"] = units.tolist()
            line |= self._write_audio(f"{found.request.name}-{found.sample}.wav", heard)
        else:
            line["text"], line["ids"] = found.text, found.ids
        timing = found.timing
        line["timing"] = {
            "prompt_positions": found.prompt_positions,
            "positions": timing.num_positions,
            "first_position_seconds": round(timing.first_position, 4),
            "seconds": round(timing.total, 4),
            "ms_per_position": None if timing.ms_per_position is None else round(timing.ms_per_position, 3),
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")

    def _write_audio(self, name: str, heard: tuple[Vocoder, Frames] | None) -> dict[str, Any]:
        if heard is None:
            return {"file": None}
        vocoder, frames = heard
        samples = write_wav_pieces(self._folder / name, vocoder.stream(frames), vocoder.sample_rate)
        return {"file": name, "audio_seconds": round(samples / vocoder.sample_rate, 3)}


def _batched(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    remaining = iter(requests)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
