"""All audio of a file is read, or its utterance fails: joined files, wrong sizes, unfinished files, unknown bytes."""

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from audio_files import (
    DECLARED,
    NAMES,
    RATE,
    SECONDS,
    AudioFiles,
    audio_failure,
    failure,
    read,
    speech_like,
    utterance,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tolktrain.prepare.recordings.audio import AudioReader
from tolktrain.prepare.recordings.containers import content_of
from tolktrain.prepare.utterances import EntryError, Reason

SAMPLES = round(SECONDS * RATE)
ID3V1 = b"TAG" + b"title".ljust(125, b"\0")
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 1, 1 << 31) + bytes(8)
APE_TAG = APE + b"\x07\0\0\0\0\0\0\0key\0value".ljust(32, b"x") + APE[:20] + struct.pack("<I", 1 << 31) + bytes(8)
APE_TAG = APE_TAG.replace(struct.pack("<I", 32), struct.pack("<I", 64))
ID3V2 = b"ID3\x04\0\0\0\0\x01\x05" + bytes(range(133))
LYRICS = b"LYRICSBEGININD00003110" + b"LYR00005hello" + b"000035LYRICS200"
TAGS = {
    "nothing": b"",
    "ID3v1": ID3V1,
    "ID3v2": ID3V2,
    "APE": APE_TAG,
    "APE and ID3v1": APE_TAG + ID3V1,
    "Lyrics3": LYRICS + ID3V1,
    "zeros": bytes(5000),
}
COMMON = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> AudioFiles:
    return AudioFiles(tmp_path_factory.mktemp("audio"), speech_like(SECONDS))


def changed(files: AudioFiles, name: str, content: bytes) -> Path:
    path = files.folder / f"changed-{name}"
    path.write_bytes(content)
    return path


def unknown_bytes(seed: int, num_bytes: int) -> bytes:
    """Random bytes that neither begin nor end like padding, and contain no sync of MPEG audio."""
    return np.random.default_rng(seed).integers(1, 255, num_bytes).astype(np.uint8).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_what_programs_write_is_read_whole(files: AudioFiles, name: str) -> None:
    """Streamed, extensible, floating-point, A-law, RF64, big-endian WAV, MP3 of variable rate without a header, ..."""
    got = read(files.path(name))
    # Encoders may pad.
    assert SAMPLES - RATE // 100 <= len(got) <= SAMPLES + 0.15 * RATE
    coarse = {"unsigned.wav": 0.01, "alaw.wav": 0.02, "mulaw.wav": 0.02, "adpcm.wav": 0.1}
    if not name.endswith((".mp3", ".ogg", ".opus")):
        np.testing.assert_allclose(got[:SAMPLES], files.waveform[: len(got)], atol=coarse.get(name, 1e-4))


@COMMON
@given(st.sampled_from(DECLARED), st.sampled_from(sorted(TAGS)))
def test_tags_and_padding_after_the_audio_are_no_audio(files: AudioFiles, name: str, tag: str) -> None:
    content = files.path(name).read_bytes()
    assert np.array_equal(read(changed(files, name, content + TAGS[tag])), read(files.path(name)))


@pytest.mark.parametrize("name", ["plain.flac", "constant.mp3", "no-xing.mp3"])
def test_a_tag_before_the_audio_is_no_audio(files: AudioFiles, name: str) -> None:
    content = files.path(name).read_bytes()
    own_tag = 10 + sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True))
    audio = content[own_tag:] if content[:3] == b"ID3" else content
    assert np.array_equal(read(changed(files, name, ID3V2 + audio)), read(files.path(name)))


@COMMON
@given(st.sampled_from(DECLARED), st.integers(16, 20_000), st.integers(0, 99), st.sampled_from([b"", ID3V1, ID3V2]))
def test_unknown_bytes_after_the_audio_are_a_failure_with_both_numbers(
    files: AudioFiles, name: str, num_bytes: int, seed: int, tag: bytes
) -> None:
    content = files.path(name).read_bytes()
    message = audio_failure(changed(files, name, content + unknown_bytes(seed, num_bytes) + tag))
    assert len(re.findall(r"\d+", message.split("changed-")[1])) >= 2


