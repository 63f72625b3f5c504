"""CTM files: every column is used, counted as not used, or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audio_files import RATE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import corpus, write_corpus, write_text_tokenizer
from test_bounds import failures_of

from tolktrain.config.prepare import RecordingsConfig
from tolktrain.prepare.recordings.align.word_times import Named, check_words, read_word_times
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Reason, Word


def write(path: Path, content: str, encoding: str = "utf-8") -> str:
    path.write_bytes(content.encode(encoding))
    return str(path)


def refusal(path: Path, content: str, utterance: str = "u", **choice: Any) -> str:
    with pytest.raises(EntryError) as caught:
        read_word_times(write(path, content), utterance, **choice)
    assert caught.value.reason is Reason.WORD_TIMES and str(path) in caught.value.detail
    return caught.value.detail


CALL = """conv {0} 0.05 0.25 The
conv {0} 0.5 0.25 river
conv {1} 1.0 0.5 A
conv {1} 1.5 0.5 dog
"""
FIRST = (Word("The", 0.05, 0.3), Word("river", 0.5, 0.75))
SECOND = (Word("A", 1.0, 1.5), Word("dog", 1.5, 2.0))


@pytest.mark.parametrize("names", [("A", "B"), ("1", "2"), ("a", "b"), ("0", "1")])
def test_the_channel_column_selects_the_channel(tmp_path: Path, names: tuple[str, str]) -> None:
    path = write(tmp_path / "conv.ctm", CALL.format(*names))
    for utterance in ("conv", "conv-x"):  # by its id, and by the name of the file
        assert read_word_times(path, utterance, channel=0) == FIRST
        assert read_word_times(path, utterance, channel=1) == SECOND
        assert f"it has the channels {names[0]}, {names[1]}, none" in refusal(
            tmp_path / "conv.ctm", CALL.format(*names), utterance, channel=2
        )
        assert f"it has the channels {names[0]}, {names[1]}; give" in refusal(
            tmp_path / "conv.ctm", CALL.format(*names), utterance
        )
    assert read_word_times(path, "conv-x", speaker=names[1]) == SECOND


def test_the_channel_of_all_recordings_selects_the_channel(tmp_path: Path) -> None:
    """`recordings.channel` is the channel of the audio and of its words."""
    song = corpus(1, 1)[0]
    write_corpus(tmp_path, [song])
    write_text_tokenizer(tmp_path / "text_tokenizer")
    stereo = np.stack([song.samples, 0.5 * song.samples], axis=1)
    soundfile.write(tmp_path / "audio" / "talk.wav", stereo, RATE, subtype="FLOAT")
    one = {"audio": "audio/talk.wav", "word_times": "talk.ctm"}
    lines = {0: "talk A 0.1 0.2 do", 1: "talk B 0.1 0.2 re"}
    for channels, channel, failing in (((0, 1), 0, []), ((0, 1), 1, []), ((0, 1), None, ["talk"]), ((1,), 0, ["talk"])):
        write(tmp_path / "talk.ctm", "".join(f"{lines[place]}\n" for place in channels))
        entries = [one | {"id": "talk", "text": "re" if channel == 1 else "do", "source": "a"}]
        assert failures_of(tmp_path, entries, channel=channel) == [(name, Reason.WORD_TIMES) for name in failing]


def test_words_of_one_channel_are_not_given_to_the_other(tmp_path: Path) -> None:
    for name in ("A", "1"):
        detail = refusal(tmp_path / "conv.ctm", f"conv {name} 0 1 word\n", "conv-b", channel=1)
        assert f"it has the channels {name}, none of which is the utterance's channel 1, written as 2, B, b" in detail
    assert "channels 2, none" in refusal(tmp_path / "conv.ctm", "conv 2 0 1 word\n", "conv", channel=0)


def test_a_column_that_is_1_in_all_lines_is_that_of_kaldi(tmp_path: Path) -> None:
    """Its utterances are already of one channel, and the column says nothing."""
    path, unused = write(tmp_path / "all.ctm", "call-A 1 0 1 a\ncall-B 1 0 1 b\n"), Unused()
    assert read_word_times(path, "call-B", channel=1, unused=unused) == (Word("b", 0.0, 1.0),)
    assert [item.what for item in unused.take()] == ["channel (column 2 of .ctm), which is 1 in all lines"]
    path = write(tmp_path / "all.ctm", "call-A 1 0 1 a\ncall-B 2 0 1 b\n")
    assert "none of which is" in refusal(tmp_path / "all.ctm", "call-A 1 0 1 a\ncall-B 2 0 1 b\n", "call-A", channel=1)


# As NeMo writes it, and as NIST's evaluations of who spoke when.
EIGHT = "u 1 0.25 0.25 The NA lex NA\nu 1 0.5 0.625 sea 0.9 lex NA\n"
SPEAKERS = "u 1 0 1 one 1 lex ann\nu 1 1 1 two 1 lex bob\nu 1 2 1 three 1 lex ann\n"


def test_the_form_of_eight_columns(tmp_path: Path) -> None:
    unused = Unused()
    words = read_word_times(write(tmp_path / "u.ctm", EIGHT), "u", unused=unused)
    assert words == (Word("The", 0.25, 0.5), Word("sea", 0.5, 1.125))
    assert [(item.what, item.count) for item in unused.take()] == [
        ("confidence (column 6 of .ctm)", 1),
        ("type of the word (column 7 of .ctm)", 1),
    ]


def test_the_speaker_column_selects_the_speaker(tmp_path: Path) -> None:
    path, unused = write(tmp_path / "u.ctm", SPEAKERS), Unused()
    assert [word.text for word in read_word_times(path, "u", speaker="ann", unused=unused)] == ["one", "three"]
    assert "speaker (column 8 of .ctm)" not in [item.what for item in unused.take()]
    assert len(read_word_times(path, "u", unused=unused)) == 3, "who speaks is not asked"
    assert "speaker (column 8 of .ctm)" in [item.what for item in unused.take()]
    assert "speakers ann, bob, and none of the utterance's speaker 'eve'" in refusal(
        tmp_path / "u.ctm", SPEAKERS, speaker="eve"
    )


ALTERNATIVES = """;; of NIST
u A 0.0 1.0 first
u A * * <ALT_BEGIN>
u A 1.0 0.5 uh
u A * * <ALT>
u A 1.0 0.5 um
u A * * <ALT>
u A 1.0 0.5 @
u A * * <ALT_END>
;; between
u A * * <ALT_BEGIN>
u A 1.5 0.5 @
u A * * <ALT>
u A 1.5 0.5 well
u A * * <ALT_END>
u A 2.0 0.5 last
"""


def test_the_first_of_alternatives_is_taken(tmp_path: Path) -> None:
    unused = Unused()
    words = read_word_times(write(tmp_path / "u.ctm", ALTERNATIVES), "u", unused=unused)
    assert words == (Word("first", 0.0, 1.0), Word("uh", 1.0, 1.5), Word("last", 2.0, 2.5))
    assert [(item.what, item.count) for item in unused.take()] == [("alternatives after the first in .ctm", 3)]
    begun = ALTERNATIVES[: ALTERNATIVES.index("u A * * <ALT_END>")]
    assert "line 7: alternatives begin that do not end" in refusal(tmp_path / "u.ctm", begun)
    assert "line 1: <ALT> is out of place" in refusal(tmp_path / "u.ctm", "u A * * <ALT>\n")
    twice = "u A * * <ALT_BEGIN>\nu A * * <ALT_BEGIN>\n"
    assert "line 2: <ALT_BEGIN> is out of place" in refusal(tmp_path / "u.ctm", twice)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_marks_and_line_ends(tmp_path: Path, encoding: str, line_end: str) -> None:
    path = write(tmp_path / "all.ctm", CALL.format("A", "B").replace("\n", line_end), encoding)
    assert read_word_times(path, "conv", channel=0) == FIRST
    (tmp_path / "wide.ctm").write_bytes(CALL.encode("utf-16"))
    with pytest.raises(EntryError, match="is UTF-16 text, not UTF-8; save it as UTF-8"):
        read_word_times(str(tmp_path / "wide.ctm"), "conv")


def test_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "all.ctm"
    good = "\n;; comment\nv 1 0 1 other\nu 1 0 0.5 good\n"
    assert "line 5: the confidence must be a number or NA, got 'York'" in refusal(path, good + "u 1 1 1 New York\n")
    assert "line 5: expected utterance, channel" in refusal(path, good + "u 1 1 word\n")
    assert "line 5: expected utterance, channel" in refusal(path, good + "u 1 1 1 word 1 lex ann more\n")
    assert "line 7: the times of 'word' must be numbers" in refusal(path, good + "v 1 1 1 x\n\nu 1 x 1 word\n")
    path.write_bytes(good.encode() + b"u 1 0.5 0.5 fine\nu 1 1 1 caf\xe9\n")
    with pytest.raises(EntryError, match="line 6 is not UTF-8 text"):
        read_word_times(str(path), "u")


def test_an_utterance_is_found_in_either_form_of_its_accents(tmp_path: Path) -> None:
    composed, decomposed = "\u00e9t\u00e9", "e\u0301te\u0301"
    for in_file, asked in ((composed, decomposed), (decomposed, composed)):
        path = write(tmp_path / f"{ord(in_file[0])}.ctm", f"{in_file} 1 0 1 word\n")
        assert read_word_times(path, asked) == (Word("word", 0.0, 1.0),)


ONE, OTHER = (Word("one", 0.0, 0.5),), (Word("other", 0.0, 0.5),)


@pytest.mark.parametrize(
    "name", ["talk", "talk.wav", "day1/talk", "day1/talk.wav", "root/day1/talk", "/root/day1/talk.wav"]
)
def test_lines_named_after_the_audio(tmp_path: Path, name: str) -> None:
    audio = Named("/root/day1/talk.wav")
    path = write(tmp_path / "all.ctm", f"{name} 1 0 0.5 one\nalk 1 0 0.5 other\nday1 1 0 0.5 other\n")
    assert read_word_times(path, "t-1", named=audio) == ONE
    detail = refusal(tmp_path / "all.ctm", f"{name} 1 0 0.5 one\n", "t-1", named=Named(audio.audio, offset=2.5))
    assert f"its lines are of '{name}', the audio, of which the utterance begins at 2.5 s" in detail


def test_the_id_comes_before_the_name_of_the_audio(tmp_path: Path) -> None:
    path = write(tmp_path / "all.ctm", "talk 1 0 0.5 other\nt-1 1 0 0.5 one\n")
    assert read_word_times(path, "t-1", named=Named("a/talk.wav", 2.5, "b/talk.wav")) == ONE


def test_names_between_which_the_lines_do_not_choose(tmp_path: Path) -> None:
    audio = Named("day1/talk.wav", namesake="day2/talk.wav")
    detail = refusal(tmp_path / "all.ctm", "talk 1 0 0.5 one\n", "t-1", named=audio)
    assert "'talk' may be of day1/talk.wav or of day2/talk.wav; write the id of the utterance, 't-1'" in detail
    content = "talk 1 0 0.5 one\nall 1 0 0.5 other\n"
    assert "lines of 'all' and of 'talk', which" in refusal(tmp_path / "all.ctm", content, "t-1", named=audio)
    path = write(tmp_path / "both.ctm", "day1/talk 1 0 0.5 one\nday2/talk 1 0 0.5 other\n")
    assert read_word_times(path, "t-1", named=audio) == ONE
    assert read_word_times(path, "t-2", named=Named("day2/talk.wav", namesake="day1/talk.wav")) == OTHER


def test_a_manifest_says_which_audio_has_the_same_name(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    names = ("a/talk.wav", "b/talk.flac", "b/other.wav")
    lines = [{"audio": name, "id": name[::-1], "word_times": "all.ctm"} for name in names]
    lines.append({"audio": "c/talk.wav", "word_times": "own.ctm"})
    manifest.write_text("\n" + "".join(json.dumps(line) + "\n" for line in lines))
    settings = {"manifest": str(manifest), "speech_tokenizer": {"path": "units"}}
    utterances, _ = read_manifest(RecordingsConfig.model_validate(settings))
    found = [None if one.namesake is None else one.namesake[len(str(tmp_path)) + 1 :] for one in utterances]
    assert found == ["b/talk.flac", "a/talk.wav", None, None]
    assert [one.place for one in utterances] == [f"{manifest} line {number}" for number in (2, 3, 4, 5)]


names = st.sampled_from(["u", "v", "w-1"])
rows = st.lists(
    st.tuples(names, st.integers(0, 2), st.integers(0, 200), st.text("abcxyz", min_size=1, max_size=5)), max_size=30
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows,
    names,
    st.integers(0, 2),
    st.sampled_from(["ABC", "abc", "123"]),
    st.sampled_from(["", " 0.5", " NA lex", " 1 lex NA"]),
    st.sampled_from(["", "\ufeff"]),
    st.sampled_from(["\n", "\r\n", "\n;; note\n", "\n\n"]),
)
def test_exactly_the_words_of_a_channel_of_an_utterance(
    tmp_path: Path,
    table: list[tuple[str, int, int, str]],
    utterance: str,
    channel: int,
    letters: str,
    rest: str,
    mark: str,
    line_end: str,
) -> None:
    lines = [f"{name} {letters[place]} {start / 100} 0.25 {text}{rest}{line_end}" for name, place, start, text in table]
    path = write(tmp_path / "corpus.ctm", mark + "".join(lines))
    (tmp_path / "corpus.ctm").touch()
    expected = [
        (text, start / 100, round(start / 100 + 0.25, 9))
        for name, place, start, text in table
        if (name, place) == (utterance, channel)
    ]
    one_column = {place for _, place, _, _ in table} == {0} and letters == "123"
    try:
        words = read_word_times(path, utterance, channel=channel)
    except EntryError as error:
        assert not expected and ("no line of" in error.detail or "none of which is" in error.detail)
        return
    if not expected:
        assert one_column, "words of another channel"
        return
    assert [(word.text, word.start, word.end) for word in words] == expected


@given(
    st.lists(st.tuples(st.floats(0.0, 0.4), st.floats(0.05, 0.6)), min_size=6, max_size=30),
    st.floats(0.6, 5.0),
)
def test_ends_in_the_column_of_durations_are_refused(
    gaps_and_durations: list[tuple[float, float]], begin: float
) -> None:
    """Whatever the length of the audio. The same words with durations are accepted."""
    words, swapped, now = [], [], begin
    for number, (gap, duration) in enumerate(gaps_and_durations):
        start, end = now + gap, now + gap + duration
        words.append(Word(f"w{number}", start, end))
        swapped.append(Word(f"w{number}", start, start + end))
        now = end
    check_words(words, 1e6)
    with pytest.raises(EntryError, match="durations in column 4"):
        check_words(swapped, 1e6)
