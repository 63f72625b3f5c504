"""Reading the audio of utterances: the right samples, or an error of that one utterance."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tolktrain.prepare.recordings.audio import AudioReader, read_audio, resampled
from tolktrain.prepare.utterances import EntryError, Reason, Utterance

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE = 16_000
Waveform = npt.NDArray[np.float32]
CODED: dict[str, dict[str, str]] = {
    "a.wav": {},
    "a.flac": {},
    "a.ogg": {},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
    "a.mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
}


def waveform(seconds: float, rate: int = RATE, seed: int = 0) -> Waveform:
    """Loud and quiet stretches, so that variable bit rates do vary, and every place sounds different."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(times))
    loudness = np.where(times % 2 < 1, 1.0, 0.001)
    return (loudness * (0.3 * np.sin(2 * np.pi * (200 + 30 * times) * times) + 0.1 * noise)).astype(np.float32)


def write(path: Path, samples: Waveform, rate: int = RATE, **options: Any) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def utterance(path: Path, **fields: Any) -> Utterance:
    return Utterance(id="u", source="s", speaker="", audio=str(path), **fields)


def failure(path: Path, **fields: Any) -> EntryError:
    with pytest.raises(EntryError) as caught:
        read_audio(utterance(path, **fields), RATE)
    return caught.value


@pytest.mark.parametrize("name", CODED)
def test_a_piece_is_cut_from_the_whole_to_the_sample(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, waveform(12), **CODED[name])
    whole, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    # `soundfile.read` seeks to the beginning first, after which MP3 is rounded differently in the last bit.
    for offset, duration in [(0.0, 12.0), (7.31, 1.5), (0.0, 0.5), (11.2, 0.8), (3.00006, 2.0)]:
        got = read_audio(utterance(path, offset=offset, duration=duration), RATE)
        begin = round(offset * RATE)
        np.testing.assert_allclose(got, whole[begin : round((offset + duration) * RATE)].clip(-1, 1), atol=2e-7, rtol=0)
    np.testing.assert_allclose(read_audio(utterance(path), RATE), whole.clip(-1, 1), atol=2e-7, rtol=0)
    assert len(read_audio(utterance(path, offset=2.5), RATE)) == len(whole) - 2.5 * RATE


def coded_by_ffmpeg(path: Path, samples: Waveform, rate: int, *options: str) -> Waveform:
    """Write MP3 with ffmpeg; returns the same as ffmpeg decodes it."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    write(path.with_suffix(".wav"), samples, rate)
    call = ["ffmpeg", "-v", "error", "-i"]
    subprocess.run([*call, str(path.with_suffix(".wav")), *options, str(path)], check=True)
    decoded = subprocess.run([*call, str(path), "-f", "f32le", "-"], check=True, capture_output=True).stdout
    return np.frombuffer(decoded, np.float32)


@pytest.mark.parametrize(
    "options", [("-q:a", "5"), ("-q:a", "5", "-write_xing", "0"), ("-b:a", "64k", "-write_xing", "0")]
)
def test_mp3_pieces_are_where_ffmpeg_has_them(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Seeking in variable bit rate lands elsewhere; without a header the length is estimated."""
    path = tmp_path / "a.mp3"
    whole = coded_by_ffmpeg(path, waveform(30, 44_100), 44_100, *options).clip(-1, 1)
    with AudioReader() as reader:
        for offset in (20.3, 21.0, 25.77, 4.9, 4.9):
            got = reader.read(utterance(path, offset=offset, duration=1.0), 44_100)
            begin = round(offset * 44_100)
            np.testing.assert_allclose(got, whole[begin : begin + 44_100], atol=1e-5)
    assert len(read_audio(utterance(path), 44_100)) == len(whole)
    assert "begin at 31.00 s" in failure(path, offset=31.0).detail


@pytest.mark.parametrize("name", CODED)
def test_reading_in_order_equals_reading_one_by_one(tmp_path: Path, name: str) -> None:
    first, second = tmp_path / name, tmp_path / f"b-{name}"
    for number, path in enumerate((first, second)):
        write(path, waveform(6, seed=number), **CODED[name])
    wanted = [utterance(path, offset=o, duration=0.7) for path in (first, second, first) for o in (1.0, 2.5, 2.0)]
    with AudioReader() as reader:
        for one in wanted:
            assert np.array_equal(reader.read(one, RATE), read_audio(one, RATE))


def test_joined_mp3_files_are_not_read_by_half(tmp_path: Path) -> None:
    """Decoders stop where the first header says the audio ends."""
    path = write(tmp_path / "a.mp3", waveform(2), **CODED["a.mp3"])
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 5]) + bytes(133)
    for between in (b"", tag):
        (tmp_path / "joined.mp3").write_bytes(path.read_bytes() + between + path.read_bytes())
        assert "more audio follows" in failure(tmp_path / "joined.mp3").detail
    (tmp_path / "tagged.mp3").write_bytes(tag + path.read_bytes() + b"TAG" + bytes(125))
    assert np.array_equal(read_audio(utterance(tmp_path / "tagged.mp3"), RATE), read_audio(utterance(path), RATE))


def test_channels_are_mixed_or_chosen(tmp_path: Path) -> None:
    left, right = waveform(1, seed=1), waveform(1, seed=2)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_audio(utterance(path), RATE), (left + right) / 2, atol=1e-7)
    assert np.array_equal(read_audio(utterance(path, channel=1), RATE), right)
    error = failure(path, channel=2)
    assert error.reason is Reason.AUDIO and "no channel 2; it has 2" in error.detail


