"""Cuts of Libriheavy, and manifests that the Lhotse library writes."""

import gzip
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_reading import check_all, config_for, read, write_lines

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.manifest import read_manifest
from tolktrain.prepare.unused import Unused, UnusedItem
from tolktrain.prepare.utterances import Reason, Utterance, Word

BOOK = "small/100/sea_fairies_0812_librivox_64kb_mp3/01_baum_sea_fairies_64kb"


def cut(number: int = 0, **supervision: Any) -> dict[str, Any]:
    """A line as Libriheavy is published."""
    name = f"{BOOK}_{number}"
    return {
        "id": name,
        "start": 243.919 + 10 * number,
        "duration": 7.36,
        "channel": 0,
        "supervisions": [
            {
                "id": name,
                "recording_id": BOOK,
                "start": 0,
                "duration": 7.36,
                "channel": 0,
                "language": "English",
                "speaker": "100",
                "custom": {
                    "texts": ['The little girl said: "Why?"', "THE LITTLE GIRL SAID WHY"],
                    "pre_texts": ["...before", "...BEFORE"],
                    "begin_byte": 4993,
                    "end_byte": 5120,
                },
                **supervision,
            }
        ],
        "recording": {
            "id": BOOK,
            "sources": [{"type": "file", "channels": [0], "source": f"download/librilight/{BOOK}.flac"}],
            "sampling_rate": 16000,
            "num_samples": 9567080,
            "duration": 597.9425,
            "channel_ids": [0],
        },
        "custom": {"text_path": "download/librilight_text/output_text_small_cleaned/Sea Fairies/text.txt"},
        "type": "MonoCut",
    }


TIMES = [["THE", 243.919, 0.2, 0.9], ["", 244.119, 0.1, None], ["LITTLE", 244.219, 0.5, 1.0], ["GIRL", 244.8, 6.479, 1]]
EXPECTED = Utterance(
    f"{BOOK}_0",
    BOOK,
    "100",
    f"/data/download/librilight/{BOOK}.flac",
    offset=243.919,
    duration=7.36,
    text='The little girl said: "Why?"',
    words=(Word("THE", 0.0, 0.2), Word("LITTLE", 0.3, 0.8), Word("GIRL", 0.881, 7.36)),
)


@pytest.mark.parametrize("kind", ["auto", "libriheavy"])
def test_libriheavy(tmp_path: Path, kind: str) -> None:
    lines = [cut(0, alignment={"word": TIMES}), cut(1), cut(2, custom={}, text="PLAIN")]
    path = write_lines(tmp_path / "libriheavy_cuts_small.jsonl.gz", lines)
    utterances, failures = read(path, format=kind, audio_root="/data")
    assert not failures
    assert utterances[0] == EXPECTED
    assert utterances[1].words is None and utterances[1].offset == 253.919
    assert utterances[2].text == "PLAIN"


def test_word_times_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [cut(0, alignment={"word": [["early", 1.0, 0.5, None]]})])
    assert read(path)[1][0].reason is Reason.WORD_TIMES, "counted from the cut, though Lhotse counts from the recording"
    utterances, failures = read(path, alignment={"method": "none"})
    assert utterances[0].words is None and not failures


def changed(path: str, value: Any) -> dict[str, Any]:
    """A cut with one value, below dotted keys, set; or, for ..., left out."""
    result = cut(9)
    tree: Any = result
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        tree = tree[key]
    if value is ...:
        del tree[last]
    else:
        tree[last] = value
    return result


