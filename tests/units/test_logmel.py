"""The log-mel tokenizer: fitting, files, units to audio and back."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_disk import MakeDisk
from small_models import tones

from tolktrain.errors import UserError
from tolktrain.units.base import decode
from tolktrain.units.load import load_speech_tokenizer
from tolktrain.units.logmel import CENTROIDS_FILE, DESCRIPTION_FILE, LogMelTokenizer
from tolktrain.units.mel import LogMelAnalysis
from tolktrain.units.vocoders.griffin_lim import GriffinLimVocoder


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return LogMelAnalysis().features(tones(0, 20))


@pytest.fixture(scope="module")
def tokenizer(features: np.ndarray) -> LogMelTokenizer:
    return LogMelTokenizer.fit(features, 24, 1, LogMelAnalysis())


def test_fit_is_reproducible(features: np.ndarray, tokenizer: LogMelTokenizer) -> None:
    again = LogMelTokenizer.fit(features, 24, 1, LogMelAnalysis())
    other = LogMelTokenizer.fit(features, 24, 2, LogMelAnalysis())
    assert again.sha256 == tokenizer.sha256
    assert other.sha256 != tokenizer.sha256
    assert (np.diff(tokenizer.centroids.mean(axis=1)) >= 0).all()


def test_units_are_the_nearest_centroids(features: np.ndarray, tokenizer: LogMelTokenizer) -> None:
    distances = np.linalg.norm(features[:, None].astype(np.float64) - tokenizer.centroids[None], axis=2)
    assert np.array_equal(tokenizer.assign(features)[:, 0], distances.argmin(axis=1))


def test_encode_is_deterministic_and_complete(tokenizer: LogMelTokenizer) -> None:
    waveform = tones(3, 5)
    units = tokenizer.encode(waveform)
    assert np.array_equal(units, tokenizer.encode(waveform))
    assert units.shape == (-(-len(waveform) // 640), 1) and units.dtype == np.uint16
    assert (tokenizer.num_codebooks, tokenizer.frames_per_second, tokenizer.sample_rate) == (1, 25.0, 16_000)


def test_save_and_load(tmp_path: Path, tokenizer: LogMelTokenizer) -> None:
    tokenizer.save(tmp_path)
    loaded = load_speech_tokenizer(tmp_path)
    assert (loaded.name, loaded.version, loaded.sha256) == (tokenizer.name, tokenizer.version, tokenizer.sha256)
    waveform = tones(4, 3)
    assert np.array_equal(loaded.encode(waveform), tokenizer.encode(waveform))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CENTROIDS_FILE, DESCRIPTION_FILE]


def test_missing_files(tmp_path: Path, tokenizer: LogMelTokenizer) -> None:
    with pytest.raises(UserError, match="speech_tokenizer.json cannot be read"):
        load_speech_tokenizer(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / CENTROIDS_FILE).unlink()
    with pytest.raises(UserError, match="centroids.safetensors cannot be read"):
        load_speech_tokenizer(tmp_path)


def test_damaged_or_foreign_centroids(tmp_path: Path, tokenizer: LogMelTokenizer) -> None:
    tokenizer.save(tmp_path)
    save_file({"centroids": np.zeros((24, 80), np.float32)}, tmp_path / CENTROIDS_FILE)
    with pytest.raises(UserError, match="does not belong to speech_tokenizer.json"):
        load_speech_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_units": 23}, "says float32"),
        ({"version": "2"}, "version"),
        ({"name": "wav2vec"}, "'wav2vec'; this version knows"),
        ({"surplus": 1}, "surplus"),
        ({"frames_per_second": 50.0}, "frames per second"),
    ],
)
def test_descriptions_that_do_not_fit(
    tmp_path: Path, tokenizer: LogMelTokenizer, change: dict[str, object], message: str
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / DESCRIPTION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_speech_tokenizer(tmp_path)


def test_unreadable_description(tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION_FILE).write_text("{")
    with pytest.raises(UserError, match="not a JSON object"):
        load_speech_tokenizer(tmp_path)


def test_audio_of_units(tokenizer: LogMelTokenizer) -> None:
    """The inversion of their centroids, and nothing for what is no unit."""
    vocoder = GriffinLimVocoder(tokenizer)
    assert (vocoder.name, vocoder.sample_rate, vocoder.duration_predictor) == ("griffin-lim", 16_000, None)
    units = np.array([[3], [3], [20]])
    assert np.array_equal(decode(vocoder, units), tokenizer.analysis.invert(tokenizer.centroids[[3, 3, 20]]))
    with pytest.raises(UserError, match="between 0 and 23"):
        decode(vocoder, np.array([[24]]))
    with pytest.raises(UserError, match="shape"):
        decode(vocoder, np.array([1, 2]))
    assert len(decode(vocoder, np.zeros((0, 1), np.uint16))) == 0


def test_too_little_audio_to_fit() -> None:
    with pytest.raises(UserError, match="more audio"):
        LogMelTokenizer.fit(np.zeros((5, 80), np.float32), 6, 0, LogMelAnalysis())


def test_analysis_is_part_of_the_digest(tmp_path: Path, tokenizer: LogMelTokenizer) -> None:
    other = LogMelTokenizer(tokenizer.centroids, LogMelAnalysis(window=1024))
    assert other.sha256 != tokenizer.sha256
    other.save(tmp_path)
    assert load_speech_tokenizer(tmp_path).sha256 == other.sha256
    path = tmp_path / DESCRIPTION_FILE
    path.write_text(path.read_text().replace("1024", "640"))
    with pytest.raises(UserError, match="does not belong"):
        load_speech_tokenizer(tmp_path)


def test_batches_change_nothing(tokenizer: LogMelTokenizer) -> None:
    waveforms = [tones(seed, seconds) for seed, seconds in enumerate((3.0, 0.01, 12.5, 0.0))]
    batch = tokenizer.encode_batch(waveforms)
    assert [len(units) for units in batch] == [75, 1, 313, 0]
    assert all(
        np.array_equal(units, tokenizer.encode(waveform)) for units, waveform in zip(batch, waveforms, strict=True)
    )
    assert all(units.shape[1:] == (1,) and units.dtype == np.uint16 for units in batch)


def test_stereo_is_refused(tokenizer: LogMelTokenizer) -> None:
    with pytest.raises(UserError, match="mono"):
        tokenizer.encode(np.zeros((2, 100), np.float32))


def test_memory_does_not_grow_with_the_audio(tokenizer: LogMelTokenizer) -> None:
    waveform = np.tile(tones(5, 20), 60)  # 20 minutes, 77 MB
    tokenizer.encode(waveform[:16_000])
    tracemalloc.start()
    units = tokenizer.encode(waveform)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(units) == 20 * 60 * 25
    assert peak < 8e6


def test_fit_from_a_stream_is_a_fit_of_its_frames() -> None:
    waveforms = [tones(seed, 6) for seed in range(5)]
    features = np.concatenate([LogMelAnalysis().features(waveform) for waveform in waveforms])
    streamed = LogMelTokenizer.fit_from(iter(waveforms), 16, 3, hours=1.0)
    assert streamed.sha256 == LogMelTokenizer.fit(features, 16, 3, LogMelAnalysis()).sha256
    assert LogMelTokenizer.fit_from(iter(waveforms[::-1]), 16, 3, hours=1.0).sha256 != streamed.sha256


def test_fit_from_a_stream_takes_the_hours_it_was_given() -> None:
    waveforms = [tones(seed, 6) for seed in range(5)]
    half = LogMelTokenizer.fit_from(iter(waveforms), 16, 3, hours=15 / 3600)
    cut = [waveforms[0], waveforms[1], waveforms[2][: 3 * 16_000]]
    assert half.sha256 == LogMelTokenizer.fit_from(iter(cut), 16, 3, hours=1.0).sha256


def test_fit_from_more_frames_than_needed_draws_some() -> None:
    waveforms = [tones(seed, 30) for seed in range(3)]  # 2,250 frames for 2 units that take 1,000
    one, again, other = (LogMelTokenizer.fit_from(iter(waveforms), 2, seed, hours=1.0) for seed in (3, 3, 4))
    assert one.sha256 == again.sha256 != other.sha256


def test_fit_from_nothing() -> None:
    with pytest.raises(UserError, match="no audio"):
        LogMelTokenizer.fit_from(iter([]), 4, 0, hours=1.0)


def test_a_full_disk_keeps_the_last_tokenizer(tokenizer: LogMelTokenizer, make_disk: MakeDisk) -> None:
    disk = make_disk(64)
    (disk.path / DESCRIPTION_FILE).write_text("the last one")
    disk.refuses(lambda: tokenizer.save(disk.path), f"'.*/{CENTROIDS_FILE}'", leaving_kib=4)
    assert load_speech_tokenizer(disk.path).sha256 == tokenizer.sha256
