"""The verb `bench` from the command line to its files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_disk import MakeDisk

from tolktrain import cli
from tolktrain.benchmark.measure import Measurement, of_all
from tolktrain.benchmark.providers import OURS, EngineRunner, PublishedRunner, Setting
from tolktrain.benchmark.report import Entry, Report, write_report
from tolktrain.benchmark.run import Options, bench
from tolktrain.benchmark.steps import StepShape, largest_steps, sequences_of
from tolktrain.config.load import load_config
from tolktrain.config.training import StageConfig
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.step import StepFlops, step_flops
from tolktrain.model.cost.work import StepCounts
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.train.optimizer import LearningRates
from tolktrain.train.resolved import ResolvedSettings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = [
    *("model.backbone.hidden_size=32", "model.backbone.num_layers=2", "model.backbone.num_attention_heads=4"),
    *("model.backbone.ffn_hidden_size=48", "model.backbone.text_vocab_size=64", "train.sequence_length=64"),
    *("train.cpu_threads=1", "model.speech.num_units=50"),
]


def run_tiny(folder: Path, *arguments: str) -> dict[str, Any]:
    config = str(CONFIGS / "bench" / "cpu.yaml")
    base = ["bench", config, "--steps", "3", "--warmup", "1", "--output", str(folder), *TINY, *arguments]
    assert cli.main(base) == 0
    result: dict[str, Any] = json.loads((folder / "step-cpu.json").read_text())
    return result


def test_the_verb_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_tiny(tmp_path, "--accumulation", "2", "--against", "published,strongest,published", "--no-compile")
    assert (result["stage"], result["trainable"]) == ("joint", ["backbone", "pooling", "speech"])
    assert result["tokens_per_step"] == 2 * 2 * 64 == result["counts"]["positions"]
    assert result["speech_share"] == pytest.approx(0.46, abs=0.15)
    ours, published, strongest = result["providers"]
    assert [entry["name"] for entry in result["providers"]] == ["ours", "published", "strongest"]
    assert strongest["overrides"] == ["kernels.backend=torch", "train.compile=none"]
    for entry in result["providers"]:
        assert len(entry["seconds"]) == 3
        times = entry["seconds_per_step"]
        assert 0 < times["p20"] <= times["p50"] <= times["p80"]
        assert entry["tokens_per_second"] == pytest.approx(256 / times["p50"])
        assert entry["mfu"] is None
        assert entry["skipped_steps"] == 0
    assert ours["ours_over_it"] == 1
    assert published["ours_over_it"] == pytest.approx(ours["tokens_per_second"] / published["tokens_per_second"])
    # Same weights, same batches, same loss.
    assert published["first_loss"] == pytest.approx(ours["first_loss"], rel=1e-5)
    assert strongest["first_loss"] == ours["first_loss"]
    parts = result["flops"]["parts"].values()
    assert result["flops"]["total"] == sum(part["forward"] + part["backward"] for part in parts)
    assert result["facts"]["command"].startswith("tolktrain bench ")
    assert result["facts"]["date"].endswith("UTC")
    assert result["facts"]["kernels"].startswith("torch (there is no GPU)")
    shown, page = capsys.readouterr().out, (tmp_path / "step-cpu.md").read_text()
    for text in (shown, page):
        for word in ("ours", "published", "unknown device", "MFU = FLOPs of a step / (seconds x peak x devices)"):
            assert word in text
    assert "…" not in shown  # nothing is cut off


@pytest.mark.slow
def test_a_stage_with_a_frozen_backbone_in_bf16(tmp_path: Path) -> None:
    whole = run_tiny(tmp_path / "joint", "train.precision=bf16", "--against", "published")
    result = run_tiny(tmp_path / "adapter", "train.precision=bf16", "--against", "published", "--stage", "adapter")
    assert result["trainable"] == ["pooling", "speech"]
    assert result["flops"]["forward"] == whole["flops"]["forward"]
    backbone = result["flops"]["parts"]["backbone"]
    assert backbone["forward"] < backbone["backward"] < 2 * backbone["forward"]
    ours, published = result["providers"]
    assert published["first_loss"] == pytest.approx(ours["first_loss"], rel=2e-2)


def test_both_forms_train_alike() -> None:
    config = load_config(CONFIGS / "bench" / "cpu.yaml", [*TINY, "train.global_batch_size=2"])
    architecture, stage = Architecture.from_config(config.model), config.train.stages[-1]
    settings = ResolvedSettings.of(config, architecture, initialize())
    setting = Setting(config, architecture, stage, initialize(), LearningRates(1e-3, 2e-3), settings)
    losses = []
    for runner in (EngineRunner(setting), PublishedRunner(setting)):
        losses.append([runner.step(batches).loss for batches in _steps(architecture)])
        runner.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def _steps(architecture: Architecture) -> list[Any]:
    from tolktrain.benchmark.synthetic import Speech, random_batches
    from tolktrain.config.data import InterleavingConfig

    speech = Speech(architecture.num_units, 1, 2.4)
    [batch] = random_batches(1, 2, 64, architecture.text_vocab_size, speech, InterleavingConfig(), seed=0)
    return [[batch]] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "published,fastest"], "--against 'fastest' is unknown; expected one or more of published, str"),
        (["--stage", "middle"], "--stage 'middle' is no stage of the configuration; it has adapter, joint"),
        (["--steps", "0"], "--steps 0 is too small; use 1 or more"),
        (["--accumulation", "0"], "--accumulation 0 is too small; use 1 or more"),
        (["--speech-share", "2"], "--speech-share 2 is no share"),
        (
            ["--count"],
            "--count needs a GPU or the null GPU: python tools/nullgpu/run.py -- tolktrain bench CONFIG --count",
        ),
        (["--count", "--calibration", "none.json"], "--calibration none.json: cannot be read as JSON"),
        (["--against", "published", "model.speech.residual=false"], "--against published: the reference has"),
        (["parallel.tensor_parallel_size=2"], "parallel: tensor_parallel_size 2 times pipeline_parallel_size 1 needs"),
        (["--global-batch", "3"], "--global-batch 3 is no multiple of train.micro_batch_size 2"),
        (["--memory-limit", "0"], "--memory-limit 0: expected GiB of a rank, more than 0"),
    ],
)
def test_bad_input_gives_2_and_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    config = str(CONFIGS / "bench" / "cpu.yaml")
    assert cli.main(["bench", config, *TINY, "--output", str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_other_forms_are_measured_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="--against measures one process, but there are 2"):
        bench(CONFIGS / "bench" / "cpu.yaml", TINY, Options(against=("published",)), ["tolktrain"])


def test_steps_of_several_ranks_count_by_the_slowest_and_fullest() -> None:
    first = Measurement((1.0, 2.0), 3.0, 5.0, 4.0, 0)
    second = Measurement((3.0, 1.0), 2.0, None, 4.0, 0)
    assert of_all([first, second]) == Measurement((3.0, 2.0), 3.0, 5.0, 4.0, 0)


def test_every_layout_trains_on_the_same_sequences() -> None:
    """Of a step, all data ranks and micro batches together have each sequence once."""
    whole = StepShape(8, 8, _layout(1, 0)).numbers(3)
    assert [list(numbers) for numbers in whole] == [list(range(24, 32))]
    for data_size, micro in ((1, 2), (2, 4), (2, 1), (4, 2)):
        shapes = [StepShape(8, micro, _layout(data_size, rank)) for rank in range(data_size)]
        assert {shape.accumulation for shape in shapes} == {8 // (data_size * micro)}
        assert [n for shape in shapes for numbers in shape.numbers(3) for n in numbers] == list(range(24, 32))


def _layout(data_size: int, data_rank: int) -> Layout:
    return Layout(0, data_size, 0, 1, 0, 1, 0, data_size, data_rank, False)


@pytest.mark.parametrize(("mixture", "kinds"), [("text", "t"), ("interleaved", "s"), ("text interleaved", "st")])
def test_the_largest_micro_batches_are_those_of_the_mixture(mixture: str, kinds: str) -> None:
    config = load_config(CONFIGS / "bench" / "cpu.yaml", TINY)
    sequences = sequences_of(config, Architecture.from_config(config.model), 0.46)
    stage = StageConfig.model_construct(mixture=dict.fromkeys(mixture.split()))
    for micro in (4, 2):  # one micro batch of a step, and two
        steps = largest_steps(sequences, StepShape(4, micro, _layout(1, 0)), stage)
        found = ""
        for batch in (batch for step in steps for batch in step):
            assert batch.segments.num_positions in (0, batch.tokens.shape[0] * 64) or not batch.num_text_scored
            found += "s" if batch.num_speech_scored else "t"
        assert "".join(sorted(set(found))) == kinds and len(found) == max(len(kinds), 4 // micro)


@pytest.mark.transformers
def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(UserError, match=r"SmolLM-135M is not on this machine.*configs/bench/smoltolk-150m\.yaml"):
        bench(CONFIGS / "smoltolk-150m.yaml", [], Options(output=tmp_path), ["tolktrain"])


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("smoltolk-150m", 134_515_008), ("smoltolk-400m", 361_821_120), ("smoltolk-2b", 1_711_376_384)],
)
def test_the_shapes_are_those_of_the_published_models(name: str, backbone: int) -> None:
    """Parameters of SmolLM-135M, 360M and 1.7B as Hugging Face counts them."""
    config, original = load_config(CONFIGS / "bench" / f"{name}.yaml"), load_config(CONFIGS / f"{name}.yaml")
    sizes = Architecture.from_config(config.model)
    width, heads = sizes.hidden_size, sizes.num_attention_heads * sizes.head_dim
    layer = width * (2 * heads + 2 * sizes.num_key_value_heads * sizes.head_dim + 3 * sizes.ffn_hidden_size + 2)
    assert sizes.num_layers * layer + sizes.text_vocab_size * width + width == backbone
    assert sizes.tie_text_embeddings
    same = config.model.model_copy(update={"backbone": original.model.backbone})
    assert config.model_copy(update={"model": same}) == original


def report_of(seconds: float, peak: float | None) -> tuple[Report, Measurement]:
    measured = Measurement((seconds,) * 4, None, None, 1.0, 0)
    flops: StepFlops = step_flops(_sizes(), StepCounts(positions=100), ("backbone",))
    entries = [Entry(OURS, measured), Entry(OURS, None)]
    counts = StepCounts(positions=100, speech_positions=46)
    return Report("r", "s", ("backbone",), "bf16", 2, 1, 50, 0, counts, flops, peak, {}, entries), measured


def _sizes() -> Architecture:
    return Architecture.from_config(load_config(CONFIGS / "bench" / "cpu.yaml", TINY).model)


def test_utilization_where_the_peak_is_known() -> None:
    report, measured = report_of(0.5, 1e9)
    assert report.mfu(measured) == pytest.approx(report.flops.total / 0.5e9)
    assert f"{100 * report.flops.total / 0.5e9:.1f} %" in report.rows[0]
    assert "peak 1e+09 FLOP/s" in report.formula


def test_what_does_not_fit_into_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = report_of(0.5, None)
    assert report.rows[1][1] == "out of memory"
    assert report.to_json()["providers"][0]["peak_reserved_gib"] is None
    assert report.to_json()["providers"][1] == {
        "name": "ours", "what": OURS.what, "overrides": [], "out_of_memory": True
    }  # fmt: skip

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("tolktrain.train.deepspeed.engine.Engine.train_step", fail)
    with pytest.raises(UserError, match=r"lower train\.micro_batch_size \(now 2\)"):
        bench(CONFIGS / "bench" / "cpu.yaml", TINY, Options(output=tmp_path), ["tolktrain"])
    assert json.loads((tmp_path / "out-of-memory.json").read_text())["rank"] == 0


def test_a_full_disk_keeps_the_last_results(make_disk: MakeDisk) -> None:
    disk = make_disk(64)
    write_report(report_of(0.5, None)[0], disk.path)
    (disk.path / "step-r.json").write_text("the last results" * 100)
    disk.refuses(lambda: write_report(report_of(0.25, None)[0], disk.path), "'.*/step-r.json'")
