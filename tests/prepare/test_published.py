"""Sets in the layout of the SmolTolk authors, written here the way their programs write, and imported."""

import contextlib
import json
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tolktrain.config.prepare import PrepareConfig
from tolktrain.data.records import Record
from tolktrain.data.text_tokenizer import train_tokenizer
from tolktrain.errors import UserError
from tolktrain.prepare.published.files import TextFiles, words_from
from tolktrain.prepare.published.kind import PublishedKind
from tolktrain.prepare.published.safe_pickle import read_plain_pickle
from tolktrain.prepare.utterances import Failure, Reason
from tolktrain.units.mimi import MimiDescription
from tolktrain.units.pretrained import PretrainedModel

SPEECH_TOKENIZER = Path(__file__).parents[2] / "data" / "sample" / "speech_tokenizer"
NUM_UNITS, EOS, VOCAB, TEXT_EOS, RATE = 500, 500, 280, 0, 25
SPEECH_META = {"vocab_size": 502, "eos": 500, "pad": 501, "n_q": 1, "frame_rate": 25}


@dataclass
class Said:
    """An utterance, word by word: its text ids, and the (unit, frames) that it sounds like."""

    words: list[tuple[list[int], list[tuple[int, int]]]]

    @property
    def text(self) -> list[int]:
        return [token for ids, _ in self.words for token in ids]

    @property
    def frames(self) -> list[int]:
        return [unit for _, runs in self.words for unit, frames in runs for _ in range(frames)]


def random_said(rng: np.random.Generator, count: int) -> list[Said]:
    """Neighbouring units differ, so that each word ends at the end of a run."""
    result = []
    for _ in range(count):
        words, last = [], -1
        for _ in range(int(rng.integers(1, 9))):
            runs = []
            for _ in range(int(rng.integers(1, 6))):
                last = (last + 1 + int(rng.integers(0, NUM_UNITS - 1))) % NUM_UNITS
                runs.append((last, int(rng.integers(1, 7))))
            words.append((rng.integers(1, VOCAB, int(rng.integers(1, 4))).tolist(), runs))
        result.append(Said(words))
    return result


