"""Every file of a folder of recordings is used, counted as not used, or part of a failure."""

import json
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_reading import config_for, read

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.align.word_times import read_word_times
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.unused import Unused, UnusedItem
from tolktrain.prepare.utterances import Failure, Reason, Utterance, Word


def make(root: Path, *names: str, content: str = "") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def scan(root: Path, kind: str = "folder") -> tuple[list[Utterance], list[Failure], list[UnusedItem]]:
    unused = Unused()
    utterances, failures = read_manifest(config_for(root, format=kind), unused)
    return utterances, failures, unused.take()


def counted(items: list[UnusedItem]) -> dict[str, tuple[int, str]]:
    return {item.what: (item.count, item.first) for item in items}


FORMATS = sorted(set(soundfile.available_formats()) - {"RAW"})  # which has no header


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_that_libsndfile_reads_is_taken(tmp_path: Path, name: str) -> None:
    wave = np.sin(np.arange(4_000) / 10).astype(np.float32) / 3
    for suffix in (name.lower(), name):
        path = tmp_path / suffix / f"a.{suffix}"
        path.parent.mkdir()
        soundfile.write(path, wave, 8_000, format=name)
        make(path.parent, "a.txt", content="Hello.")
        utterances, failures, unused = scan(path.parent)
        assert [(one.id, one.text) for one in utterances] == [(path.name, "Hello.")] and not failures and not unused


@pytest.mark.parametrize("suffix", [".aif", ".AIFC", ".sph", ".Wave", ".oga", ".bwf", ".mp2", ".RF64"])
def test_other_names_of_these_formats(tmp_path: Path, suffix: str) -> None:
    assert [one.id for one in scan(make(tmp_path, f"a{suffix}"))[0]] == [f"a{suffix}"]


def test_features_and_drawings_are_not_taken_for_audio(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "a.wav")
    for name in ("a.htk", "a.mat", "a.iff", "a.mpc", "a.avr"):
        (tmp_path / name).write_bytes(bytes(range(200)) if name < "a.m" else b"\xff\xfb\x90" * 90)
    (tmp_path / "a.snd").write_bytes(b"any bytes")
    os.mkfifo(tmp_path / "b.mat")
    utterances, failures, unused = scan(tmp_path)
    assert [one.id for one in utterances] == ["a.wav"] and not failures
    assert sum(item.count for item in unused) == 7 and capfd.readouterr() == ("", "")


def test_what_is_not_used_is_counted_by_suffix(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "a.txt", "b/c.m4a", "b/c.txt", "b/d.M4A", "b/cover.JPG", "b/x.jpg", "README", "b/e.webm")
    make(tmp_path, ".DS_Store", "._a.wav", ".git/config", "b/.hidden.wav")
    utterances, failures, unused = scan(tmp_path)
    assert [one.id for one in utterances] == ["a.wav"] and not failures
    found = counted(unused)
    assert {what.split(",")[0]: value for what, value in found.items()} == {
        "files without a suffix": (1, "README"),
        "files .m4a": (1, "b/c.m4a"),
        "files .M4A": (1, "b/d.M4A"),
        "files .txt": (1, "b/c.txt"),
        "files .jpg": (2, "b/cover.JPG"),
        "files .webm": (1, "b/e.webm"),
    }
    assert "files .txt, because no audio file has the same name" in found
    assert "files .jpg, which this format does not read" in found
    commands = [what for what in found if "ffmpeg" in what]
    assert len(commands) == 3 and 'for f in *.M4A; do ffmpeg -i "$f" "${f%.*}.wav"; done' in " ".join(commands)


def test_a_folder_of_audio_that_is_not_decoded_names_the_command(tmp_path: Path) -> None:
    make(tmp_path, "a.m4a", "a.txt")
    for kind in ("auto", "folder"):
        with pytest.raises(UserError, match=r"for f in \*\.m4a; do ffmpeg -i"):
            read_manifest(config_for(tmp_path, format=kind))
    make(tmp_path, "b.wv1")
    (tmp_path / "a.m4a").unlink()
    with pytest.raises(UserError, match=r"sph2pipe -f wav"):
        read_manifest(config_for(tmp_path))