@COMMON
@given(st.sampled_from(sorted(NAMES)), st.floats(0.3, 1.0), st.sampled_from([b"", ID3V1, ID3V2]))
def test_joined_files_are_read_whole_or_fail(files: AudioFiles, name: str, share: float, between: bytes) -> None:
    """Also where the manifest has the duration that libraries report for such a file."""
    content = files.path(name).read_bytes()
    path = changed(files, name, content + between + content)
    for duration in (None, SECONDS):
        try:
            got = read(path, duration=duration)
        except EntryError as error:
            assert error.reason is Reason.AUDIO
            continue
        if duration is None:
            assert len(got) >= 2 * SAMPLES - RATE // 20
    if name in DECLARED and name.split(".")[1] not in (
        "wav",
        "aiff",
        "voc",
        "w64",
        "sph",
    ):  # of these libsndfile opens no joined ones
        piece = read(path, offset=0.1, duration=share)
        assert np.array_equal(piece, read(files.path(name), offset=0.1, duration=share))


@COMMON
@given(st.sampled_from(DECLARED), st.floats(0.2, 0.9))
def test_files_that_are_cut_off_fail(files: AudioFiles, name: str, share: float) -> None:
    content = files.path(name).read_bytes()
    assert failure(changed(files, name, content[: round(share * len(content))])).reason in (Reason.AUDIO, Reason.EMPTY)


