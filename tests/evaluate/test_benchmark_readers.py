"""Readers of benchmarks: what is matched with what, and what they say of incomplete folders. No audio is needed."""

from pathlib import Path

import numpy as np
import pytest
from replicas import write_csv, write_released

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import Found, Pair, TokenIds
from tolktrain.evaluate.benchmarks.prosaudit import read as read_prosaudit
from tolktrain.evaluate.benchmarks.registry import BENCHMARKS
from tolktrain.evaluate.benchmarks.released import read_sequences, undo_running_means
from tolktrain.evaluate.benchmarks.salmon import PARTS
from tolktrain.evaluate.benchmarks.salmon import read as read_salmon
from tolktrain.evaluate.benchmarks.sblimp import read as read_sblimp
from tolktrain.evaluate.benchmarks.stories import read_stories
from tolktrain.evaluate.benchmarks.swuggy import frequency_band
from tolktrain.evaluate.benchmarks.swuggy import read as read_swuggy

LEXICAL = ["filename", "id", "voice", "frequency", "word", "phones", "length", "correct"]
SYNTACTIC = ["filename", "id", "voice", "type", "subtype", "transcription", "correct"]
WORDS = [
    (f"{side}{number}{voice}", number, voice, frequency, "", "", 3, int(side == "right"))
    for number, frequency in enumerate(("0", "1", "4", "5", "100", ""))
    for voice in ("A", "B")
    for side in ("right", "wrong")
]


def _touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def _write_words(folder: Path, rows: list[tuple]) -> Path:
    write_csv(folder / "lexical" / "dev" / "gold.csv", LEXICAL, rows)
    _touch(folder / "lexical" / "dev", *(f"{row[0]}.wav" for row in WORDS))
    return folder


def _pairs(found: Found) -> dict[tuple[str, str], tuple[str, str]]:
    return {(pair.id, pair.voice): (pair.correct, pair.incorrect) for own in found.sets for pair in own.pairs}


def test_words_are_matched_by_id_and_voice_in_any_order(tmp_path: Path) -> None:
    found = read_swuggy(_write_words(tmp_path / "a", WORDS))
    expected = {(str(n), v): (f"right{n}{v}", f"wrong{n}{v}") for n in range(6) for v in "AB"}
    assert _pairs(found) == expected and set(found.sets[0].items) == {row[0] for row in WORDS}
    shuffled = [WORDS[place] for place in np.random.default_rng(1).permutation(len(WORDS))]
    assert _pairs(read_swuggy(_write_words(tmp_path / "b", shuffled))) == expected
    assert not any(found.problems.counts.values())


def test_bands_are_the_toolboxs() -> None:
    """Right-open bands: a frequency of 5 is in '6-20', as pandas.cut(right=False) has it."""
    found = {text: frequency_band(text) for text in ("0", "0.5", "1", "4.9", "5", "19", "20", "99", "100", "7e3")}
    expected = ["oov", "oov", "1-5", "1-5", "6-20", "6-20", "21-100", "21-100", ">100", ">100"]
    assert list(found.values()) == expected
    assert [frequency_band(text) for text in ("", "nan", "-1", "x")] == [""] * 4


def test_missing_doubled_and_extra_recordings_are_named(tmp_path: Path) -> None:
    rows = [*WORDS, WORDS[0], ("again", 1, "A", "1", "", "", 3, 1)]
    folder = _write_words(tmp_path, [row for row in rows if row[0] != "wrong2B"])
    (folder / "lexical" / "dev" / "right3A.wav").unlink()
    found = read_swuggy(folder)
    assert found.problems.missing == ("dev/right3A", "dev: the incorrect recording of 2, voice B")
    assert found.problems.doubled == ("dev/right0A", "dev/again")
    assert found.problems.extra == ("dev/wrong2B.wav",)
    assert ("2", "B") not in _pairs(found) and ("3", "A") not in _pairs(found) and len(_pairs(found)) == 10
    assert "2 missing (dev/right3A, " in found.problems.sentence(serious=True)


def test_a_recording_in_two_formats_is_doubled_and_suffixes_may_be_capitals(tmp_path: Path) -> None:
    folder = tmp_path / "syntactic" / "dev"
    rows = [("a.WAV", 1, "A", "npi", "s", "text", 1), ("b", 1, "A", "npi", "s", "text", 0)]
    write_csv(folder / "gold.csv", SYNTACTIC, rows)
    _touch(folder, "a.WAV", "b.flac", "b.wav")
    found = read_sblimp(tmp_path)
    assert found.problems.doubled == ("dev/b.wav",) and found.problems.missing == ()
    assert [(pair.correct, pair.incorrect) for pair in found.sets[0].pairs] == [("a", "b")]


