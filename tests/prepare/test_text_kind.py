"""Documents of text in files, and the records made of them."""

import gzip
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_corpus.stories import stories
from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.records import Record
from tolktrain.data.text_tokenizer import load_tokenizer, train_tokenizer
from tolktrain.errors import UserError
from tolktrain.prepare.text.documents import FileRange, read_documents
from tolktrain.prepare.text.kind import TextKind
from tolktrain.prepare.utterances import Failure, Reason

STORIES = tuple(story.text for story in stories(3, 60))
EOS = 0
TOKENS = 250  # of a passage; pieces of long documents have up to four times as many


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([" " + text + "\n" for text in STORIES], 400).save(str(folder / "tokenizer.json"))
    return folder


def make(tokenizer: Path, *files: str | Path, text: dict[str, Any] | None = None, **more: Any) -> TextKind:
    settings = {"passages": {"tokens": TOKENS, "shortest_tokens": 2}, "heldout": {"sources": 0.0}} | more
    files_given = {"files": [str(path) for path in files]} | (text or {})
    return TextKind(
        PrepareConfig.model_validate(
            {"name": "t", "output": "out", "text_tokenizer": str(tokenizer), "text": files_given, **settings}
        )
    )


def run(kind: TextKind) -> tuple[list[tuple[str, Record]], list[Failure], int]:
    parts, failures = kind.parts()
    assert kind.text is not None
    records, entries = [], 0
    for part in parts:
        for item in kind.records(part):
            if isinstance(item, int):
                entries += item
            elif isinstance(item, Failure):
                failures.append(item)
            else:
                item[1].check(kind.text.vocab_size, None)
                records.append(item)
    assert len({record.id for _, record in records}) == len(records)
    return records, failures, entries


def texts_of(kind: TextKind, tokenizer: Path, records: list[tuple[str, Record]]) -> list[str]:
    """The text of each utterance, by the tokenizer's own way back."""
    decoder = load_tokenizer(tokenizer)
    texts = []
    for _, record in records:
        for ids in np.split(record.text_ids, record.utterance_text_ends[:-1]):
            texts.append(decoder.decode(ids.tolist(), skip_special_tokens=False))
    return texts


def write_lines(path: Path, texts: list[str] | tuple[str, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)))
    return path