def with_declared_bytes(content: bytes, num_bytes: int) -> bytes:
    """A WAV, AIFF, AU, Wave64 or SPHERE file whose header declares another size of the audio."""
    changed_content = bytearray(content)
    if content[:4] == b".snd":
        changed_content[8:12] = struct.pack(">I", num_bytes)
        return bytes(changed_content)
    if content[:4] == b"NIST":
        count = content.index(b"sample_count -i ") + 16
        changed_content[count : content.index(b"\n", count)] = b""
        field = b"%d" % (num_bytes // 2)
        changed_content[count:count] = field
        end_head = changed_content.index(b"end_head\n") + 9
        return bytes(changed_content[:end_head].ljust(1024, b"\n") + content[1024:])
    if content[:4] == b"riff":
        place = content.index(b"data") + 16
        changed_content[place : place + 8] = struct.pack("<q", num_bytes + 24)
        return bytes(changed_content)
    name, order, more = (b"SSND", ">", 8) if content[:4] == b"FORM" else (b"data", "<", 0)
    place = content.index(name) + 4
    changed_content[place : place + 4] = struct.pack(order + "I", num_bytes + more)
    return bytes(changed_content)


@COMMON
@given(
    st.sampled_from(["plain.wav", "float.wav", "alaw.wav", "sox.aiff", "plain.au", "plain.w64", "sox.sph"]),
    st.floats(0.0, 0.95),
)
def test_a_header_that_declares_less_is_a_failure(files: AudioFiles, name: str, share: float) -> None:
    content = files.path(name).read_bytes()
    size = (len(content) - 200) * share // 8 * 8
    path = changed(files, name, with_declared_bytes(content, int(size)))
    message = audio_failure(path)
    assert "declares 0 bytes" in message if not size else f"declares {int(size)} bytes" in message
    seconds = float(re.findall(r"\((\d+\.\d+) s\)", message)[0 if not size else 0])
    width = {"float.wav": 4, "alaw.wav": 1}.get(name, 2)
    whole = (size if size else SAMPLES * width) / (width * RATE)
    assert seconds == pytest.approx(whole, abs=0.05)


@COMMON
@given(st.sampled_from(["plain.flac", "sox.flac"]), st.integers(1, SAMPLES - 1))
def test_a_flac_header_that_declares_less_is_a_failure(files: AudioFiles, name: str, declared: int) -> None:
    content = bytearray(files.path(name).read_bytes())
    fields = int.from_bytes(content[18:26], "big") >> 36 << 36 | declared
    content[18:26] = fields.to_bytes(8, "big")
    message = audio_failure(changed(files, name, bytes(content)))
    assert f"declares {declared} samples" in message and f"contain {SAMPLES}" in message


@pytest.mark.parametrize("name", ["plain.wav", "plain.w64", "sox.sph"])
def test_an_unfinished_recording_names_the_repair(files: AudioFiles, name: str) -> None:
    """The commands of the message give the audio back."""
    path = changed(files, name, with_declared_bytes(files.path(name).read_bytes(), 0))
    message = audio_failure(path)
    assert "the recorder did not finish the file" in message
    repaired = files.folder / "repaired.wav"
    for command in re.findall("`([^`]+)`", message):
        files.path("sox.wav")  # skips without sox
        repaired.unlink(missing_ok=True)
        call = command.replace("IN", str(path)).replace("OUT.wav", "OUT").replace("OUT", str(repaired))
        subprocess.run(call.split(), check=True, capture_output=True)
        assert np.array_equal(read(repaired), read(files.path("plain.wav")))


def test_a_voc_file_of_several_blocks_names_the_conversion(files: AudioFiles) -> None:
    """ffmpeg writes them; libsndfile takes the headers of the blocks for audio."""
    path = files.folder / "blocks.voc"
    path.write_bytes(voc([struct.pack("<IBBH4x", RATE, 16, 1, 4) + ramp(0, 1000), ramp(1000, 2000)]))
    assert "several blocks" in (message := audio_failure(path))
    files.path("sox.wav")  # skips without sox
    (command,) = re.findall("`([^`]+)`", message)
    converted = files.folder / "blocks.wav"
    subprocess.run(command.replace("IN", str(path)).replace("OUT.wav", str(converted)).split(), check=True)
    assert np.array_equal(read(converted), np.arange(2000, dtype=np.float32) / 32768)


@pytest.mark.parametrize("tag_name", sorted(TAGS))
def test_a_voc_file_of_one_block_is_read_without_what_follows(files: AudioFiles, tag_name: str) -> None:
    tag = TAGS[tag_name]
    path = files.folder / "block.voc"
    content = voc([struct.pack("<IBBH4x", RATE, 16, 1, 4) + ramp(0, 1000)])
    path.write_bytes(content + unknown_bytes(1, 100) + tag)
    assert f"declares 2000 bytes (0.06 s) of audio, and {101 + len(tag)} bytes" in audio_failure(path)
    path.write_bytes(content[:-900])
    assert "cut off" in audio_failure(path)
    path.write_bytes(content + tag)
    assert np.array_equal(read(path), np.arange(1000, dtype=np.float32) / 32768)


def voc(blocks: list[bytes]) -> bytes:
    """The first block with the format of the audio, then continuations of it."""
    head = b"Creative Voice File\x1a" + struct.pack("<HHH", 26, 0x0114, 0x111F)
    types = [9] + [2] * (len(blocks) - 1)
    sizes = [struct.pack("<I", len(block))[:3] for block in blocks]
    return (
        head
        + b"".join(bytes([kind]) + size + block for kind, size, block in zip(types, sizes, blocks, strict=True))
        + b"\0"
    )


def ramp(begin: int, end: int) -> bytes:
    return np.arange(begin, end, dtype="<i2").tobytes()


def test_compressed_sphere_names_the_conversion(files: AudioFiles) -> None:
    content = files.path("sox.sph").read_bytes()
    head = content.replace(b"sample_coding -s3 pcm", b"sample_coding -s26 pcm,embedded-shorten-v2.00")[:1024]
    assert "sph2pipe -f wav" in audio_failure(changed(files, "sox.sph", head + content[1024:9000]))


def test_headers_of_unfinished_files_that_libsndfile_knows_are_read(files: AudioFiles) -> None:
    content = with_declared_bytes(files.path("plain.wav").read_bytes(), 0)
    path = changed(files, "plain.wav", content[:4] + struct.pack("<I", 8) + content[8:])
    assert len(read(path)) >= SAMPLES


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


@COMMON
@given(
    st.lists(
        st.tuples(st.sampled_from([b"LIST", b"id3 ", b"bext", b"iXML", b"cart", b"XYZ "]), st.binary(max_size=99)),
        max_size=3,
    ),
    st.booleans(),
    st.sampled_from([b"", ID3V1, bytes(4096)]),
)
def test_chunks_around_the_audio_are_no_audio(
    files: AudioFiles, chunks: list[tuple[bytes, bytes]], before: bool, tag: bytes
) -> None:
    path = files.folder / "chunks.wav"
    audio = np.arange(1, 2001, dtype="<i2").tobytes()
    extra = b"".join(chunk(*item) for item in chunks)
    head = b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
    body = head + (extra if before else b"") + chunk(b"data", audio) + (b"" if before else extra)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body + tag)
    assert np.array_equal(read(path), np.arange(1, 2001, dtype=np.float32) / 32768)


