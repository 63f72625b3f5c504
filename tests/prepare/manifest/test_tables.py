"""JSONL and TSV manifests."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_reading import check_all, config_for, read, write_lines

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.recordings.manifest.entry import KEYS
from tolktrain.prepare.utterances import Reason, Utterance, Word


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_all_keys(tmp_path: Path, name: str) -> None:
    full = {
        "id": "first",
        "audio": "sub/a.flac",
        "offset": 2,
        "duration": 1.5,
        "text": " Two words. ",
        "speaker": 103,
        "source": "book",
        "channel": 1,
        "words": [{"word": "Two", "start": 0, "end": 0.5}, ["words.", 0.5, 1.25]],
        "my_note": [1, 2],
    }
    bare = {"audio": "/data/b.wav", "text": None, "word_times": "b.TextGrid"}
    root = str(tmp_path)
    expected = [
        Utterance(
            "first",
            "book",
            "103",
            f"{root}/sub/a.flac",
            2.0,
            1.5,
            1,
            "Two words.",
            (Word("Two", 0.0, 0.5), Word("words.", 0.5, 1.25)),
        ),
        Utterance("/data/b.wav", "/data/b.wav", "", "/data/b.wav", word_times=f"{root}/b.TextGrid"),
    ]
    path = write_lines(tmp_path / name, [full, "", "  \r", bare])
    utterances, failures = read(path)
    assert utterances == expected
    assert [failure.id for failure in failures] == ["line 3"], "a line of blanks is not an empty one"
    assert read(path, audio_root="/elsewhere")[0][0].audio == "/elsewhere/sub/a.flac"


def test_sources_stay_together_in_order(tmp_path: Path) -> None:
    order = [("b", 1), ("a", 1), ("b", 0), ("c", 5), ("a", 0)]
    path = write_lines(tmp_path / "m.jsonl", [{"audio": f"{s}.wav", "offset": o, "duration": 1} for s, o in order])
    utterances, failures = read(path)
    assert [(one.source, one.offset) for one in utterances] == [
        ("b.wav", 1),
        ("b.wav", 0),
        ("a.wav", 1),
        ("a.wav", 0),
        ("c.wav", 5),
    ]
    assert [one.id for one in utterances] == ["b.wav@1.0", "b.wav", "a.wav@1.0", "a.wav", "c.wav@5.0"]
    assert not failures


A = {"audio": "a.wav"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('{"audio": "a.wav", "text": "a", "audio": "b.wav"}', "the key 'audio' is twice in one object; leave one"),
        ('{"audio": "a.wav", "words": [{"word": "a", "start": 0, "start": 1, "end": 1}]}', "the key 'start' is twice"),
        ("[" * 100_000, "not JSON"),
        ("3", "expected an object"),
        ({}, "audio is missing; the keys are none"),
        ({"sound": "a.wav"}, "audio is missing; the keys are 'sound'"),
        ({"audio": ""}, "audio is missing"),
        ({"audio": "a\0.wav"}, "no file can have"),
        ('{"audio": "\\ud800"}', "no file can have"),
        ({"audio": 3}, "audio must be a string"),
        ({"audio_filepath": "a.wav"}, "did you mean audio?"),
        ({**A, "start": 3}, "did you mean offset?"),
        ({**A, "ofset": 3}, "did you mean offset?"),
        ({**A, "Speaker": "x"}, "did you mean speaker?"),
        ({**A, "transcript": "x"}, "did you mean text?"),
        ({**A, "offset": "3"}, "offset must be a number"),
        ({**A, "offset": True}, "offset must be a number"),
        ({**A, "offset": -0.1}, "offset must be seconds from 0"),
        ({**A, "offset": float("nan")}, "offset must be seconds from 0"),
        ({**A, "offset": 10**400}, "offset must be seconds from 0"),
        ({**A, "duration": 0}, "duration must be above 0"),
        ({**A, "duration": float("inf")}, "duration must be seconds from 0"),
        ({**A, "channel": 1.0}, "channel must be a whole number"),
        ({**A, "channel": -1}, "channel must be a whole number"),
        ({**A, "channel": False}, "channel must be a whole number"),
        ({**A, "text": ["x"]}, "text must be a string"),
        ({**A, "id": 1.5}, "id must be a string"),
        ({**A, "words": "x", "word_times": "x.ctm"}, "leave one of them out"),
        (b'{"audio": "\xff"}'.decode("latin-1"), None),
    ],
)
def test_one_bad_line_is_reported_and_the_others_are_read(tmp_path: Path, line: Any, message: str | None) -> None:
    path = write_lines(tmp_path / "m.jsonl", [{"audio": "1.wav"}, line, {"audio": "3.wav"}])
    if message is None:
        path.write_bytes(path.read_bytes().decode().encode("latin-1"))
        message = "not UTF-8"
    utterances, failures = read(path, format="jsonl")
    assert [one.id for one in utterances] == ["1.wav", "3.wav"]
    assert len(failures) == 1 and failures[0].id == "line 2" and failures[0].reason is Reason.MANIFEST
    assert message in failures[0].detail


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x", "must be a list"),
        ([], "no words"),
        ([["a", 0.5, 0.1]], "ends before"),
        ([["a", 0, 1], ["b", 1, 2.2]], "after the audio of 2.00 s"),
        ([["a", 0, float("nan")]], "must be finite"),
        ([["two words", 0, 1]], "without blanks"),
    ],
)
def test_bad_words_are_reported_under_the_id(tmp_path: Path, words: Any, message: str) -> None:
    path = write_lines(tmp_path / "m.jsonl", [A, {"id": "x", "audio": "b.wav", "duration": 2, "words": words}])
    utterances, failures = read(path)
    assert len(utterances) == 1
    assert (failures[0].id, failures[0].reason) == ("x", Reason.WORD_TIMES)
    assert message in failures[0].detail and "line 2" in failures[0].detail


def test_a_key_like_ours_may_be_present_with_ours(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", [{**A, "speaker": "x", "speaker_id": 7, "path": "p", "gender": "f"}])
    assert len(read(path)[0]) == 1


def test_used_ids_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", [A, {"audio": "b.wav", "id": "a.wav"}, {**A, "offset": 1}, A])
    utterances, failures = read(path)
    assert [one.id for one in utterances] == ["a.wav", "a.wav@1.0"]
    assert [failure.id for failure in failures] == ["a.wav", "a.wav"]


def test_tsv(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    path.write_text(
        "audio\toffset\tduration\ttext\tchannel\tnote\n"
        'a.wav\t0.5\t2\tHe said "no".\t1\t\r\n'
        "b.wav\t\t\t\t\tx\n"
        "\n"
        "c.wav\t1\n"
        "d.wav\tnan\t\t\t\t\n"
        "e.wav\t1_0\t\t\t\t\n"
        "f.wav\t\t\t\t1.5\t\n",
        encoding="utf-8-sig",
    )
    utterances, failures = read(path)
    assert utterances == [
        Utterance("a.wav@0.5#1", "a.wav", "", f"{tmp_path}/a.wav", 0.5, 2.0, 1, 'He said "no".'),
        Utterance("b.wav", "b.wav", "", f"{tmp_path}/b.wav"),
    ]
    assert [failure.id for failure in failures] == ["line 5", "line 6", "line 7", "line 8"]
    messages = ["2 cells; the first line names 6", "seconds from 0", "must be a number", "must be a number"]
    assert all(part in failure.detail for part, failure in zip(messages, failures, strict=True))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("sound\ttext", "no column is named audio; its first line has 'sound', 'text'"),
        ("audio\ttranscript", "'transcript' is not known; did you mean text?"),
        ("audio\ttext\ttext", "same name"),
        ("audio\twords", "word_times"),
    ],
)
def test_tsv_without_usable_names_is_refused(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "m.tsv").write_text(f"{header}\na.wav\tb\tc\n")
    with pytest.raises(UserError, match=message):
        read_manifest(config_for(tmp_path / "m.tsv"))


def test_manifests_that_cannot_be_read_as_a_whole(tmp_path: Path) -> None:
    def refusal(path: Path, **fields: Any) -> str:
        with pytest.raises(UserError) as caught:
            read_manifest(config_for(path, **fields))
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "does not exist" in refusal(tmp_path / "absent.jsonl", format="jsonl")
    assert "does not exist" in refusal(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert "is empty" in refusal(tmp_path / "empty.jsonl")
    assert "names no utterances" in refusal(tmp_path / "empty.jsonl", format="jsonl")
    assert "must be a file" in refusal(tmp_path, format="tsv")
    assert "must be a folder" in refusal(tmp_path / "empty.jsonl", format="folder")
    (tmp_path / "wide.jsonl").write_text(json.dumps(A), encoding="utf-16")
    assert "UTF-16" in refusal(tmp_path / "wide.jsonl")
    whole = write_lines(tmp_path / "m.jsonl.gz", [{"audio": f"{i}.wav"} for i in range(2000)])
    whole.write_bytes(whole.read_bytes()[:-20])
    assert "not a whole gzip file" in refusal(whole)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
entries = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)
usable = entries.map(lambda entry: {**entry, "audio": "a.wav"})
timed = st.lists(st.tuples(st.text(min_size=1, max_size=3), st.floats(-1, 3), st.floats(-1, 3)), max_size=3)
with_words = timed.map(lambda words: {"audio": "a.wav", "words": words})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entries | usable | with_words | values, min_size=1, max_size=5), st.sampled_from(["auto", "jsonl"]))
def test_any_json_gives_valid_utterances_or_failures(tmp_path: Path, items: list[Any], kind: str) -> None:
    path = write_lines(tmp_path / "m.jsonl", [json.dumps(item) for item in items])
    try:
        utterances, failures = read_manifest(config_for(path, format=kind))
    except UserError as error:
        assert kind == "auto" and str(path) in str(error)
        return
    check_all(utterances, failures)
    assert len(utterances) + len(failures) == len(items)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60) | st.binary(max_size=40).map(lambda rest: b"audio\toffset\twords\n" + rest),
    st.sampled_from(["auto", "jsonl", "tsv", "libriheavy"]),
    st.sampled_from(["m.jsonl", "m.tsv", "m"]),
)
def test_any_bytes_give_valid_utterances_or_failures(tmp_path: Path, data: bytes, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    try:
        check_all(*read_manifest(config_for(tmp_path / name, format=kind)))
    except UserError as error:
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"audio": "a.wav"}, {"audio": "b.wav"}]', "write one object per line: `jq -c"),
        ('{\n  "audio": "a.wav"\n}\n', "write one object per line: `jq -c"),
        ("audio,text\na.wav,hi\n", "columns of a table are separated by tabs"),
        ('"path";"text"\n', "columns of a table are separated by tabs"),
        ("a.wav hi\n", "its first line is 'a.wav hi'; set recordings.format"),
    ],
)
def test_other_forms_name_the_correction(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.data").write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_manifest(config_for(tmp_path / "m.data"))


def test_a_format_is_recognized_although_keys_are_twice_in_each_line(tmp_path: Path) -> None:
    utterances, failures = read(write_lines(tmp_path / "m.data", ['{"audio": "a.wav", "audio": "b.wav"}'] * 3))
    assert not utterances and [failure.id for failure in failures] == ["line 1", "line 2", "line 3"]
    assert all("the key 'audio' is twice" in failure.detail for failure in failures)
    assert failures[2].place == f"{tmp_path}/m.data line 3"
