"""Word times from the files of aligners, and what is refused."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tolktrain.prepare.recordings.align.word_times import check_words, read_word_times
from tolktrain.prepare.utterances import EntryError, Reason, Word

WORDS = (Word("The", 0.25, 0.5), Word("sea", 0.5, 1.125), Word("is", 1.5, 1.75))

# As Praat and the Montreal aligner write them.
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2
        intervals: size = 6
""" + "".join(
    f"""        intervals [{number}]:
            xmin = {start}
            xmax = {end}
            text = "{text}"
"""
    for number, (start, end, text) in enumerate(
        [(0, 0.25, ""), (0.25, 0.5, "The"), (0.5, 1.125, "sea"), (1.125, 1.5, "sp"), (1.5, 1.75, "is"), (1.75, 2, "")],
        1,
    )
)
LONG += """    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2
            text = "DH"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
2
<exists>
1
"IntervalTier"
"Anna - words"
0
2
6
0
0.25
""
0.25
0.5
"The"
0.5
1.125
"sea"
1.125
1.5
"sil"
1.5
1.75
"is"
1.75
2
""
"""


def write(path: Path, content: Any) -> str:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def refusal(path: Path, content: Any, utterance: str = "u") -> str:
    with pytest.raises(EntryError) as caught:
        read_word_times(write(path, content), utterance)
    assert caught.value.reason is Reason.WORD_TIMES and str(path) in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize("text", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_textgrid(tmp_path: Path, text: str, coding: str, line_end: str) -> None:
    path = write(tmp_path / "a.TextGrid", text.replace("\n", line_end).encode(coding))
    assert read_word_times(path, "any") == WORDS


def test_textgrid_that_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    assert "found the tiers 'wrong', 'phones'" in refusal(path, LONG.replace('"words"', '"wrong"'))
    assert "one interval tier named words" in refusal(path, LONG.replace('"phones"', '"word"'))
    assert "one word without blanks" in refusal(path, LONG.replace('"sea"', '"sea shore"'))
    assert "cut off" in refusal(path, SHORT[: SHORT.index('"is"')])
    assert "not a TextGrid" in refusal(path, b"\x00\xff" * 50)
    assert "not a TextGrid" in refusal(path, "")


CTM = """;; by an aligner
a 1 0.1 0.2 First 0.9
u 1 0.25 0.25 The
u 1 0.5 0.625 sea 0.5
b 1 0.1 0.2 other
u 1 1.125 0.375 <eps> 1.0
u 1 1.5 0.25 is 1.0
"""


def test_ctm_selects_the_utterance(tmp_path: Path) -> None:
    path = write(tmp_path / "all.ctm", CTM)
    assert read_word_times(path, "u") == WORDS
    assert read_word_times(path, "a") == (Word("First", 0.1, 0.3),)
    assert read_word_times(path, "b") == (Word("other", 0.1, 0.3),)
    found = refusal(tmp_path / "all.ctm", CTM, "v")
    assert "no line of v, the id of the utterance; its lines begin with 'a', 'u', 'b'" in found
    assert read_word_times(write(tmp_path / "u.ctm", CTM), "folder/u.wav") == WORDS, "named as its file is"


def test_ctm_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "all.ctm", CTM)
    assert len(read_word_times(path, "u")) == 3
    write(tmp_path / "all.ctm", "x 1 0 1 inserted\n" + CTM)
    os.utime(path, ns=(1, 1))
    assert read_word_times(path, "u") == WORDS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u 1 0.1 word", "expected utterance, channel"),
        ("u 1 nan 0.1 word", "must be finite"),
        ("u 1 0.1 x word", "must be numbers"),
        ("u 1 0.1 -0.1 word", "lasts -0.1"),
    ],
)
def test_ctm_that_is_not_used(tmp_path: Path, line: str, message: str) -> None:
    assert message in refusal(tmp_path / "a.ctm", line)


def test_librispeech_alignments(tmp_path: Path) -> None:
    line = 'u ",THE,SEA,,IS," "0.250,0.500,1.125,1.500,1.750,2.000"\n'
    path = write(tmp_path / "84-1.alignment.txt", 't ",GO" "0.490,0.890"\n' + line)
    assert read_word_times(path, "u") == tuple(Word(w.text.upper(), w.start, w.end) for w in WORDS)
    assert "2 words and 1 times" in refusal(tmp_path / "x.alignment.txt", 'u ",GO" "0.490"')
    assert "one line" in refusal(tmp_path / "x.alignment.txt", line + line)


LISTED = [{"word": w.text, "start": w.start, "end": w.end} for w in WORDS]