@dataclass
class Layout:
    """The folders of a set."""

    root: Path
    tokenizer: Path
    length_type: str = "<u8"
    text_type: str = "<u2"
    text_meta: dict[str, Any] = field(default_factory=lambda: {"vocab_size": VOCAB, "eos": TEXT_EOS})

    @property
    def speech(self) -> Path:
        return self.root / "mhubert25hzl11"

    @property
    def text(self) -> Path:
        return self.root / "smollm"

    def write(self, stem: str, utterances: list[Said], text: bool = True, times: bool = True) -> "Layout":
        for folder, meta in ((self.speech, SPEECH_META), (self.text, self.text_meta)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
        speech = {suffix: (self.speech / f"{stem}.{suffix}").open("wb") for suffix in ("bin", "dur", "len")}
        for said in utterances:
            runs = [(unit, len(list(group))) for unit, group in groupby([*said.frames, EOS])]
            speech["bin"].write(np.array([unit for unit, _ in runs], np.int16).tobytes())
            speech["dur"].write(np.array([frames for _, frames in runs]).astype(np.int8).tobytes())
            speech["len"].write(np.array([len(runs)], self.length_type).tobytes())
        for file in speech.values():
            file.close()
        if text:
            ids = [[*said.text, TEXT_EOS] for said in utterances]
            np.array(sum(ids, []), self.text_type).tofile(self.text / f"{stem}.bin")
            np.array([len(one) for one in ids], self.length_type).tofile(self.text / f"{stem}.len")
        if text and times:
            self._write_times(stem, utterances)
        return self

    def _write_times(self, stem: str, utterances: list[Said]) -> None:
        ends, lengths = [], []
        for said in utterances:
            frame = 0
            for ids, runs in said.words:
                frame += sum(frames for _, frames in runs)
                ends.append(frame / RATE)
                lengths.append(len(ids))
            ends.append(float("nan"))  # nothing is known of the time of EOS
            lengths.append(1)
        np.array(ends, "<f4").tofile(self.text / f"{stem}.wrds_tms")
        np.array(lengths, "<u8").tofile(self.text / f"{stem}.wrds_tms_len")

    def kind(self, folder: Path | None = None, text: bool = True, tokens: int = 60, **more: Any) -> PublishedKind:
        published: dict[str, Any] = {"folder": str(folder or self.speech), "speech_tokenizer": str(SPEECH_TOKENIZER)}
        settings: dict[str, Any] = {"passages": {"tokens": tokens, "shortest_tokens": 1}, "parts": {"items": 7}}
        if text:
            published["text_folder"] = str(self.text)
            settings["text_tokenizer"] = str(self.tokenizer)
        published |= more
        return PublishedKind(
            PrepareConfig.model_validate({"name": "p", "output": "out", "published": published, **settings})
        )


def run(kind: PublishedKind) -> tuple[list[tuple[str, Record]], list[Failure], int]:
    parts, failures = kind.parts()
    records, entries = [], 0
    assert kind.speech is not None
    for part in parts:
        before = entries
        for item in kind.records(part):
            if isinstance(item, int):
                entries += item
            elif isinstance(item, Failure):
                failures.append(item)
            else:
                item[1].check(
                    kind.text.vocab_size if kind.text else None, kind.speech.num_units, kind.speech.num_codebooks
                )
                assert item[1].is_aligned == kind.aligned and item[1].has_text == (kind.text is not None)
                records.append(item)
        assert entries - before == part.num_entries
    assert len({record.id for _, record in records}) == len(records)
    return records, failures, entries


def utterances_of(records: list[tuple[str, Record]]) -> Iterator[Said]:
    """The utterances that records with word alignment hold."""
    for _, record in records:
        texts = np.split(record.text_ids, record.word_text_ends[:-1])
        units = np.split(record.units[:, 0], record.word_unit_ends[:-1])
        runs = np.split(record.run_lengths, record.word_unit_ends[:-1])
        words = [
            (t.tolist(), list(zip(u.tolist(), r.tolist(), strict=True)))
            for t, u, r in zip(texts, units, runs, strict=True)
        ]
        lasts = np.searchsorted(record.word_text_ends, record.utterance_text_ends) + 1
        for first, last in zip([0, *lasts[:-1]], lasts, strict=True):
            yield Said(words[first:last])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([" the goat and the lamb went home together in the snow"] * 3, VOCAB).save(
        str(folder / "tokenizer.json")
    )
    return folder


@pytest.fixture
def layout(tmp_path: Path, tokenizer: Path) -> Layout:
    return Layout(tmp_path / "set", tokenizer)


@pytest.mark.parametrize("length_type", ["<u8", "<u2"])
@pytest.mark.parametrize("text_type", ["<u2", "<u4"])
def test_what_was_written_is_what_is_read(length_type: str, text_type: str, layout: Layout) -> None:
    layout.length_type, layout.text_type = length_type, text_type
    if text_type == "<u4":
        layout.text_meta["vocab_size"] = (1 << 16) + 1
    said = random_said(np.random.default_rng(0), 40)
    records, failures, entries = run(layout.write("train", said).kind())
    assert failures == [] and entries == 40
    assert list(utterances_of(records)) == said
    for split, record in records:
        assert (split, record.source) == ("train", "train")
    sizes = [min(len(r.text_ids) + r.num_utterances, len(r.units) + r.num_utterances) for _, r in records]
    # Parts of seven utterances end passages too; within them passages are as long as asked.
    assert max(sizes) >= 60 and len(records) > 40 // 7
    assert records[0][1].id == "train:0"


def test_words_of_a_run_that_goes_on_over_them(layout: Layout) -> None:
    """Units are collapsed over word boundaries: the end moves to the nearer end of the run."""
    said = Said([([5, 6], [(1, 3), (2, 2)]), ([7], [(2, 5), (3, 1)])])  # unit 2 lasts 7 frames; the word ends after 2
    records, failures, _ = run(layout.write("train", [said]).kind())
    assert failures == []
    record = records[0][1]
    assert record.units[:, 0].tolist() == [1, 2, 3] and record.run_lengths.tolist() == [3, 7, 1]
    assert record.word_unit_ends.tolist() == [1, 3] and record.word_text_ends.tolist() == [2, 3]


def test_speech_alone_and_text_without_times(layout: Layout) -> None:
    said = random_said(np.random.default_rng(1), 20)
    records, failures, _ = run(layout.write("train", said, text=False).kind(text=False))
    assert failures == []
    units = [unit for _, record in records for unit in np.repeat(record.units[:, 0], record.run_lengths)]
    assert units == [unit for one in said for unit in one.frames]
    records, failures, _ = run(layout.write("train", said, times=False).kind())
    assert failures == [] and not records[0][1].is_aligned
    assert [token for _, record in records for token in record.text_ids] == [
        token for one in said for token in one.text
    ]


def test_names_of_shards_and_the_authors_split(layout: Layout) -> None:
    rng = np.random.default_rng(2)
    stems = ["train_0_11", "train_2_11", "train_10_11", "val", "valley"]
    said = {stem: random_said(rng, 5) for stem in stems}
    for stem in stems:
        layout.write(stem, said[stem])
    records, failures, _ = run(layout.kind())
    assert failures == []
    assert [record.source for _, record in records if record.id.endswith(":0")] == stems
    assert {record.source for split, record in records if split == "heldout_sources"} == {"val"}
    assert list(utterances_of(records)) == [one for stem in stems for one in said[stem]]
    records, _, _ = run(layout.kind(layout.speech / "train"))
    assert list(utterances_of(records)) == [one for stem in stems[:3] for one in said[stem]]
    with pytest.raises(UserError, match=r"holds no \.bin files"):
        layout.kind(layout.speech / "tra")


def test_sets_without_durations(layout: Layout) -> None:
    said = random_said(np.random.default_rng(3), 9)
    layout.write("train", said)
    (layout.speech / "train.dur").unlink()
    with pytest.raises(UserError, match=r"train\.dur does not exist.*to frames;.*to unknown"):
        layout.kind().parts()
    records, failures, _ = run(layout.kind(durations="unknown"))
    assert failures == [] and not records[0][1].is_aligned
    units = [unit for _, record in records for unit in record.units[:, 0].tolist()]
    assert units == [unit for one in said for unit, _ in groupby(one.frames)]
    # The same set with repeats left in.
    rows = [np.array([*one.frames, EOS], "<u2") for one in said]
    np.concatenate(rows).tofile(layout.speech / "train.bin")
    np.array([len(row) for row in rows], "<u8").tofile(layout.speech / "train.len")
    records, failures, _ = run(layout.kind(durations="frames"))
    assert failures == [] and list(utterances_of(records)) == said


def test_several_codebooks(layout: Layout, tmp_path: Path) -> None:
    """As the authors write Mimi's frames: not collapsed. The tokenizer uses two codebooks of the set's three."""
    mimi = tmp_path / "mimi"
    mimi.mkdir()
    model = PretrainedModel(path="kyutai/mimi", sha256="0" * 64)
    description = MimiDescription(
        num_units=NUM_UNITS, num_codebooks=2, frames_per_second=25.0, sample_rate=24_000, model=model, sha256="0" * 64
    )
    (mimi / "speech_tokenizer.json").write_text(description.model_dump_json())
    rng = np.random.default_rng(4)
    frames = [rng.integers(0, 3, (int(rng.integers(4, 30)), 3)) for _ in range(6)]
    layout.write("train", [])
    (layout.speech / "meta.pkl").write_bytes(pickle.dumps(SPEECH_META | {"n_q": 3}))
    rows = [np.concatenate([one, np.full((1, 3), EOS)]).astype("<i2") for one in frames]
    np.concatenate(rows).tofile(layout.speech / "train.bin")
    np.array([len(row) for row in rows], "<i8").tofile(layout.speech / "train.len")
    records, failures, _ = run(layout.kind(text=False, durations="frames", speech_tokenizer=str(mimi)))
    assert failures == []
    found = [np.repeat(record.units, record.run_lengths, axis=0) for _, record in records]
    assert np.array_equal(np.concatenate(found), np.concatenate(frames)[:, :2])
    for _, record in records:
        for units in np.split(record.units, record.utterance_unit_ends[:-1]):
            assert (units[1:] != units[:-1]).any(axis=1).all()
    with pytest.raises(UserError, match="n_q is 1, but the tokenizer mimi .* asks for 2"):
        layout.write("train", [])
        layout.kind(text=False, speech_tokenizer=str(mimi))


def overwrite(path: Path, dtype: str, index: int, value: float) -> None:
    numbers = np.fromfile(path, dtype)
    numbers[index] = value
    numbers.tofile(path)


Damage = Callable[[Layout], None]
ONE_BAD: dict[str, tuple[Damage, Reason, str]] = {
    "unit": (lambda s: overwrite(s.speech / "train.bin", "<u2", 0, 501), Reason.RECORD, "holds the unit 501"),
    "eos": (lambda s: overwrite(s.speech / "train.bin", "<u2", 0, 500), Reason.RECORD, "holds the unit 500"),
    "run": (lambda s: overwrite(s.speech / "train.dur", "u1", 0, 0), Reason.RECORD, "lasts 0 frames"),
    "text": (lambda s: overwrite(s.text / "train.bin", "<u2", 0, 280), Reason.TEXT, "holds 280; the tokenizer has 280"),
    "text eos": (lambda s: overwrite(s.text / "train.bin", "<u2", 0, TEXT_EOS), Reason.TEXT, "EOS is inside"),
    "nan": (
        lambda s: overwrite(s.text / "train.wrds_tms", "<f4", 0, np.nan),
        Reason.WORD_TIMES,
        "not numbers that rise",
    ),
    "negative": (
        lambda s: overwrite(s.text / "train.wrds_tms", "<f4", 0, -1),
        Reason.WORD_TIMES,
        "not numbers that rise",
    ),
    "falling": (
        lambda s: overwrite(s.text / "train.wrds_tms", "<f4", 0, 0.3),
        Reason.WORD_TIMES,
        "not numbers that rise",
    ),
    "late": (
        lambda s: overwrite(s.text / "train.wrds_tms", "<f4", 1, 99),
        Reason.WORD_TIMES,
        "its last word ends at 99.00 s",
    ),
}


@pytest.mark.parametrize("name", ONE_BAD)
def test_a_bad_utterance_is_reported_and_harms_no_other(name: str, layout: Layout) -> None:
    damage, reason, detail = ONE_BAD[name]
    first = Said([([5, 6], [(1, 1)]), ([7], [(2, 2), (3, 1)])])
    said = [first, *random_said(np.random.default_rng(5), 11)]
    damage(layout.write("train", said))
    records, failures, entries = run(layout.kind())
    assert entries == 12 and list(utterances_of(records)) == said[1:]
    (failure,) = failures
    assert (failure.id, failure.reason) == ("train:0", reason)
    assert detail in failure.detail and failure.detail.startswith(f"{layout.speech / 'train'}, utterance 0: ")


@pytest.mark.parametrize("place", [2, 6, 7])  # the last utterance of a part, and the first of the next, among them
def test_words_that_leave_their_utterance_harm_only_those_that_they_touch(place: int, layout: Layout) -> None:
    """Lengths of words that still add up: all is well again from the utterance that fits."""
    said = random_said(np.random.default_rng(6), 16)
    layout.write("train", said)
    path = layout.text / "train.wrds_tms_len"
    numbers = np.fromfile(path, "<u8")
    word_ends = np.cumsum([len(one.words) + 1 for one in said])
    eos = word_ends[place] - 1
    taken = eos + 1 + int(np.flatnonzero(numbers[eos + 1 :] > 1)[0])
    numbers[eos] += 1
    numbers[taken] -= 1
    numbers.tofile(path)
    records, failures, entries = run(layout.kind())
    touched = list(range(place, int(np.searchsorted(word_ends, taken, side="right")) + 1))
    assert [(failure.id, failure.reason) for failure in failures] == [
        (f"train:{index}", Reason.WORD_TIMES) for index in touched
    ]
    assert entries == 16
    assert list(utterances_of(records)) == [one for index, one in enumerate(said) if index not in touched]


WHOLE: dict[str, tuple[Damage, str]] = {
    "len cut": (
        lambda s: cut(s.speech / "train.len", 8),
        r"mhubert25hzl11/train\.len: .* do not add up to the \d+ rows",
    ),
    "odd": (lambda s: cut(s.speech / "train.bin", 1), r"train\.bin has \d+ bytes, not a multiple of 2"),
    "dur": (lambda s: cut(s.speech / "train.dur", 1), r"train\.dur has \d+ bytes; .*train\.bin has \d+ rows"),
    "text len": (lambda s: cut(s.text / "train.len", 8), r"smollm/train\.len: .* do not add up to the \d+ ids"),
    "words": (lambda s: cut(s.text / "train.wrds_tms_len", 8), r"train\.wrds_tms_len: .* do not add up"),
    "times": (lambda s: cut(s.text / "train.wrds_tms", 4), r"have different numbers of words"),
    "no text": (lambda s: (s.text / "train.bin").unlink(), r"smollm/train\.bin cannot be read"),
    "no len": (lambda s: (s.speech / "train.len").unlink(), r"train\.len does not exist"),
    "empty": (lambda s: (s.speech / "train.bin").write_bytes(b"") and None, r"train\.dur has \d+ bytes"),
    "other": (lambda s: other_text(s), r"smollm/train\.len has 9 utterances, .*mhubert25hzl11/train\.len 10;"),
}


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:-size])


