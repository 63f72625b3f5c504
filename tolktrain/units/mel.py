"""Log-mel frames of audio, and audio from log-mel frames."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tolktrain.config.base import StrictModel
from tolktrain.errors import UserError
from tolktrain.units.base import Samples, check_mono

Features = npt.NDArray[np.float32]  # [frames, num_mels]
Filters = npt.NDArray[np.float64]  # [num_mels, window / 2 + 1]

_FINER = 8  # frames of the inversion per frame of features
_TINY = 1e-12
_BLOCK = 256  # frames computed at a time: what they need stays in the processor's cache


class LogMelAnalysis(StrictModel):
    """Parameters of log-mel frames, and both directions."""

    sample_rate: int = Field(default=16_000, gt=0, description="Samples per second.")
    hop: int = Field(default=640, gt=0, multiple_of=_FINER, description="Samples from frame to frame.")
    window: int = Field(
        default=640, gt=1, multiple_of=2, description="Samples of the Hann window, centred on the frame."
    )
    num_mels: int = Field(default=80, gt=0, description="Mel bands (Slaney's scale and area normalization).")
    floor: float = Field(default=1e-6, gt=0, description="Least power of a band; silence is the log of it.")

    @property
    def frames_per_second(self) -> float:
        """Frames per second of audio."""
        return self.sample_rate / self.hop

    @cached_property
    def _filters(self) -> Filters:
        try:
            import librosa
        except ImportError:
            raise UserError("log-mel units need librosa, which is missing; pip install 'tolktrain[audio]'") from None

        filters: Filters = librosa.filters.mel(
            sr=self.sample_rate, n_fft=self.window, n_mels=self.num_mels, dtype=np.float64
        )
        return filters

    @cached_property
    def _hann(self) -> npt.NDArray[np.float64]:
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)

    def features(self, samples: Samples) -> Features:
        """Log power in mel bands of mono audio: [ceil(n / hop), num_mels]; frame t is centred on the middle of its hop.

        Computed in double precision and rounded to 0.01, so that the last digits of another machine's arithmetic cannot
        change a unit. Raises `UserError` if the audio is not mono.
        """
        blocks = list(self.blocks(samples))
        return np.concatenate(blocks) if blocks else np.zeros((0, self.num_mels), np.float32)

    def blocks(self, samples: Samples) -> Iterator[Features]:
        """`features` a few frames at a time, so that memory does not grow with the length of the audio."""
        check_mono(samples)
        count = -(-len(samples) // self.hop)
        offset = (self.hop - self.window) // 2
        for frame in range(0, count, _BLOCK):
            frames = min(_BLOCK, count - frame)
            first = frame * self.hop + offset
            padded = np.zeros((frames - 1) * self.hop + self.window)
            known = samples[max(first, 0) : max(first + len(padded), 0)]
            start = max(-first, 0)
            padded[start : start + len(known)] = known
            windows = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop]
            power = np.abs(np.fft.rfft(windows * self._hann, axis=1)) ** 2  # [frames, window / 2 + 1]
            mels: npt.NDArray[Any] = np.log(np.maximum(power @ self._filters.T, self.floor))
            yield mels.round(2).astype(np.float32)

    def invert(self, features: Features) -> Samples:
        """Audio of log-mel frames by Griffin-Lim: [frames * hop]. The same frames give the same audio.

        Frames 40 ms apart are too far from each other for the windows of Griffin-Lim to agree on phases: they are
        interpolated to 5 ms first.
        """
        import librosa

        if not len(features):
            return np.zeros(0, np.float32)
        fine = self.hop // _FINER
        centres = (np.arange(len(features)) + 0.5) * self.hop
        grid = np.arange(len(features) * _FINER + 1) * fine
        bands = np.exp([np.interp(grid, centres, band) for band in features.T.astype(np.float64)])  # [num_mels, grid]
        magnitudes = np.sqrt(self._bins(bands))
        samples = librosa.griffinlim(
            magnitudes,
            n_iter=60,
            hop_length=fine,
            win_length=self.window,
            n_fft=self.window,
            random_state=0,
            length=len(features) * self.hop,
        )
        return np.clip(samples, -1.0, 1.0).astype(np.float32)

    def _bins(self, bands: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Power of bins from power of bands, by multiplicative updates (Lee and Seung 2001): positive and smooth."""
        filters = self._filters
        coverage = np.maximum(filters.sum(axis=0), 1e-8)[:, None]
        power: npt.NDArray[np.float64] = filters.T @ (bands / filters.sum(axis=1, keepdims=True)) / coverage + _TINY
        for _ in range(30):
            power *= filters.T @ (bands / np.maximum(filters @ power, _TINY)) / coverage
        return power
