"""A tiny random model speaks after the prompts of the embedded corpus."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from small_disk import MakeDisk

from tolktrain.errors import UserError
from tolktrain.generate.context import Context
from tolktrain.generate.run import generate
from tolktrain.model.inputs import ModelInputs
from tolktrain.runs.load_model import load_model
from tolktrain.vocabulary import Vocabulary


def _change(run_dir: Path, change: Callable[[dict], None]) -> None:
    path = run_dir / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    change(tree)
    path.write_text(yaml.safe_dump(tree))


@pytest.fixture
def two_prompts(tiny_run: Path, repository: Path, tmp_path: Path) -> Path:
    """The run with two prompts only."""
    source, folder = repository / "data" / "sample" / "prompts", tmp_path / "prompts"
    shutil.copytree(source, folder)
    entries = json.loads((folder / "prompts.json").read_text())[:2]
    (folder / "prompts.json").write_text(json.dumps(entries))
    _change(tiny_run, lambda tree: tree["evaluation"].update(prompts=str(folder)))
    return tiny_run


@pytest.mark.slow
def test_files_of_a_run(two_prompts: Path) -> None:
    files = generate(two_prompts)
    samples = two_prompts / "samples"
    assert sorted(files) == sorted(samples.iterdir()) and len(files) == 2 * 3 + 1
    content = json.loads((samples / "samples.json").read_text())
    assert (content["temperature"], content["top_k"], content["sample_rate"]) == (0.8, 50, 16_000)
    assert content["settings"] == load_model(two_prompts)[1].follow_up_settings()
    for entry in content["prompts"]:
        waveforms = {part: soundfile.read(samples / name) for part, name in entry["files"].items()}
        assert all(rate == 16_000 and np.abs(waveform).max() > 0.001 for waveform, rate in waveforms.values())
        seconds = {part: len(waveform) / rate for part, (waveform, rate) in waveforms.items()}
        assert seconds["prompt"] == pytest.approx(entry["prompt_seconds"], abs=1e-3)
        assert seconds["resynthesis"] == pytest.approx(seconds["prompt"], abs=0.04)
        assert seconds["continuation"] == pytest.approx(entry["continuation_seconds"], abs=1e-3)
        assert 0.5 <= seconds["continuation"] < 1.0
        assert np.array(entry["continuation_units"]).max() < 500
        assert entry["text"] and entry["text_continuation"] and entry["voice"]
    assert not list(two_prompts.glob(".tmp*"))


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_and_replaces_what_was_there(two_prompts: Path) -> None:
    first = {path.name: path.read_bytes() for path in generate(two_prompts)}
    (two_prompts / "samples" / "old.wav").write_bytes(b"")
    assert {path.name: path.read_bytes() for path in generate(two_prompts)} == first
    assert not (two_prompts / "samples" / "old.wav").exists()
    _change(two_prompts, lambda tree: tree["run"].update(seed=5))
    other = {path.name: path.read_bytes() for path in generate(two_prompts)}
    assert other["prompt-1-prompt.wav"] == first["prompt-1-prompt.wav"]
    assert other["prompt-1-continuation.wav"] != first["prompt-1-continuation.wav"]


@pytest.mark.slow
def test_samples_that_cannot_be_put_in_place_leave_the_old_ones(
    two_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {path.name: path.read_bytes() for path in generate(two_prompts)}
    real, samples = os.replace, two_prompts / "samples"

    def replace(source: Path, target: Path) -> None:
        if target == samples and source.name == "samples":
            raise OSError(errno.EIO, "Input/output error", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Input/output error"):
        generate(two_prompts)
    assert {path.name: path.read_bytes() for path in samples.iterdir()} == first
    assert not list(two_prompts.glob(".tmp*"))


def test_padding_does_not_change_what_comes_next(tiny_run: Path) -> None:
    """Logits of a short context batched with a long one equal those of the short one alone."""
    import torch

    model = load_model(tiny_run)[0]
    vocabulary = Vocabulary(1024, 0, 500)
    short = Context.of_speech(np.arange(5)[:, None], vocabulary, switch=True)
    tokens = torch.randint(0, 500, (2, 1, 20))
    speech_in = torch.ones(2, 20, dtype=torch.bool)
    tokens[0, :, :6], speech_in[0, :6] = torch.from_numpy(short.tokens), torch.from_numpy(short.is_speech)
    together = model.next_logits(ModelInputs.for_next(tokens, speech_in, torch.tensor([6, 20])))
    alone = model.next_logits(ModelInputs.for_next(tokens[:1, :, :6], speech_in[:1, :6], torch.tensor([6])))
    torch.testing.assert_close(together.text[:1], alone.text)
    torch.testing.assert_close(together.speech[:1], alone.speech)


def test_without_text_tokenizer_there_is_no_text(two_prompts: Path) -> None:
    _change(two_prompts, lambda tree: tree["data"].update(text_tokenizer=None))
    generate(two_prompts)
    content = json.loads((two_prompts / "samples" / "samples.json").read_text())
    assert [entry["text_continuation"] for entry in content["prompts"]] == [None, None]


@pytest.mark.parametrize(
    ("branch", "key", "value", "message"),
    [
        ("evaluation", "prompts", None, r"evaluation\.prompts is not set"),
        ("evaluation", "prompts", "/nowhere", r"/nowhere/prompts\.json cannot be read"),
        ("data", "speech_tokenizer", None, r"data\.speech_tokenizer is not set"),
        ("data", "speech_tokenizer", "/nowhere", r"/nowhere/speech_tokenizer\.json cannot be read"),
        ("data", "text_tokenizer", "/nowhere", r"/nowhere/tokenizer\.json does not exist"),
    ],
)
def test_what_is_missing_is_named(tiny_run: Path, branch: str, key: str, value: str | None, message: str) -> None:
    _change(tiny_run, lambda tree: tree[branch].update({key: value}))
    with pytest.raises(UserError, match=message):
        generate(tiny_run)
    assert not (tiny_run / "samples").exists() and not list(tiny_run.glob(".tmp*"))


def test_tokenizer_that_the_data_was_not_made_with(tiny_run: Path, repository: Path, tmp_path: Path) -> None:
    from tolktrain.units.logmel import LogMelTokenizer

    tokenizer = LogMelTokenizer.load(repository / "data" / "sample" / "speech_tokenizer")
    LogMelTokenizer(tokenizer.centroids + 1, tokenizer.analysis).save(tmp_path / "other")
    _change(tiny_run, lambda tree: tree["data"].update(speech_tokenizer=str(tmp_path / "other")))
    with pytest.raises(UserError, match=r"was made with .*logmel-kmeans.*in the folder of the data"):
        generate(tiny_run)


@pytest.mark.parametrize("ends", [True, False])
def test_a_prompt_that_is_shorter_than_a_unit(two_prompts: Path, monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """As HuBERT, which has no unit for what is shorter than its field, hears a click."""
    from tolktrain.units.logmel import LogMelTokenizer

    file = two_prompts.parent / "prompts" / "prompts.json"
    file.write_text(json.dumps([entry | {"ends_utterance": ends} for entry in json.loads(file.read_text())]))
    monkeypatch.setattr(LogMelTokenizer, "encode", lambda self, samples: np.zeros((0, 1), np.uint16))
    with pytest.raises(UserError, match=r"the prompt prompt-1 in .*/prompts is shorter than a unit"):
        generate(two_prompts)
    assert not list(two_prompts.glob(".tmp*")) and not (two_prompts / "samples").exists()


def test_run_without_checkpoint(tiny_run: Path) -> None:
    shutil.rmtree(tiny_run / "checkpoints")
    with pytest.raises(UserError, match="checkpoint"):
        generate(tiny_run)


@pytest.mark.parametrize("leaving_kib", [0, 40, 150])
def test_a_full_disk_keeps_the_last_samples(two_prompts: Path, make_disk: MakeDisk, leaving_kib: int) -> None:
    disk = make_disk(4 << 10)
    run_dir = shutil.copytree(two_prompts, disk.path / "run")
    (run_dir / "samples").mkdir()
    (run_dir / "samples" / "samples.json").write_text("{}")
    disk.refuses(lambda: generate(run_dir), f"'{run_dir}/.tmp-samples-.*[.]wav'", leaving_kib)
    assert len(list((run_dir / "samples").iterdir())) == 2 * 3 + 1
