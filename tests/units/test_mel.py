"""Log-mel frames against librosa's, and audio from them."""

import sys

import librosa
import numpy as np
import pytest

from tolktrain.errors import UserError
from tolktrain.units.mel import LogMelAnalysis, mel_filters


def _sweep(seconds: float, rate: int = 16_000) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 * t + 700 * t**2))).astype(np.float32)


@pytest.mark.parametrize("window", [400, 640, 1024])
def test_frames_are_librosas(window: int) -> None:
    analysis = LogMelAnalysis(window=window)
    waveform = _sweep(1.0)
    frames = analysis.features(waveform)
    # librosa centres frame t on sample t * hop; ours is on the middle of the hop.
    shifted = np.concatenate([np.zeros(window // 2 - analysis.hop // 2 if window > analysis.hop else 0), waveform])
    start = max(analysis.hop // 2 - window // 2, 0)
    padded = np.concatenate([shifted[start:], np.zeros(window)])
    mels = librosa.feature.melspectrogram(
        y=padded.astype(np.float64), sr=16_000, n_fft=window, hop_length=analysis.hop, n_mels=80, center=False
    )
    expected = np.log(np.maximum(mels.T, analysis.floor))[: len(frames)]
    assert frames.shape == (25, 80)
    assert np.abs(frames - expected).max() <= 0.0051


@pytest.mark.parametrize("rate", [1_000, 8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize(("window", "num_mels"), [(400, 40), (640, 80), (2048, 128), (64, 80)])
@pytest.mark.filterwarnings("ignore:Empty filters")
def test_filters_are_librosas(rate: int, window: int, num_mels: int) -> None:
    """To the last bit: units of an existing tokenizer do not change."""
    expected = librosa.filters.mel(sr=rate, n_fft=window, n_mels=num_mels, dtype=np.float64)
    assert np.array_equal(mel_filters(rate, window, num_mels), expected)


def _in_one_piece(analysis: LogMelAnalysis, samples: np.ndarray) -> np.ndarray:
    """Each frame by itself, written out."""
    hop, window = analysis.hop, analysis.window
    frames = []
    for index in range(-(-len(samples) // hop)):
        start = index * hop + (hop - window) // 2
        cut = np.zeros(window)
        known = samples[max(start, 0) : start + window]
        cut[max(-start, 0) : max(-start, 0) + len(known)] = known
        spectrum = np.fft.rfft(cut * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)))
        filters = librosa.filters.mel(sr=analysis.sample_rate, n_fft=window, n_mels=80, dtype=np.float64)
        frames.append(np.log(np.maximum(np.abs(spectrum) ** 2 @ filters.T, analysis.floor)).round(2))
    return np.array(frames, np.float32)


@pytest.mark.parametrize("window", [400, 640, 2048])
def test_blocks_are_joined_without_a_seam(window: int) -> None:
    analysis = LogMelAnalysis(window=window)
    rng = np.random.default_rng(0)
    waveform = np.tile(_sweep(2.0), 14)[: 25 * 16_000 + 77]  # 626 frames: three blocks
    waveform += rng.normal(0, 1e-3, len(waveform)).astype(np.float32)
    assert np.array_equal(analysis.features(waveform), _in_one_piece(analysis, waveform))


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 1), (640, 1), (641, 2), (6400, 10)])
def test_number_of_frames(samples: int, frames: int) -> None:
    analysis = LogMelAnalysis()
    assert analysis.features(np.zeros(samples, np.float32)).shape == (frames, 80)


def test_silence_is_the_floor() -> None:
    analysis = LogMelAnalysis()
    frames = analysis.features(np.zeros(3200, np.float32))
    assert np.allclose(frames, np.log(analysis.floor), atol=0.005)


def test_audio_from_frames_has_their_spectrum() -> None:
    analysis = LogMelAnalysis()
    frames = analysis.features(_sweep(1.0))
    waveform = analysis.invert(frames)
    assert waveform.shape == (16_000,) and waveform.dtype == np.float32
    assert np.array_equal(waveform, analysis.invert(frames))
    again = analysis.features(waveform)
    assert (np.abs(again.argmax(axis=1) - frames.argmax(axis=1)) <= 1).mean() >= 0.9
    assert abs(np.log((waveform**2).mean() / (_sweep(1.0) ** 2).mean())) < np.log(2)


def test_without_librosa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audio cannot be made; features do not need it."""
    monkeypatch.setitem(sys.modules, "librosa", None)
    analysis = LogMelAnalysis()
    frames = analysis.features(np.zeros(640, np.float32))
    with pytest.raises(UserError, match=r"pip install 'tolktrain\[audio\]'"):
        analysis.invert(frames)


def test_stereo_is_refused() -> None:
    with pytest.raises(UserError, match="mono"):
        LogMelAnalysis().features(np.zeros((2, 100), np.float32))
