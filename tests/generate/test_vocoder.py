"""Runs that speak with a converted vocoder: chosen by folder, option or configuration, with its rate and durations."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "units"))  # for `hifigan_twin`

from hifigan_twin import SEVERAL, Twin, make_twin, save_published

from tolktrain import cli
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.generate.answer import Answering, answer
from tolktrain.generate.continuation import Limits
from tolktrain.generate.inputs import check_inputs
from tolktrain.generate.requests import request
from tolktrain.generate.run import generate
from tolktrain.generate.settings import Hearing
from tolktrain.units.logmel import LogMelTokenizer
from tolktrain.units.vocoders.unit_hifigan import convert

SHORT = Answering(limits=Limits(12, utterances=9))
# 48 kHz: another rate than the tokenizer's.
FINE = {"upsample_rates": [8, 5, 8, 6], "upsample_kernel_sizes": [16, 11, 16, 12], "code_hop_size": 1920}
FINE |= {"sampling_rate": 48_000}


def _vocoder(folder: Path, tokenizer: Path, **changes: Any) -> Twin:
    twin = make_twin(4, **changes)
    convert(folder, *save_published(folder.with_name(f"{folder.name}-published"), twin), tokenizer)
    return twin


def _configure(run: Path, **data: Any) -> None:
    path = run / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["data"] |= data
    path.write_text(yaml.safe_dump(tree))


@pytest.fixture
def tokenizer(tiny_run: Path, repository: Path, tmp_path: Path) -> Path:
    """The run's speech tokenizer, in a folder of its own."""
    folder = shutil.copytree(repository / "data" / "sample" / "speech_tokenizer", tmp_path / "tokenizer")
    _configure(tiny_run, speech_tokenizer=str(folder))
    return folder


def _spoken(run: Path, options: Answering) -> tuple[list[int], np.ndarray, int]:
    """Units, samples and rate of one continuation."""
    assert options.into is not None
    answer(run, [request("units", [3, 141, 59], None, False, "x", "--units")], options, lambda text: None)
    (line,) = (json.loads(text) for text in (options.into / "continuations.jsonl").read_text().splitlines())
    samples, rate = soundfile.read(options.into / line["file"])
    assert len(samples) / rate == pytest.approx(line["audio_seconds"], abs=1e-3)
    return [unit for (unit,) in line["units"]], samples, rate


def _heard(twin: Twin, units: list[int], speaker: int = 0, style: int = 0) -> np.ndarray:
    with torch.no_grad():
        return twin(units, speaker, style, True).numpy()


