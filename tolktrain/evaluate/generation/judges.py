"""The models that judge generated speech: speech recognition and a text language model, from local folders.

Both compute one recording or text at a time, in float32, so that a result does not depend on others.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tolktrain.errors import UserError
from tolktrain.files.reading import read_json
from tolktrain.prepare.recordings.audio import resampled
from tolktrain.units.base import Samples
from tolktrain.units.pretrained import inference, load_model

_CTC, _WHISPER, _CAUSAL = "ForCTC", "WhisperForConditionalGeneration", ("ForCausalLM", "LMHeadModel")
_WINDOW_SECONDS = 30.0  # what Whisper reads at a time
_SEARCH_SECONDS = 5.0  # at the end of a window, for a quiet place to cut
_LEVEL_SECONDS = 0.02
_LEAST_SECONDS = 0.5  # shorter audio is followed by silence


class Recognizer:
    """A CTC model or Whisper."""

    def __init__(self, folder: Path, device: str, language: str = "en") -> None:
        """Load it. `language` is what a multilingual Whisper transcribes.

        Raises UserError if the folder holds no such model, or lacks its tokenizer or the settings of its features.
        """
        self._kind, self._model = _load(folder, device, "--asr", (_CTC, _WHISPER))
        from transformers import AutoFeatureExtractor, AutoTokenizer

        self._features = _part(AutoFeatureExtractor, folder)
        self._tokenizer = _part(AutoTokenizer, folder)
        self._language = language
        self.sample_rate = int(self._features.sampling_rate)

    def transcribe(self, samples: Samples, sample_rate: int) -> str:
        """The words heard in mono audio, by greedy decoding. Audio of more than 30 s is cut at quiet places."""
        heard = resampled(samples, sample_rate, self.sample_rate)
        texts = (self._window(window) for window in cut_at_quiet(heard, self.sample_rate))
        return " ".join(text for text in texts if text)

    def _window(self, samples: Samples) -> str:
        missing = int(_LEAST_SECONDS * self.sample_rate) - len(samples)
        waveform = np.pad(samples, (0, max(0, missing)))
        found = self._features(waveform, sampling_rate=self.sample_rate, return_tensors="pt")
        name = self._model.main_input_name
        features = found[name].to(self._model.device)
        with inference():
            if self._kind == _WHISPER:
                return str(self._tokenizer.decode(self._generate(features)[0], skip_special_tokens=True)).strip()
            ids = self._model(**{name: features}).logits[0].argmax(dim=-1)
        text = str(self._tokenizer.decode(ids)).strip()
        return text.lower()  # these models write capitals only, which a language model hardly knows

    def _generate(self, features: Any) -> Any:
        options: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if getattr(self._model.generation_config, "is_multilingual", False):
            options |= {"language": self._language, "task": "transcribe"}
        return self._model.generate(features, **options)


def cut_at_quiet(samples: Samples, sample_rate: int) -> list[Samples]:
    """Audio in windows of at most 30 s, which end at the quietest place in their last 5 s."""
    longest, search, hop = (round(s * sample_rate) for s in (_WINDOW_SECONDS, _SEARCH_SECONDS, _LEVEL_SECONDS))
    windows = []
    while len(samples) > longest:
        last = samples[longest - search : longest]
        usable = last[: len(last) // hop * hop].reshape(-1, hop)
        end = longest - search + (int((usable.astype(np.float64) ** 2).sum(axis=1).argmin()) + 1) * hop
        windows.append(samples[:end])
        samples = samples[end:]
    return [*windows, samples]


class TextJudge:
    """A causal language model of text."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load it. Raises UserError if the folder holds no such model, or lacks its tokenizer."""
        _, self._model = _load(folder, device, "--lm", _CAUSAL)
        from transformers import AutoTokenizer

        self._tokenizer = _part(AutoTokenizer, folder)
        self._longest = int(getattr(self._model.config, "max_position_embeddings", 0) or 2048)

    def nll(self, text: str) -> tuple[float, int]:
        """Negative log-likelihood of a text in nats, a sum in float64, and the number of tokens that it is of.

        The tokenizer adds what it always adds, such as BOS. The first token has nothing before it, so it is not scored.
        Of a text that is longer than the context, the beginning counts.
        """
        import torch

        ids = list(self._tokenizer(text).input_ids)[: self._longest] if text else []
        if len(ids) < 2:
            return 0.0, 0
        tokens = torch.tensor([ids], device=self._model.device)
        with inference():
            logits = self._model(input_ids=tokens).logits[0, :-1].double()
        chosen = torch.log_softmax(logits, dim=-1).gather(1, tokens[0, 1:, None])
        return float(-chosen.sum()), len(ids) - 1


def _load(folder: Path, device: str, option: str, endings: tuple[str, ...]) -> tuple[str, Any]:
    """The ending that the model's class has, and the model."""
    expected = " or ".join(f"...{ending}" for ending in endings)
    if not folder.is_dir():
        raise UserError(f"{option}: {folder} is no folder; it should hold a model of transformers ({expected})")
    try:
        config = read_json(folder / "config.json")
        [name], model_type = config["architectures"], config["model_type"]
        kind = next(ending for ending in endings if name.endswith(ending))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise UserError(
            f"{option}: {folder / 'config.json'} describes no model of the classes {expected}; give a folder with such"
            " a model of transformers"
        ) from None
    return kind, load_model(name, model_type, folder, device)


def _part(kind: Any, folder: Path) -> Any:
    """A tokenizer, or the settings of features."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # files that are missing or damaged raise whatever their reader raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{folder} lacks what {kind.__name__} reads ({reason}); give a complete folder") from None