@pytest.mark.parametrize("name", ["swuggy", "sblimp", "prosaudit"])
def test_recordings_without_gold_name_the_archive_that_has_it(tmp_path: Path, name: str) -> None:
    task = {"swuggy": "lexical", "sblimp": "syntactic", "prosaudit": "english"}[name]
    _touch(tmp_path / task / "test", "aAAfmkmQpVz.wav")
    dataset = "prosaudit-dataset" if name == "prosaudit" else "sLM21-dataset"
    with pytest.raises(UserError, match=rf"no gold\.csv.*zrc datasets:pull {dataset}"):
        BENCHMARKS[name].read(tmp_path)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    _touch(tmp_path, "notes.pdf")
    with pytest.raises(UserError, match=rf"{tmp_path} holds n"):
        BENCHMARKS[name].read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,voice,correct\n", "no column filename, type, subtype"),
        ("filename,id,voice,type,subtype,correct\na,1,A,x,y,maybe\n", "line 2: correct is 'maybe'"),
        ("filename,id,voice,type,subtype,correct\n../../a,1,A,x,y,1\n", 'climbs by "..'),
        ("filename,id\n\ud800", "no column"),
        ("filename,id,voice,type,subtype,correct,id\na,1,A,x,y,1,2\n", "has the column id twice"),
    ],
)
def test_gold_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    _touch(tmp_path / "syntactic" / "dev")
    (tmp_path / "syntactic" / "dev" / "gold.csv").write_bytes(content.encode("utf-8", "replace"))
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(".", r"\.")):
        read_sblimp(tmp_path)


def test_sentences_have_types_and_pauses_have_kinds(tmp_path: Path) -> None:
    rows = [(f"{kind}{side}", 1, "A", kind, "s", "text", side) for kind in ("npi", "agreement") for side in (1, 0)]
    write_csv(tmp_path / "syntactic" / "test" / "gold.csv", SYNTACTIC, rows)
    _touch(tmp_path / "syntactic" / "test", *(f"{row[0]}.wav" for row in rows))
    found = read_sblimp(tmp_path)
    assert [(p.id, p.labels["type"], p.correct) for p in found.sets[0].pairs] == [
        ("npi/s/1", "npi", "npi1"),
        ("agreement/s/1", "agreement", "agreement1"),
    ]
    rows = [(1, "A", kind, "s", side, f"{kind}{side}") for kind in ("lexical", "protosyntax") for side in (0, 1)]
    write_csv(
        tmp_path / "english" / "dev" / "gold.csv", ["id", "voice", "type", "subtype", "correct", "filename"], rows
    )
    _touch(tmp_path / "english" / "dev", *(f"{row[5]}.wav" for row in rows))
    found = read_prosaudit(tmp_path)
    assert {(p.id, p.correct, p.incorrect) for p in found.sets[0].pairs} == {
        (f"{kind}/1", f"{kind}1", f"{kind}0") for kind in ("lexical", "protosyntax")
    }


def test_whole_stories_are_matched_by_id_not_by_number(tmp_path: Path) -> None:
    """A missing file shifts nothing, and equal numbers do not matter."""
    _touch(tmp_path, "0_aa_correct.wav", "2_bb_correct.wav", "3_bb_incorrect.wav", "3_cc_incorrect.wav", "notes.wav")
    _touch(tmp_path / "ben", "7_cc_correct.wav", "7_cc_incorrect.wav")
    found = read_stories(tmp_path, "it")
    assert [(p.id, p.voice, p.correct, p.incorrect) for p in found.sets[0].pairs] == [
        ("bb", "", "2_bb_correct.wav", "3_bb_incorrect.wav"),
        ("cc", "ben", "ben/7_cc_correct.wav", "ben/7_cc_incorrect.wav"),
    ]
    assert found.problems.missing == ("*_aa_incorrect.wav", "*_cc_correct.wav")
    assert found.problems.extra == ("notes.wav",)


