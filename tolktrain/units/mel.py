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
# Slaney's scale is linear up to 1 kHz, and logarithmic above.
_HZ_PER_MEL = 200.0 / 3
_LINEAR_HZ = 1000.0
_LINEAR_MELS = _LINEAR_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def mel_filters(sample_rate: int, window: int, num_mels: int) -> Filters:
    """Triangles of equal area on Slaney's mel scale, from 0 to half the sample rate.

    They equal librosa's to the last bit, without its import, which takes longer than the features of minutes of audio
    and which each process of a preparation would pay for.
    """
    highest = _hz_to_mel(sample_rate / 2)
    corners = _mels_to_hz(np.linspace(0.0, highest, num_mels + 2))
    widths = np.diff(corners)
    ramps = np.subtract.outer(corners, np.fft.rfftfreq(window, 1.0 / sample_rate))
    rising = -ramps[:-2] / widths[:-1, None]
    falling = ramps[2:] / widths[1:, None]
    filters: Filters = np.maximum(0, np.minimum(rising, falling))
    return filters * (2.0 / (corners[2:] - corners[:-2]))[:, None]


def _hz_to_mel(hz: float) -> float:
    if hz < _LINEAR_HZ:
        return hz / _HZ_PER_MEL
    return float(_LINEAR_MELS + np.log(hz / _LINEAR_HZ) / _LOG_STEP)


def _mels_to_hz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    hz = _HZ_PER_MEL * mels
    above = mels >= _LINEAR_MELS
    hz[above] = _LINEAR_HZ * np.exp(_LOG_STEP * (mels[above] - _LINEAR_MELS))
    return hz


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
        return mel_filters(self.sample_rate, self.window, self.num_mels)

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
        interpolated to 5 ms first. Raises `UserError` if librosa is not installed.
        """
        try:
            import librosa
        except ImportError:
            message = "audio of log-mel units needs librosa, which is missing; pip install 'tolktrain[audio]'"
            raise UserError(message) from None

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
