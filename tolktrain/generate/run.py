"""`tolktrain generate`: continue spoken prompts with the latest valid checkpoint of a run, in speech and in text."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.config import Config
from tolktrain.data.checks import check_data
from tolktrain.data.folder import RecordFolder, open_records
from tolktrain.data.sequences import IntArray
from tolktrain.errors import UserError
from tolktrain.files.terminal import spinner
from tolktrain.files.writing import write_synced, write_wav, write_wav_pieces
from tolktrain.generate.context import Context
from tolktrain.generate.durations import Durations, choose_durations
from tolktrain.generate.inputs import TEXT_TOKENIZER_FILE
from tolktrain.generate.prompts import Prompt, read_prompts
from tolktrain.generate.sampling import Sampling, SpeechLimits, TextLimits, sample_speech, sample_text
from tolktrain.generate.tensor_ranks import load_part, make_decoder
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout
from tolktrain.runs.paths import RunPaths
from tolktrain.units.base import Frames, SpeechTokenizer, Vocoder, collapse, expand
from tolktrain.units.load import load_speech_tokenizer
from tolktrain.units.vocoders.kind import Voice
from tolktrain.units.vocoders.load import require_vocoder
from tolktrain.vocabulary import Vocabulary

_MOST_TEXT_TOKENS = 60
_TEXT_UTTERANCES = 2


def generate(run_dir: str | Path, overrides: Sequence[str] = (), layout: Layout | None = None) -> list[Path]:
    """Continue every prompt of `evaluation.prompts`; returns the files, all of them new, in <run>/samples.

    For a prompt NAME: NAME-prompt.wav, NAME-resynthesis.wav (the prompt from its units, with its own durations) and
    NAME-continuation.wav (the predicted speech, without the prompt; each unit lasts what the vocoder predicts, or else
    the median of its durations in the training records). samples.json lists texts, units and seconds, and the text that
    the model writes after hearing the prompt, and under `settings` what they were made with
    (`Config.follow_up_settings`). The same checkpoint, settings and seed give the same files. The folder is replaced as
    a whole. With a layout of several ranks, for rank 0, while the others run `tensor_ranks.follow`.

    Raises UserError when the run has no checkpoint, or prompts or tokenizers are missing or do not fit the model.
    """
    model, config, state = load_part(run_dir, overrides=overrides, layout=layout)
    tools = _Tools.load(config, model)
    with spinner() as progress:
        task = progress.add_task("encoding the prompts", total=None)
        units = [tools.encode(prompt) for prompt in tools.prompts]
        progress.update(task, description="continuing the prompts in speech")
        spoken = tools.predict_speech(units)
        progress.update(task, description="continuing the prompts in text")
        written = tools.write(units)
        progress.update(task, description="turning units into audio")
        paths = RunPaths(Path(run_dir))
        with tempfile.TemporaryDirectory(dir=run_dir, prefix=".tmp-samples-") as temporary:
            aside = Path(temporary) / paths.samples.name
            aside.mkdir()
            entries = [
                tools.save(aside, prompt, predicted, text)
                for prompt, predicted, text in zip(tools.prompts, spoken, written, strict=True)
            ]
            content = tools.describe(int(state.get("step") or 0)) | {"prompts": entries}
            write_synced(aside / paths.sample_index.name, (json.dumps(content, indent=2) + "\n").encode())
            _replace_folder(paths.samples, aside, Path(temporary) / "old")
    names = [name for entry in entries for name in entry["files"].values()]
    return [*(paths.samples / name for name in names), paths.sample_index]


@dataclass(frozen=True, eq=False)
class _Tools:
    """The model with its tokenizers, prompts and durations."""

    model: SmolTolk
    config: Config
    vocabulary: Vocabulary
    tokenizer: SpeechTokenizer
    vocoder: Vocoder
    text_tokenizer: Any  # tokenizers.Tokenizer, None where the configuration names none
    durations: Durations
    prompts: list[Prompt]
    sampling: Sampling

    @classmethod
    def load(cls, config: Config, model: SmolTolk) -> "_Tools":
        settings = config.evaluation
        if settings.prompts is None:
            raise UserError("evaluation.prompts is not set; name a folder with WAV prompts and prompts.json")
        if config.data.speech_tokenizer is None:
            raise UserError(
                "data.speech_tokenizer is not set; name the folder of the tokenizer that the data sets were made with"
            )
        vocabulary = check_data(config, model.architecture.text_vocab_size, verify_files=False)
        chosen = config.data.vocoder
        folder, voice = config.data.speech_tokenizer, Voice(chosen.speaker, chosen.style)
        load_vocoder = require_vocoder(folder, chosen.path, voice, lambda: tokenizer)
        tokenizer = load_speech_tokenizer(folder)
        records = training_records(config)
        _check_tokenizer(config, tokenizer, records, vocabulary)
        vocoder = load_vocoder()
        durations = choose_durations(
            vocoder, lambda: records, settings.baseline_records, vocabulary.num_units, tokenizer.frames_per_second
        )
        return cls(
            model=model,
            config=config,
            vocabulary=vocabulary,
            tokenizer=tokenizer,
            vocoder=vocoder,
            text_tokenizer=_text_tokenizer(config, vocabulary),
            durations=durations,
            prompts=read_prompts(settings.prompts, tokenizer.sample_rate),
            sampling=Sampling(settings.temperature, settings.top_k, config.run.seed),
        )

    def encode(self, prompt: Prompt) -> IntArray:
        """Units [n, K] of a prompt, repeats collapsed, with EOS where the utterance ends."""
        units = collapse(self.tokenizer.encode(prompt.samples))[0].astype(np.int64)
        if not len(units):
            raise UserError(
                f"the prompt {prompt.name} in {self.config.evaluation.prompts} is shorter than a unit; replace its file"
                " or remove its entry from prompts.json"
            )
        if prompt.ends_utterance:
            units = np.concatenate([units, np.full((1, units.shape[1]), self.vocabulary.speech_eos)])
        return units

    def predict_speech(self, prompts: list[IntArray]) -> list[IntArray]:
        """Units [m, K] that the model predicts after each prompt, EOS left out."""
        seconds = self.config.evaluation.generated_seconds
        most = 2 * int(np.ceil(seconds * self.tokenizer.frames_per_second))
        decoder = make_decoder(self.model, "speech", self.config.train.sequence_length)
        limits = SpeechLimits(self.durations.seconds, seconds, most)
        drawn = sample_speech(decoder, prompts, self.vocabulary, self.sampling, limits)
        return [units[units[:, 0] != self.vocabulary.speech_eos] for units in drawn]

    def write(self, prompts: list[IntArray]) -> list[str | None]:
        """Text that the model predicts after each prompt, None without a text tokenizer."""
        if self.text_tokenizer is None:
            return [None] * len(prompts)
        contexts = [Context.of_speech(units, self.vocabulary, switch=True) for units in prompts]
        decoder = make_decoder(self.model, "text", self.config.train.sequence_length)
        limits = TextLimits(_MOST_TEXT_TOKENS, _TEXT_UTTERANCES)
        texts = sample_text(decoder, contexts, self.vocabulary, self.sampling, limits)
        return [self._decode(ids) for ids in texts]

    def save(self, folder: Path, prompt: Prompt, predicted: IntArray, text: str | None) -> dict[str, Any]:
        """Write the three WAV files of a prompt; its entry of samples.json."""
        units, run_lengths = collapse(self.tokenizer.encode(prompt.samples))
        files = {part: f"{prompt.name}-{part}.wav" for part in ("prompt", "resynthesis", "continuation")}
        write_wav(folder / files["prompt"], prompt.samples, self.tokenizer.sample_rate)
        self._speak(folder / files["resynthesis"], expand(units, run_lengths))
        frames = expand(predicted, self.durations.run_lengths(predicted))
        spoken = self._speak(folder / files["continuation"], frames)
        return {
            "name": prompt.name,
            "voice": prompt.voice,
            "text": prompt.text,
            "text_continuation": text,
            "files": files,
            "prompt_units": units.tolist(),
            "continuation_units": predicted.tolist(),
            "prompt_seconds": round(len(prompt.samples) / self.tokenizer.sample_rate, 3),
            "continuation_seconds": round(spoken / self.vocoder.sample_rate, 3),
        }

    def _speak(self, path: Path, frames: Frames) -> int:
        """Write the audio of units [frames, K]; returns the number of samples."""
        return write_wav_pieces(path, self.vocoder.stream(frames), self.vocoder.sample_rate)

    def describe(self, step: int) -> dict[str, Any]:
        """The content of samples.json except the prompts."""
        settings = self.config.evaluation
        return {
            "step": step,
            "settings": self.config.follow_up_settings(),
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "seed": self.config.run.seed,
            "sample_rate": self.vocoder.sample_rate,
            "vocoder": self.vocoder.name,
        }

    def _decode(self, ids: list[int]) -> str:
        """Text of ids; EOS ends a piece and is not spelled out."""
        pieces: list[list[int]] = [[]]
        for token in ids:
            if token == self.vocabulary.text_eos:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return " ".join(text for piece in pieces if (text := self.text_tokenizer.decode(piece).strip()))


def _replace_folder(folder: Path, new: Path, old: Path) -> None:
    """Put the folder `new` in the place of `folder`, and what was there at `old`; all or nothing."""
    had_one = os.path.lexists(folder)
    if had_one:
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if had_one:
            os.replace(old, folder)
        raise


def training_records(config: Config) -> RecordFolder:
    """The records that durations are taken from: evaluation.train_set, or the first set of the mixtures with speech.

    Raises UserError if no set has speech.
    """
    names = [config.evaluation.train_set] if config.evaluation.train_set else []
    names += [name for stage in config.train.stages for entry in stage.mixture.values() for name in entry.sets]
    for name in names:
        records = open_records(config.data.sets[name])
        if records.info.speech is not None:
            return records
    raise UserError(
        "no training set has speech, so the durations of units are unknown; set evaluation.train_set to one that has"
    )


def _check_tokenizer(config: Config, tokenizer: SpeechTokenizer, records: RecordFolder, vocabulary: Vocabulary) -> None:
    made_with = records.info.speech
    assert made_with is not None
    if made_with.sha256 != tokenizer.sha256 or tokenizer.num_units != vocabulary.num_units:
        raise UserError(
            f"data.speech_tokenizer ({config.data.speech_tokenizer}) is {tokenizer.name}, {tokenizer.num_units} units,"
            f" sha256 {tokenizer.sha256[:12]}; the data set {records.info.name!r} was made with {made_with.name},"
            f" {made_with.num_units} units, sha256 {made_with.sha256[:12]}; name that tokenizer's folder"
        )


def _text_tokenizer(config: Config, vocabulary: Vocabulary) -> Any:
    if config.data.text_tokenizer is None:
        return None
    from tolktrain.data.text_tokenizer import load_tokenizer

    path = Path(config.data.text_tokenizer) / TEXT_TOKENIZER_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; data.text_tokenizer must name a folder with {TEXT_TOKENIZER_FILE}")
    tokenizer = load_tokenizer(config.data.text_tokenizer)
    if tokenizer.get_vocab_size() > vocabulary.text_vocab_size:
        raise UserError(
            f"{path} has {tokenizer.get_vocab_size()} ids, more than the model's {vocabulary.text_vocab_size};"
            " name the tokenizer that the data sets were made with"
        )
    return tokenizer
