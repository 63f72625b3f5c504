"""What a preparation reads over is counted, printed and kept."""

import io
import json
from pathlib import Path

import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import RATE, configuration, corpus, parsed, write_text_tokenizer

from tolktrain.files.terminal import Console
from tolktrain.prepare.job.pipeline import Task, prepare
from tolktrain.prepare.job.progress import ProgressDisplay
from tolktrain.prepare.job.summary import Summary
from tolktrain.prepare.unused import Unused, UnusedItem


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=30), st.integers(0, 30))
def test_counts_are_sums_however_the_work_is_divided(found: list[tuple[int, int]], cut: int) -> None:
    whole, first, second = Unused(), Unused(), Unused()
    for place, (what, count) in enumerate(found):
        for unused in (whole, first if place < cut else second):
            unused.add(f"field {what}", f"line {place}", count)
    first.join(second.take())
    items = first.take()
    assert items == whole.take() and first.take() == []
    for item in items:
        same = [(place, count) for place, (what, count) in enumerate(found) if f"field {what}" == item.what]
        assert (item.count, item.first) == (sum(count for _, count in same), f"line {same[0][0]}")


def test_any_number_of_fields_and_any_text() -> None:
    unused = Unused()
    for number in range(1000):
        unused.add(f"the key {number}", "\ud800" + "x" * 1000)
    items = unused.take()
    assert len(items) == 201 and sum(item.count for item in items) == 1000
    assert items[-1].what == "further fields and files" and items[-1].count == 800
    assert all(item.first.encode() and len(item.first) < 300 for item in items)


def test_the_summary_has_no_item_where_nothing_was_unused() -> None:
    summary = Summary(num_items=1, failed={}, splits={})
    assert "unused" not in json.loads(summary.to_json())
    summary = Summary(num_items=1, failed={}, splits={}, unused=[UnusedItem(what="files .m4a", count=2, first="a.m4a")])
    assert json.loads(summary.to_json())["unused"] == [{"what": "files .m4a", "count": 2, "first": "a.m4a"}]
    assert Summary.model_validate_json(summary.to_json()) == summary


def test_a_preparation_says_what_it_did_not_use(tmp_path: Path) -> None:
    folder = tmp_path / "songs"
    folder.mkdir()
    for place, song in enumerate(corpus(1, 3)):
        name = f"{place}.AIFF" if place else f"{place}.wav"
        soundfile.write(folder / name, song.samples, RATE, format="AIFF" if place else "WAV")
        starts = (0.0, *song.ends[:-1])
        lines = [
            f"{place} 1 {a:.6f} {b - a:.6f} {w} 0.5\n" for a, b, w in zip(starts, song.ends, song.words, strict=True)
        ]
        (folder / f"{place}.ctm").write_text("".join(lines))
        (folder / f"{place}.lab").write_text(" ".join(song.words))
    (folder / "9.m4a").touch()
    (folder / "9.lab").touch()
    write_text_tokenizer(tmp_path / "text_tokenizer")
    said = io.StringIO()
    settings = configuration(tmp_path, folder, tmp_path / "output", processes=1, parts={"items": 2})
    prepare(parsed(settings), Task(), ProgressDisplay(Console(file=said, width=200)))
    command = 'for f in *.m4a; do ffmpeg -i "$f" "${f%.*}.wav"; done'
    listed = [
        {"what": "files .lab, because no audio file has the same name", "count": 1, "first": "9.lab"},
        {
            "what": f"files .m4a, which are in a format that is not decoded; convert them: {command}",
            "count": 1,
            "first": "9.m4a",
        },
    ]
    unused = json.loads((tmp_path / "output" / "summary.json").read_text())["unused"]
    column = {"what": "confidence (column 6 of .ctm)", "count": 3, "first": f"{folder}/0.ctm"}
    assert unused == [*listed, column]
    assert "3 of 3 entries used" in said.getvalue()
    line = "not used (1, first: 9.lab): files .lab, because no audio file has the same name\n"
    assert said.getvalue().count(line) == 2, "before the work, and in the summary"
    assert f"not used (3, first: {folder}/0.ctm): confidence (column 6 of .ctm)\n" in said.getvalue()
