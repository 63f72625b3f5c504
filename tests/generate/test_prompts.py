"""Reading of spoken prompts, good and bad."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tolktrain.errors import UserError
from tolktrain.generate.prompts import read_prompts, read_waveform

RATE = 16_000


def _tone(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def _write(folder: Path, entries: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.json").write_text(json.dumps(entries))
    return folder


def test_prompts_in_order_with_what_is_said_of_them(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "b.wav", _tone(), RATE)
    soundfile.write(tmp_path / "a.wav", _tone(0.5), RATE)
    entries = [{"file": "b.wav", "text": "hello", "voice": "anna", "seconds": 1.0}]
    first, second = read_prompts(_write(tmp_path, [*entries, {"file": "a.wav", "ends_utterance": False}]), RATE)
    assert (first.name, first.text, first.voice, first.ends_utterance) == ("b", "hello", "anna", True)
    assert (second.name, second.text, second.ends_utterance, len(second.samples)) == ("a", "", False, RATE // 2)
    np.testing.assert_allclose(first.samples, _tone(), atol=1e-4)


def test_stereo_at_another_rate_is_mixed_and_resampled(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([_tone(rate=44_100), np.zeros(44_100)], axis=1), 44_100)
    samples = read_waveform(path, RATE)
    assert samples.shape == (RATE,) and samples.dtype == np.float32
    np.testing.assert_allclose(samples[500:-500], _tone()[500:-500] / 2, atol=5e-3)


@pytest.mark.slow
def test_a_small_file_that_holds_a_day_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 8_000, 1, format="FLAC") as file:
        for _ in range(24):
            file.write(np.zeros(8_000 * 3600, np.int16))
    read = (
        "import resource, sys; from pathlib import Path; from tolktrain.generate.prompts import read_waveform;"
        " resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30)); read_waveform(Path(sys.argv[1]), 16000)"
    )
    process = subprocess.run([sys.executable, "-c", read, path], capture_output=True, text=True, timeout=300)
    assert "long.wav is longer than 600 s" in process.stderr, process.stderr


@pytest.mark.parametrize("rate", [1, 2_000_000_011])
def test_a_rate_that_no_audio_has_is_refused(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, _tone(), RATE)
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.wav is not a readable audio file \(claims \d+ samples a second"):
        read_waveform(path, RATE)


def test_embedded_prompts(repository: Path) -> None:
    prompts = read_prompts(repository / "data" / "sample" / "prompts", RATE)
    assert len(prompts) == 4 and all(prompt.text and prompt.voice for prompt in prompts)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], r"prompts\.json must hold a list of objects"),
        ({"file": "a.wav"}, r"prompts\.json must hold a list of objects"),
        ([{"text": "no file"}], "with the key 'file'"),
        ([{"file": 3}], "with the key 'file'"),
        (
            [{"file": "a.wav"}, {"file": "more/a.wav"}],
            r"lists a\.wav and more/a\.wav, whose samples would have the same names \(a-prompt\.wav\)",
        ),
        ([{"file": "gone.wav"}], r"gone\.wav is not a readable audio file"),
        ([{"file": "prompts.json"}], r"prompts\.json is not a readable audio file"),
        ([{"file": "silent.wav"}], r"silent\.wav holds no audio"),
    ],
)
def test_bad_prompts(tmp_path: Path, entries: object, message: str) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(0, np.float32), RATE)
    with pytest.raises(UserError, match=message):
        read_prompts(_write(tmp_path, entries), RATE)


def test_missing_folder_and_broken_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts\.json cannot be read; evaluation\.prompts must name a folder"):
        read_prompts(tmp_path / "nowhere", RATE)
    (tmp_path / "prompts.json").write_text("[")
    with pytest.raises(UserError, match=r"prompts\.json is not JSON"):
        read_prompts(tmp_path, RATE)


def _half(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "subtype", "change", "message"),
    [
        ("cut.wav", "PCM_16", _half, "cut.wav is not a readable audio file .*cut off"),
        ("cut.flac", "PCM_16", _half, "cut.flac is not a readable audio file"),
        ("page.mp3", None, lambda path, _: path.write_bytes(b"<!DOCTYPE html><html>404</html>"), "page.mp3 .*HTML"),
        ("zero.mp3", None, lambda path, _: path.write_bytes(b""), "zero.mp3 .*0 bytes"),
        ("twice.flac", "PCM_16", lambda path, content: path.write_bytes(content * 2), "twice.flac .*joined"),
    ],
)
def test_audio_that_is_not_all_there(
    tmp_path: Path, name: str, subtype: str | None, change: Callable[[Path, bytes], None], message: str
) -> None:
    path = tmp_path / name
    soundfile.write(path, _tone(3.0), RATE, subtype=subtype)
    change(path, path.read_bytes())
    with pytest.raises(UserError, match=message):
        read_waveform(path, RATE)


def test_values_that_are_no_audio(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.where(np.arange(RATE) == 9, np.nan, _tone()), RATE, subtype="FLOAT")
    with pytest.raises(UserError, match="not finite"):
        read_waveform(tmp_path / "nan.wav", RATE)


@pytest.mark.parametrize(("suffix", "rate"), [("mp3", 44_100), ("flac", 8_000), ("ogg", 48_000), ("aiff", 22_050)])
def test_stereo_in_other_formats_and_rates(tmp_path: Path, suffix: str, rate: int) -> None:
    path = tmp_path / f"a.{suffix}"
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.float32)
    soundfile.write(path, np.stack([tone, np.zeros_like(tone)], axis=1), rate)
    samples = read_waveform(path, RATE)
    assert len(samples) == pytest.approx(2 * RATE, abs=0.1 * RATE)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.fft.rfftfreq(len(samples), 1 / RATE)[spectrum.argmax()] == pytest.approx(440, abs=1)
    assert np.abs(samples[RATE // 2 : RATE]).max() == pytest.approx(0.25, abs=0.02), "the mean of both channels"