def test_several_audio_files_of_one_name_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "x/a.wav", "x/a.flac", "x/a.txt", "x/b.wav", "y/a.MP3", "y/a.mp3", "z/a.wav")
    utterances, failures, unused = scan(tmp_path)
    assert [one.id for one in utterances] == ["x/b.wav", "z/a.wav"]
    assert [(failure.id, failure.reason) for failure in failures] == [
        ("x/a.flac", Reason.MANIFEST),
        ("y/a.MP3", Reason.MANIFEST),
    ]
    assert "'x/a.flac', 'x/a.wav' have the same name but for the suffix" in failures[0].detail
    assert counted(unused) == {"files .txt, because several audio files have the same name": (1, "x/a.txt")}


def test_a_name_in_another_encoding(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "a.txt", content="x")
    for suffix in (b"wav", b"txt"):
        os.rename(os.fsencode(tmp_path) + b"/a." + suffix, os.fsencode(tmp_path) + b"/caf\xe9." + suffix)
    utterances, failures, _ = scan(tmp_path)
    assert not utterances and [failure.id for failure in failures] == [r"caf\udce9.wav"]
    assert "its name is not UTF-8; rename it" in failures[0].detail and r"caf\xe9.wav" in failures[0].detail


def test_names_that_look_the_same_are_shown_apart(tmp_path: Path) -> None:
    make(tmp_path, "e\u0301.wav", "\xe9.wav")
    (failure,) = scan(tmp_path)[1]
    assert r"'e\u0301.wav', '\xe9.wav' have the same name in Unicode's composed form" in failure.detail


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_in_either_form_of_their_accents(tmp_path: Path, forms: tuple[str, str]) -> None:
    audio, other = (unicodedata.normalize(form, "\u00c5s\u00e9 \u1ec7") for form in forms)
    make(tmp_path, f"{audio}.wav")
    make(tmp_path, f"{other}.txt", f"{other}.TextGrid", content="Hello.")
    utterances, failures, unused = scan(tmp_path)
    assert [(one.id, one.text, one.word_times) for one in utterances] == [
        (f"{audio}.wav", "Hello.", f"{tmp_path}/{other}.TextGrid")
    ]
    assert not failures and not unused
    make(tmp_path, f"{other}.flac")
    assert len(scan(tmp_path)[1]) == 1, "the same name"


def test_transcripts_and_their_order(tmp_path: Path) -> None:
    make(tmp_path, "lab/u.wav", "UPPER/U.WAV", "both/u.wav", "case/u.wav")
    make(tmp_path, "lab/u.lab", "UPPER/U.TXT", "both/u.txt", "case/u.txt", content="Right.")
    make(tmp_path, "both/u.lab", "case/u.TXT", content="Wrong.")
    make(tmp_path, "UPPER/U.TEXTGRID", "lab/u.Ctm", "both/u.ctm", "both/u.TextGrid")
    utterances, failures, unused = scan(tmp_path)
    assert [one.text for one in utterances] == ["Right."] * 4 and not failures
    named = {one.id: one.word_times for one in utterances}
    assert named["UPPER/U.WAV"] == f"{tmp_path}/UPPER/U.TEXTGRID" and named["lab/u.wav"] == f"{tmp_path}/lab/u.Ctm"
    assert counted(unused) == {
        "files .lab, because there is a .txt of the same name": (1, "both/u.lab"),
        "files .txt, because there is a .txt of the same name": (1, "case/u.TXT"),
        "files .ctm, because there is a .TextGrid of the same name": (1, "both/u.ctm"),
    }


@pytest.mark.parametrize(
    "labels",
    [
        "0 3125000 sil\n3125000 3575000 dh\n",
        "0 1 xx^xx-sil+dh=ax\n1 2 xx^sil-dh+ax=s\n",
        "separator ;\nnfields 1\n#\n    0.25000 125 sil\n    0.5 125 dh ; x\n",
    ],
)
def test_labels_with_times_are_no_transcript(tmp_path: Path, labels: str) -> None:
    make(tmp_path, "a.wav", "a.lab", content=labels)
    utterances, _, unused = scan(tmp_path)
    reason = "because they contain times and labels, not a transcript; word times are read from .TextGrid and .ctm"
    assert utterances[0].text is None and counted(unused) == {f"files .lab, {reason}": (1, "a.lab")}


WORDS = [{"word": "The", "start": 0.25, "end": 0.5, "score": 0.9}, {"word": "sea.", "start": 0.5, "end": 1.125}]
SEGMENT = {"start": 0.2, "end": 1.2, "text": " The sea.", "words": WORDS}
EXPECTED = (Word("The", 0.25, 0.5), Word("sea.", 0.5, 1.125))


