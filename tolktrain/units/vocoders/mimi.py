"""The decoder of Mimi. It needs no files of its own.

The decoder is causal. Long speech is computed in windows, each with all the frames before it that its audio depends on:
attention of each layer reaches `sliding_window` steps back, and every convolution some more. The audio is that of one
pass, up to rounding.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tolktrain.units.base import Samples, Vocoder, check_units
from tolktrain.units.mimi import MimiTokenizer
from tolktrain.units.pretrained import inference
from tolktrain.units.vocoders.kind import VocoderKind, VocoderSource
from tolktrain.units.vocoders.voices import require_one_voice
from tolktrain.units.windows import windows_with_context

NAME: Final = "mimi"
_WINDOW_SECONDS = 60.0  # at least; as long as what is computed before it


class MimiVocoder:
    """Audio of Mimi units. Durations are not predicted."""

    name = NAME
    duration_predictor = None

    def __init__(self, tokenizer: MimiTokenizer, window_frames: int | None = None) -> None:
        """Vocoder of the units of a tokenizer; `window_frames` None means 60 seconds, or the decoder's context."""
        self._tokenizer = tokenizer
        self._hop = round(tokenizer.sample_rate / tokenizer.frames_per_second)
        self._context = context_frames(tokenizer.model.config)
        usual = max(round(_WINDOW_SECONDS * tokenizer.frames_per_second), self._context)
        self._window = usual if window_frames is None else window_frames

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio."""
        return self._tokenizer.sample_rate

    def stream(self, frames: npt.NDArray[Any]) -> Iterator[Samples]:
        """Audio of the units [frames, num_codebooks]: [frames * hop] samples, within -1 and 1, window by window.

        Raises `UserError` for ids outside the vocabulary.
        """
        import torch

        check_units(frames, self._tokenizer.num_units, self._tokenizer.num_codebooks)
        for window in windows_with_context(len(frames), self._window, self._context, 0):
            codes = torch.from_numpy(frames[window.start : window.end].T.astype(np.int64))[None]
            with inference():
                decoded = self._tokenizer.model.decode(codes.to(self._tokenizer.device), return_dict=True)
            waveform = decoded.audio_values[0, 0]
            assert len(waveform) == (window.end - window.start) * self._hop
            yield waveform[(window.first - window.start) * self._hop :].clamp(-1, 1).cpu().numpy()


def context_frames(config: Any) -> int:
    """Frames before a frame on which its audio depends."""
    context = config.last_kernel_size - 1  # samples; then, upwards from the output, steps of each layer's input
    for ratio in reversed(config.upsampling_ratios):
        for block in range(config.num_residual_layers):
            context += (config.residual_kernel_size - 1) * config.dilation_growth_rate**block
        context = (context + 2 * ratio - 1) // ratio  # a kernel of 2 * ratio
    context += config.kernel_size - 1
    context += config.num_hidden_layers * (config.sliding_window - 1)
    if config.frame_rate != config.encodec_frame_rate:
        kernel = 2 * int(config.encodec_frame_rate / config.frame_rate)
        context = (context + kernel - 1) // 2
    return int(context)


def _open(source: VocoderSource) -> Callable[[], Vocoder]:
    require_one_voice(source.voice, "Mimi")

    def load() -> Vocoder:
        tokenizer = source.load_tokenizer()
        assert isinstance(tokenizer, MimiTokenizer)
        return MimiVocoder(tokenizer)

    return load


KIND = VocoderKind(NAME, _open)
