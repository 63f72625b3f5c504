"""Two data-parallel processes against one: the same losses, gradient norms and parameters, whatever ZeRO does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from launched import launch_by_torchrun
from small_runs import (
    ENGINE_CASES,
    NUM_STEPS,
    RATES,
    assembled,
    assert_close,
    case_overrides,
    cut_batch,
    make_batch,
    read_metrics,
    small_config,
)

from tolktrain.checkpoint.store import read_parameters
from tolktrain.model.architecture import Architecture
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.resolved import ResolvedSettings
from tolktrain.train.run import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """Folder of what `two_ranks.py` has left."""
    folder = tmp_path_factory.mktemp("two_ranks")
    launch_by_torchrun("two_ranks.py", 2, folder, sets)
    return folder


@pytest.mark.parametrize("name", ENGINE_CASES)
def test_steps_equal_those_of_one_process(two_ranks: Path, tmp_path: Path, sets: Path, name: str) -> None:
    zero_stage, precision, strategies = ENGINE_CASES[name]
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    config = small_config(tmp_path, sets, *case_overrides(zero_stage % 3, precision, micro_batch_size=2))
    model = SmolTolk(Architecture.from_config(config.model), seed=0)
    settings = ResolvedSettings.of(config, model.architecture, initialize())
    engine = Engine(model, config.train.stages[2], config, initialize(), settings)
    for seed, other in enumerate(json.loads((two_ranks / f"{name}.json").read_text())):
        result = engine.train_step(cut_batch(make_batch(strategies, seed), 4), RATES)
        assert list(result.counts) == other["counts"]
        for key in ("text_nll", "speech_nll", "entropy", "grad_norm"):
            assert other[key] == pytest.approx(getattr(result, key), rel=tolerance), (seed, key)
    parts = [torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(parts)
    whole = assembled(parts)
    expected = assembled([engine.snapshot().parameters])
    assert whole.keys() == expected.keys()
    # Where a gradient is near zero, Adam's first updates take its sign, which rounding decides.
    allowed = 1e-5 if precision == "fp32" else 3 * RATES.speech
    assert all((value - expected[n]).abs().max() < allowed for n, value in whole.items())


def test_a_run_equals_that_of_one_process(two_ranks: Path, uninterrupted: Path) -> None:
    """Although one of its ranks was asked to stop on the way, and it went on afterwards."""
    lines, expected = read_metrics(two_ranks / "runs" / "small"), read_metrics(uninterrupted)
    for line, other in zip(lines, expected, strict=True):
        assert_close(line, other, rel=1e-5)
    name = f"checkpoints/step-{NUM_STEPS:08d}"
    parameters, others = read_parameters(two_ranks / "runs" / "small" / name), read_parameters(uninterrupted / name)
    # The mean, since Adam turns the rounding of gradients near zero into updates of any size.
    assert all((value - others[n]).abs().mean() < 1e-5 for n, value in parameters.items())


def test_all_ranks_stop_after_the_same_step(two_ranks: Path) -> None:
    codes = [json.loads((two_ranks / f"codes-{rank}.json").read_text()) for rank in range(2)]
    assert codes == [[6, 75, 0, 0]] * 2
    assert sorted(path.name for path in (two_ranks / "runs" / "small" / "logs").iterdir()) == [
        "rank-00000.log",
        "rank-00001.log",
    ]


def test_one_process_goes_on_with_what_two_have_saved(
    two_ranks: Path, uninterrupted: Path, tmp_path: Path, sets: Path
) -> None:
    config = small_config(tmp_path, sets)
    run_dir = tmp_path / "runs" / "small"
    (run_dir / "checkpoints").mkdir(parents=True)
    shutil.copytree((two_ranks / "stopped").resolve(), run_dir / "checkpoints" / "step-00000006")
    assert train(config) == 0
    lines = read_metrics(run_dir)
    expected = [line for line in read_metrics(uninterrupted) if line["step"] > 6]
    for line, other in zip(lines, expected, strict=True):
        assert_close(line, other, rel=1e-5)