def test_a_json_file_and_a_transcript_say_which_of_their_texts_is_used(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "b.wav", "b.TextGrid")
    make(tmp_path, "a.txt", "b.txt", content="of .txt")
    (tmp_path / "a.json").write_text(json.dumps({"text": "of .json"}))
    (tmp_path / "b.json").write_text(json.dumps({"text": "of .json", "segments": [SEGMENT]}))
    utterances, _, unused = scan(tmp_path)
    assert [one.text for one in utterances] == ["of .json", "of .txt"]
    assert counted(unused) == {
        "transcripts in .txt and .lab, because the .json of the same name has a text": (1, "a.json"),
        "texts in .json, because there is a .txt or .lab of the same name": (1, "b.json"),
        "word times in .json, because there is a .TextGrid or .ctm of the same name": (1, "b.json"),
    }


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"segments": [SEGMENT], "word_segments": WORDS, "language": "en"},
         {"language", "score", "start", "end", "text"}),
        ({"text": " The sea.", "segments": [SEGMENT]}, {"text", "score", "start", "end"}),
        ({"word_segments": WORDS}, {"score"}),
        (WORDS, {"score"}),
        ([["The", 0.25, 0.5], ["sea.", 0.5, 1.125]], set()),
        ({"task": "transcribe", "language": "english", "duration": 1.13, "text": "The sea.", "words": WORDS},
         {"task", "language", "duration", "text", "score"}),
        ({"result": WORDS, "text": "The sea."}, {"text", "score"}),
        ({"text": " The sea.", "chunks": [{"text": " The", "timestamp": [0.25, 0.5]},
          {"text": " sea.", "timestamp": [0.5, 1.125]}]}, {"text"}),
        ({"start": 0, "end": 2, "tiers": {"words": {"type": "interval", "entries": [[0.25, 0.5, "The"],
          [0.5, 1.125, "sea."], [1.125, 2, ""]]}, "phones": {"entries": []}}}, {"start", "end", "phones"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("transcript", [None, "The sea."])
def test_what_whisperx_and_aligners_write_next_to_audio(
    tmp_path: Path, content: Any, keys: set[str], transcript: str | None
) -> None:
    make(tmp_path, "w.wav")
    make(tmp_path, "w.json", content=json.dumps(content))
    if transcript is not None:
        make(tmp_path, "w.txt", content=transcript)
    utterances, failures, unused = scan(tmp_path)
    assert not failures and not unused
    (one,) = utterances
    heard = content["text"].strip() if isinstance(content, dict) and "text" in content else None
    assert one.text == (transcript or heard) and one.word_times == f"{tmp_path}/w.json"
    noted = Unused()
    assert read_word_times(one.word_times, one.id, unused=noted) == EXPECTED
    assert {item.what.split("'")[1] for item in noted.take()} == keys


@pytest.mark.parametrize(
    "described",
    [
        {"text": "Of JSON.", "words": WORDS},
        {"text": "Of JSON.", "words": WORDS, "language": "en", "speaker": "Bob"},
        {"text": "Of JSON.", "result": "checked twice"},
    ],
)
def test_a_description_with_other_keys_is_no_output_of_a_recognizer(tmp_path: Path, described: dict[str, Any]) -> None:
    make(tmp_path, "w.wav", "w.json", content=json.dumps(described))
    utterances, failures, _ = scan(tmp_path)
    assert [(one.text, one.words, one.speaker) for one in utterances] == [
        ("Of JSON.", EXPECTED if "words" in described else None, described.get("speaker", ""))
    ]
    assert not failures


def test_a_textgrid_is_preferred_to_json(tmp_path: Path) -> None:
    make(tmp_path, "w.wav", "w.TextGrid")
    make(tmp_path, "w.json", content=json.dumps({"segments": [SEGMENT]}))
    utterances, _, unused = scan(tmp_path)
    assert utterances[0].word_times == f"{tmp_path}/w.TextGrid"
    assert [item.what for item in unused] == [
        "word times in .json, because there is a .TextGrid or .ctm of the same name"
    ]


def test_librispeech_with_other_files(tmp_path: Path) -> None:
    make(tmp_path, "84/1/84-1.trans.txt", content="84-1-0 ONE\n84-1-1 TWO\n84-1-2 THREE\n")
    make(tmp_path, "84/1/84-1-0.flac", "84/1/84-1-0.wav", "84/1/84-1-1.WAV", "84/1/84-1-2.ogg", "84/1/84-1-2.mp3")
    make(tmp_path, "84/1/84-1-9.mp3", "SPEAKERS.TXT", "84/1/84-1.m4b")
    utterances, failures, unused = scan(tmp_path, "librispeech")
    assert [(one.id, Path(one.audio).name) for one in utterances] == [
        ("84-1-0", "84-1-0.flac"),
        ("84-1-1", "84-1-1.WAV"),
    ]
    assert len(failures) == 1 and "84-1-2.mp3, 84-1-2.ogg" in failures[0].detail
    command = 'for f in *.m4b; do ffmpeg -i "$f" "${f%.*}.wav"; done'
    assert {what: count for what, (count, _) in counted(unused).items()} == {
        "files .txt, because transcripts are read from .trans.txt": 1,
        "files .wav, because there is another file of the same name": 1,
        "files .mp3, because there is another file of the same name": 1,
        "files .ogg, because there is another file of the same name": 1,
        "files .mp3, because no line of a .trans.txt names them": 1,
        f"files .m4b, which are in a format that is not decoded; convert them: {command}": 1,
    }


@pytest.mark.parametrize("suffix", [".txt", ".lab", ".json"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings_of_transcripts(tmp_path: Path, suffix: str, encoding: str) -> None:
    make(tmp_path, "a.wav")
    text = '{"text": "caf\u00e9"}' if suffix == ".json" else "caf\u00e9"
    (tmp_path / f"a{suffix}").write_bytes(text.encode(encoding))
    utterances, failures = read(tmp_path)
    if encoding == "utf-8-sig":
        assert utterances[0].text == "caf\u00e9"
        return
    assert failures[0].detail.startswith(f"a{suffix} is ") and failures[0].detail.endswith("save it as UTF-8")
    assert ("is UTF-16 text" in failures[0].detail) == (encoding == "utf-16")


stems = st.sampled_from(["a", "b", "\u00e9", "e\u0301", "a.b", "10", "9"])
suffixes = st.sampled_from(
    [".wav", ".WAV", ".flac", ".sph", ".txt", ".TXT", ".lab", ".TextGrid", ".ctm", ".jpg", ".m4a", ".xyz", ""]
)
NAMES = st.lists(st.tuples(st.sampled_from(["", "x/", "x/y/"]), stems, suffixes), min_size=1, max_size=12, unique=True)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_no_file_is_lost(tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, str, str]]) -> None:
    """Which files are audio, belong together, and are left, written as loops over all pairs of files."""
    root = tmp_path_factory.mktemp("files")
    paths = {part + stem + suffix for part, stem, suffix in files}
    make(root, *paths, content="text")

    def key(path: str) -> str:
        return unicodedata.normalize("NFC", os.path.splitext(path)[0])

    audio = {path for path in paths if os.path.splitext(path)[1].lower() in (".wav", ".flac", ".sph")}
    single = {path for path in audio if sum(key(path) == key(other) for other in audio) == 1}
    used = set(audio)
    for path in single:
        for kinds in ([".txt", ".lab"], [".textgrid", ".ctm"]):
            candidates = [
                other
                for other in paths
                if key(other) == key(path) and other[len(other.rpartition(".")[0]) :].lower() in kinds
            ]
            if candidates:
                stem = os.path.splitext(path)[0]
                used.add(min(candidates, key=lambda other: (
                    os.path.splitext(other)[0] != stem,
                    kinds.index(os.path.splitext(other)[1].lower()),
                    os.path.splitext(other)[1] != os.path.splitext(other)[1].lower(),
                    other,
                )))  # fmt: skip
    try:
        utterances, failures, unused = scan(root)
    except UserError as error:
        assert not audio and "names no utterances" in str(error)
        return
    assert {one.id for one in utterances} == single
    assert len(failures) == len({key(path) for path in audio - single})
    left = Counter(os.path.splitext(path)[1].lower() for path in paths - used)
    counts: Counter[str] = Counter()
    for item in unused:
        counts[item.what.partition(",")[0].removeprefix("files ").replace("without a suffix", "")] += item.count
        assert ", which " in item.what or ", because " in item.what
    assert counts == left
