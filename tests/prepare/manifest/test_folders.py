"""Folders of audio files, with transcripts of the same stem and as LibriSpeech comes."""

import json
import os
from pathlib import Path

import pytest
from manifest_reading import config_for, read

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.align.word_times import read_word_times
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.utterances import Reason, Utterance, Word


def make(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def test_folder(tmp_path: Path) -> None:
    described = {
        "text": "From JSON.",
        "speaker": "Anna",
        "words": [["From", 0, 0.5], ["JSON.", 0.5, 1]],
        "license": "x",
    }
    root = make(
        tmp_path,
        {
            "book/10.FLAC": "",
            "book/10.txt": "Line one\nand two.\n",
            "book/10.TextGrid": "",
            "book/2.mp3": "",
            "book/2.txt": "ignored",
            "book/2.json": json.dumps(described),
            "book/cover.jpg": "",
            "single/a.opus": "",
            "single/a.ctm": "",
            ".hidden/x.wav": "",
            "book/._2.mp3": "",
        },
    )
    utterances, failures = read(root)
    assert not failures
    assert utterances == [
        Utterance(
            "book/2.mp3",
            "book",
            "Anna",
            f"{root}/book/2.mp3",
            text="From JSON.",
            words=(Word("From", 0, 0.5), Word("JSON.", 0.5, 1)),
        ),
        Utterance(
            "book/10.FLAC",
            "book",
            "",
            f"{root}/book/10.FLAC",
            text="Line one and two.",
            word_times=f"{root}/book/10.TextGrid",
        ),
        Utterance(
            "single/a.opus",
            "single/a.opus",
            "",
            f"{root}/single/a.opus",
            word_times=f"{root}/single/a.ctm",
        ),
    ]


def test_order_does_not_hang_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {f"{part}/{i}.wav": "" for part in ("b", "a", "a 10", "a 9") for i in (10, 9, 1)})
    expected = read(tmp_path)[0]
    assert [one.id for one in expected[:6]] == [
        "a/1.wav",
        "a/9.wav",
        "a/10.wav",
        "a 9/1.wav",
        "a 9/9.wav",
        "a 9/10.wav",
    ]
    walk = os.walk

    def reversed_walk(*arguments: object, **options: object):  # type: ignore[no-untyped-def]
        for path, folders, files in walk(*arguments, **options):  # type: ignore[call-overload]
            folders.reverse()
            yield path, folders, files[::-1]

    monkeypatch.setattr(os, "walk", reversed_walk)
    assert read(tmp_path)[0] == expected


def test_files_of_the_same_stem_that_cannot_be_used(tmp_path: Path) -> None:
    make(tmp_path, {f"{name}.wav": "" for name in ("good", "list", "broken", "coded", "moved", "misspelt")})
    make(tmp_path, {"list.json": "[1]", "broken.json": "{", "moved.json": '{"audio": "x.wav"}'})
    make(tmp_path, {"misspelt.json": '{"spaeker": "x"}'})
    (tmp_path / "coded.txt").write_bytes(b"\xff\xfe")
    (tmp_path / os.fsdecode(b"n\xff.wav")).touch()
    utterances, failures = read(tmp_path)
    assert [one.id for one in utterances] == ["good.wav"]
    details = {failure.id: failure.detail for failure in failures}
    assert "must hold an object" in details["list.wav"] and "not audio" in details["moved.wav"]
    assert "not JSON" in details["broken.wav"] and "not UTF-8" in details["coded.wav"]
    assert "did you mean speaker?" in details["misspelt.wav"]
    assert len(details) == 6 and {failure.reason for failure in failures} == {Reason.MANIFEST}


def test_links_that_go_round_end(tmp_path: Path) -> None:
    make(tmp_path / "data", {"a/1.wav": ""})
    make(tmp_path / "other", {"2.wav": ""})
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "other")
    assert [one.id for one in read(tmp_path / "data")[0]] == ["a/1.wav", "b/2.wav"]


ALIGNMENTS = '84-121123-0000 ",GO,,DO,YOU,HEAR," "0.490,0.890,1.270,1.380,1.5,1.9,2"\n'
LIBRISPEECH = {
    "dev-clean/84/121123/84-121123.trans.txt": "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT\nnonsense\n",
    "dev-clean/84/121123/84-121123-0000.flac": "",
    "dev-clean/84/121123/84-121123-0001.flac": "",
    "dev-clean/84/121123/84-121123-0001.TextGrid": "",
    "dev-clean/84/121123/84-121123-0002.flac": "",
    "dev-clean/84/121123/84-121123.alignment.txt": ALIGNMENTS,
    "dev-clean/100/7/100-7.trans.txt": "100-7-0000 LATER\n84-121123-0009 STRAY\n",
    "dev-clean/SPEAKERS.TXT": "84 | F",
}


def test_librispeech(tmp_path: Path) -> None:
    root = make(tmp_path, LIBRISPEECH)
    utterances, failures = read(root)
    folder = f"{root}/dev-clean/84/121123/84-121123"
    assert utterances == [
        Utterance(
            "84-121123-0000",
            "84-121123",
            "84",
            f"{folder}-0000.flac",
            text="GO DO YOU HEAR",
            word_times=f"{folder}.alignment.txt",
        ),
        Utterance(
            "84-121123-0001",
            "84-121123",
            "84",
            f"{folder}-0001.flac",
            text="BUT",
            word_times=f"{folder}-0001.TextGrid",
        ),
        Utterance("100-7-0000", "100-7", "100", f"{root}/dev-clean/100/7/100-7-0000.flac", text="LATER"),
    ]
    assert [(failure.id, failure.reason) for failure in failures] == [
        ("dev-clean/84/121123/84-121123.trans.txt line 3", Reason.MANIFEST),
        ("dev-clean/84/121123/84-121123-0002.flac", Reason.MANIFEST),
        ("dev-clean/100/7/100-7.trans.txt line 2", Reason.MANIFEST),
    ]
    assert utterances[0].word_times is not None
    words = read_word_times(utterances[0].word_times, utterances[0].id)
    assert words[:2] == (Word("GO", 0.49, 0.89), Word("DO", 1.27, 1.38)) and len(words) == 4


def test_folders_of_neither_kind_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "other", {"a/notes.md": "", "a/b.m4a": ""})
    with pytest.raises(UserError, match="no .wav, .*below it, but 'a/b.m4a', 'a/notes.md'"):
        read_manifest(config_for(tmp_path / "other"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no files at all"):
        read_manifest(config_for(tmp_path / "empty"))
    with pytest.raises(UserError, match="names no utterances; it was read as librispeech"):
        read_manifest(config_for(tmp_path / "other", format="librispeech"))