def test_parts_make_the_directions_that_have_files(tmp_path: Path) -> None:
    for story in ("aa", "bb"):
        for part in ("mutual", "correct", "incorrect"):
            _touch(tmp_path / "anna", f"{story}_{part}.wav")
            (tmp_path / "anna" / f"{story}_{part}.txt").write_text(f" {story} {part}\n")
    found = read_stories(tmp_path, "it")
    names = ["text to text", "text to speech", "speech to text", "speech to speech"]
    assert [own.name for own in found.sets] == names
    prompt, ending = found.sets[1].items["anna/bb_incorrect"]
    assert (prompt.role, prompt.source, ending.role) == ("prompt", "bb mutual", "continuation")
    (tmp_path / "anna" / "bb_mutual.txt").unlink()
    found = read_stories(tmp_path, "it")
    assert found.problems.missing == ("anna/bb_mutual.txt",)
    assert [len(own.pairs) for own in found.sets] == [1, 1, 2, 2]
    for path in (tmp_path / "anna").glob("*.wav"):
        path.unlink()
    assert [own.name for own in read_stories(tmp_path, "it").sets] == names[:1]


@pytest.mark.parametrize("dtype", ["<u2", "<u8"])
def test_authors_files_with_both_types_of_lengths(tmp_path: Path, dtype: str) -> None:
    write_released(tmp_path, dtype)
    found = read_stories(tmp_path, "it")
    assert [own.name for own in found.sets][2] == "speech to text"
    raw = np.frombuffer((tmp_path / "smollm" / "test.bin").read_bytes(), "<u2")
    ends = np.flatnonzero(raw == 0)
    prompt, ending = found.sets[0].items["s1_correct"]  # rows 3 to 5: incorrect, prompt, correct
    assert isinstance(prompt.source, TokenIds) and isinstance(ending.source, TokenIds)
    assert prompt.source.ids.tolist() == raw[ends[3] + 1 : ends[4]].tolist()
    assert ending.source.ids.tolist() == raw[ends[4] + 1 : ends[5]].tolist()


def test_authors_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_released(tmp_path, "<u2")
    lengths = tmp_path / "smollm" / "test.len"
    whole = lengths.read_bytes()
    lengths.write_bytes(whole[:-2])
    with pytest.raises(UserError, match="neither as uint16 nor as uint64"):
        read_sequences(tmp_path / "smollm")
    swapped = np.frombuffer(whole, "<u2").copy()
    swapped[0], swapped[1] = swapped[0] - 1, swapped[1] + 1
    lengths.write_bytes(swapped.tobytes())
    with pytest.raises(UserError, match="end in different ids"):
        read_sequences(tmp_path / "smollm")


def test_running_means_of_the_released_script_are_undone() -> None:
    """The script appends every direction's results to one list and prints the mean of the list."""
    rng = np.random.default_rng(0)
    directions = [(rng.random(50) < share).astype(float) for share in (0.9, 0.5, 0.7, 0.6)]
    scores: list[float] = []
    printed = []
    for results in directions:
        scores.extend(results)
        printed.append(float(np.mean(scores)))
    assert undo_running_means(printed) == pytest.approx([results.mean() for results in directions], abs=1e-12)


def test_samples_are_matched_by_index(tmp_path: Path) -> None:
    part = tmp_path / "gender_consistency"
    _touch(part, *(f"sample_{index}_{side}.wav" for index in (2, 10) for side in (0, 1)), "sample_3_1.wav")
    found = read_salmon(tmp_path)
    assert [own.name for own in found.sets] == ["gender_consistency"]
    assert found.sets[0].pairs == (
        Pair("2", "gender_consistency/sample_2_0.wav", "gender_consistency/sample_2_1.wav"),
        Pair("10", "gender_consistency/sample_10_0.wav", "gender_consistency/sample_10_1.wav"),
    )
    assert found.problems.missing == ("gender_consistency/sample_3_0.wav",)


def test_samples_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / PARTS[0]
    folder.mkdir()
    cells = [{"bytes": b"x", "path": "a.wav"}] * 2
    table = {"ind": [0, 1], "negative_audio": cells, "positive_audio": cells}
    parquet.write_table(pyarrow.table(table), folder / "train-00000-of-00001.parquet")
    found = read_salmon(tmp_path).sets[0]
    assert [pair.id for pair in found.pairs] == [f"train-00000-of-00001.parquet/{row}" for row in (0, 1)]
    columns = [found.items[name][0].source.column for name in (found.pairs[0].correct, found.pairs[0].incorrect)]
    assert columns == ["positive_audio", "negative_audio"]
    parquet.write_table(pyarrow.table({"audio": cells}), folder / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="one column named after positive or correct"):
        read_salmon(tmp_path)