def test_audio_is_brought_to_the_wanted_rate(tmp_path: Path) -> None:
    """A tone keeps its frequency and loudness; what is too loud is clipped."""
    times = np.arange(2 * 44_100) / 44_100
    tone = (0.5 * np.sin(2 * np.pi * 1000 * times)).astype(np.float32)
    path = write(tmp_path / "a.wav", np.stack([tone, tone], axis=1), 44_100)
    got = read_audio(utterance(path), RATE)
    assert got.dtype == np.float32 and len(got) == 2 * RATE
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(len(got)) / RATE)
    np.testing.assert_allclose(got[800:-800], expected[800:-800], atol=2e-3)
    assert np.array_equal(resampled(got, RATE, RATE), got) and not len(resampled(got[:0], RATE, 8000))
    write(path, 3 * tone, 44_100, subtype="FLOAT")
    assert np.abs(read_audio(utterance(path), RATE)).max() == 1


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("said", [True, False])
def test_a_file_cut_in_the_middle_fails(tmp_path: Path, name: str, said: bool) -> None:
    """With and without the length in the manifest; the audio before the cut stays usable."""
    path = write(tmp_path / name, waveform(10), **CODED[name])
    before = read_audio(utterance(path, offset=1.0, duration=2.0), RATE)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    error = failure(path, duration=10.0 if said else None)
    assert error.reason is Reason.AUDIO and str(path) in error.detail
    np.testing.assert_allclose(read_audio(utterance(path, offset=1.0, duration=2.0), RATE), before, atol=2e-7)


@pytest.mark.parametrize("name", CODED)
def test_a_manifest_may_be_wrong_by_rounding_only(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, waveform(3), **CODED[name])
    assert len(read_audio(utterance(path, offset=2.0, duration=1.09), RATE)) == pytest.approx(RATE, abs=1)
    assert "expected 1.20 s" in failure(path, offset=2.0, duration=1.2).detail
    error = failure(path, offset=3.5, duration=1.0)
    assert error.reason is Reason.AUDIO and "lasts 3.00 s" in error.detail
    assert "begin at" in failure(path, offset=1e300).detail


def test_wav_from_a_pipe_is_whole(tmp_path: Path) -> None:
    """Programs that write into a pipe do not know the length and declare the largest."""
    path = write(tmp_path / "a.wav", waveform(1))
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(read_audio(utterance(path), RATE)) == RATE


def test_what_is_no_audio_fails_with_its_reason(tmp_path: Path) -> None:
    assert "does not exist" in failure(tmp_path / "absent.wav").detail
    assert failure(tmp_path).reason is Reason.AUDIO
    (tmp_path / "empty.flac").touch()
    assert failure(tmp_path / "empty.flac").reason is Reason.EMPTY
    assert failure(write(tmp_path / "none.wav", waveform(0))).reason is Reason.EMPTY
    full = write(tmp_path / "full.wav", waveform(1))
    assert failure(full, offset=0.5, duration=0.00001).reason is Reason.EMPTY
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(4000))
    assert failure(tmp_path / "noise.mp3").reason is Reason.AUDIO
    for value, message in ((np.nan, "not finite"), (np.inf, "not finite"), (20_000.0, "up to 20000")):
        samples = waveform(1)
        samples[500] = value
        error = failure(write(tmp_path / "odd.wav", samples, subtype="FLOAT"))
        assert error.reason is Reason.AUDIO and message in error.detail
    slow = write(tmp_path / "slow.wav", waveform(1), rate=1)
    assert "1 samples a second" in failure(slow).detail


def test_the_reader_continues_after_a_bad_file(tmp_path: Path) -> None:
    good = write(tmp_path / "good.mp3", waveform(2), **CODED["a.mp3"])
    bad = tmp_path / "bad.mp3"
    bad.write_bytes(good.read_bytes()[:3000])
    with AudioReader() as reader:
        expected = reader.read(utterance(good, offset=1.0), RATE)
        with pytest.raises(EntryError):
            reader.read(utterance(bad), RATE)
        assert np.array_equal(reader.read(utterance(good, offset=1.0), RATE), expected)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["a.wav", "a.flac", "a.mp3", "a.opus"]),
    st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=4)), max_size=6),
    st.integers(0, 3000) | st.none(),
    st.sampled_from([None, 0.05, 0.3]),
)
def test_damaged_bytes_never_crash(
    tmp_path: Path, name: str, changes: list[tuple[int, bytes]], end: int | None, duration: float | None
) -> None:
    path = tmp_path / name
    kept = tmp_path / f"kept-{name}"
    if not kept.exists():
        write(
            kept,
            waveform(0.3),
            format=CODED[name].get("format", kept.suffix[1:].upper()),
            subtype=CODED[name].get("subtype"),
        )
    data = bytearray(kept.read_bytes())
    for place, piece in changes:
        data[place % len(data) : place % len(data) + len(piece)] = piece
    path.write_bytes(data[:end])
    try:
        samples = read_audio(utterance(path, duration=duration), RATE)
    except EntryError as error:
        assert error.reason in (Reason.AUDIO, Reason.EMPTY) and str(path) in error.detail
    else:
        assert len(samples) and samples.dtype == np.float32 and float(np.abs(samples).max()) <= 1
