"""Preparations as a whole: what comes out, whoever does it, and whatever ends it on the way."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from recordings import (
    RATE,
    as_lists,
    configuration,
    corpus,
    files_of,
    parsed,
    plain_records,
    write_corpus,
    write_text_tokenizer,
)
from small_disk import MakeDisk
from warm import Warm, WarmProcess

from tolktrain import cli
from tolktrain.cluster.signals import StopRaised
from tolktrain.config.data import DatasetConfig
from tolktrain.data.folder import RecordFolder
from tolktrain.data.text_tokenizer import load_tokenizer
from tolktrain.errors import UserError
from tolktrain.files.terminal import Console
from tolktrain.prepare.job.parts import PartResult
from tolktrain.prepare.job.pipeline import Task, prepare
from tolktrain.prepare.job.progress import ProgressDisplay
from tolktrain.units.load import load_speech_tokenizer

SONGS = corpus()


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a corpus with its text tokenizer. Tests must not change it."""
    folder = tmp_path_factory.mktemp("songs")
    write_corpus(folder, SONGS)
    write_text_tokenizer(folder / "text_tokenizer")
    return folder


class StoppingDisplay(ProgressDisplay):
    """Is asked to stop when two parts are done."""

    def part_done(self, result: PartResult) -> None:
        super().part_done(result)
        if self._parts == 2:
            raise StopRaised


def run(settings: dict[str, Any], task: str = "0/1", stops: bool = False, retry: bool = False) -> tuple[bool, str]:
    """Prepare in this process; whether it came to its end, and what it said."""
    output = io.StringIO()
    number, total = map(int, task.split("/"))
    display = (StoppingDisplay if stops else ProgressDisplay)(Console(file=output, width=160))
    try:
        prepare(parsed(settings), Task(number, total), display, retry)
    except StopRaised:
        return False, output.getvalue()
    return True, output.getvalue()