@pytest.mark.parametrize(
    "content",
    [
        LISTED,
        [[w.text, w.start, w.end] for w in WORDS],
        {"words": LISTED},
        {"transcript": "The sea is", "words": [{**item, "case": "success", "phones": []} for item in LISTED]},
        {"words": [{**item, "word": " " + item["word"], "score": 0.9} for item in LISTED]},
        {"segments": [{"words": LISTED[:1]}, {"words": LISTED[1:]}], "language": "en"},
        {"segments": [], "word_segments": LISTED},
        {"segments": [{"text": "The sea is"}], "words": LISTED, "chunks": 3, "result": [3]},
    ],
)
def test_json(tmp_path: Path, content: Any) -> None:
    assert read_word_times(write(tmp_path / "a.json", content), "u") == WORDS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"words": [],\n "words": []}', "the key 'words' is twice in one object, in lines 1 and 2"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe[]", "not UTF-8"),
        ({"text": "The"}, "found 'text'"),
        (3, "must be a list"),
        ({"words": [{"word": "The", "case": "not-found-in-audio"}]}, "did not find it"),
        (
            {"words": [{"word": "The", "start_time": 0, "end_time": 1}]},
            "other keys than start and end: start_time, end",
        ),
        ({"chunks": [{"text": "The", "timestamp": [0.1, None]}]}, "must be numbers"),
        (
            {"segments": [{"words": LISTED}], "word_segments": [*LISTED[:-1], {**LISTED[-1], "end": 1.5}]},
            "it lists words in word_segments and in segments, which differ",
        ),
        ({"words": LISTED[:1], "word_segments": LISTED}, "it lists words in words and in word_segments"),
        ([["The", 0.1]], "expected {word, start, end}"),
        ([["The", True, 1]], "must be numbers"),
        ([["The", 0, 10**400]], "must be finite"),
        ('[["The", 0, Infinity]]', "must be finite"),
        ([[7, 0, 1]], "one word"),
        ([["", 0, 1]], "one word"),
        ('[["\\ud800", 0, 1]]', "surrogate"),
    ],
)
def test_json_that_is_not_used(tmp_path: Path, content: Any, message: str) -> None:
    assert message in refusal(tmp_path / "a.json", content)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("absent.TextGrid", "absent.ctm", "absent.json", "absent.alignment.txt"):
        with pytest.raises(EntryError, match="No such file"):
            read_word_times(str(tmp_path / name), "u")
    with pytest.raises(EntryError, match="no known suffix"):
        read_word_times(str(tmp_path / "a.lab"), "u")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], "no words"),
        ([(0.0, math.nan)], "not finite"),
        ([(0.0, math.inf)], "not finite"),
        ([(-0.01, 1.0)], "before the audio"),
        ([(1.0, 0.9)], "ends before it begins"),
        ([(0.5, 1.0), (0.4, 1.2)], "fall"),
        ([(0.0, 1.0), (0.1, 0.9)], "fall"),
        ([(0.0, 1.0), (1.0, 2.11)], "after the audio of 2.00 s"),
    ],
)
def test_impossible_times_are_refused(times: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(EntryError, match=message) as caught:
        check_words([Word("word", *time) for time in times], 2.0)
    assert caught.value.reason is Reason.WORD_TIMES


def test_possible_times_pass() -> None:
    check_words(WORDS, 2.0)
    check_words([Word("a", 0, 0), Word("b", 0, 1.0), Word("c", 0.9, 2.09)], 2.0)
    check_words([Word("a", 0, 1e6)], None)


FILES = {"a.TextGrid": LONG, "b.TextGrid": SHORT, "c.ctm": CTM, "d.json": json.dumps({"words": LISTED})}
FILES["e.alignment.txt"] = 'u ",THE,SEA," "0.250,0.500,1.125,1.500"\n'


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 8), st.binary(max_size=6)), max_size=4)
    | st.binary(max_size=60),
)
def test_damaged_files_never_crash(tmp_path: Path, name: str, change: list[tuple[int, int, bytes]] | bytes) -> None:
    data = bytearray(FILES[name].encode())
    if isinstance(change, bytes):
        data = bytearray(change)
    else:
        for place, length, piece in change:
            data[place % len(data) : place % len(data) + length] = piece
    try:
        words = read_word_times(write(tmp_path / name, bytes(data)), "u")
    except EntryError as error:
        assert error.reason is Reason.WORD_TIMES and str(tmp_path) in error.detail
        error.detail.encode()
        return
    for word in words:
        assert len(word.text.split()) == 1 and word.text == word.text.strip() and word.text.encode()
        assert math.isfinite(word.start) and math.isfinite(word.end)
