"""The log-mel tokenizer: fitting, files, units to sound and back."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tolktrain.config.errors import UserError
from tolktrain.units.load import load_speech_tokenizer
from tolktrain.units.logmel import CENTROIDS_FILE, DESCRIPTION_FILE, LogMelTokenizer
from tolktrain.units.mel import LogMelAnalysis


def _tones(seed: int, seconds: int = 20) -> np.ndarray:
    """A new mix of three tones every 120 ms."""
    rng = np.random.default_rng(seed)
    t = np.arange(1920) / 16_000
    pieces = []
    for _ in range(seconds * 16_000 // 1920):
        frequencies = rng.uniform(100, 4000, 3)
        pieces.append(sum(np.sin(2 * np.pi * f * t) for f in frequencies) * rng.uniform(0, 0.2))
    return np.concatenate(pieces).astype(np.float32)


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return LogMelAnalysis().features(_tones(0))


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
    sound = _tones(3, 5)
    units = tokenizer.encode(sound)
    assert np.array_equal(units, tokenizer.encode(sound))
    assert units.shape == (-(-len(sound) // 640), 1) and units.dtype == np.uint16
    assert (tokenizer.num_codebooks, tokenizer.frames_per_second, tokenizer.sample_rate) == (1, 25.0, 16_000)


def test_save_and_load(tmp_path: Path, tokenizer: LogMelTokenizer) -> None:
    tokenizer.save(tmp_path)
    loaded = load_speech_tokenizer(tmp_path)
    assert (loaded.name, loaded.version, loaded.sha256) == (tokenizer.name, tokenizer.version, tokenizer.sha256)
    sound = _tones(4, 3)
    assert np.array_equal(loaded.encode(sound), tokenizer.encode(sound))
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


def test_decode_refuses_what_is_no_unit(tokenizer: LogMelTokenizer) -> None:
    with pytest.raises(UserError, match="between 0 and 23"):
        tokenizer.decode(np.array([[24]]))
    with pytest.raises(UserError, match="shape"):
        tokenizer.decode(np.array([1, 2]))
    assert len(tokenizer.decode(np.zeros((0, 1), np.uint16))) == 0


def test_too_little_sound_to_fit() -> None:
    with pytest.raises(UserError, match="more sound"):
        LogMelTokenizer.fit(np.zeros((5, 80), np.float32), 6, 0, LogMelAnalysis())