@pytest.fixture(scope="module")
def whole(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus prepared by one process without a disturbance."""
    output = tmp_path_factory.mktemp("whole")
    ended, said = run(configuration(songs, songs / "manifest.jsonl", output, processes=1))
    assert ended and "20 of 20 entries used" in said
    return output


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [as_lists(record) for record in RecordFolder(DatasetConfig(path=str(folder)))[:]]


def test_records_are_those_of_a_plain_program(songs: Path, whole: Path) -> None:
    speech, text = load_speech_tokenizer(songs / "units"), load_tokenizer(songs / "text_tokenizer")
    expected = plain_records(SONGS, speech, text, tokens=60)
    assert records_of(whole / "train") == expected
    assert sorted(path.name for path in whole.iterdir()) == [
        "failures.jsonl", "parts", "preparation.json", "speech_tokenizer", "summary.json", "text_tokenizer", "train",
    ]  # fmt: skip
    assert (whole / "failures.jsonl").read_bytes() == b""


def test_summary_counts(whole: Path) -> None:
    info = json.loads((whole / "summary.json").read_text())["splits"]["train"]
    records = records_of(whole / "train")
    assert info["num_records"] == len(records) and info["num_words"] == sum(len(song.words) for song in SONGS)
    frames = sum(-(-len(song.samples) // 640) for song in SONGS)
    assert info["hours"] == round(frames / 25 / 3600, 4)
    assert info == json.loads((whole / "train" / "dataset.json").read_text())


@pytest.mark.slow
def test_any_division_of_the_work_gives_the_same_bytes(songs: Path, whole: Path, tmp_path: Path) -> None:
    manifest = songs / "manifest.jsonl"
    run(configuration(songs, manifest, tmp_path / "processes", processes=3))
    first = run(configuration(songs, manifest, tmp_path / "tasks"), "1/2")[1]
    assert "2 of 4 parts of other tasks are not" in first and not (tmp_path / "tasks" / "train" / "index.json").exists()
    assert "20 of 20 entries used" in run(configuration(songs, manifest, tmp_path / "tasks"), "0/2")[1]
    assert files_of(tmp_path / "processes") == files_of(whole) == files_of(tmp_path / "tasks")


def test_a_second_run_changes_nothing(songs: Path, whole: Path) -> None:
    before = files_of(whole)
    ended, said = run(configuration(songs, songs / "manifest.jsonl", whole))
    assert ended and "20 of 20 entries used" in said and files_of(whole) == before


@pytest.mark.slow
def test_killed_at_random_instants(warm: Warm, songs: Path, whole: Path, tmp_path: Path) -> None:
    settings = configuration(songs, songs / "manifest.jsonl", tmp_path / "output", processes=2)
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump(settings))
    command = ["-m", "tolktrain", "prepare", str(file)]
    rng, kills = random.Random(0), 0
    for parts in (0, 2):
        # Where imports take how long differs, so the kill waits for a number of finished parts, then for an instant.
        process: WarmProcess | subprocess.Popen[bytes]
        if parts:
            process = warm.start(*command, new_session=True)
        else:  # one that may still be importing
            real = [sys.executable, *command]
            process = subprocess.Popen(real, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list(tmp_path.glob("output/parts/*"))) < parts:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1 if parts else 3))
        with contextlib.suppress(ProcessLookupError):  # it has done all
            os.killpg(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    done = warm.run(*command)
    assert done.returncode == 0, done.stderr
    assert kills and files_of(tmp_path / "output") == files_of(whole)


def test_asked_to_stop(songs: Path, whole: Path, tmp_path: Path) -> None:
    settings = configuration(songs, songs / "manifest.jsonl", tmp_path / "output", processes=1)
    parts = tmp_path / "output" / "parts"
    ended, _ = run(settings, stops=True)
    assert not ended and not (tmp_path / "output" / "train" / "index.json").exists()
    assert len(list(parts.glob("*.json"))) in (2, 3)
    assert run(settings)[0] and files_of(tmp_path / "output") == files_of(whole)


@pytest.mark.slow
def test_one_bad_item_leaves_the_others_as_they_are(songs: Path, whole: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (songs / "manifest.jsonl").read_text().splitlines()]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF no sound at all")
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, [], RATE)
    for line in lines:
        line["audio"] = str(songs / line["audio"])
    lines[2]["audio"] = str(broken)
    lines[6]["audio"] = str(tmp_path / "absent.wav")
    lines[9]["audio"] = str(silent)
    lines[12]["text"] += " mountain"
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join([*map(json.dumps, lines), "{not json"]) + "\n")
    settings = configuration(songs, manifest, tmp_path / "output", largest_failed_share=0.5, parts={"items": 5})
    assert "16 of 21 entries used" in run(settings)[1]
    failures = [json.loads(line) for line in (tmp_path / "output" / "failures.jsonl").read_text().splitlines()]
    reasons = {failure["id"]: failure["reason"] for failure in failures}
    bad = {SONGS[2].id: "unreadable audio", SONGS[6].id: "unreadable audio", SONGS[9].id: "no sound"}
    assert reasons == {**bad, SONGS[12].id: "bad word times", "line 21": "bad manifest entry"}
    places = {failure["id"]: failure["place"] for failure in failures}
    bad_lines = {SONGS[number].id: number + 1 for number in (2, 6, 9, 12)} | {"line 21": 21}
    assert places == {name: f"{manifest} line {number}" for name, number in bad_lines.items()}
    speech, text = load_speech_tokenizer(songs / "units"), load_tokenizer(songs / "text_tokenizer")
    good = [song for song in SONGS if song.id not in reasons]
    assert records_of(tmp_path / "output" / "train") == plain_records(good, speech, text, tokens=60)

    strict = configuration(songs, manifest, tmp_path / "strict", largest_failed_share=0.1)
    with pytest.raises(UserError, match=r"entries failed.*unreadable audio.*largest_failed_share 0.1"):
        run(strict)
    assert not list((tmp_path / "strict").glob("*/index.json"))
    # Nothing is prepared again when more is allowed.
    strict["largest_failed_share"] = 0.5
    run(strict)
    assert files_of(tmp_path / "strict" / "train") == files_of(tmp_path / "output" / "train")


@pytest.mark.slow
def test_what_was_corrected_is_done_again(songs: Path, whole: Path, tmp_path: Path) -> None:
    """Into an output that the audio was broken for; the manifest is the same."""
    broken = write_corpus(tmp_path / "corpus", SONGS)
    wav = tmp_path / "corpus" / "audio" / f"{SONGS[7].id}.wav"
    content = wav.read_bytes()
    wav.write_bytes(content[:100])
    settings = configuration(songs, broken, tmp_path / "output")
    with pytest.raises(UserError, match=r"1 entries failed .*start again with --retry"):
        run(settings | {"largest_failed_share": 0})
    wav.write_bytes(content)
    with pytest.raises(UserError, match="1 entries failed"):
        run(settings | {"largest_failed_share": 0})
    assert "20 of 20 entries used" in run(settings | {"largest_failed_share": 0}, retry=True)[1]
    assert records_of(tmp_path / "output" / "train") == records_of(whole / "train")


def test_parts_of_another_preparation_are_not_joined(songs: Path, whole: Path, tmp_path: Path) -> None:
    """As when two tasks with different settings claim one output at the same instant."""
    settings = configuration(songs, songs / "manifest.jsonl", tmp_path / "output")
    run(settings, "0/2")
    part = json.loads((whole / "parts" / "000001.json").read_text())
    (tmp_path / "output" / "parts" / "000001.json").write_text(json.dumps(part | {"preparation": "0" * 64}))
    (tmp_path / "output" / "parts" / "000003.json").write_text(json.dumps(part))
    with pytest.raises(UserError, match=r"parts/000001.json is damaged, or of another preparation"):
        run(settings)
    assert not (tmp_path / "output" / "train" / "index.json").exists()


def test_a_tokenizer_that_is_not_what_fit_asks_for(songs: Path, whole: Path, tmp_path: Path) -> None:
    settings = configuration(songs, songs / "manifest.jsonl", tmp_path / "output")
    settings["recordings"]["speech_tokenizer"]["fit"]["num_units"] = 30
    with pytest.raises(UserError, match=r"with 24 units, but recordings.speech_tokenizer.fit asks for .* with 30"):
        run(settings)
    assert not (tmp_path / "output").exists()


def test_everything_held_out_is_said(songs: Path, whole: Path, tmp_path: Path) -> None:
    heldout = {"sources": 0.0, "speakers": 0.999}
    settings = configuration(songs, songs / "manifest.jsonl", tmp_path / "output", heldout=heldout)
    assert "nothing is left for training" in run(settings)[1]


def test_held_out_speakers_and_sources(songs: Path, tmp_path: Path) -> None:
    heldout = {"sources": 0.3, "speakers": 0.4, "seed": 2}
    settings = configuration(songs, songs / "manifest.jsonl", tmp_path / "output", heldout=heldout)
    run(settings)
    found = {
        split.parent.name: {i["id"].split("-")[0] for i in records_of(split.parent)}
        for split in (tmp_path / "output").glob("*/index.json")
    }
    assert found == {"heldout_sources": {"s0"}, "heldout_speakers": {"s2"}, "train": {"s3", "s1"}}


def test_another_preparation_in_the_output(songs: Path, whole: Path, tmp_path: Path) -> None:
    before = files_of(whole)
    other = configuration(songs, songs / "manifest.jsonl", whole, passages={"tokens": 70, "shortest_tokens": 5})
    with pytest.raises(UserError, match=r"another preparation: settings.passages.tokens is 70 here and 60 there"):
        run(other)
    assert files_of(whole) == before
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "index.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds train/index.json, which is not of a preparation"):
        run(configuration(songs, songs / "manifest.jsonl", tmp_path))
    assert list(files_of(tmp_path)) == ["train/index.json"]


def test_nothing_to_prepare(songs: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"id": "a"}\n')
    with pytest.raises(
        UserError,
        match=r"holds nothing to prepare: 1 entries are unusable, the first \(a\): line 1: the key audio is missing",
    ):
        run(configuration(songs, manifest, tmp_path / "output"))


@pytest.mark.parametrize("number, total", [(2, 2), (-1, 3), (0, 0)])
def test_tasks_that_do_not_exist(number: int, total: int) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Task(number, total)


@pytest.mark.parametrize("leaving_kib", [0, 8, 24, 40])
@pytest.mark.slow
def test_a_full_disk_under_the_output(
    songs: Path,
    whole: Path,
    make_disk: MakeDisk,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    leaving_kib: int,
) -> None:
    disk = make_disk(1 << 10)
    output = disk.path / "output"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(configuration(songs, songs / "manifest.jsonl", output)))
    disk.fill(leaving_kib)
    assert cli.main(["prepare", str(config)]) == 1
    error = capsys.readouterr().err
    assert re.search(rf"error: {output}\S* cannot be written: the disk refuses \(.*No space left.*free space", error)
    assert all(not path.name.startswith(".tolktrain-") for path in output.rglob("*"))
    whole_parts = {path.name: path.read_bytes() for path in (whole / "parts").iterdir()}
    for path in output.glob("parts/*"):
        assert path.read_bytes() == whole_parts[path.name]
    disk.empty()
    assert cli.main(["prepare", str(config)]) == 0
    assert files_of(output) == files_of(whole)


@pytest.mark.slow
def test_a_full_disk_for_temporary_files(
    songs: Path,
    whole: Path,
    make_disk: MakeDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = make_disk(64)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(configuration(songs, songs / "manifest.jsonl", tmp_path / "output")))
    monkeypatch.setattr("tempfile.tempdir", str(disk.path))
    disk.fill()
    assert cli.main(["prepare", str(config)]) == 1
    error = capsys.readouterr().err
    assert re.search(
        rf"error: {disk.path}/tolktrain-prepare-\S+/train: No space left on device \(.* MB are free\);"
        r" free some, or let TMPDIR name a folder on another disk, and run the same command again",
        error,
    ), error
    assert not disk.files()
    disk.empty()
    assert cli.main(["prepare", str(config)]) == 0
    assert files_of(tmp_path / "output") == files_of(whole)
