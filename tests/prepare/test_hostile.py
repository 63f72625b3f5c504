"""Files that are made to hurt: read in bounded time and memory, with a message, or counted as failures."""

import gzip
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from recordings import write_text_tokenizer

from tolktrain.config.prepare import RecordingsConfig, TextConfig
from tolktrain.data.text_tokenizer import load_text_tokenizer
from tolktrain.errors import UserError
from tolktrain.prepare.recordings import audio
from tolktrain.prepare.recordings.align.given_times import align_given
from tolktrain.prepare.recordings.align.textgrid import parse_textgrid
from tolktrain.prepare.recordings.align.word_times import read_word_times
from tolktrain.prepare.recordings.audio import read_audio
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.text import documents
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance, Word

PROGRAM = Path(__file__).with_name("hostile_readers.py")


@pytest.mark.slow
def test_no_reader_is_hurt(tmp_path: Path) -> None:
    """Each reader with each hostile variant, in one process that is limited in memory and time. What hangs, crashes or
    lets another error through is the last line that it printed."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)], capture_output=True, text=True, timeout=1_800, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]


def folder_of(path: Path) -> tuple[list[Utterance], list[Failure]]:
    fields = {"format": "folder", "speech_tokenizer": {"path": "units"}}
    return read_manifest(RecordingsConfig.model_validate({"manifest": str(path), **fields}))


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_a_transcript_that_is_a_fifo_is_one_failure(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.wav").touch()
    os.mkfifo(tmp_path / f"a{suffix}")
    utterances, failures = folder_of(tmp_path)
    assert [utterance.id for utterance in utterances] == ["b.wav"]
    assert [(failure.id, failure.reason) for failure in failures] == [("a.wav", Reason.MANIFEST)]
    assert failures[0].detail == f"a{suffix} cannot be read (not a regular file)"


def test_folders_that_are_too_deep(tmp_path: Path) -> None:
    """An archive can hold folders deeper in each other than Python calls functions."""
    os.makedirs(tmp_path / "/".join("d" * 300))
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)
    try:
        # From Python 3.12 on, os.walk needs no stack.
        with pytest.raises(UserError, match="holds folders nested too deeply|names no utterances"):
            folder_of(tmp_path)
    finally:
        sys.setrecursionlimit(before)


def test_a_line_without_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"audio": "a.wav"}\n')
        file.truncate(1 << 32)
    fields: dict[str, Any] = {"format": "jsonl", "speech_tokenizer": {"path": "units"}}
    with pytest.raises(UserError, match=r"m\.jsonl line 2: a line is longer than 16777216 bytes"):
        read_manifest(RecordingsConfig.model_validate({"manifest": str(path), **fields}))


def read_all(path: Path, size: int) -> list[str]:
    config = TextConfig(files=(str(path),))
    found: list[str] = []
    for file, name, kind in documents.find_files(config.files):
        for part, _ in documents.ranges_of(file, name, kind, size, config):
            found += [
                item.text for item in documents.read_documents(part, config) if isinstance(item, documents.Document)
            ]
    return found


def test_a_document_without_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "a"}\n{"text": "b"}\n')
        file.truncate(1 << 32)
    with pytest.raises(UserError, match=r"d\.jsonl:3: a line is longer than 67108864 bytes; a document needs less"):
        read_all(path, 1 << 31)
    with open(tmp_path / "d.jsonl.gz", "wb") as packed:
        packed.write(gzip.compress(b'{"text": "a"}\n'))
        for _ in range(8):
            packed.write(gzip.compress(bytes(16 << 20), 1))
    with pytest.raises(UserError, match=r"d\.jsonl\.gz:2: a line is longer"):
        read_all(tmp_path / "d.jsonl.gz", 1 << 31)


@pytest.mark.parametrize("size", [1, 7, 50, 5_000])
def test_lines_longer_than_ranges_belong_to_the_one_they_begin_in(tmp_path: Path, size: int) -> None:
    texts = ["a", "b" * 1_000, "c", "d" * 3_000, "e"]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert read_all(path, size) == texts


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_what_follows_a_line_is_not_read_to_find_where_a_range_begins(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range inside of a line reads no further than its own end."""
    monkeypatch.setattr(documents, "_BUFFER", 4)
    texts = ["a", "b" * 100, "c"]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert read_all(path, size) == texts


def grid(pieces: str) -> bytes:
    return f'"ooTextFile"\n"TextGrid"\n0\n2\n<exists>\n1\n"IntervalTier"\n"words"\n0\n2\n{pieces}'.encode()


