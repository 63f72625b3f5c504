"""Tables that are quoted as CSV is, tables that are not, and how they are distinguished."""

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from manifest_reading import config_for, read

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.unused import Unused

HEADER = ["id", "audio", "text"]


def table(path: Path, rows: list[list[str]], **dialect: object) -> Path:
    """As Python's csv, and so pandas, writes it; `quoting` 3 is none."""
    file = io.StringIO(newline="")
    csv.writer(file, delimiter="\t", **{"lineterminator": "\n", **dialect}).writerows(rows)  # type: ignore[arg-type]
    path.write_bytes(file.getvalue().encode())
    return path


def raw(path: Path, texts: list[str]) -> Path:
    lines = ["\t".join(HEADER), *(f"{number}\ta.wav\t{text}" for number, text in enumerate(texts))]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def texts_of(path: Path) -> list[str | None]:
    utterances, failures = read(path)
    assert not failures
    return [one.text for one in utterances]


GOODBYE, TWICE = '"Good-bye," said the boy.', 'He said "no" twice.'


def test_quoting_of_csv_is_undone(tmp_path: Path) -> None:
    rows = [HEADER, ["1", "a.wav", GOODBYE], ["2", "a.wav", TWICE], ["3", "a.wav", "plain"]]
    path = table(tmp_path / "t.tsv", rows)
    assert '"""Good-bye,"" said the boy."' in path.read_text()
    assert texts_of(path) == [GOODBYE, TWICE, "plain"]
    assert texts_of(table(tmp_path / "t.tsv", rows, quoting=csv.QUOTE_ALL)) == [GOODBYE, TWICE, "plain"]
    assert texts_of(table(tmp_path / "t.tsv", rows, lineterminator="\r\n")) == [GOODBYE, TWICE, "plain"]
    packed = tmp_path / "t.tsv.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + table(tmp_path / "t.tsv", rows).read_bytes()))
    assert texts_of(packed) == [GOODBYE, TWICE, "plain"]


def test_cells_with_line_ends_and_tabs(tmp_path: Path) -> None:
    rows = [HEADER, ["1", "a.wav", "two\nlines"], ["2", "a.wav", 'a\ttab and\n"both"'], ["3", "a.wav", "plain"]]
    assert texts_of(table(tmp_path / "t.tsv", rows)) == ["two\nlines", 'a\ttab and\n"both"', "plain"]


def test_sentences_that_begin_with_a_quote_swallow_nothing(tmp_path: Path) -> None:
    texts = ['"Hello, he said.', "plain", 'world"', 'She said "no".', '"Whole."']
    assert texts_of(raw(tmp_path / "t.tsv", texts)) == texts
    assert texts_of(raw(tmp_path / "t.tsv", texts[:3])) == texts[:3], "closed by the end of another line"
    assert texts_of(raw(tmp_path / "t.tsv", ['"Yes."', "No."])) == ['"Yes."', "No."], "CSV would not quote it"


def test_a_column_of_which_every_cell_is_quoted(tmp_path: Path) -> None:
    assert texts_of(raw(tmp_path / "t.tsv", ['"Yes."', '"No."'])) == ["Yes.", "No."]


def test_quoted_in_part_is_refused(tmp_path: Path) -> None:
    path = raw(tmp_path / "t.tsv", ['"He said ""no"" twice."', "plain", 'She said "no".'])
    with pytest.raises(
        UserError, match=r"t\.tsv: line 2 has a cell that is quoted .*, and line 4 has quotes that are not"
    ):
        read_manifest(config_for(path))


