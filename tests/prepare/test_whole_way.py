"""From recordings to training: real audio, two machines of which one is killed, a bucket, two ranks."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from recordings import files_of, write_words_tokenizer
from spoken_corpus import CORRUPTED, EMPTY, WRONG_TEXT, Spoken, need_programs, speak_corpus
from warm import Warm, WarmProcess, wait_for_all

from tolktrain.config.data import DatasetConfig
from tolktrain.config.prepare import AlignmentConfig
from tolktrain.data.folder import RecordFolder
from tolktrain.data.text_tokenizer import load_tokenizer
from tolktrain.prepare.recordings.align.ctc import CtcAligner
from tolktrain.prepare.recordings.audio import read_audio
from tolktrain.prepare.utterances import Aligned, Utterance
from tolktrain.storage.open import open_storage

pytestmark = pytest.mark.slow

FRAMES_PER_SECOND = 25
ALIGNER = Path(__file__).parent / "aligner" / "model"


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    """The corpus. Tests must not change it."""
    need_programs()
    return speak_corpus(tmp_path_factory.mktemp("spoken"))


def settings_of(spoken: Spoken, folder: Path, output: str) -> dict[str, Any]:
    return {
        "name": "spoken",
        "license": "CC0-1.0",
        "output": output,
        "text_tokenizer": str(folder / "text_tokenizer"),
        "recordings": {
            "manifest": str(spoken.manifest),
            "speech_tokenizer": {"path": str(folder / "units"), "fit": {"num_units": 64, "hours": 0.05}},
        },
        "passages": {"tokens": 200},
        "heldout": {"sources": 0, "speakers": 0.25, "seed": 1},
        "parts": {"items": 20},
        "processes": 1,
    }


def command_of(folder: Path, settings: dict[str, Any], *options: str) -> list[str]:
    file = folder / f"{settings['output'].rsplit('/', 1)[1]}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return ["-m", "tolktrain", "prepare", str(file), *options]


def started(warm: Warm, command: list[str]) -> WarmProcess:
    """The command, in a process whose imports a warm one has made."""
    return warm.start(*command, new_session=True)


def has_ended(process: WarmProcess) -> None:
    assert process.wait(600) == 0, process.output + process.errors


@pytest.fixture(scope="module")
def alone(warm: Warm, spoken: Spoken, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus prepared by one process into a folder."""
    folder = tmp_path_factory.mktemp("alone")
    write_words_tokenizer(folder / "text_tokenizer", spoken.texts)
    has_ended(started(warm, command_of(folder, settings_of(spoken, folder, str(folder / "output")))))
    return folder


def test_what_is_spoilt_is_named_and_nothing_else_is_lost(spoken: Spoken, alone: Path) -> None:
    failures = [json.loads(line) for line in (alone / "output" / "failures.jsonl").read_text().splitlines()]
    spoilt = {index: "unreadable audio" for index in CORRUPTED} | {EMPTY: "no sound", WRONG_TEXT: "bad word times"}
    assert {failure["id"]: failure["reason"] for failure in failures} == {
        spoken.entries[index]["id"]: reason for index, reason in spoilt.items()
    }
    summary = json.loads((alone / "output" / "summary.json").read_text())
    good = [entry for index, entry in enumerate(spoken.entries) if index not in spoilt]
    assert sum(split["num_words"] for split in summary["splits"].values()) == sum(len(e["words"]) for e in good)
    assert set(summary["splits"]) == {"train", "heldout_speakers"}


def test_given_times_are_kept(spoken: Spoken, alone: Path) -> None:
    """Each word ends at the change of unit nearest to the given time, in every record, whatever failed before it."""
    times = {entry["id"]: entry for entry in spoken.entries}
    tokenizer = load_tokenizer(alone / "text_tokenizer")
    order = [entry["id"] for entry in spoken.entries]
    errors = []
    for split in ("train", "heldout_speakers"):
        for record in RecordFolder(DatasetConfig(path=str(alone / "output" / split)))[:]:
            boundaries = np.cumsum(record.run_lengths.astype(np.int64))
            text_begin = unit_begin = 0
            following = iter(order[order.index(record.id) :])
            for text_end, unit_end in zip(record.utterance_text_ends, record.utterance_unit_ends, strict=True):
                said = tokenizer.decode(record.text_ids[text_begin:text_end].tolist()).strip()
                entry = next(times[i] for i in following if times[i]["text"] == said)
                begin = int(boundaries[unit_begin - 1]) if unit_begin else 0
                ends = record.word_unit_ends[(record.word_unit_ends > unit_begin) & (record.word_unit_ends <= unit_end)]
                assert len(ends) == len(entry["words"])
                found = (boundaries[ends.astype(int) - 1] - begin) / FRAMES_PER_SECOND
                given = np.array([word["end"] for word in entry["words"]])
                errors += np.abs(found - given)[:-1].tolist()
                text_begin, unit_begin = int(text_end), int(unit_end)
    # Half a frame from rounding; more only where a repeated unit continues over the end of the word.
    assert len(errors) > 1500 and np.median(errors) <= 0.5 / FRAMES_PER_SECOND and np.quantile(errors, 0.95) < 0.08