def sparse(path: Path, head: bytes, num_bytes: int, marks: dict[int, bytes], tail: bytes = b"") -> Iterator[Path]:
    """A file of zeros, with bytes at places of its audio."""
    with path.open("wb") as file:
        file.write(head)
        for place, content in marks.items():
            file.seek(len(head) + place)
            file.write(content)
        file.seek(len(head) + num_bytes)
        file.write(tail)
        file.truncate(len(head) + num_bytes + len(tail))
    try:
        yield path
    finally:
        path.unlink()


def wav_head(channels: int, width: int, declared: int) -> bytes:
    block = channels * width
    form = chunk(b"fmt ", struct.pack("<HHIIHH", 1, channels, RATE, RATE * block, block, 8 * width))
    return b"RIFF" + struct.pack("<I", (declared + 36) % 2**32) + b"WAVE" + form + b"data" + struct.pack("<I", declared)


def aiff_head(channels: int, width: int, declared: int) -> bytes:
    rate = struct.pack(">HQ", 16383 + 13, RATE << 50)
    common = struct.pack(">4sIhIh", b"COMM", 18, channels, 0, 8 * width) + rate
    head = b"FORM" + struct.pack(">I", 0) + b"AIFF" + common
    return head + b"SSND" + struct.pack(">III", (declared + 8) % 2**32, 0, 0)


def au_head(channels: int, width: int, declared: int) -> bytes:
    return b".snd" + struct.pack(">5I", 24, declared, {2: 3, 3: 4, 4: 5}[width], RATE, channels)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([("<", wav_head), (">", aiff_head), (">", au_head)]),
    st.integers(1, 3),
    st.sampled_from([2, 3, 4]),
    st.integers(1, 900_000),
    st.booleans(),
)
def test_sizes_that_wrapped_at_4_gib_are_read_whole(
    files: AudioFiles, kind: tuple[str, object], channels: int, width: int, more: int, has_tail: bool
) -> None:
    order, head_of = kind
    block = channels * width
    num_blocks = 2**32 // block + more
    # A second of a tone in the last channel, beyond the size that the header declares.
    tone = np.round(2 ** (8 * width - 2) * np.sin(np.arange(RATE) / 5)).astype(f"{order}i8")
    at = num_blocks - 2 * RATE
    rows = np.zeros((RATE, channels, width), np.uint8)
    raw = tone.view(np.uint8).reshape(RATE, 8)
    rows[:, -1] = raw[:, :width] if order == "<" else raw[:, 8 - width :]
    tail = chunk(b"LIST", b"INFO") if has_tail and order == "<" else b""
    head = head_of(channels, width, num_blocks * block % 2**32)  # type: ignore[operator]
    for path in sparse(files.folder / "large.wav", head, num_blocks * block, {at * block: rows.tobytes()}, tail):
        got = read(path, offset=at / RATE, duration=1.0, channel=channels - 1)
        np.testing.assert_allclose(got, tone / 2 ** (8 * width - 1), atol=1e-4)
        rest = read(path, offset=at / RATE, channel=channels - 1)
        assert len(rest) == 2 * RATE and not rest[RATE:].any()
        assert f"lasts {num_blocks / RATE:.2f} s" in failure(path, offset=num_blocks / RATE + 1).detail