def other_text(layout: Layout) -> None:
    kept = (layout.speech / "train.bin", layout.speech / "train.len", layout.speech / "train.dur")
    content = [path.read_bytes() for path in kept]
    layout.write("train", random_said(np.random.default_rng(9), 9))
    for path, before in zip(kept, content, strict=True):
        path.write_bytes(before)


@pytest.mark.parametrize("name", WHOLE)
def test_files_that_contradict_each_other(name: str, layout: Layout) -> None:
    damage, message = WHOLE[name]
    damage(layout.write("train", random_said(np.random.default_rng(7), 10)))
    with pytest.raises(UserError, match=message):
        layout.kind().parts()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eos", 499, "eos is 499, but the tokenizer logmel-kmeans .* asks for 500"),
        ("vocab_size", 1026, "vocab_size is 1026"),
        ("frame_rate", 50, "frame_rate is 50, .* asks for 25"),
        ("frame_rate", "25", "frame_rate is '25'; expected frames per second"),
        ("n_q", 0, "n_q is 0"),
        ("pad", None, "pad is None; expected a whole number"),
    ],
)
def test_descriptions_that_contradict_the_tokenizer(key: str, value: Any, message: str, layout: Layout) -> None:
    layout.write("train", random_said(np.random.default_rng(8), 3))
    (layout.speech / "meta.pkl").write_bytes(pickle.dumps(SPEECH_META | {key: value}))
    with pytest.raises(UserError, match=message):
        layout.kind()


