"""Settings are resolved when a run starts, and kept: files that change or vanish afterwards change nothing."""

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from corpora import TEXT_VOCAB_SIZE
from small_runs import NUM_STEPS, read_metrics, small_config
from transformers import LlamaConfig, LlamaForCausalLM

from tolktrain.checkpoint.store import read_state
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.errors import UserError
from tolktrain.train.run import train

FILE_STAGE = "deepspeed.zero_stage=null"  # the file's counts
ZERO_1 = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 50_000}}
ZERO_2 = {"zero_optimization": {"stage": 2}, "steps_per_print": 7}


class DoAfter:
    """Acts during step `step`, counted from where the run continues; asks to stop during step `stop`."""

    reason = "SIGTEST"
    age_seconds = None

    def __init__(self, step: int, action: Callable[[], object], stop: int = 10**6) -> None:
        self._done, self._step, self._action, self._stop = 0, step, action, stop

    @property
    def requested(self) -> bool:
        """Asked once per step."""
        self._done += 1
        if self._done == self._step:
            self._action()
        return self._done >= self._stop


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """DeepSpeed's file."""
    path = tmp_path / "deepspeed" / "zero.json"
    path.parent.mkdir()
    path.write_text(json.dumps(ZERO_1))
    return path


@pytest.fixture
def configured(tmp_path: Path, sets: Path, file: Path) -> Callable[..., Config]:
    """Makes the configuration of a run with that file."""
    return lambda *overrides: small_config(tmp_path, sets, FILE_STAGE, f"deepspeed.config={file}", *overrides)


def zero_stages(run_dir: Path) -> dict[int, int]:
    """What each checkpoint says, by its step."""
    states = [read_state(folder) for folder in sorted((run_dir / "checkpoints").glob("step-*"))]
    return {state["step"]: state["layout"]["zero_stage"] for state in states}


def kept(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "deepspeed.json").read_text())
    return content


@pytest.mark.parametrize("change", ["deleted", "edited", "broken"])
@pytest.mark.slow
def test_the_file_is_not_read_again(
    configured: Callable[..., Config], tmp_path: Path, file: Path, uninterrupted: Path, change: str
) -> None:
    """Three stages of the recipe and six checkpoints come after the change."""
    changes: dict[str, Callable[[], object]] = {
        "deleted": file.unlink,
        "edited": lambda: file.write_text(json.dumps(ZERO_2)),
        "broken": lambda: file.write_text("{"),
    }
    assert train(configured(), DoAfter(1, changes[change])) == 0
    run_dir = tmp_path / "runs" / "small"
    assert zero_stages(run_dir) == dict.fromkeys((3, 4, 7, 8, 12), 1)
    assert read_metrics(run_dir) == read_metrics(uninterrupted)  # which knows no file
    assert kept(run_dir)["config"] == str(file) and kept(run_dir)["entries"] == ZERO_1