def test_the_end_of_a_file_is_examined_once(files: AudioFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each utterance of a long recording, and not for those that end before it does."""
    examined: list[str] = []
    path = files.path("constant.mp3")

    def counted(name: str, container: str | None) -> object:
        examined.append(name)
        return content_of(name, container)

    monkeypatch.setattr("tolktrain.prepare.recordings.audio.content_of", counted)
    with AudioReader() as reader:
        for offset in (0.0, 0.3, 0.6):
            reader.read(utterance(path, offset=offset, duration=0.3), RATE)
        assert not examined
        for offset in (1.1, 1.2, 1.3):
            reader.read(utterance(path, offset=offset), RATE)
    assert examined == [str(path)]


def test_files_read_in_turn_are_examined_each(files: AudioFiles) -> None:
    """The stream of one file stays open while another one is read."""
    content = files.path("constant.mp3").read_bytes()
    joined = changed(files, "constant.mp3", content + content)
    with AudioReader() as reader:
        reader.read(utterance(joined, duration=0.5), RATE)
        reader.read(utterance(files.path("plain.wav")), RATE)
        with pytest.raises(EntryError, match="more audio follows"):
            reader.read(utterance(joined, offset=0.6), RATE)


def test_notes_of_c_libraries_name_the_file(files: AudioFiles, capfd: pytest.CaptureFixture[str]) -> None:
    """libmpg123 writes its notes on standard error without a name."""
    content = files.path("no-xing.mp3").read_bytes()
    half = len(content) // 2
    path = changed(files, "no-xing.mp3", content[:half] + unknown_bytes(3, 3000) + content[half:])
    with pytest.raises(EntryError):
        read(path)
    lines = capfd.readouterr().err.splitlines()
    assert lines and all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title>", "an HTML page"),
        (b"\xef\xbb\xbf \n<HTML lang=en><body>caf\xe9 not found, sorry for that", "an HTML page"),
        (b'<?xml version="1.0"?>\n<!-- x --><!DOCTYPE html><html/>', "an HTML page"),
        (b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b'{"error": {"code": 429, "message": "Rate limit exceeded"}}', "JSON"),
        ("<html>Straße</html>".encode("utf-16"), "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"Not Found", "text, not audio ('Not Found')"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
        (b"PK\x03\x04\x14\0\0\0", "ZIP"),
        (b"Rar!\x1a\x07\x01\0" + bytes(99), "RAR archive; unpack"),
        (b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(99), "7z archive; unpack"),
        (b"\x93NUMPY\x01\0v\0{'descr': '<f4'}", "NumPy, not audio"),
        (b"MThd\0\0\0\x06\0\x01" + bytes(99), "MIDI"),
        (b"TTA1\x01\0\x01\0\x10\0", "True Audio, which is not decoded; convert it"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "M4A, which is not decoded; convert it"),
        (b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(99), "AAC"),
    ],
)
@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.flac"])
def test_what_is_no_audio_is_called_what_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, message: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert message in audio_failure(path)
    assert not capfd.readouterr().err


def test_a_link_to_a_file_that_was_not_fetched(tmp_path: Path) -> None:
    """As git-annex and DataLad leave them."""
    path = tmp_path / "a.wav"
    path.symlink_to(".git/annex/objects/MD5E-s9--0.wav")
    assert "is a link to .git/annex/objects/MD5E-s9--0.wav, which does not exist" in audio_failure(path)
    assert "git annex get" in audio_failure(path)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.touch()
    error = failure(path)
    assert error.reason is Reason.EMPTY and "0 bytes" in error.detail and os.path.getsize(path) == 0


@pytest.mark.parametrize(
    "tail",
    [chunk(b"XYZ ", b"") * 30_000, (b"3DI" + bytes(17)) * 30_000, bytes(200_000) + b"x" * 99],
    ids=["chunks", "tags", "zeros"],
)
def test_what_follows_the_audio_is_examined_in_bounded_steps(
    files: AudioFiles, monkeypatch: pytest.MonkeyPatch, tail: bytes
) -> None:
    """A file may consist of tags; and zeros after a FLAC frame leave its checksum as it is."""
    reads = []

    def counted(file: BinaryIO, position: int, num_bytes: int) -> bytes:
        reads.append(num_bytes)
        file.seek(position)
        return file.read(num_bytes)

    monkeypatch.setattr("tolktrain.prepare.recordings.containers.content.read_at", counted)
    name = "plain.wav" if tail[:1] in b"X3" else "plain.flac"
    content_of(str(changed(files, name, files.path(name).read_bytes() + tail)), name.split(".")[1].upper())
    assert len(reads) < 50_000
