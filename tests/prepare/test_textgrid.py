"""TextGrid files of any number of tiers and intervals: read whole, or refused where they are not what they declare."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tolktrain.prepare.recordings.align.textgrid import parse_textgrid
from tolktrain.prepare.recordings.align.word_times import read_word_times
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Word

Item = tuple[float, float, str]
TierOf = tuple[str, bool, list[Item]]  # name, whether it has intervals (else points, at their start), items


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def written(
    tiers: list[TierOf], is_long: bool, extra: int = 0, cut: int | None = None, without: int | None = None
) -> str:
    """The text of a file, as Praat writes it.

    `extra` is added to the number that the last tier declares; `without` leaves out one item of it, counted from its
    begin; `cut` ends the file before one of its items.
    """
    end = 10.0
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
    lines = [f"xmin = 0 \nxmax = {end} \ntiers? <exists> \nsize = {len(tiers)} \nitem []: " if is_long else ""]
    if not is_long:
        lines = [f"0\n{end}\n<exists>\n{len(tiers)}"]
    for number, (name, has_intervals, items) in enumerate(tiers, 1):
        last = number == len(tiers)
        kind = "IntervalTier" if has_intervals else "TextTier"
        declared = len(items) + (extra if last else 0)
        if is_long:
            what = "intervals" if has_intervals else "points"
            lines.append(f'    item [{number}]:\n        class = "{kind}" \n        name = {quoted(name)} ')
            lines.append(f"        xmin = 0 \n        xmax = {end} \n        {what}: size = {declared} ")
        else:
            lines.append(f'"{kind}"\n{quoted(name)}\n0\n{end}\n{declared}')
        for place, (start, stop, label) in enumerate(items):
            if last and place == cut:
                return head + "\n".join(lines) + "\n"
            if last and place == without:
                continue
            if is_long and has_intervals:
                times = f"            xmin = {start} \n            xmax = {stop} \n"
                lines.append(f"        intervals [{place + 1}]:\n{times}            text = {quoted(label)} ")
            elif is_long:
                time = f"            number = {start} \n"
                lines.append(f"        points [{place + 1}]:\n{time}            mark = {quoted(label)} ")
            else:
                lines.append(f"{start}\n{stop}\n{quoted(label)}" if has_intervals else f"{start}\n{quoted(label)}")
    return head + "\n".join(lines) + "\n"


labels = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=6)
counts = st.lists(labels, min_size=1, max_size=6)
tiers = st.lists(st.tuples(labels, st.booleans(), counts), min_size=1, max_size=4)
forms = st.tuples(st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.sampled_from(["\n", "\r\n"]))


def timed(table: list[tuple[str, bool, list[str]]]) -> list[TierOf]:
    """Intervals that fill 10 seconds."""
    result = []
    for name, has_intervals, texts in table:
        ends = [round(10 * (place + 1) / len(texts), 6) for place in range(len(texts))]
        items = [(ends[place - 1] if place else 0.0, ends[place], text) for place, text in enumerate(texts)]
        result.append((name, has_intervals, items))
    return result


def encoded(text: str, form: tuple[bool, str, str]) -> bytes:
    return text.replace("\n", form[2]).encode(form[1])


@settings(max_examples=80)
@given(tiers, forms)
def test_every_tier_and_interval_is_read(table: list[tuple[str, bool, list[str]]], form: tuple[bool, str, str]) -> None:
    expected = timed(table)
    found = parse_textgrid(encoded(written(expected, form[0]), form))
    assert [(one.name, one.has_intervals, one.intervals) for one in found] == [
        (name, has_intervals, items if has_intervals else []) for name, has_intervals, items in expected
    ]


@settings(max_examples=80)
@given(tiers, forms, st.integers(0, 5), st.sampled_from(["less", "more", "cut", "without"]))
def test_what_is_declared_must_be_there(
    table: list[tuple[str, bool, list[str]]], form: tuple[bool, str, str], place: int, change: str
) -> None:
    content = timed(table)
    name, has_intervals, items = content[-1]
    place %= len(items)
    changes = {
        "less": {"extra": -1 - place},
        "more": {"extra": 1 + place},
        "cut": {"cut": place},
        "without": {"without": place},
    }
    declared = len(items) + changes[change].get("extra", 0)
    held = {"cut": place, "without": len(items) - 1}.get(change, len(items))
    with pytest.raises(ValueError, match=r"^line \d+: ") as caught:
        parse_textgrid(encoded(written(content, form[0], **changes[change]), form))
    if change == "less":
        assert "fewer intervals than the file holds" in str(caught.value)
    else:
        what = "intervals" if has_intervals else "points"
        assert f"declares {declared} {what} and holds {held}" in str(caught.value)


def test_an_interval_that_is_missing_from_a_tier_before_others() -> None:
    content = timed([("words", True, ["a", "b", "c"]), ("phones", True, ["x"])])
    for is_long in (True, False):
        good = written(content, is_long)
        begin = good.index("intervals [2]") if is_long else good.index('3.333333\n6.666667\n"b"')
        end = good.index("intervals [3]") if is_long else good.index('6.666667\n10.0\n"c"')
        with pytest.raises(
            ValueError, match=r"^line \d+: the tier 'words' declares 3 intervals and holds 2 .*got 'Inter"
        ):
            parse_textgrid((good[:begin] + good[end:]).encode())


def test_the_number_of_tiers_is_as_declared() -> None:
    content = timed([("words", True, ["a"]), ("phones", True, ["x"])])
    for is_long in (True, False):
        good, size = written(content, is_long), "size = 2" if is_long else "<exists>\n2"
        assert size in good
        with pytest.raises(ValueError, match="declares 3 tiers and holds 2"):
            parse_textgrid(good.replace(size, size.replace("2", "3"), 1).encode())
        with pytest.raises(ValueError, match=r"or it declares too few tiers \(1\)"):
            parse_textgrid(good.replace(size, size.replace("2", "1"), 1).encode())
    assert parse_textgrid(b'"ooTextFile" "TextGrid" 0 2 <exists> 0') == []


def test_which_tier_holds_the_words(tmp_path: Path) -> None:
    path, unused = tmp_path / "a.TextGrid", Unused()
    names = ["ann - words", "ann - phones", "bob - words", "bob - phones"]
    path.write_text(written(timed([(name, True, [name[:3]]) for name in names]), True))
    assert read_word_times(str(path), "u", speaker="bob", unused=unused) == (Word("bob", 0.0, 10.0),)
    assert [(item.what, item.count) for item in unused.take()] == [("tiers 'words'", 1), ("tiers 'phones'", 2)]
    for speaker in ("", "eve"):
        with pytest.raises(EntryError, match="the utterance's speaker chooses among tiers of several"):
            read_word_times(str(path), "u", speaker=speaker)
    path.write_text(written(timed([("words", True, ["a"]), ("words", True, ["b"])]), True))
    with pytest.raises(EntryError, match="expected one interval tier named words; found the tiers 'words', 'words'"):
        read_word_times(str(path), "u")
    path.write_text(written(timed([("words", False, ["a"])]), True))
    with pytest.raises(EntryError, match="the tier 'words' has points"):
        read_word_times(str(path), "u")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("abc\"'", min_size=1, max_size=4), min_size=1, max_size=5), forms)
def test_quotes_in_words(tmp_path: Path, words: list[str], form: tuple[bool, str, str]) -> None:
    path = tmp_path / "a.TextGrid"
    content = timed([("Words", True, words)])
    path.write_bytes(encoded(written(content, form[0]), form))
    assert read_word_times(str(path), "u") == tuple(Word(text, start, end) for start, end, text in content[0][2])