@pytest.mark.slow
def test_a_requeued_run_keeps_its_settings_and_names_what_has_changed(
    configured: Callable[..., Config], tmp_path: Path, file: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(configured(), DoAfter(2, lambda: file.write_text(json.dumps(ZERO_2)), stop=2)) == 75
    caplog.clear()
    assert train(configured()) == 0
    run_dir = tmp_path / "runs" / "small"
    lines = [
        f"the file of deepspeed.config, {file}, has changed since this run read it:",
        "  steps_per_print: absent before, 7 now",
        "  zero_optimization.reduce_bucket_size: 50000 before, absent now",
        "  zero_optimization.stage: 1 before, 2 now",
        f"the run keeps the entries in {run_dir / 'deepspeed.json'}; to take the new ones, give the file another name"
        " and set deepspeed.config to it",
    ]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == ["\n".join(lines)]
    log = (run_dir / "logs" / "rank-00000.log").read_text()
    assert all(line in log for line in lines)
    assert set(zero_stages(run_dir).values()) == {1}
    assert read_metrics(run_dir) == read_metrics(uninterrupted)
    assert kept(run_dir)["entries"] == ZERO_1 and kept(run_dir)["config"] == str(file)


@pytest.mark.slow
def test_another_file_is_taken(
    configured: Callable[..., Config], tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(configured("train.max_steps=2")) == 0
    other = file.with_name("zero2.json")
    other.write_text(json.dumps(ZERO_2))
    assert train(configured(f"deepspeed.config={other}", "train.max_steps=4")) == 0
    run_dir = tmp_path / "runs" / "small"
    assert f"deepspeed.config is {other} now, {file} before:\n  steps_per_print: absent before, 7 now\n" in caplog.text
    assert zero_stages(run_dir) == {2: 1, 3: 2, 4: 2}
    assert kept(run_dir)["config"] == str(other) and kept(run_dir)["entries"] == ZERO_2
    other.unlink()
    assert train(configured(f"deepspeed.config={other}", "deepspeed.zero_stage=0", "train.max_steps=5")) == 0
    assert zero_stages(run_dir)[5] == 0, "the configuration's own key counts, as ever"
    with pytest.raises(UserError, match="deepspeed.config names .*, which does not exist"):
        train(configured(f"deepspeed.config={tmp_path / 'absent.json'}"))


@pytest.mark.slow
def test_a_vanished_file_that_is_looked_for_elsewhere(
    tmp_path: Path, sets: Path, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its path is relative to the folder of the configuration, and from there to the working folder once it is gone."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    options = (FILE_STAGE, "deepspeed.config=deepspeed/zero.json", "train.max_steps=2")
    monkeypatch.chdir(tmp_path)
    assert train(small_config(tmp_path, sets, *options)) == 0
    file.unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train(small_config(tmp_path, sets, *options[:2], "train.max_steps=4")) == 0
    assert "deepspeed.config names" in caplog.text and "which does not exist" in caplog.text
    assert zero_stages(tmp_path / "runs" / "small") == {2: 1, 3: 1, 4: 1}


def test_what_follows_from_the_start_is_resolved_at_each(configured: Callable[..., Config], tmp_path: Path) -> None:
    assert train(configured("train.max_steps=1")) == 0
    run_dir = tmp_path / "runs" / "small"
    assert kept(run_dir)["resolved"]["gradient_accumulation_steps"] == 2
    assert train(configured("train.micro_batch_size=2", "train.max_steps=2")) == 0
    assert kept(run_dir)["resolved"]["gradient_accumulation_steps"] == 4
    assert kept(run_dir)["entries"] == ZERO_1


@pytest.mark.slow
def test_a_run_of_an_earlier_release_reads_the_file_once_more(
    configured: Callable[..., Config], tmp_path: Path, file: Path
) -> None:
    assert train(configured("train.max_steps=2")) == 0
    run_dir = tmp_path / "runs" / "small"
    (run_dir / "deepspeed.json").unlink()
    assert train(configured("train.max_steps=4")) == 0
    assert kept(run_dir)["entries"] == ZERO_1
    file.unlink()
    assert train(configured("train.max_steps=5")) == 0
    assert set(zero_stages(run_dir).values()) == {1}


def test_settings_come_back_with_the_copies(
    configured: Callable[..., Config], tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upload = f"checkpoint.upload={tmp_path / 'copies'}"
    assert train(configured("train.max_steps=1", upload)) == 0
    run_dir = tmp_path / "runs" / "small"
    shutil.rmtree(run_dir)
    file.unlink()
    assert train(configured("train.max_steps=2", upload)) == 0
    assert f"the run keeps the entries in {run_dir / 'deepspeed.json'}" in caplog.text
    assert zero_stages(run_dir) == {1: 1, 2: 1}


def test_restart_reads_the_file_again(configured: Callable[..., Config], tmp_path: Path, file: Path) -> None:
    assert train(configured("train.max_steps=1")) == 0
    file.write_text(json.dumps(ZERO_2))
    assert train(configured("run.restart=true", "train.max_steps=1")) == 0
    assert zero_stages(tmp_path / "runs" / "small") == {1: 2}


def test_kept_entries_that_cannot_be_read(configured: Callable[..., Config], tmp_path: Path) -> None:
    assert train(configured("train.max_steps=1")) == 0
    path = tmp_path / "runs" / "small" / "deepspeed.json"
    for content in ("{", "[]", '{"config": null}', '{"config": 3, "entries": {}}', '{"config": null, "entries": []}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"deepspeed\.json cannot be read .* restore it, delete it to read"):
            train(configured())


def test_a_refusal_names_the_file_that_holds_the_entries(
    configured: Callable[..., Config], tmp_path: Path, file: Path
) -> None:
    assert train(configured("train.max_steps=1")) == 0
    kept_file = tmp_path / "runs" / "small" / "deepspeed.json"
    kept_file.write_text(kept_file.read_text().replace('"reduce_bucket_size": 50000', '"reduce_bucket_size": 0', 1))
    with pytest.raises(UserError) as caught:
        train(configured())
    assert str(caught.value).startswith(f"{kept_file}: zero_optimization.reduce_bucket_size is 0")


@contextmanager
def opened_files() -> Iterator[list[Path]]:
    """The files that are opened within, by Python itself."""
    found: list[Path] | None = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and found is not None and isinstance(arguments[0], str | bytes):
            found.append(Path(arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]))

    sys.addaudithook(note)  # for ever
    yield found
    found = None


@pytest.mark.slow
@pytest.mark.transformers
def test_after_the_first_step_no_input_but_data_is_read(tmp_path: Path, sets: Path, file: Path) -> None:
    """Stages, checkpoints and validations later: the configuration, its bases, DeepSpeed's file, the backbone and the
    tokenizer may be gone."""
    inputs = tmp_path / "inputs"
    backbone = LlamaConfig(
        vocab_size=TEXT_VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(backbone).save_pretrained(inputs / "backbone")
    shutil.move(file, inputs / "zero.json")
    small_config(inputs, sets)
    main = inputs / "main.yaml"
    overrides = f"base: small.yaml\nmodel: {{backbone: {inputs / 'backbone'}}}\n"
    main.write_text(
        f"{overrides}run: {{dir: {tmp_path / 'runs'}}}\ndeepspeed: {{zero_stage: null, config: zero.json}}\n"
    )
    config = load_config(main)
    with opened_files() as opened:
        assert train(config, DoAfter(1, lambda: (opened.clear(), inputs.rename(tmp_path / "gone")))) == 0
    assert read_state(tmp_path / "runs" / "small" / "checkpoints" / f"step-{NUM_STEPS:08d}")["stage_complete"]
    assert any(path.name == "metrics.jsonl" for path in opened), "the files are noticed"
    assert not [path for path in opened if path.is_relative_to(inputs)]