def test_forced_alignment_agrees_with_the_synthesizer(spoken: Spoken) -> None:
    """By a small model for voices of espeak-ng (tests/prepare/aligner), without the given times."""
    aligner = CtcAligner(AlignmentConfig(method="ctc", model=str(ALIGNER)), "cpu")
    spoilt = {*CORRUPTED, EMPTY, WRONG_TEXT}
    entries = [entry for index, entry in enumerate(spoken.entries) if index % 3 and index not in spoilt]
    waveforms = []
    for entry in entries:
        audio = str(spoken.manifest.parent / entry["audio"])
        waveforms.append(read_audio(Utterance(entry["id"], "", "", audio), aligner.sample_rate))
    found = aligner.align(waveforms, [entry["text"] for entry in entries])
    errors = []
    for entry, aligned in zip(entries, found, strict=True):
        assert isinstance(aligned, Aligned) and list(aligned.words) == [word["word"] for word in entry["words"]]
        errors.append(np.abs(aligned.ends - [word["end"] for word in entry["words"]])[:-1])
    assert np.median(np.concatenate(errors)) <= 0.040
    assert np.quantile(np.concatenate(errors), 0.9) <= 0.080


def test_a_wrong_transcript_is_found_without_times(warm: Warm, spoken: Spoken, alone: Path, tmp_path: Path) -> None:
    chosen = [spoken.entries[index] for index in (WRONG_TEXT - 2, WRONG_TEXT, WRONG_TEXT + 1)]
    manifest = tmp_path / "manifest.jsonl"
    untimed = [{key: value for key, value in entry.items() if key != "words"} for entry in chosen]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in untimed))
    settings = settings_of(spoken, alone, str(tmp_path / "output"))
    settings["recordings"] |= {
        "manifest": str(manifest),
        "audio_root": str(spoken.manifest.parent),
        # What a small model is sure of, even where it is right, is less than with a large one.
        "alignment": {"method": "ctc", "model": str(ALIGNER), "min_confidence": 0.15},
    }
    settings |= {"heldout": {"sources": 0, "speakers": 0}, "largest_failed_share": 0.5}
    has_ended(started(warm, command_of(tmp_path, settings)))
    (failure,) = [json.loads(line) for line in (tmp_path / "output" / "failures.jsonl").read_text().splitlines()]
    assert (failure["id"], failure["reason"]) == (chosen[1]["id"], "low confidence of the alignment")
    (record,) = RecordFolder(DatasetConfig(path=str(tmp_path / "output" / "train")))[:]
    assert len(record.word_unit_ends) == sum(len(chosen[index]["words"]) for index in (0, 2))


def test_two_machines_of_which_one_is_killed(
    warm: Warm, spoken: Spoken, alone: Path, bucket: str, tmp_path: Path
) -> None:
    settings = settings_of(spoken, alone, f"{bucket}/spoken")
    storage = open_storage(settings["output"])
    machines = [command_of(tmp_path, settings, "--task", f"{number}/2") for number in range(2)]
    first, second = (started(warm, command) for command in machines)
    deadline = time.monotonic() + 300
    while not storage.names("parts/") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(second.pid, signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    has_ended(first)
    assert storage.read("train/index.json") is None, "one machine's parts are missing"
    has_ended(started(warm, machines[1]))
    names = storage.names()
    expected = files_of(alone / "output")
    assert names == sorted(expected)
    assert all(storage.read(name) == content for name, content in expected.items())

    train(warm, settings["output"], alone, tmp_path)


def train(warm: Warm, address: str, tokenizers: Path, folder: Path) -> None:
    """Two ranks stream the set and train on it for ten steps."""
    config = {
        "run": {"name": "spoken", "dir": str(folder / "runs")},
        "model": {
            "backbone": {
                "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                "ffn_hidden_size": 64, "text_vocab_size": 512,
            },
            "speech": {"num_units": 64},
        },
        "data": {
            "sets": {
                name: {"remote": f"{address}/{name}", "path": str(folder / "cache" / name)}
                for name in ("train", "heldout_speakers")
            },
            "speech_tokenizer": str(tokenizers / "units"),
            "num_workers": 1,
        },
        "train": {
            "global_batch_size": 4, "micro_batch_size": 2, "sequence_length": 128,
            "stages": [{
                "name": "joint", "tokens": 4 * 128 * 10, "learning_rate": 0.02,
                "mixture": {
                    "interleaved": {"weight": 2.0, "sets": {"train": 1.0}},
                    "speech": {"sets": {"train": 1.0}},
                    "text": {"sets": {"train": 1.0}},
                },
            }],
            "validation": {"every_steps": 10, "sequences": 4, "sets": ["heldout_speakers"]},
        },
        "deepspeed": {"zero_stage": 1},
    }  # fmt: skip
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(config))
    ranks = warm.start_ranks(2, "-m", "tolktrain", "train", file)
    assert wait_for_all(ranks, 600) == [0, 0], [rank.errors for rank in ranks]
    lines = [json.loads(line) for line in (folder / "runs" / "spoken" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert lines[-1]["step"] == 10 and len(losses) == 10 and all(np.isfinite(losses))
    for name in ("text_loss", "speech_loss"):
        values = [line[name] for line in lines if "loss" in line]
        assert np.mean(values[-3:]) < np.mean(values[:3])
    assert any("validation.interleaved.heldout_speakers.loss" in line for line in lines)
