"""Peak rates by device name, and the counts of the global batch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import MIXED, TOKENS_PER_STEP, cut_batch, make_batch, small_config

from tolktrain.config import Config
from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.step import step_flops
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.loss import LossCounts
from tolktrain.parallel.layout import Layout, initialize
from tolktrain.train.run import train
from tolktrain.train.utilization import Utilization, global_counts, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GB200", None),
        ("NVIDIA H20", None),
        ("NVIDIA H800", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("Tesla V100-SXM2-16GB", None),
        ("AMD Instinct MI300X", None),
        ("", None),
    ],
)
def test_peaks(name: str, peak: float | None) -> None:
    assert peak_flops(name, "bf16") == peak
    assert peak_flops(name, "fp32") is None


def test_utilization_is_flops_over_what_all_gpus_could_do(tmp_path: Path, sets: Path) -> None:
    architecture = Architecture.from_config(small_config(tmp_path, sets).model)
    counts = StepCounts.of([make_batch(MIXED)])
    flops = step_flops(architecture, counts, ("speech",)).total
    assert Utilization(architecture, 1e6, 4).mfu(counts, ("speech",), 0.5) == pytest.approx(flops / (0.5 * 1e6 * 4))
    assert Utilization(architecture, None, 4).mfu(counts, ("speech",), 0.5) is None


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_device_is_known_by_its_name(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    config = small_config(tmp_path, sets, f"train.precision={precision}")
    architecture, layout = Architecture.from_config(config.model), initialize()
    assert Utilization.of(architecture, config, layout).peak is None
    monkeypatch.setattr(type(layout), "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    found = Utilization.of(architecture, config, replace(layout, world_size=8))
    assert found == Utilization(architecture, 989.4e12 if precision == "bf16" else None, 8)


def test_one_rank_knows_the_counts_of_all() -> None:
    whole = make_batch(MIXED)
    everything = StepCounts.of([whole])
    scored = LossCounts(whole.num_text_scored, whole.num_speech_scored, whole.num_entropy_positions)
    assert global_counts(everything, scored, everything.positions) == everything
    for part in cut_batch(whole, 4):
        found = global_counts(StepCounts.of([part]), scored, everything.positions)
        speech = {
            "speech_positions": 4 * part.segments.num_positions,
            "segment_pairs": 4 * StepCounts.of([part]).segment_pairs,
        }
        assert found == replace(everything, **speech)


def test_every_step_has_it_in_the_metrics(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(architecture: Architecture, config: Config, layout: Layout) -> Utilization:
        return Utilization(architecture, 1e9, layout.world_size)

    monkeypatch.setattr(Utilization, "of", of)
    config = small_config(tmp_path, sets, "train.max_steps=2", "train.validation.sets=[]")
    assert train(config) == 0
    architecture = Architecture.from_config(config.model)
    pairs = TOKENS_PER_STEP * (config.train.sequence_length + 1) // 2
    most = StepCounts(positions=TOKENS_PER_STEP, causal_pairs=pairs, text_scored=TOKENS_PER_STEP)
    least = replace(most, text_scored=TOKENS_PER_STEP // 2)
    lowest, highest = (step_flops(architecture, counts, ("backbone",)).total for counts in (least, most))
    for text in (tmp_path / "runs" / "small" / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)  # of the first stage, on text alone
        assert lowest < line["mfu"] * line["seconds_per_step"] * 1e9 <= highest * (1 + 1e-9)