def test_textgrids_as_praat_takes_them() -> None:
    (tier,) = parse_textgrid(grid('2\n0\n1\n"a ""b"" c"\n1 2 ""\n'))
    assert tier.intervals == [(0.0, 1.0, 'a "b" c'), (1.0, 2.0, "")]
    with pytest.raises(ValueError, match=r"declares 1e\+300 intervals and holds 1"):
        parse_textgrid(grid('1e300\n0\n1\n"said to be many"\n1'))
    (tier,) = parse_textgrid(grid('1\nxmin=0\nxmax= 1.5e0 seconds\n text ="a"\n'))
    assert tier.intervals == [(0.0, 1.5, "a")]
    assert parse_textgrid(b'"ooTextFile" "TextGrid" 0 2 <absent>') == []
    for bad in ("-1\n", "1.5\n", 'many\n"a"', '1\n"a"\n0\n1\n'):
        with pytest.raises(ValueError, match="expected"):
            parse_textgrid(grid(bad))


def words_in(size: int, piece: str) -> int:
    """Steps of the parser for a file of so many pieces: calls of Python functions, counted by the interpreter."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    content = grid("9\n" + piece * size)
    sys.setprofile(count)
    try:
        parse_textgrid(content)
    except ValueError:
        pass
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(
    "piece", ['"', '""', '" "', 'text = "', "1 ", "xmin = 1 ", '0 1 "a" ', "\n", "=", "<a> ", '"IntervalTier" ']
)
def test_textgrids_cost_what_they_are_long(piece: str, growth_exponent: Callable[[Mapping[int, float]], float]) -> None:
    steps = {size: words_in(size, piece) + size for size in (500, 1_000, 2_000, 4_000)}
    assert growth_exponent(steps) < 1.1


@pytest.mark.parametrize("name", ["u.ctm", "u.alignment.txt", "u.TextGrid", "u.json"])
@pytest.mark.parametrize("target", ["FIFO", "/dev/zero"])
def test_word_times_are_read_from_regular_files(tmp_path: Path, name: str, target: str) -> None:
    path = tmp_path / name
    if target == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    with pytest.raises(EntryError, match="cannot be read .*not a regular file"):
        read_word_times(str(path), "u")


def test_an_utterance_has_no_gigabyte_of_word_times(tmp_path: Path) -> None:
    path = tmp_path / "u.ctm"
    line = "u 1 0.0 0.25 " + "the" * 100_000 + "\n"
    path.write_text(line * 60)
    with pytest.raises(EntryError, match="the lines of 'u' have more than"):
        read_word_times(str(path), "u")
    path.write_text(line * 20)
    with pytest.raises(EntryError, match="longer than"):
        path.write_text(line.strip() * 20)
        read_word_times(str(path), "u")


@pytest.mark.slow
def test_doubtful_words_are_compared_for_a_bounded_time() -> None:
    """Each silence may be a word or none, and what follows fits nowhere: ways multiply."""
    words = [Word("sil", i / 10, i / 10 + 0.1) for i in range(1_000)]
    with pytest.raises(EntryError, match="no way to match it was found"):
        align_given("sil " * 999 + "end", words, "en")


def test_audio_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of FLAC may hold days of silence."""
    monkeypatch.setattr(audio, "_MOST_SAMPLES", 40_000)
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 1_000)
    for name in ("a.flac", "a.wav", "a.ogg"):
        soundfile.write(tmp_path / name, 0.1 * np.sin(np.arange(48_000) / 9), 16_000)
        path = str(tmp_path / name)
        for wanted, duration in ((16_000, None), (32_000, 2.0)):
            with pytest.raises(EntryError, match="too many for one utterance; give offset and duration") as caught:
                read_audio(Utterance("u", "u", "", path, duration=duration), wanted)
            assert caught.value.reason is Reason.AUDIO
        assert len(read_audio(Utterance("u", "u", "", path, offset=1.0, duration=1.0), 32_000)) == 32_000


def test_a_vocabulary_with_an_enormous_id(tmp_path: Path) -> None:
    """A table with a row for each id would take gigabytes."""
    folder = write_text_tokenizer(tmp_path / "tokenizer")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["far away"] = 4_000_000_000
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json has the id 4000000000; at most 16777216 ids are supported"):
        load_text_tokenizer(folder)


def test_a_deep_tokenizer_is_refused_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The library is written in Rust, where too deep a recursion would end the process."""
    folder = write_text_tokenizer(tmp_path / "tokenizer")
    (folder / "tokenizer.json").write_text('{"model":' * 1_000_000)
    program = (
        "import sys\nfrom tolktrain.errors import UserError\n"
        "from tolktrain.data.text_tokenizer import load_text_tokenizer\n"
        "try:\n    load_text_tokenizer(sys.argv[1])\nexcept UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and "is not a tokenizer of the tokenizers library" in done.stdout
