"""Utterances that are valid but cannot be speech with its text fail, each with its reason; real speech never does."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import RATE, failure, speech_like, utterance
from hypothesis import given
from hypothesis import strategies as st
from recordings import configuration, corpus, parsed, sing, write_corpus, write_text_tokenizer

from tolktrain.config.prepare import BoundsConfig
from tolktrain.prepare.kind import Part
from tolktrain.prepare.recordings.audio import AudioReader, read_audio
from tolktrain.prepare.recordings.bounds import check_level, check_pace, check_unit_ends
from tolktrain.prepare.recordings.fitting import fit_if_missing
from tolktrain.prepare.recordings.kind import RecordingsKind
from tolktrain.prepare.utterances import EntryError, Failure, Reason

BOUNDS = BoundsConfig()
NO_BOUNDS = BoundsConfig.model_validate(dict.fromkeys(BoundsConfig.model_fields))


def fails(function: object, *arguments: object) -> EntryError | None:
    try:
        function(*arguments)  # type: ignore[operator]
    except EntryError as error:
        return error
    return None


@given(st.integers(1, 400), st.floats(0.05, 5_000))
def test_words_per_second_are_bounded(count: int, seconds: float) -> None:
    """Both limits, with a word more or less allowed; compared with the definition."""
    error = fails(check_pace, ["word", "–"] * count, seconds, BOUNDS)
    impossible = count - 1 > 20 * seconds or count + 1 < 0.02 * seconds
    assert (error is not None) == impossible
    if error is not None:
        assert error.reason is Reason.PACE and f"{count} words in {seconds:.2f} s" in error.detail
    assert fails(check_pace, ["word"] * count, seconds, NO_BOUNDS) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("I", 0.05),
        ("I do", 0.12),
        ("you know what I mean", 0.45),
        # The record: 655 words in a minute.
        (" ".join(["word"] * 655), 60.0),
        ("Yes .", 60.0),
        ("Om", 90.0),
        ("– …", 500.0),
        ("這是一個很長的句子沒有空格" * 25, 90.0),
        ("Donaudampfschifffahrtsgesellschaftskapitän und Rindfleischetikettierungsüberwachung", 2.5),
    ],
)
def test_fast_and_slow_speech_is_possible(text: str, seconds: float) -> None:
    check_pace(text.split(), seconds, BOUNDS)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(" ".join(["word"] * 120), 0.4), ("字" * 120, 0.4), ("a b c d", 0.1), ("a few words of an hour", 3600.0)],
)
def test_impossible_paces(text: str, seconds: float) -> None:
    with pytest.raises(EntryError, match="words per second|per second"):
        check_pace(text.split(), seconds, BOUNDS)


@pytest.mark.parametrize(
    ("ends", "is_possible"),
    [
        ([*range(1, 12), 88], False),  # an aligner put all words but the last to the beginning
        ([20, *range(21, 31), 88], False),
        ([1, 5, 6, 12, 13, 20], True),
        ([1, 2, 3, 40], True),  # too few words to be judged
        (list(range(1, 13)), True),  # a tokenizer whose units are as long as words
        ([5, 9, 14, 20, 21, 26], True),
    ],
)
def test_words_of_a_single_unit(ends: Sequence[int], is_possible: bool) -> None:
    error = fails(check_unit_ends, np.array(ends), 4.0, BOUNDS)
    assert (error is None) == is_possible
    if error is not None:
        assert error.reason is Reason.SINGLE_UNITS and f"of {len(ends)} words" in error.detail
    assert fails(check_unit_ends, np.array(ends), 4.0, NO_BOUNDS) is None


@given(st.floats(-120, 0), st.floats(-0.2, 0.2), st.integers(1, 30))
def test_silence_is_below_a_level(level: float, offset: float, pauses: int) -> None:
    """Neither pauses nor a constant offset change the level of a tone, which is known."""
    tone = 10 ** (level / 20) * np.sqrt(2) * np.sin(2 * np.pi * np.arange(RATE // 5) * 400 / RATE)
    samples = np.concatenate([np.zeros(pauses * RATE // 10), tone, np.zeros(pauses * RATE // 10)]) + offset
    error = fails(check_level, samples.astype(np.float64), RATE, None, BOUNDS)
    if abs(level + 80) > 0.5:
        assert (error is not None) == (level < -80)
    if error is not None:
        assert error.reason is Reason.SILENT


def write(path: Path, channels: Sequence[np.ndarray], subtype: str = "PCM_16") -> Path:
    soundfile.write(path, np.stack(channels, axis=1), RATE, subtype=subtype)
    return path


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ALAW", "ULAW"])
def test_silent_files_fail_and_quiet_ones_do_not(tmp_path: Path, subtype: str) -> None:
    """Digital silence, of A-law a constant, has no level in any coding; a whisper far from the microphone has one."""
    path = tmp_path / "a.wav"
    assert failure(write(path, [np.zeros(RATE)], subtype)).reason is Reason.SILENT
    click = np.zeros(RATE)
    click[5000] = 0.9
    assert failure(write(path, [click], subtype)).reason is Reason.SILENT
    if subtype in ("PCM_16", "PCM_24", "FLOAT"):
        dither = np.random.default_rng(0).integers(-1, 2, RATE) / 2**15 / 4
        assert failure(write(path, [dither], subtype)).reason is Reason.SILENT
    quiet = 0.004 if subtype in ("PCM_16", "PCM_24", "FLOAT") else 0.1
    read_audio(utterance(write(path, [quiet * speech_like(1.0)], subtype)), RATE)


@given(st.floats(-1, 1), st.integers(0, 99))
def test_channels_cancel_if_their_mean_is_weak(share: float, seed: int) -> None:
    """The second channel is a multiple of the first one, from its inverse to the same."""
    path = Path("/dev/shm") / f"tolktrain-test-{os.getpid()}-{seed}.wav"
    first = speech_like(0.3, seed)
    try:
        write(path, [first, share * first], "FLOAT")
        mean = (1 + share) / 2
        independent = np.sqrt((1 + share**2) / 2 / 2)
        error = fails(read_audio, utterance(path), RATE)
        ratio = 20 * np.log10(independent / max(mean, 1e-9))
        if abs(ratio - 20) > 0.1:
            assert (error is not None) == (ratio > 20)
        if error is not None:
            assert error.reason is Reason.CHANNELS and "set channel: 0" in error.detail
        assert np.array_equal(read_audio(utterance(path, channel=0), RATE), first)
        with AudioReader(channel=0) as reader:
            assert np.array_equal(reader.read(utterance(path), RATE), first)
    finally:
        path.unlink()


def test_a_silent_channel_names_one_that_is_not(tmp_path: Path) -> None:
    speech = speech_like(1.0)
    path = write(tmp_path / "a.wav", [np.zeros(RATE), speech, np.zeros(RATE)])
    error = failure(path, channel=0)
    assert error.reason is Reason.SILENT and "set channel: 1" in error.detail
    assert len(read_audio(utterance(path), RATE)) == RATE


def test_independent_channels_do_not_cancel(tmp_path: Path) -> None:
    """The more microphones, the weaker is their mean."""
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.wav", [0.1 * rng.standard_normal(RATE) for _ in range(64)])
    read_audio(utterance(path), RATE)


def failures_of(folder: Path, entries: list[dict[str, object]], **recordings: object) -> list[tuple[str, Reason]]:
    """Of a manifest of songs, prepared in this process."""
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    settings = configuration(folder, manifest, folder / "out")
    settings["recordings"] |= recordings
    config = parsed(settings)
    fit_if_missing(config, lambda _: None)
    kind = RecordingsKind(config)
    parts, rejected = kind.parts()
    found = [item for part in parts for item in kind.records(Part(part.inputs, part.num_entries))]
    assert not rejected
    return [(item.id, item.reason) for item in found if isinstance(item, Failure)]


def test_each_bound_has_its_reason_in_a_preparation(tmp_path: Path) -> None:
    """And null switches each of them off."""
    songs = corpus(1, 3)
    manifest = write_corpus(tmp_path, songs)
    write_text_tokenizer(tmp_path / "text_tokenizer")
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    silent, cancelling = tmp_path / "audio" / "silent.wav", tmp_path / "audio" / "cancelling.wav"
    first = songs[0].samples
    write(silent, [np.zeros(len(first))])
    write(cancelling, [first, -first], "FLOAT")
    long = sing(np.random.default_rng(5), "squeezed", "s9", "x", num_words=60)
    soundfile.write(tmp_path / "audio" / "squeezed.wav", long.samples, RATE, subtype="FLOAT")
    times = [{"word": word, "start": 0.0, "end": 0.0} for word in long.words[:14]]
    entries += [
        entries[0] | {"id": "silent", "audio": str(silent), "source": "a"},
        entries[0] | {"id": "cancelling", "audio": str(cancelling), "source": "b"},
        entries[0] | {"id": "fast", "text": "do " * 400, "source": "c"},
        {"id": "squeezed", "audio": "audio/squeezed.wav", "source": "d", "words": times},
    ]
    expected = {
        ("silent", Reason.SILENT),
        ("cancelling", Reason.CHANNELS),
        ("fast", Reason.PACE),
        ("squeezed", Reason.SINGLE_UNITS),
    }
    bounded = {"silent", "cancelling", "fast", "squeezed"}
    found = failures_of(tmp_path, entries)
    assert {(name, reason) for name, reason in found if name in bounded} == expected
    assert not [name for name, _ in found if name not in bounded]
    reasons = {reason for _, reason in failures_of(tmp_path, entries, bounds=dict.fromkeys(BoundsConfig.model_fields))}
    assert not reasons & {Reason.SILENT, Reason.CHANNELS, Reason.PACE, Reason.SINGLE_UNITS}
    found = failures_of(tmp_path, entries, channel=0)
    assert "cancelling" not in {name for name, _ in found}


@pytest.mark.parametrize("method", ["none", "given"])
def test_a_transcript_that_nobody_can_speak(tmp_path: Path, method: str) -> None:
    song = corpus(1, 1)[0]
    write_corpus(tmp_path, [song])
    write_text_tokenizer(tmp_path / "text_tokenizer")
    words = {"words": [{"word": "do", "start": 0.0, "end": 0.5}]} if method == "given" else {}
    texts = ("...", "\u266a \u266a", "[\u2026]", "--- !", "\U0001f600", "&", "5", "\u306f", "a...")
    entry = {"audio": f"audio/{song.id}.wav", **words}
    entries = [entry | {"id": text, "source": text, "text": text} for text in texts]
    found = failures_of(tmp_path, entries, alignment={"method": method})
    assert [name for name, reason in found if reason is Reason.TEXT] == list(texts[:5])
    assert method == "given" or len(found) == 5


def test_the_given_words_are_counted_where_there_is_no_text(tmp_path: Path) -> None:
    song = corpus(1, 1)[0]
    write_corpus(tmp_path, [song])
    write_text_tokenizer(tmp_path / "text_tokenizer")
    words = [{"word": "do", "start": 0.0, "end": 0.1 + i / 1000} for i in range(120)]
    entry = {"id": "fast", "audio": f"audio/{song.id}.wav", "source": "a", "words": words}
    good = {"id": "good", "audio": f"audio/{song.id}.wav", "source": "b", "text": "x"}
    assert ("fast", Reason.PACE) in failures_of(tmp_path, [entry, good])