def test_a_bad_line_of_a_quoted_table_is_one_failure(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('"audio"\t"text"\n"a.wav"\t"fine"\n"b.wav"\t"not" so\n"c.wav"\n"d.wav"\t"fine too"\n')
    utterances, failures = read(path)
    assert [one.text for one in utterances] == ["fine", "fine too"]
    assert [failure.id for failure in failures] == ["line 3", "line 4"]
    assert "not those of CSV" in failures[0].detail and "1 cells; the first line names 2" in failures[1].detail


def test_common_voice_names_the_speaker_client_id(tmp_path: Path) -> None:
    path, unused = tmp_path / "validated.tsv", Unused()
    path.write_text("client_id\taudio\ttext\tup_votes\tage\nab12\ta.mp3\tHello.\t2\t\ncd34\tb.mp3\tYes.\t3\ttwenties\n")
    utterances, failures = read_manifest(config_for(path), unused)
    assert [one.speaker for one in utterances] == ["ab12", "cd34"] and not failures
    assert [(item.what, item.count, item.first) for item in unused.take()] == [
        ("the key 'up_votes'", 2, "line 2"),
        ("the key 'age'", 1, "line 3"),
    ]
    path.write_text("client_id\taudio\tspeaker\nab12\ta.mp3\tann\n")
    utterances, _ = read_manifest(config_for(path), unused)
    assert utterances[0].speaker == "ann" and [item.what for item in unused.take()] == ["the key 'client_id'"]


@pytest.mark.parametrize("missing", ["nan", "NaN", "<NA>", ""])
def test_missing_values_of_pandas_are_absent(tmp_path: Path, missing: str) -> None:
    path, unused = tmp_path / "t.tsv", Unused()
    path.write_text(f"audio\ttext\tspeaker\na.wav\t{missing}\t{missing}\nb.wav\tNan is here\tann\n")
    utterances, failures = read_manifest(config_for(path), unused)
    assert [(one.text, one.speaker) for one in utterances] == [(None, ""), ("Nan is here", "ann")] and not failures
    assert [item.count for item in unused.take()] == ([1, 1] if missing else [])


@pytest.mark.parametrize("missing", ["None", "NULL", "null", "N/A", "NaT", r"\N", "#N/A"])
def test_missing_names_of_other_programs_are_absent(tmp_path: Path, missing: str) -> None:
    path, unused = tmp_path / "t.tsv", Unused()
    rows = [f"a.wav\tNone of it\t{missing}\t{missing}\t{missing}\t1", "b.wav\tNone\tann\tx\ty\t1"]
    path.write_text("audio\ttext\tspeaker\tid\tsource\toffset\n" + "".join(f"{row}\n" for row in rows))
    utterances, failures = read_manifest(config_for(path), unused)
    assert [(one.text, one.speaker, one.id, Path(one.source).name) for one in utterances] == [
        ("None of it", "", "a.wav@1.0", "a.wav"),
        ("None", "ann", "x", "y"),
    ]
    assert not failures and len(unused.take()) == 3


@pytest.mark.parametrize("header", ["audio\ttext", '"audio"\t"text"'])  # of Spark, and of R
@pytest.mark.parametrize("cell", [r'"He said \"no\"."', r"He said \"no\".", r"a \" b"])
def test_quotes_after_a_backslash_are_refused(tmp_path: Path, header: str, cell: str) -> None:
    """What else a backslash means is different in each program that writes them."""
    path = tmp_path / "t.tsv"
    path.write_text(f"{header}\na.wav\tplain\nb.wav\t{cell}\n")
    with pytest.raises(UserError, match=r"t\.tsv: line 3 has quotes after a backslash.*double the quotes"):
        read_manifest(config_for(path))
    path.write_text(f"{header}\na.wav\tplain\nb.wav\t" + r"C:\new \n" + "\n")
    assert texts_of(path) == ["plain", r"C:\new \n"], "a backslash alone is text"


def test_a_table_of_commas_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("id,audio,text\n1,a.wav,hello\n")
    with pytest.raises(UserError, match="no column is named audio; .*; columns are separated by tabs"):
        read_manifest(config_for(tmp_path / "t.tsv"))


cells = st.text(st.sampled_from("ab\"'\t\n, ."), max_size=8).map(str.strip)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(cells, min_size=1, max_size=6),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_csv_writer_wrote_is_read_as_it_was(tmp_path: Path, texts: list[str], quoting: int, end: str) -> None:
    # A cell with a line end and two tabs would be a line of three cells of its own, and is read as such.
    assume(quoting != csv.QUOTE_MINIMAL or not any("\n" in text and text.count("\t") > 1 for text in texts))
    rows = [HEADER, *([str(number), "a.wav", text] for number, text in enumerate(texts))]
    path = table(tmp_path / "t.tsv", rows, quoting=quoting, lineterminator=end)
    # Line ends inside of a cell are blanks to a text; blank lines are none.
    assert [(text or "").split() for text in texts_of(path)] == [text.split() for text in texts]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.sampled_from("ab\"',. "), max_size=8).map(str.strip), min_size=1, max_size=6))
def test_what_is_not_quoted_is_read_as_it_is_or_refused(tmp_path: Path, texts: list[str]) -> None:
    """No cell is lost or joined to another, whatever quotes there are."""
    path = raw(tmp_path / "t.tsv", texts)
    try:
        utterances, failures = read(path)
    except UserError as error:
        assert "write all cells by one rule" in str(error)
        return
    assert not failures and len(utterances) == len(texts)
    found = [one.text or "" for one in utterances]
    if found != texts:
        # Every quote is where CSV has it, so the file is as likely to be quoted.
        with path.open(newline="") as file:
            assert [row[2].strip() for row in csv.reader(file, delimiter="\t", strict=True)][1:] == found