BAD = [
    ("supervisions", [], "one supervision"),
    ("supervisions", ..., "supervisions is missing"),
    ("recording", ..., "recording.sources is missing"),
    ("recording.id", ..., "recording.id is missing"),
    ("recording.sources", [], "must list files"),
    ("recording.sources.0.type", "url", "files only, not from a source of type 'url'"),
    ("recording.sources.0.channels", [1, 2], "no source of the recording has the channel 0"),
    ("recording.sources.0.channels", "x", "list of numbers"),
    ("start", "1", "start must be a number"),
    ("start", -300, "offset must be seconds"),
    ("start", 10**400, "start must be a number"),
    ("supervisions.0.duration", 0, "duration must be above 0"),
    ("supervisions.0.channel", 1, "the supervision is of channel 1, and the cut is not"),
    ("recording.transforms", [{"name": "Speed", "factor": 1.1}], "has transforms"),
    ("supervisions.0.custom.texts", [7], "text must be a string"),
    ("supervisions.0.alignment", {"word": [["a", 1]]}, "expected [word, start, duration]"),
    ("supervisions.0.alignment", {"word": [["a", "b", 1]]}, "must be numbers"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_bad_cuts_are_reported(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = write_lines(tmp_path / "c.jsonl", [cut(1), changed(key, value), cut(2)])
    utterances, failures = read(path)
    assert len(utterances) == 2
    assert [failure.id for failure in failures] == [f"{BOOK}_9"]
    assert message in failures[0].detail and failures[0].detail.startswith("line 2: ")


def test_lhotse_reads_the_cuts_of_libriheavy_alike(tmp_path: Path) -> None:
    """The library as a reference for our own reading."""
    pytest.importorskip("lhotse")
    lines = [cut(i, text="PLAIN", custom={}, alignment={"word": TIMES} if i == 0 else {}) for i in range(3)]
    path = write_lines(tmp_path / "c.jsonl.gz", lines)
    assert read(path, format="lhotse") == read(path, format="libriheavy")
    assert read(path) == read(path, format="lhotse")


def saved_by_lhotse(folder: Path, name: str) -> None:
    """Two recordings, one of two channels in one file, with three supervisions."""
    from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
    from lhotse.audio import AudioSource
    from lhotse.supervision import AlignmentItem

    stereo = Recording("call", [AudioSource("file", [0, 1], "call.wav")], 16000, 160_000, 10.0, [0, 1])
    mono = Recording("talk", [AudioSource("file", [0], "/abs/talk.flac")], 16000, 160_000, 10.0, [0])
    words = [AlignmentItem("good", 3.0, 0.25), AlignmentItem("day", 3.5, 0.5, 0.9)]
    segments = [
        SupervisionSegment("call-b", "call", 3.0, 1.5, 1, "good day", speaker="B", alignment={"word": words}),
        SupervisionSegment("talk-1", "talk", 0.0, 10.0, 0, "a talk", speaker="C"),
        SupervisionSegment("call-ab", "call", 5.0, 1.0, [0, 1], "both"),
    ]
    RecordingSet.from_recordings([stereo, mono]).to_file(str(folder / f"{name}_recordings_x.jsonl.gz"))
    SupervisionSet.from_segments(segments).to_file(str(folder / f"{name}_supervisions_x.jsonl.gz"))


def lhotse_expected(root: Path) -> list[Utterance]:
    words = (Word("good", 0.0, 0.25), Word("day", 0.5, 1.0))
    return [
        Utterance("call-b", "call", "B", f"{root}/call.wav", 3.0, 1.5, 1, "good day", words),
        Utterance("call-ab", "call", "", f"{root}/call.wav", 5.0, 1.0, None, "both"),
        Utterance("talk-1", "talk", "C", "/abs/talk.flac", 0.0, 10.0, None, "a talk"),
    ]


def test_lhotse_recordings_and_supervisions(tmp_path: Path) -> None:
    pytest.importorskip("lhotse")
    saved_by_lhotse(tmp_path, "set")
    expected = lhotse_expected(tmp_path)
    names = [".", "set", "set_", "set_supervisions_x.jsonl.gz", "set_recordings_x.jsonl.gz"]
    for name in names:
        assert read(tmp_path / name) == (expected, []), name
    (tmp_path / "set_recordings_x.jsonl.gz").unlink()
    with pytest.raises(UserError, match="set_recordings_x.jsonl.gz does not exist"):
        read_manifest(config_for(tmp_path / "set"))


def test_lhotse_cuts_of_several_supervisions(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    saved_by_lhotse(tmp_path, "set")
    loaded = [lhotse.load_manifest(str(tmp_path / f"set_{kind}_x.jsonl.gz")) for kind in ("recordings", "supervisions")]
    cuts = lhotse.CutSet.from_manifests(recordings=loaded[0], supervisions=loaded[1])
    later = cuts["talk-1-0"].truncate(offset=2) if "talk-1-0" in cuts.ids else None
    assert later is None or later.start == 2
    path = tmp_path / "cuts.jsonl.gz"
    # From 2 s on: supervisions are counted from the cut then, alignments still from the recording.
    lhotse.CutSet.from_cuts(c.truncate(offset=2) if c.recording.id == "call" else c for c in cuts).to_file(str(path))
    utterances, failures = read(path)
    named = {one.id: one for one in utterances}
    expected = {one.id: one for one in lhotse_expected(tmp_path)}
    assert not failures and named["call-b"] == expected["call-b"] and named["call-ab"] == expected["call-ab"]
    assert len(utterances) == 3
    with pytest.raises(UserError, match="found cuts.jsonl.gz, set_recordings"):
        read_manifest(config_for(tmp_path))


def test_lhotse_items_that_are_not_utterances(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    saved_by_lhotse(tmp_path, "set")
    recordings = lhotse.load_manifest(str(tmp_path / "set_recordings_x.jsonl.gz"))
    whole = recordings["talk"].to_cut()
    lines = [
        whole.to_dict(),
        recordings["talk"].perturb_speed(1.1).to_cut().to_dict(),
        whole.pad(12).to_dict(),
        {**cut(1), "recording": None},
        {"type": "MonoCut"},
        {"type": "Nonsense"},
        changed("supervisions.0.start", 2.0),
        {**changed("supervisions.0.speaker", 3.5), "id": "odd"},
        7,
    ]
    utterances, failures = read(write_lines(tmp_path / "own.jsonl", lines), format="lhotse")
    assert [(one.id, one.text, one.duration) for one in utterances] == [(whole.id, None, 10.0)]
    messages = [
        "has transforms",
        "got a MixedCut",
        "",
        "not accept",
        "not accept",
        "reaches out",
        "speaker must be",
        "object",
    ]
    assert len(failures) == len(messages)
    for failure, part in zip(failures, messages, strict=True):
        assert part in failure.detail and failure.reason is Reason.MANIFEST


def test_a_bad_supervision_does_not_take_the_others_of_its_cut_along(tmp_path: Path) -> None:
    pytest.importorskip("lhotse")
    several = cut(0)
    one = several["supervisions"][0]
    several["supervisions"] = [
        {**one, "id": name, "start": s, "duration": 2.0} for name, s in zip("abc", (0, 6, 5), strict=True)
    ]
    utterances, failures = read(write_lines(tmp_path / "c.jsonl", [several]), format="lhotse")
    assert [(utterance.id, utterance.offset) for utterance in utterances] == [("a", 243.919), ("c", 248.919)]
    assert [failure.id for failure in failures] == ["b"] and "reaches out" in failures[0].detail


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([0, 5_000]), st.integers(-150, 1_000), st.integers(500, 2_300), st.just(2_000))
def test_a_supervision_may_reach_out_of_its_cut_as_far_as_audio_may_be_short(
    tmp_path: Path, cut_start: int, begin: int, duration: int, cut_duration: int
) -> None:
    """All in milliseconds, so that nothing is rounded."""
    pytest.importorskip("lhotse")
    one = cut(0, text="PLAIN", custom={}, start=begin / 1000, duration=duration / 1000)
    one |= {"start": cut_start / 1000, "duration": cut_duration / 1000}
    utterances, failures = read(write_lines(tmp_path / "c.jsonl", [one]), format="lhotse")
    beyond = max(-begin, begin + duration - cut_duration)
    if beyond > 100:
        assert not utterances
        assert f"reaches out of its cut by {beyond / 1000:.3f} s; at most 0.1 s" in failures[0].detail
        return
    assert not failures
    first, last = max(cut_start + begin, 0), cut_start + begin + duration
    assert (utterances[0].offset, utterances[0].duration) == (first / 1000, (last - first) / 1000)


@pytest.mark.parametrize(
    ("of_cut", "of_supervision", "message"),
    [
        ({"channel": 1}, {"channel": 0}, "is of channel 0, and its cut of channel 1"),
        ({"channel": 0}, {"channel": 1}, "is of channel 1, and its cut of channel 0"),
        (
            {"channel": [1], "type": "MultiCut"},
            {"channel": [0, 1]},
            r"is of channel \[0, 1\], and its cut of channel \[1\]",
        ),
        ({}, {"recording_id": "other"}, f"is of the recording 'other', and its cut of '{BOOK}'"),
    ],
)
def test_a_supervision_of_other_audio_than_its_cut_is_refused(
    tmp_path: Path, of_cut: dict[str, Any], of_supervision: dict[str, Any], message: str
) -> None:
    """`lhotse.validate` refuses such a MonoCut too, and loading it would give the audio of the cut."""
    lhotse = pytest.importorskip("lhotse")
    one = cut(0, text="PLAIN", custom={}, **of_supervision) | of_cut
    one["recording"] |= {"channel_ids": [0, 1]}
    one["recording"]["sources"][0] |= {"channels": [0, 1]}
    with pytest.raises(AssertionError) if one["type"] == "MonoCut" else nullcontext():
        lhotse.validate(lhotse.serialization.deserialize_item(json.loads(json.dumps(one))))
    utterances, failures = read(
        write_lines(tmp_path / "c.jsonl", [one, cut(1, text="PLAIN", custom={})]), format="lhotse"
    )
    assert [utterance.id for utterance in utterances] == [f"{BOOK}_1"]
    assert re.search(message, failures[0].detail) and failures[0].reason is Reason.MANIFEST


def test_words_are_counted_from_where_the_utterance_begins(tmp_path: Path) -> None:
    pytest.importorskip("lhotse")
    times = [["THE", -0.05, 0.2, 0.9], ["SEA", 0.5, 0.25, 1.0]]
    one = cut(0, text="THE SEA", custom={}, start=-0.05, duration=2.0, alignment={"word": times})
    path = write_lines(tmp_path / "c.jsonl", [{**one, "start": 0.0, "duration": 2.0}])
    for kind in ("lhotse", "libriheavy"):
        (utterance,), failures = read(path, format=kind)
        assert not failures and (utterance.offset, utterance.duration) == (0.0, 1.95)
        assert utterance.words == (Word("THE", 0.0, 0.15), Word("SEA", 0.5, 0.75))


def test_keys_that_are_not_used_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("lhotse")
    path = write_lines(tmp_path / "c.jsonl", [cut(0), cut(1, gender="f", alignment={"word": TIMES[:1], "phone": []})])
    unused = Unused()
    read_manifest(config_for(path, format="libriheavy", alignment={"method": "none"}), unused)
    assert {item.what.split("'")[1]: item.count for item in unused.take()} == {
        "supervisions.language": 2,
        "supervisions.custom.pre_texts": 2,
        "supervisions.custom.begin_byte": 2,
        "supervisions.custom.end_byte": 2,
        "custom": 2,
        "supervisions.gender": 1,
    }
    read_manifest(config_for(path, format="lhotse", alignment={"method": "none"}), unused)
    keys = {item.what.split("'")[1] for item in unused.take()}
    assert keys == {"supervisions.language", "supervisions.custom", "custom", "supervisions.gender"}


def test_recordings_that_no_supervision_names_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("lhotse")
    saved_by_lhotse(tmp_path, "set")
    recordings, supervisions = (tmp_path / f"set_{kind}_x.jsonl.gz" for kind in ("recordings", "supervisions"))
    lines = [json.loads(line) for line in gzip.decompress(supervisions.read_bytes()).splitlines()]
    write_lines(supervisions, [line for line in lines if line["recording_id"] != "talk"])
    unused = Unused()
    read_manifest(config_for(tmp_path / "set"), unused)
    assert UnusedItem(what="recordings without supervisions", count=1, first="talk") in unused.take()
    described = [json.loads(line) for line in gzip.decompress(recordings.read_bytes()).splitlines()]
    write_lines(recordings, [*described, described[0], {**described[0], "duration": 11.0}])
    with pytest.raises(UserError, match="line 4: the recording 'call' is described before, differently"):
        read_manifest(config_for(tmp_path / "set"))


def test_the_library_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lhotse", None)
    path = write_lines(tmp_path / "own_cuts.jsonl", [cut(0)])
    with pytest.raises(UserError, match="pip install lhotse"):
        read_manifest(config_for(path, format="lhotse"))


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("m.json", [{"path": "a.wav", "label": 3}], "its objects have the keys 'path', 'label'"),
        ("m.txt", ["a.wav some text"], "its first line is 'a.wav some text'"),
        ("m.txt", ["\ufffd\u2028"], "set recordings.format"),
    ],
)
def test_formats_that_cannot_be_recognized(tmp_path: Path, name: str, lines: list[Any], message: str) -> None:
    path = write_lines(tmp_path / name, lines)
    with pytest.raises(UserError, match="the format cannot be recognized") as caught:
        read_manifest(config_for(path))
    assert message in str(caught.value)


def test_formats_are_recognized_by_content(tmp_path: Path) -> None:
    assert len(read(write_lines(tmp_path / "a.txt", ["{broken", {"audio": "a.wav"}]))[0]) == 1
    assert len(read(write_lines(tmp_path / "b.txt", ["text\taudio", "x\ta.wav"]))[0]) == 1
    assert len(read(write_lines(tmp_path / "c.txt", ["{broken", cut(0)]))[0]) == 1


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([
        "id", "start", "duration", "channel", "supervisions", "recording", "type", "recording.id", "recording.sources",
        "recording.sources.0", "recording.sources.0.channels", "recording.sources.0.source", "supervisions.0",
        "supervisions.0.start", "supervisions.0.custom", "supervisions.0.custom.texts", "supervisions.0.alignment",
        "supervisions.0.speaker", "supervisions.0.channel", "recording.channel_ids", "recording.transforms",
    ]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["word", "id"]), inner, max_size=2),
        max_leaves=5,
    ),
    st.sampled_from(["libriheavy", "lhotse"]),
)  # fmt: skip
def test_any_value_in_a_cut_gives_a_valid_utterance_or_a_failure(
    tmp_path: Path, key: str, value: Any, kind: str
) -> None:
    if kind == "lhotse":
        pytest.importorskip("lhotse")
    path = write_lines(tmp_path / "c.jsonl", [json.dumps(changed(key, value)), cut(1)])
    utterances, failures = read_manifest(config_for(path, format=kind))
    check_all(utterances, failures)
    assert len(utterances) + len(failures) >= 2 and utterances[-1].id == f"{BOOK}_1"
