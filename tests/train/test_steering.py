"""Changes of a run's configuration: what is taken, from which step on, what is recorded, and what is refused."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from poison import JOINT, ROW, checksums, located, make_config, spoiling, without
from small_runs import NUM_STEPS, TOKENS_PER_STEP, StopAfter, assert_close, read_metrics, small_config, write_config
from warm import Warm, wait_for_all

from tolktrain.checkpoint.store import read_moments, read_parameters
from tolktrain.config.load import load_config
from tolktrain.config.training import StageConfig
from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.model.loss import StepResult
from tolktrain.runs import folder as folder_module
from tolktrain.train import run as run_module
from tolktrain.train.deepspeed.compat import adam
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.optimizer import LearningRates, learning_rates_at
from tolktrain.train.rollback import roll_back
from tolktrain.train.run import train


class KilledError(Exception):
    """Stands for the end of the process."""


def changes_of(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "changes.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def short(run_dir: Path) -> list[tuple[int, str, Any, Any]]:
    """The changes without their times."""
    return [(line["step"], line["key"], line["old"], line["new"]) for line in changes_of(run_dir)]


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of training steps: where a stage was complete for a while, it was validated once more."""
    return [line for line in read_metrics(run_dir) if "loss" in line]


def assert_same(run_dir: Path, expected: Path, step: int) -> None:
    """All steps, and the checkpoint after the last of them, are bitwise equal."""
    assert steps_of(run_dir) == steps_of(expected)
    name = f"checkpoints/step-{step:08d}"
    tensors = [(read_parameters(path / name), *read_moments(path / name)) for path in (run_dir, expected)]
    for ours, theirs in zip(*tensors, strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@contextmanager
def observed(act: Callable[[Engine, int], None] = lambda *_: None) -> Iterator[list[list[str]]]:
    """The records of each step in this context. `act` gets each engine and the number of steps before."""
    records: list[list[str]] = []
    train_step = Engine.train_step

    def step(self: Engine, batches: Sequence[Batch], learning_rates: LearningRates, **options: bool) -> StepResult:
        act(self, len(records))
        records.append([name for batch in batches for name in batch.record_ids])
        return train_step(self, batches, learning_rates, **options)

    with patch.object(Engine, "train_step", step):
        yield records


@contextmanager
def scheduled(table: dict[tuple[str, int], LearningRates]) -> Iterator[None]:
    """Learning rates of some steps, by stage and step in it."""

    def at(stage: StageConfig, step: int, num_steps: int) -> LearningRates:
        return table.get((stage.name, step)) or learning_rates_at(stage, step, num_steps)

    with patch("tolktrain.train.loop.learning_rates_at", at):
        yield


@pytest.fixture(scope="module")
def halted(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """Folder of a run that was stopped after 2 of 4 steps of its second stage. Tests must not change it."""
    folder = tmp_path_factory.mktemp("halted")
    assert train(small_config(folder, sets), StopAfter(5)) == 75
    return folder


@pytest.fixture(scope="module")
def halted_later(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """Folder of a run that was stopped after 2 of 5 steps of its last stage. Tests must not change it."""
    folder = tmp_path_factory.mktemp("halted-later")
    assert train(small_config(folder, sets), StopAfter(9)) == 75
    return folder


@pytest.mark.slow
def test_learning_rates_and_schedule_of_the_running_stage(
    halted_later: Path, tmp_path: Path, sets: Path, uninterrupted: Path
) -> None:
    """Compared with a run that had these learning rates from step 10 on, which are written out here. Killed after the
    change was recorded, started again, stopped and started again."""
    shutil.copytree(halted_later / "runs", tmp_path / "runs")
    changed = small_config(
        tmp_path,
        sets,
        "train.stages.2.learning_rate=0.004",
        "train.stages.2.speech_learning_rate=null",
        "train.stages.2.schedule.decay_steps=3",
        "train.stages.2.schedule.final_fraction=0.25",
        "train.log_every_steps=7",
    )
    with patch.object(run_module, "_show_header", side_effect=KilledError), pytest.raises(KilledError):
        train(changed)
    run_dir = tmp_path / "runs" / "small"
    expected = [
        (10, "train.stages.2.learning_rate", 0.01, 0.004),
        (10, "train.stages.2.schedule.decay_steps", 2, 3),
        (10, "train.stages.2.schedule.final_fraction", 0.1, 0.25),
        (10, "train.stages.2.speech_learning_rate", 0.02, None),
    ]
    assert sorted(short(run_dir)) == expected
    assert train(changed, StopAfter(2)) == 75 and train(changed) == 0
    assert sorted(short(run_dir)) == expected
    assert steps_of(run_dir)[:9] == steps_of(uninterrupted)[:9]

    table = {("joint", step): LearningRates(0.004 * f, 0.004 * f) for step, f in ((2, 0.75), (3, 0.5), (4, 0.25))}
    with scheduled(table):
        assert train(small_config(tmp_path, sets, name="reference")) == 0
    assert_same(run_dir, tmp_path / "runs" / "reference", NUM_STEPS)


@pytest.mark.slow
def test_clipping_and_optimizer(tmp_path: Path, sets: Path) -> None:
    """Compared with a run whose optimizer was changed by hand before step 6, in the middle of a stage."""
    plain = "deepspeed.zero_stage=0", "train.max_steps=8"
    assert train(small_config(tmp_path, sets, *plain), StopAfter(5)) == 75
    optimizer = {"clip_grad_norm": 0.05, "weight_decay": 0.5, "betas": [0.5, 0.8], "eps": 0.001}
    overrides = [f"train.optimizer.{key}={value}" for key, value in optimizer.items()]
    assert train(small_config(tmp_path, sets, *plain, *overrides)) == 0

    def change(engine: Engine, step: int) -> None:
        if step == 5:
            runner: Any = engine._step_runner
            runner._clip_grad_norm = 0.05
        for group in adam(engine._step_runner.engine).param_groups if step >= 5 else ():
            group |= {"betas": (0.5, 0.8), "eps": 0.001, "weight_decay": 0.5 if group["weight_decay"] else 0.0}
        if step == 7:  # another stage has another engine
            runner = engine._step_runner
            runner._clip_grad_norm = 0.05

    with observed(change):
        assert train(small_config(tmp_path, sets, *plain, name="reference")) == 0
    assert_same(tmp_path / "runs" / "small", tmp_path / "runs" / "reference", 8)
    assert {line["step"] for line in changes_of(tmp_path / "runs" / "small")} == {6}


def test_a_deepspeed_file_that_restates_the_old_clipping(tmp_path: Path, sets: Path) -> None:
    """The run keeps the entries of its first start, but the configuration determines the clipping."""
    file = tmp_path / "zero.json"
    file.write_text('{"gradient_clipping": 1.0, "zero_optimization": {"stage": 1}}')
    overrides = f"deepspeed.config={file}", "deepspeed.zero_stage=null"
    assert train(small_config(tmp_path, sets, *overrides, "train.max_steps=1")) == 0
    clipped = "train.optimizer.clip_grad_norm=0.01", "train.max_steps=2"
    assert train(small_config(tmp_path, sets, *overrides, *clipped)) == 0
    kept = json.loads((tmp_path / "runs" / "small" / "deepspeed.json").read_text())
    assert kept["resolved"]["gradient_clipping"] == 0.01 and kept["resolved"]["zero_optimization"]["stage"] == 1


@pytest.mark.slow
def test_a_finished_run_grows_and_gets_another_stage(
    tmp_path: Path, sets: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No record is read twice or skipped: they are those of a run that was as long from the beginning, and so are all
    values, because that run had the same learning rates."""
    run_dir = tmp_path / "runs" / "small"
    shutil.copytree(uninterrupted, run_dir)
    assert train(small_config(tmp_path, sets, "train.max_steps=20")) == 0
    printed = capsys.readouterr()
    say = "train.max_steps 20 is beyond the stages, which end after step 12; to train 8 more steps, set"
    assert f"{say} train.stages.2.tokens to {13 * TOKENS_PER_STEP}, or append a stage" in printed.err
    assert f"to continue it: raise train.stages.2.tokens ({5 * TOKENS_PER_STEP} now), or append a stage" in printed.out
    assert not changes_of(run_dir)
    path = grown(tmp_path, sets, "small")
    with observed() as records:
        assert train(load_config(path)) == 0
    assert [(step, key, old) for step, key, old, _ in short(run_dir)] == [
        (13, "train.stages.2.tokens", 5 * TOKENS_PER_STEP),
        (13, "train.stages.3", None),
    ]
    assert "changed: train.stages.2.tokens: 1280 before, 1792 from step 13 on" in capsys.readouterr().out
    with observed() as all_records, scheduled({("joint", 3): decayed(1), ("joint", 4): decayed(2)}):
        assert train(load_config(grown(tmp_path, sets, "reference"))) == 0
    assert records == all_records[NUM_STEPS:]
    assert_same(run_dir, tmp_path / "runs" / "reference", NUM_STEPS + 4)


def decayed(step: int) -> LearningRates:
    """In the steps of the decay of `write_config`, from 1."""
    factor = 1.0 - 0.9 * step / 2
    return LearningRates(0.01 * factor, 0.02 * factor)


def grown(folder: Path, sets: Path, name: str) -> Path:
    """Two steps more in the last stage, and another stage of two steps."""
    path = write_config(folder, sets, name)
    tree = yaml.safe_load(path.read_text())
    tree["train"]["stages"][2]["tokens"] += 2 * TOKENS_PER_STEP
    more = {**tree["train"]["stages"][1], "name": "more", "tokens": 2 * TOKENS_PER_STEP, "learning_rate": 0.02}
    tree["train"]["stages"].append(more)
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
def test_later_stages_are_rewritten_and_the_running_one_ends(
    halted: Path, tmp_path: Path, sets: Path, uninterrupted: Path
) -> None:
    """The adapter stage ends at once, after 2 of 4 steps; the joint stage, which has not begun, gets another mixture,
    and a stage before it. The steps that follow are those of a run that had this configuration from the beginning."""
    shutil.copytree(halted / "runs", tmp_path / "runs")
    run_dir = tmp_path / "runs" / "small"
    for name in ("small", "reference"):
        path = write_config(tmp_path, sets, name)
        tree = yaml.safe_load(path.read_text())
        _, adapter, joint = stages = tree["train"]["stages"]
        adapter["tokens"] = 2 * TOKENS_PER_STEP
        joint["mixture"] = {"speech": {"sets": {"held": 1}}}
        stages.insert(
            2, {**adapter, "name": "between", "trainable": ["backbone"], "mixture": {"text": {"sets": {"held": 1}}}}
        )
        path.write_text(yaml.safe_dump(tree))
        table = {("adapter", 0): LearningRates(0.005, 0.01), ("adapter", 1): LearningRates(0.01, 0.02)}
        with scheduled(table if name == "reference" else {}):
            assert train(load_config(path)) == 0
    assert_same(run_dir, tmp_path / "runs" / "reference", 12)
    assert steps_of(run_dir)[:5] == steps_of(uninterrupted)[:5]
    assert [line["stage"] for line in steps_of(run_dir)[5:]] == ["between"] * 2 + ["joint"] * 5
    assert {key for _, key, _, _ in short(run_dir)} == {"train.stages.1.tokens", "train.stages.2", "train.stages.3"}


@pytest.mark.slow
def test_the_stage_that_a_run_stopped_after_grows(tmp_path: Path, sets: Path) -> None:
    """Its moments are kept, because it continues: compared with a run that was never stopped there."""
    assert train(small_config(tmp_path, sets, "train.last_stage=text")) == 0
    longer = f"train.stages.0.tokens={5 * TOKENS_PER_STEP}"
    assert train(small_config(tmp_path, sets, longer, "train.max_steps=6")) == 0
    with scheduled({("text", 1): decayed(1), ("text", 2): decayed(2)}):
        assert train(small_config(tmp_path, sets, longer, "train.max_steps=6", name="reference")) == 0
    assert_same(tmp_path / "runs" / "small", tmp_path / "runs" / "reference", 6)


@pytest.mark.slow
def test_a_change_that_is_taken_back_leaves_no_trace(
    halted_later: Path, tmp_path: Path, sets: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the process was killed between the two files that have it."""
    shutil.copytree(halted_later / "runs", tmp_path / "runs")
    run_dir, changed = tmp_path / "runs" / "small", small_config(tmp_path, sets, "train.optimizer.clip_grad_norm=0.01")
    for module, function in ((folder_module, "dump_config"), (run_module, "_show_header")):
        with monkeypatch.context() as patched, pytest.raises(KilledError):
            patched.setattr(module, function, lambda *_: (_ for _ in ()).throw(KilledError))
            train(changed)
        assert short(run_dir) == [(10, "train.optimizer.clip_grad_norm", 1.0, 0.01)]
    assert train(small_config(tmp_path, sets), StopAfter(1)) == 75
    assert changes_of(run_dir) == []
    assert train(small_config(tmp_path, sets)) == 0
    assert_same(run_dir, uninterrupted, NUM_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_rollback_to_before_the_change(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Then the repeated steps are trained with the new values too, and changes.jsonl says so: compared with a run that
    never had the bad data and was changed there."""
    guard = "train.guard.skip_before=3"
    changed = make_config(tmp_path, sets, guard, "train.stages.1.learning_rate=0.002")
    places = located(changed, ROW)
    with spoiling({places[place]: factor for place, factor in ROW.items()}):
        assert train(make_config(tmp_path, sets, guard), StopAfter(6)) == 75
        run_dir = tmp_path / "runs" / "small"
        assert train(changed, StopAfter(2)) == 75
        assert short(run_dir) == [(7, "train.stages.1.learning_rate", 0.01, 0.002)]
        if killed:
            with monkeypatch.context() as patched, pytest.raises(KilledError):
                patched.setattr(roll_back, "record_changes", lambda *_: (_ for _ in ()).throw(KilledError))
                train(changed)
        assert train(changed) == 0
    assert short(run_dir) == [(5, "train.stages.1.learning_rate", 0.01, 0.002)]
    other = tmp_path / "other"
    first, then = (make_config(other, sets, guard, *o) for o in ((), ("train.stages.1.learning_rate=0.002",)))
    with without(checksums(first, [(JOINT, step) for step in range(3, 9)])):
        assert train(first, StopAfter(4)) == 75 and train(then) == 0
    assert_same(run_dir, other / "runs" / "small", 14)


@pytest.mark.slow
def test_a_damaged_checkpoint_moves_the_change(halted_later: Path, tmp_path: Path, sets: Path) -> None:
    """The run continues from the one before, whose next step is the first one with the new value."""
    shutil.copytree(halted_later / "runs", tmp_path / "runs")
    run_dir, changed = tmp_path / "runs" / "small", small_config(tmp_path, sets, "train.optimizer.eps=0.01")
    assert train(changed, StopAfter(1)) == 75
    shutil.rmtree(run_dir / "checkpoints" / "step-00000010")
    (run_dir / "checkpoints" / "step-00000009" / "state.json").write_text("{}")
    assert train(changed, StopAfter(1)) == 75
    assert short(run_dir) == [(9, "train.optimizer.eps", 1e-08, 0.01)]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("run.seed=3", "run.seed: 0 there, 3 here; it determines the data of every step"),
        ("train.global_batch_size=16", "train.global_batch_size: 8 there, 16 here; it determines the data of"),
        ("train.sequence_length=16", "train.sequence_length: 32 there, 16 here; it determines the data of"),
        ("train.precision=bf16", "train.precision: 'fp32' there, 'bf16' here; it determines the rounding of"),
        ("model.speech.residual=false", "model.speech.residual: True there, False here; it determines the model"),
        ("model.backbone.num_layers=3", "model.backbone.num_layers: 2 there, 3 here; it determines the model"),
        ("data.shuffle_block_size=7", "data.shuffle_block_size: 4096 there, 7 here; it determines the data"),
        ("train.stages.0.tokens=99999", "train.stages.0.tokens: 768 there, 99999 here; the stage 'text' is complete"),
        (
            "train.stages.1.tokens=256",
            "train.stages.1.tokens: 1024 there, 256 here; 2 steps of the stage 'adapter' are done; give at least 512",
        ),
        (
            "train.stages.1.trainable=[speech]",
            "the stage 'adapter' has begun; to change it, end the stage now (train.stages.1.tokens=512) and continue",
        ),
        (
            "train.stages.1.mixture.interleaved.sets={held: 1}",
            "train.stages.1.mixture: {'interleaved': {'weight': 1.0, 'sets': {'train': 1.0}}} there, {'interleaved':"
            " {'weight': 1.0, 'sets': {'held': 1.0}}} here; the stage 'adapter' has begun",
        ),
        (
            "train.stages.1.name=other",
            "train.stages.1.name: 'adapter' there, 'other' here; the stage 'adapter' has begun",
        ),
    ],
)
def test_fixed_keys_are_refused_with_the_reason(halted: Path, sets: Path, override: str, reason: str) -> None:
    before = contents(halted / "runs" / "small")
    with pytest.raises(UserError) as error:
        train(small_config(halted, sets, override))
    assert "holds a run of another configuration" in str(error.value) and reason in str(error.value)
    assert str(halted / "runs" / "small" / "config.yaml") in str(error.value)
    assert contents(halted / "runs" / "small") == before


def test_a_stage_that_has_begun_cannot_be_left_out(halted: Path, sets: Path) -> None:
    path = write_config(halted, sets)
    tree = yaml.safe_load(path.read_text())
    del tree["train"]["stages"][1:]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="train.stages.1: .*the stage 'adapter' has begun, and this configuration does"):
        train(load_config(path))


def contents(run_dir: Path) -> dict[Path, bytes]:
    """All files but the lease and the logs."""
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.relative_to(run_dir).parts[0] not in ("lease", "logs")}


def test_free_keys_change_nothing(halted: Path, tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    shutil.copytree(halted / "runs", tmp_path / "runs")
    overrides = [
        *("train.validation.sets=[]", "train.guard.spike_sigma=null", "data.download_retries=7", "data.num_workers=1"),
        *("checkpoint.keep_last=3", "train.compile=none", "logging.straggler_steps=3", "data.cache_limit=null"),
        *("evaluation.sequences=3", "health.enabled=false", "train.guard.skip_before=1", "run.restart=false"),
    ]
    assert train(small_config(tmp_path, sets, *overrides)) == 0
    assert_same(tmp_path / "runs" / "small", uninterrupted, NUM_STEPS)
    assert changes_of(tmp_path / "runs" / "small") == []


def test_keys_that_an_older_release_did_not_have_mean_their_defaults(
    halted: Path, tmp_path: Path, sets: Path, uninterrupted: Path
) -> None:
    shutil.copytree(halted / "runs", tmp_path / "runs")
    file = tmp_path / "runs" / "small" / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    for group in ("health", "kernels", "evaluation", "parallel"):
        del tree[group]
    del tree["checkpoint"]["background"], tree["train"]["guard"], tree["train"]["optimizer"]["eps"]
    del tree["data"]["shuffle_block_size"], tree["model"]["speech"]["entropy_weight"]
    for stage in tree["train"]["stages"]:
        del stage["schedule"]["final_fraction"]
        for entry in stage["mixture"].values():
            del entry["weight"]
    tree["logging"]["no_longer"] = 1
    file.write_text(yaml.safe_dump(tree))
    assert train(small_config(tmp_path, sets)) == 0
    assert_same(tmp_path / "runs" / "small", uninterrupted, NUM_STEPS)
    assert changes_of(tmp_path / "runs" / "small") == []


def test_a_key_of_a_later_release_is_refused(halted: Path, tmp_path: Path, sets: Path) -> None:
    shutil.copytree(halted / "runs", tmp_path / "runs")
    file = tmp_path / "runs" / "small" / "config.yaml"
    file.write_text(file.read_text().replace("\ntrain:\n", "\ntrain:\n  label_smoothing: 0.1\n"))
    with pytest.raises(
        UserError, match="train.label_smoothing: 0.1 there, absent here; this version of tolktrain does"
    ):
        train(small_config(tmp_path, sets))


def test_skipped_data_binds_a_stage_that_has_not_begun(tmp_path: Path, sets: Path) -> None:
    """Rolled back to before its beginning, a stage keeps the order of its data: the skipped steps are counted in it."""
    config = make_config(tmp_path, sets)
    with spoiling(dict.fromkeys(checksums(config, [(JOINT, step) for step in (0, 1, 2)]), float("nan"))):
        assert train(config, StopAfter(5)) == 75
    other = "train.stages.1.mixture={text: {sets: {held: 1}}}"
    with pytest.raises(
        UserError, match="rollbacks.jsonl skips data of the stage 'joint'; give the changed stage another"
    ):
        train(make_config(tmp_path, sets, other))
    assert train(make_config(tmp_path, sets, other, "train.stages.1.name=other", "train.max_steps=3")) == 0


@pytest.mark.slow
def test_killed_right_after_the_change_and_continued_on_another_layout(warm: Warm, tmp_path: Path, sets: Path) -> None:
    """Two ranks take the change and are killed; one process continues; compared with one that was never disturbed."""
    for name in ("small", "reference"):
        assert train(small_config(tmp_path, sets, name=name), StopAfter(8)) == 75
    steering = "train.stages.2.learning_rate=0.003", f"train.stages.2.tokens={7 * TOKENS_PER_STEP}"
    run_dir = tmp_path / "runs" / "small"
    arguments = "-m", "tolktrain", "train", tmp_path / "small.yaml", *steering
    ranks = warm.start_ranks(2, *arguments, folder=tmp_path)
    try:
        deadline = time.monotonic() + 300
        while not changes_of(run_dir):
            assert all(rank.poll() is None for rank in ranks) and time.monotonic() < deadline, ranks[0].errors
            time.sleep(0.01)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert wait_for_all(warm.start_ranks(2, *arguments, "train.max_steps=10", folder=tmp_path), 300) == [0, 0]
    assert train(small_config(tmp_path, sets, *steering)) == 0
    assert train(small_config(tmp_path, sets, *steering, name="reference")) == 0
    lines, expected = (steps_of(tmp_path / "runs" / name) for name in ("small", "reference"))
    assert [line["step"] for line in lines] == list(range(1, 15)) and len(expected) == 14
    assert lines[:8] == expected[:8]
    for line, other in zip(lines, expected, strict=True):
        assert_close(line, other, rel=1e-5)
        assert line["learning_rate"] == other["learning_rate"]
    assert {step for step, *_ in short(run_dir)} == {9}