def write_compressed(path: Path, texts: tuple[str, ...]) -> Path:
    content = write_lines(path.with_suffix(".tmp"), texts).read_bytes()
    if path.suffix == ".gz":
        # Two members behind each other, as `cat a.gz b.gz` gives.
        path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    else:
        import zstd

        path.write_bytes(zstd.compress(content[:1000]) + zstd.compress(content[1000:]))
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(sys.modules["pyarrow"].table(columns), path, **options)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json.zst", ".parquet"])
def test_every_format_gives_every_document_once(suffix: str, tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / ("stories" + suffix)
    if suffix == ".parquet":
        write_parquet(path, {"text": STORIES, "id": range(len(STORIES))}, row_group_size=13)
    elif suffix == ".jsonl":
        write_lines(path, STORIES)
    else:
        if suffix.endswith(".zst"):
            pytest.importorskip("pyarrow")
        write_compressed(path, STORIES)
    kind = make(tokenizer, path)
    records, failures, entries = run(kind)
    assert texts_of(kind, tokenizer, records) == list(STORIES)
    assert failures == [] and entries == len(STORIES)
    for split, record in records:
        assert split == "train" and record.source == path.name and record.id.startswith(path.name + "@")
        # A passage ends with the document that fills it.
        sizes = np.diff(record.utterance_text_ends, prepend=0) + 1
        assert sizes[:-1].sum() < TOKENS
        assert sizes.sum() >= TOKENS or record is records[-1][1]


def test_ids_are_the_tokenizers(tokenizer: Path, tmp_path: Path) -> None:
    kind = make(tokenizer, write_lines(tmp_path / "a.jsonl", STORIES))
    records, _, _ = run(kind)
    reference = load_tokenizer(tokenizer)
    ids = np.concatenate([record.text_ids for _, record in records])
    assert ids.tolist() == [token for text in STORIES for token in reference.encode(text).ids]
    assert kind.text is not None and kind.text.eos_id == EOS and EOS not in ids


@settings(deadline=None, max_examples=60)
@given(
    lines=st.lists(st.sampled_from(["", " ", "\r", "x", '{"text":"ab"}', '{"text":"é"}\r']), max_size=12), st_=st.data()
)
def test_byte_ranges_part_a_file_anywhere(
    lines: list[str], st_: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    ending = st_.draw(st.sampled_from(["", "\n"]))
    content = ("\n".join(lines) + ending).encode()
    path.write_bytes(content)
    cuts = sorted(st_.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    config = make_text_config(str(path))
    found = []
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        if begin < end:
            found += list(read_documents(FileRange(str(path), "a.jsonl", "lines", begin, end), config))
    whole = list(read_documents(FileRange(str(path), "a.jsonl", "lines", 0, len(content)), config)) if content else []
    # Failures, with their line numbers, are values too.
    assert found == whole
    assert len(whole) == sum(bool(line.strip()) for line in lines)


def make_text_config(*files: str, **more: Any) -> Any:
    from tolktrain.config.prepare import TextConfig

    return TextConfig.model_validate({"files": list(files), **more})


def test_parts_do_not_depend_on_where_files_are_cut(tokenizer: Path, tmp_path: Path) -> None:
    texts = STORIES * 30
    path = write_lines(tmp_path / "a.jsonl", texts)
    assert path.stat().st_size > 1 << 20
    kind = make(tokenizer, path, parts={"megabytes": 1})
    parts, _ = kind.parts()
    assert len(parts) == path.stat().st_size // (1 << 20) + 1
    assert sum(part.num_entries for part in parts) == pytest.approx(len(texts), rel=0.1)
    records, failures, entries = run(kind)
    assert texts_of(kind, tokenizer, records) == list(texts)
    assert failures == [] and entries == len(texts)
    again = [item for part in parts for item in kind.records(part) if not isinstance(item, (int, Failure))]
    assert [record.id for _, record in again] == [record.id for _, record in records]


def test_small_files_share_a_part_and_names_include_folders(tokenizer: Path, tmp_path: Path) -> None:
    for name in ("b/x.jsonl", "a/x.jsonl", "a/deep/y.ndjson"):
        write_lines(tmp_path / name, STORIES[:10])
    kind = make(tokenizer, tmp_path / "**" / "*.jsonl", tmp_path / "a" / "deep" / "*", tmp_path / "a" / "x.jsonl")
    parts, _ = kind.parts()
    assert [item.name for part in parts for item in part.inputs] == ["a/deep/y.ndjson", "a/x.jsonl", "b/x.jsonl"]
    assert len(parts) == 1 and parts[0].num_entries == 30
    records, _, entries = run(kind)
    assert {record.source for _, record in records} == {"a/deep/y.ndjson", "a/x.jsonl", "b/x.jsonl"} and entries == 30


def test_a_long_document_is_cut_at_line_ends(tokenizer: Path, tmp_path: Path) -> None:
    story = "\n".join(STORIES).replace(". ", ".\n") + "\n"
    kind = make(tokenizer, write_lines(tmp_path / "a.jsonl", ["short one", story, "and another"]))
    records, failures, entries = run(kind)
    texts = texts_of(kind, tokenizer, records)
    assert texts[0] == "short one" and texts[-1] == "and another" and "".join(texts[1:-1]) == story
    assert failures == [] and entries == 3
    pieces = [ids for _, record in records for ids in np.split(record.text_ids, record.utterance_text_ends[:-1])][1:-1]
    assert len(pieces) > 5 and all(TOKENS * 1.5 <= len(piece) <= 4 * TOKENS for piece in pieces)
    assert all(text.endswith("\n") for text in texts[1:-1])


def test_a_long_document_without_lines_is_cut_evenly(tokenizer: Path, tmp_path: Path) -> None:
    story = " ".join(STORIES)
    kind = make(tokenizer, write_lines(tmp_path / "a.jsonl", [story]))
    records, _, _ = run(kind)
    assert "".join(texts_of(kind, tokenizer, records)) == story
    sizes = [len(record.text_ids) for _, record in records]
    assert max(sizes) <= 4 * TOKENS and max(sizes) - min(sizes) <= len(sizes)
    assert [record.id for _, record in records][:2] == ["a.jsonl@0", "a.jsonl@0+1"]


def test_a_document_of_just_the_longest_length_is_not_cut(tokenizer: Path, tmp_path: Path) -> None:
    ids = load_tokenizer(tokenizer).encode(" ".join(STORIES)).ids
    decoder = load_tokenizer(tokenizer)
    text = decoder.decode(ids[:200])
    length = len(decoder.encode(text).ids)
    path = write_lines(tmp_path / "a.jsonl", [text])
    for tokens, pieces in ((length // 4 + 1, 1), (length // 4 - 1, 2)):
        records, _, _ = run(make(tokenizer, path, passages={"tokens": tokens, "shortest_tokens": 2}))
        assert len(records) == pieces


def test_held_out_documents_keep_to_themselves(tokenizer: Path, tmp_path: Path) -> None:
    texts = [f"Document {i}. {STORIES[i % 60]}" for i in range(400)]
    random.Random(0).shuffle(texts)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "url": text.split(".")[0]}) + "\n" for text in texts))
    heldout = {"heldout": {"sources": 0.2, "seed": 4}}
    kind = make(tokenizer, path, text={"id_column": "url"}, **heldout)
    records, failures, _ = run(kind)
    assert failures == []
    found: dict[str, list[str]] = {"train": [], "heldout_sources": []}
    for split in found:
        found[split] = texts_of(kind, tokenizer, [item for item in records if item[0] == split])
    assert sorted(found["train"] + found["heldout_sources"]) == sorted(texts)
    assert 40 < len(found["heldout_sources"]) < 120
    # The choice goes by the document's name, not by its place.
    path.write_text("".join(json.dumps({"text": text, "url": text.split(".")[0]}) + "\n" for text in sorted(texts)))
    kind = make(tokenizer, path, text={"id_column": "url"}, **heldout)
    records, _, _ = run(kind)
    again = texts_of(kind, tokenizer, [item for item in records if item[0] == "heldout_sources"])
    assert sorted(again) == sorted(found["heldout_sources"])


def test_unusable_lines_are_reported_and_harm_no_others(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": text, "id": "n"}).encode() for text in STORIES[:3]]
    deep = b"[" * 100_000
    bad: list[tuple[bytes, Reason, str]] = [
        (b"{", Reason.MANIFEST, "not JSON"),
        (b'{"text": "one", "text": "two"}', Reason.MANIFEST, "the key 'text' is twice in one object"),
        (b"[1]", Reason.MANIFEST, "not a JSON object"),
        (b'{"text": "\xff"}', Reason.MANIFEST, "not UTF-8"),
        (deep, Reason.MANIFEST, "not JSON"),
        (b'{"body": "x", "id": 1}', Reason.MANIFEST, "no key 'text'"),
        (b'{"text": "x"}', Reason.MANIFEST, "no key 'id'"),
        (b'{"text": "x", "id": [1]}', Reason.MANIFEST, "name is list"),
        (b'{"text": null, "id": 1}', Reason.TEXT, "the text is NoneType"),
        (b'{"text": ["x"], "id": 1}', Reason.TEXT, "the text is list"),
        (b'{"text": " \\n ", "id": 1}', Reason.TEXT, "the text is empty"),
        (b'{"text": "ab\\ud800", "id": 1}', Reason.TEXT, "half of a surrogate pair at character 2"),
    ]
    lines = [good[0], b"", *(line for line, _, _ in bad), good[1], good[2]]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    kind = make(tokenizer, path, text={"id_column": "id"})
    records, failures, entries = run(kind)
    assert texts_of(kind, tokenizer, records) == list(STORIES[:3]) and entries == 3 + len(bad)
    for number, (failure, (_, reason, detail)) in enumerate(zip(failures, bad, strict=True), start=3):
        assert failure.reason is reason and detail in failure.detail
        assert failure.detail.startswith(f"{path}:{number}: ") and failure.id.startswith("a.jsonl@")


def test_a_rest_that_is_too_short_is_reported(tokenizer: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["x", "y"])
    records, failures, entries = run(make(tokenizer, path, passages={"tokens": 100, "shortest_tokens": 9}))
    assert records == [] and entries == 2
    assert [(failure.id, failure.reason) for failure in failures] == [
        ("a.jsonl@0", Reason.SHORT),
        ("a.jsonl@23", Reason.SHORT),
    ]


def test_rows_of_parquet_that_are_no_text(tokenizer: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    broken = pyarrow.array([b"fine one", None, b"\xff\xfe", b"fine two"]).cast(pyarrow.string(), safe=False)
    path = write_parquet(tmp_path / "a.parquet", {"text": broken, "other": [1, 2, 3, 4]}, row_group_size=2)
    kind = make(tokenizer, path)
    records, failures, entries = run(kind)
    assert texts_of(kind, tokenizer, records) == ["fine one", "fine two"] and entries == 4
    assert [(failure.id, failure.reason) for failure in failures] == [
        ("a.parquet@1", Reason.TEXT),
        ("a.parquet@2", Reason.TEXT),
    ]
    with pytest.raises(UserError, match=r"no column 'body'.*text, other"):
        make(tokenizer, path, text={"column": "body"}).parts()
    with pytest.raises(UserError, match="column 'other' holds int64, not string"):
        make(tokenizer, path, text={"column": "other"}).parts()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="no readable Parquet file"):
        kind.parts()


def test_without_pyarrow(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        make(tokenizer, tmp_path / "a.parquet").parts()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_off(suffix: str, tokenizer: Path, tmp_path: Path) -> None:
    if suffix == ".zst":
        pytest.importorskip("pyarrow")
    path = write_compressed(tmp_path / f"a.jsonl{suffix}", STORIES * 10)
    path.write_bytes(path.read_bytes()[:-50])
    kind = make(tokenizer, path)
    with pytest.raises(UserError, match=r"a\.jsonl.* cannot be read to its end"):
        run(kind)
    path.write_bytes(b"no archive at all" * 10)
    with pytest.raises(UserError, match=r"a\.jsonl.* cannot be read to its end"):
        kind.parts()


def test_files_that_do_not_match(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file matches .*absent"):
        make(tokenizer, tmp_path / "absent*.jsonl").parts()
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(UserError, match=r"a\.csv: the format does not follow from the name"):
        make(tokenizer, tmp_path / "a.csv").parts()
    (tmp_path / "empty.jsonl").write_text("")
    assert make(tokenizer, tmp_path / "empty.jsonl").parts() == ([], [])


@settings(deadline=None, max_examples=80)
@given(
    documents=st.lists(
        st.text(max_size=60) | st.none() | st.text(alphabet="ab \n", min_size=100, max_size=900), max_size=12
    ),
    tokens=st.integers(1, 60),
    shortest=st.integers(1, 40),
)
def test_whatever_the_documents_none_is_lost(
    documents: list[str | None], tokens: int, shortest: int, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    passages = {"tokens": tokens, "shortest_tokens": shortest}
    kind = make(tokenizer, path, passages=passages, heldout={"sources": 0.5})
    records, failures, entries = run(kind)
    assert entries == len(documents)
    places = np.cumsum([0, *(len(json.dumps({"text": text})) + 1 for text in documents)])
    failed = Counter(failure.id for failure in failures)
    reference = load_tokenizer(tokenizer)
    kept = [
        token
        for place, text in zip(places, documents, strict=False)
        if text is not None and f"a.jsonl@{place}" not in failed
        for token in reference.encode(text).ids
    ]
    assert Counter(token for _, record in records for token in record.text_ids.tolist()) == Counter(kept)
    assert all(failure.reason in (Reason.TEXT, Reason.SHORT) for failure in failures)
    assert set(failed.values()) <= {1}