def test_a_text_tokenizer_that_is_not_the_sets(layout: Layout) -> None:
    layout.text_meta["eos"] = 2
    layout.write("train", random_said(np.random.default_rng(8), 3))
    with pytest.raises(UserError, match="eos is 2, but text_tokenizer ends a text with 0"):
        layout.kind()
    with pytest.raises(UserError, match=r"published\.text_folder and text_tokenizer go together"):
        layout.kind(text=False, text_folder=str(layout.text))


def test_some_names_with_times_and_some_without(layout: Layout) -> None:
    layout.write("a", random_said(np.random.default_rng(8), 3)).write(
        "b", random_said(np.random.default_rng(8), 3), times=False
    )
    with pytest.raises(UserError, match=r"b\.wrds_tms does not exist"):
        layout.kind()


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_first_word_after_a_place(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Against a plain loop, over files longer than what is read at once."""
    folder = tmp_path_factory.mktemp("words")
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=30))
    np.full(sum(lengths), 1, "<u2").tofile(folder / "a.bin")
    np.array([sum(lengths)], "<u8").tofile(folder / "a.len")
    np.array(lengths, "<u8").tofile(folder / "a.wrds_tms_len")
    np.zeros(len(lengths), "<f4").tofile(folder / "a.wrds_tms")
    files = TextFiles.find(str(folder / "a"), "<u2")
    assert files.words is not None
    places = sorted(data.draw(st.lists(st.integers(0, sum(lengths)), min_size=1, max_size=6)))
    begins = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    expected = [next(i for i, begin in enumerate(begins) if begin >= place) for place in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tolktrain.prepare.published.files._WORDS_AT_ONCE", data.draw(st.integers(1, 9)))
        found, at = words_from(files.words, np.array(places))
    assert found.tolist() == expected and at.tolist() == [begins[i] for i in expected]


FILES = [
    *(f"mhubert25hzl11/train.{suffix}" for suffix in ("bin", "len", "dur")),
    *(f"smollm/train.{suffix}" for suffix in ("bin", "len", "wrds_tms", "wrds_tms_len")),
    "mhubert25hzl11/meta.pkl",
    "smollm/meta.pkl",
]


@given(data=st.data())
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.slow
def test_damaged_files_give_errors_and_never_a_wrong_record(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, tokenizer: Path
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    layout = Layout(root, tokenizer, length_type=data.draw(st.sampled_from(["<u2", "<u8"])))
    layout.write("train", random_said(np.random.default_rng(10), 6))
    for _ in range(data.draw(st.integers(1, 2))):
        path = root / data.draw(st.sampled_from(FILES))
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, max(len(content) - 1, 0)))
        how = data.draw(st.sampled_from(["cut", "byte", "bytes", "insert", "delete"]))
        if how == "cut":
            del content[place:]
        elif how == "byte" and content:
            content[place] = data.draw(st.integers(0, 255))
        elif how == "bytes":
            content[place : place + 8] = data.draw(st.binary(min_size=8, max_size=8))
        elif how == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=16))
        else:
            del content[place : place + data.draw(st.integers(1, 16))]
        path.write_bytes(bytes(content))
    try:
        run(layout.kind())  # which checks every record
    except UserError as error:
        assert str(root) in str(error)
    finally:
        shutil.rmtree(root)


# Pickles.


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_numbers_of_numpy(protocol: int, tmp_path: Path) -> None:
    value = {
        "vocab_size": np.int64(502),
        "big": np.array([502], ">i4")[0],
        "rate": np.float32(12.5),
        "flag": np.bool_(True),
        "nested": [1, (2.5, "x"), {3, 4}, b"\x00\xff", None, True, {"a": -(1 << 70)}],
        "array": np.arange(6).reshape(2, 3),
    }
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(path) == {
        "vocab_size": 502,
        "big": 502,
        "rate": 12.5,
        "flag": True,
        "nested": [1, (2.5, "x"), {3, 4}, b"\x00\xff", None, True, {"a": -(1 << 70)}],
        "array": None,
    }


class Evil:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def test_nothing_that_a_pickle_names_is_run(tmp_path: Path) -> None:
    import os

    path, proof = tmp_path / "meta.pkl", tmp_path / "proof"
    evils: dict[str, Any] = {
        "posix.system": Evil(os.system, f"touch {proof}"),
        "builtins.eval": Evil(eval, f"open({str(proof)!r}, 'w')"),
        "builtins.getattr": Evil(getattr, {}, "get"),
        "builtins.open": Evil(open, str(proof), "w"),
        "collections.OrderedDict": OrderedDict(a=1),
        "pathlib.": proof,
        "numpy": np.random.RandomState,
    }
    for name, evil in evils.items():
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            path.write_bytes(pickle.dumps({"eos": 500, "x": [evil]}, protocol))
            with pytest.raises(UserError, match=f"{path} asks for .*nothing of it was run") as caught:
                read_plain_pickle(path)
            assert name.split(".")[-1] in str(caught.value)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x04K\x01",
        # numpy.dtype itself gets an attribute.
        b"cnumpy\ndtype\n}S'evil'\nS'x'\nsb.",
        b"cnumpy\ndtype\n(S'O8'\ntR.",
        b"cnumpy\ndtype\n(S'V999999999'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i8'\ntRS'ab'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.",
        b"Pid\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_damaged_pickles(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        read_plain_pickle(path)
    path.write_bytes(pickle.dumps(np.int64(7)))
    assert read_plain_pickle(path) == 7


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_no_bytes_break_the_reader(
    content: bytes,
) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(UserError):
            json.dumps(read_plain_pickle(file.name), default=str)


def test_a_large_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(b"x" * (1 << 20)))
    with pytest.raises(UserError, match="a description has at most 1048576"):
        read_plain_pickle(path)
