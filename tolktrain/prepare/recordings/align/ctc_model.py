"""Probabilities of letters over time, from a CTC model of the transformers library."""

import hashlib
import math
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tolktrain.errors import UserError
from tolktrain.files.reading import read_bytes
from tolktrain.units.base import Samples
from tolktrain.units.pretrained import inference, load_model, model_digest, model_folder

if TYPE_CHECKING:
    import torch

# A waveform that fits into one window is seen whole. Neighbours overlap; what has less context is taken from neither.
WINDOW_SECONDS = 40.0
CONTEXT_SECONDS = 2.0

_VOCABULARY = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class CtcModel:
    """Wav2Vec2ForCTC, HubertForCTC or another of their kind, with its vocabulary of letters."""

    def __init__(self, path: str, device: str, batch_seconds: float = 240.0, window_seconds: float = WINDOW_SECONDS):
        """Load a folder or hub id onto a device. Raises `UserError` if it is no CTC model over samples of audio."""
        try:
            from transformers import AutoConfig, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor
        except ImportError:
            raise UserError(
                "alignment by CTC needs the transformers library; install it with pip install 'tolktrain[audio]'"
            ) from None
        self._folder = _folder(path)
        try:
            config = AutoConfig.from_pretrained(self._folder, trust_remote_code=False)
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(self._folder)
            tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(self._folder)
            # transformers 5 adds the delimiter of words to a vocabulary without one, with an id that was never trained.
            found = Wav2Vec2CTCTokenizer.from_pretrained(self._folder, word_delimiter_token=None)
        except Exception as error:  # damaged files raise whatever their format's reader raises
            raise UserError(
                f"alignment.model: {path} is no CTC model of the transformers library ({_first_line(error)});"
                " give a folder with config.json, preprocessor_config.json, vocab.json and model.safetensors"
            ) from None
        _check_model(path, config, tokenizer.encoder)
        try:
            self._model: Any = load_model("AutoModelForCTC", config.model_type, self._folder, device)
        except UserError as error:
            raise UserError(f"alignment.model: {error}") from None
        self._device = self._model.device
        self._kernels = [int(kernel) for kernel in config.conv_kernel]
        self._strides = [int(stride) for stride in config.conv_stride]
        self._normalized = bool(extractor.do_normalize)
        # Normalization over time sees padding; such models take waveforms of one length at a time.
        self._may_pad = config.feat_extract_norm == "layer"
        self.sample_rate = int(extractor.sampling_rate)
        self.blank = int(config.pad_token_id)
        # Tokens that the library adds to vocab.json may have ids beyond what the model gives.
        vocabulary = {text: number for text, number in found.get_vocab().items() if number < config.vocab_size}
        self.delimiter: int | None = vocabulary.get(tokenizer.word_delimiter_token)
        self._letters = {
            text: number
            for text, number in vocabulary.items()
            if len(text) == 1 and number not in (self.blank, self.delimiter)
        }
        self._batch_samples = int(batch_seconds * self.sample_rate)
        self._window_frames = max(self.num_frames(int(window_seconds * self.sample_rate)), 1)
        self._context_frames = min(
            int(CONTEXT_SECONDS * self.sample_rate / self.stride), (self._window_frames - 1) // 2
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over what the probabilities depend on: weights, configuration, normalization, vocabulary."""
        found = hashlib.sha256(model_digest(self._folder).encode())
        for path in (self._folder / name for name in ("preprocessor_config.json", *_VOCABULARY)):
            if path.is_file():
                found.update(f"\n{path.name}\n".encode() + read_bytes(path))
        return found.hexdigest()

    @property
    def stride(self) -> int:
        """Samples from frame to frame."""
        return math.prod(self._strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame is computed from, before attention."""
        field = 1
        for kernel, stride in zip(self._kernels[::-1], self._strides[::-1], strict=True):
            field = (field - 1) * stride + kernel
        return field

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform."""
        for kernel, stride in zip(self._kernels, self._strides, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return max(num_samples, 0)

    def frame_end(self, frame: int) -> float:
        """Where a frame ends, in seconds: each frame has `stride` samples around the middle of those it sees."""
        return ((frame + 1) * self.stride + (self.receptive_field - self.stride) / 2) / self.sample_rate

    def token_ids(self, letter: str) -> list[int]:
        """Ids of a lower-case letter in the case and with the accents that the vocabulary has; none if it lacks it."""
        plain = "".join(char for char in unicodedata.normalize("NFD", letter) if not unicodedata.combining(char))
        for form in (letter, letter.upper(), plain, plain.upper(), letter.casefold(), letter.casefold().upper()):
            if form and all(char in self._letters for char in form):
                return [self._letters[char] for char in form]
        return []

    def emissions(self, waveforms: Sequence[Samples]) -> "list[torch.Tensor]":
        """Log probabilities [frames, vocabulary], float32 on the device, of each waveform of at least one frame."""
        import torch

        windows = [window for index, waveform in enumerate(waveforms) for window in self._windows(index, len(waveform))]
        prepared = [self._normalize(waveform) for waveform in waveforms]
        pieces: list[dict[int, torch.Tensor]] = [{} for _ in waveforms]
        for batch in self._batches(windows):
            inputs = [prepared[index][start:stop] for index, start, stop in batch]
            for (index, start, _), output in zip(batch, self._run(inputs), strict=True):
                pieces[index][start // self.stride] = output
        return [self._stitch(piece) for piece in pieces]

    def _windows(self, index: int, num_samples: int) -> Iterator[tuple[int, int, int]]:
        """Index of the waveform, first and last sample of each window; those of a long waveform have equal lengths."""
        total = self.num_frames(num_samples)
        assert total > 0, "a waveform without a frame has no probabilities"
        if total <= self._window_frames:
            yield index, 0, num_samples
            return
        step = self._window_frames - 2 * self._context_frames
        length = (self._window_frames - 1) * self.stride + self.receptive_field
        last = total - self._window_frames
        for frame in [*range(0, last, step), last]:
            yield index, frame * self.stride, frame * self.stride + length

    def _normalize(self, waveform: Samples) -> Samples:
        if not self._normalized:
            return waveform
        wide = waveform.astype(np.float64)
        normalized: Samples = ((wide - wide.mean()) / np.sqrt(wide.var() + 1e-7)).astype(np.float32)
        return normalized

    def _batches(self, windows: list[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
        """Windows of similar length together, at most `batch_seconds` with their padding."""
        batch: list[tuple[int, int, int]] = []
        for window in sorted(windows, key=lambda window: window[2] - window[1], reverse=True):
            longest = batch[0][2] - batch[0][1] if batch else 0
            fits = (len(batch) + 1) * longest <= self._batch_samples
            if batch and not (fits and (self._may_pad or window[2] - window[1] == longest)):
                yield batch
                batch = []
            batch.append(window)
        if batch:
            yield batch

    def _run(self, inputs: Sequence[Samples]) -> "list[torch.Tensor]":
        import torch

        longest = max(len(samples) for samples in inputs)
        values = torch.zeros(len(inputs), longest)
        mask = torch.zeros(len(inputs), longest, dtype=torch.long)
        for row, samples in enumerate(inputs):
            values[row, : len(samples)] = torch.from_numpy(samples)
            mask[row, : len(samples)] = 1
        padded = any(len(samples) < longest for samples in inputs)
        with inference():
            logits = self._model(values.to(self._device), mask.to(self._device) if padded else None).logits
            log_probabilities = logits.float().log_softmax(-1)
        return [log_probabilities[row, : self.num_frames(len(samples))] for row, samples in enumerate(inputs)]

    def _stitch(self, pieces: "dict[int, torch.Tensor]") -> "torch.Tensor":
        """Windows by their first frame, joined in the middle of what neighbours share."""
        import torch

        starts = sorted(pieces)
        cuts = [0]
        for start, following in zip(starts, starts[1:], strict=False):
            cuts.append((start + len(pieces[start]) + following) // 2)
        cuts.append(starts[-1] + len(pieces[starts[-1]]))
        return torch.cat(
            [
                pieces[start][cut - start : stop - start]
                for start, cut, stop in zip(starts, cuts, cuts[1:], strict=False)
            ]
        )


def _folder(path: str) -> Path:
    """The local folder of a model, with its vocabulary."""
    try:
        folder = model_folder(path)
    except UserError as error:
        raise UserError(f"alignment.model: {error}") from None
    if Path(path).expanduser().is_dir() or (folder / _VOCABULARY[0]).is_file():
        return folder
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=[*_VOCABULARY]))
    except Exception as error:  # the hub client raises a dozen unrelated classes, network errors among them
        raise UserError(
            f"alignment.model: the vocabulary of {path} could not be fetched from the Hugging Face hub"
            f" ({_first_line(error)}); check the network, or download the model and give the folder"
        ) from None


def _first_line(error: Exception) -> str:
    """The first line of an error of a library."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _check_model(path: str, config: Any, vocabulary: dict[str, Any]) -> None:
    if not hasattr(config, "conv_stride") or getattr(config, "add_adapter", False):
        raise UserError(
            f"alignment.model: {path} is a {config.model_type} model that does not go from samples to letters by plain"
            " convolutions and attention; give a Wav2Vec2, HuBERT or WavLM model with a CTC head"
        )
    if max(vocabulary.values()) >= config.vocab_size:
        raise UserError(
            f"alignment.model: vocab.json of {path} goes to {max(vocabulary.values())}, but the model has"
            f" {config.vocab_size} tokens only; give the vocabulary that it was trained with"
        )
    if config.pad_token_id is None:
        raise UserError(f"alignment.model: config.json of {path} has no pad_token_id, which is the CTC blank; name it")