def test_a_vocoder_in_the_folder_of_the_tokenizer(tiny_run: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Used without being named; its rate and its durations are those of the file."""
    twin = _vocoder(tokenizer, tokenizer, **FINE)
    units, samples, rate = _spoken(tiny_run, replace(SHORT, into=tmp_path / "a"))
    expected = _heard(twin, units)
    assert rate == 48_000 and samples.shape == expected.shape
    assert np.abs(samples - expected).max() < 1e-4, "16 bits"
    limits = Limits(60, seconds=1.0, utterances=9)
    _, samples, rate = _spoken(tiny_run, replace(SHORT, limits=limits, into=tmp_path / "b"))
    assert len(samples) / rate >= 1.0, "a limit in seconds counts the durations that are heard"


def test_a_vocoder_that_is_named(tiny_run: Path, tokenizer: Path, tmp_path: Path) -> None:
    """By configuration; options replace it, and its speaker."""
    twin = _vocoder(tmp_path / "several", tokenizer, **SEVERAL)
    other = _vocoder(tmp_path / "other", tokenizer)
    _configure(tiny_run, vocoder={"path": str(tmp_path / "several"), "speaker": "2"})
    options = {
        "a": ({}, twin, (2, 0)),
        "b": ({"speaker": "1", "style": "1"}, twin, (1, 1)),
        "c": ({"vocoder": tmp_path / "other"}, other, (0, 0)),
    }
    for name, (changes, expected, voice) in options.items():
        hearing = Hearing(**changes)  # type: ignore[arg-type]
        units, samples, rate = _spoken(tiny_run, replace(SHORT, into=tmp_path / name, hearing=hearing))
        assert rate == 16_000 and np.abs(samples - _heard(expected, units, *voice)).max() < 1e-4


def test_samples_of_the_run(tiny_run: Path, tokenizer: Path, repository: Path, tmp_path: Path) -> None:
    prompts = shutil.copytree(repository / "data" / "sample" / "prompts", tmp_path / "prompts")
    entries = json.loads((prompts / "prompts.json").read_text())[:1]
    (prompts / "prompts.json").write_text(json.dumps(entries))
    twin = _vocoder(tmp_path / "vocoder", tokenizer, **FINE)
    _configure(tiny_run, vocoder={"path": str(tmp_path / "vocoder")})
    tree = yaml.safe_load((tiny_run / "config.yaml").read_text())
    tree["evaluation"]["prompts"] = str(prompts)
    (tiny_run / "config.yaml").write_text(yaml.safe_dump(tree))
    generate(tiny_run)
    content = json.loads((tiny_run / "samples" / "samples.json").read_text())
    assert (content["sample_rate"], content["vocoder"]) == (48_000, "unit-hifigan")
    assert content["settings"]["vocoder"] == {"path": str(tmp_path / "vocoder")}
    (entry,) = content["prompts"]
    rates = {part: soundfile.info(tiny_run / "samples" / name).samplerate for part, name in entry["files"].items()}
    assert rates == {"prompt": 16_000, "resynthesis": 48_000, "continuation": 48_000}
    samples, _ = soundfile.read(tiny_run / "samples" / entry["files"]["continuation"])
    expected = _heard(twin, [unit for (unit,) in entry["continuation_units"]])
    assert len(samples) / 48_000 == pytest.approx(entry["continuation_seconds"], abs=1e-3)
    assert np.abs(samples - expected).max() < 1e-4
    resynthesis = soundfile.info(tiny_run / "samples" / entry["files"]["resynthesis"])
    assert resynthesis.duration == pytest.approx(entry["prompt_seconds"], abs=0.04), "the prompt's own durations"


def test_a_vocoder_of_another_tokenizer(
    tiny_run: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is drawn or written, and before training if its samples follow."""
    made = LogMelTokenizer.load(tokenizer)
    LogMelTokenizer(made.centroids + 1, made.analysis).save(tmp_path / "else")
    _vocoder(tmp_path / "vocoder", tmp_path / "else")
    arguments = ["generate", str(tiny_run), "--units", "1 2", "--into", str(tmp_path / "out")]
    assert cli.main([*arguments, "--vocoder", str(tmp_path / "vocoder")]) == 2
    caught = capsys.readouterr()
    assert "the units of one would be noise to the other" in caught.err and "units-1" not in caught.out
    assert cli.main([*arguments, "--speaker", "ann"]) == 2
    assert "Griffin-Lim has no choice of a speaker" in capsys.readouterr().err
    assert cli.main(["generate", str(tiny_run), "--speaker", "ann"]) == 2
    assert "--speaker belongs to prompts" in capsys.readouterr().err
    _configure(tiny_run, vocoder={"path": str(tmp_path / "vocoder")})
    with pytest.raises(UserError, match="would be noise"):
        check_inputs(load_config(tiny_run / "config.yaml"))
    with pytest.raises(UserError, match="would be noise"):
        generate(tiny_run)
    assert not (tmp_path / "out").exists() and not (tiny_run / "samples").exists()


def test_a_damaged_vocoder_leaves_nothing(tiny_run: Path, tokenizer: Path, tmp_path: Path) -> None:
    _vocoder(tokenizer, tokenizer)
    (tokenizer / "vocoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"vocoder\.safetensors cannot be read"):
        _spoken(tiny_run, replace(SHORT, into=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_export_contains_the_vocoder(tiny_run: Path, tokenizer: Path, repository: Path, tmp_path: Path) -> None:
    """Of a folder outside of the tokenizer's, with the voice; also when the exported folder is exported again."""
    _vocoder(tokenizer, tokenizer)  # is not the one that the run names
    _vocoder(tmp_path / "chosen", tokenizer, **SEVERAL)
    _configure(tiny_run, vocoder={"path": str(tmp_path / "chosen"), "speaker": "2"})
    assert cli.main(["export", str(tiny_run), str(tmp_path / "hf")]) == 0
    assert cli.main(["export", str(tmp_path / "hf"), str(tmp_path / "again")]) == 0
    for folder in (tmp_path / "hf", tmp_path / "again"):
        for name in ("vocoder.json", "vocoder.safetensors"):
            assert (folder / "speech_tokenizer" / name).read_bytes() == (tmp_path / "chosen" / name).read_bytes()
        settings = json.loads((folder / "processor_config.json").read_text())
        assert settings["has_vocoder"] and settings["voice"] == {"speaker": "2", "style": None}
        card = (folder / "README.md").read_text()
        assert "vocoder unit-hifigan, 16000 samples per second, 3 speakers, 2 styles, with durations" in card
        assert "processor.speak(units)" in card
    _check_folders_speak_as_the_run(tiny_run, tmp_path)
    other = shutil.copytree(repository / "data" / "sample" / "speech_tokenizer", tmp_path / "other")
    found = LogMelTokenizer.load(other)
    LogMelTokenizer(found.centroids + 1, found.analysis).save(tmp_path / "changed")
    _vocoder(tmp_path / "noise", tmp_path / "changed")
    _configure(tiny_run, vocoder={"path": str(tmp_path / "noise")})
    assert cli.main(["export", str(tiny_run), str(tmp_path / "refused")]) == 2
    assert not (tmp_path / "refused").exists()
    content = bytearray((tmp_path / "chosen" / "vocoder.safetensors").read_bytes())
    (tmp_path / "chosen" / "vocoder.safetensors").write_bytes(content[: len(content) // 2])  # half downloaded
    _configure(tiny_run, vocoder={"path": str(tmp_path / "chosen")})
    assert cli.main(["export", str(tiny_run), str(tmp_path / "refused")]) == 2
    assert not (tmp_path / "refused").exists()


def _check_folders_speak_as_the_run(run: Path, folder: Path) -> None:
    """An export, its import, and the export of that: each in the voice of the run, unless another one is asked for."""
    assert cli.main(["import", str(folder / "hf"), str(folder / "in")]) == 0
    assert cli.main(["export", str(folder / "in"), str(folder / "out")]) == 0
    for name in ("generation_config.json", "processor_config.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "hf" / name).read_bytes()
    expected = _spoken(run, replace(SHORT, into=folder / "of-run"))[1]
    for name in ("hf", "in", "out"):
        np.testing.assert_array_equal(_spoken(folder / name, replace(SHORT, into=folder / f"of-{name}"))[1], expected)
    first = replace(SHORT, hearing=Hearing(speaker="0"), into=folder / "first")
    assert not np.array_equal(_spoken(folder / "hf", first)[1], expected)
    bare = folder / "bare"
    shutil.copytree(folder / "hf" / "speech_tokenizer", bare)
    (bare / "vocoder.json").unlink()
    assert cli.main(["import", str(folder / "hf"), str(folder / "third"), "--speech-tokenizer", str(bare)]) == 0
    assert not (folder / "third" / "processor_config.json").exists()  # the voice is of the vocoder that is gone
