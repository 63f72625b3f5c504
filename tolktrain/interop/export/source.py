"""What is exported: a run, a checkpoint, or a folder of weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.interop.tokenizer_files import (
    add_speech_tokenizer,
    add_text_tokenizer,
    add_vocoder,
    tokenizers_in,
)
from tolktrain.interop.weights import OpenWeights, is_checkpoint, is_weights, open_source
from tolktrain.runs.paths import RunPaths


@dataclass(frozen=True)
class ExportSource:
    """A run with its configuration; a checkpoint, whose run is looked for around it; or a folder of weights."""

    folder: Path
    step: int | None
    run_dir: Path | None  # with a configuration
    config: Config | None

    @classmethod
    def of(cls, folder: Path, step: int | None = None) -> "ExportSource":
        """Raises UserError if the configuration of the run cannot be read."""
        candidate = folder.resolve().parents[1] if is_checkpoint(folder) else folder
        file = RunPaths(candidate).config
        if is_weights(folder) or not file.is_file():
            return cls(folder, step, None, None)
        return cls(folder, step, candidate, load_config(file))

    @contextmanager
    def open(self, report: Callable[[str], None]) -> Iterator[OpenWeights]:
        """The weights, with the length of training sequences. Raises UserError like `open_source`."""
        with open_source(self.folder, self.step, report) as weights:
            if self.config is not None:
                weights = replace(weights, sequence_length=self.config.train.sequence_length)
            yield weights

    @property
    def tokenizers(self) -> tuple[str | None, str | None]:
        """The text and the speech tokenizer: those that the run names, or that the folder of weights holds."""
        if self.config is not None:
            return self.config.data.text_tokenizer, self.config.data.speech_tokenizer
        return tokenizers_in(self.folder)

    def add_text_tokenizer(self, folder: Path, weights: OpenWeights) -> int | None:
        """Add the text tokenizer to a folder; returns its EOS, None without a tokenizer.

        Raises UserError if it is missing or not the one of the data.
        """
        text, _ = self.tokenizers
        if text is None:
            return None
        return add_text_tokenizer(folder, text, digests(weights).get("text"), weights.architecture)[0]

    def add_tokenizers(self, folder: Path, weights: OpenWeights) -> tuple[int | None, bool, OpenWeights]:
        """Add both tokenizers to a folder, and the vocoder that the run names.

        Returns EOS of text, None without a text tokenizer; whether there is a speech tokenizer; and the weights with
        the digests of what was added.

        Raises UserError like `add_text_tokenizer`.
        """
        text, speech = self.tokenizers
        known, eos = dict(digests(weights)), None
        if text is not None:
            eos, known["text"] = add_text_tokenizer(folder, text, known.get("text"), weights.architecture)
        if speech is not None:
            known["speech"] = add_speech_tokenizer(folder, speech, known.get("speech"), weights.architecture)
            if self.config is not None and self.config.data.vocoder.path is not None:
                add_vocoder(folder, self.config.data.vocoder.path)
        return eos, speech is not None, replace(weights, state={**weights.state, "tokenizers": known})


def digests(weights: OpenWeights) -> Mapping[str, str | None]:
    """SHA-256 of the tokenizers of the data, by modality, as far as they are known."""
    found: Mapping[str, str | None] = weights.state.get("tokenizers") or {}
    return found
