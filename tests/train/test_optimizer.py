"""Groups and schedule against what the paper's recipe says, written out by hand."""

import pytest
import torch

from tolktrain.config.data import Mixture, MixtureEntry
from tolktrain.config.model import BackboneConfig, ModelConfig
from tolktrain.config.training import OptimizerConfig, ScheduleConfig, StageConfig
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.train.optimizer import (
    build_optimizer,
    freeze,
    learning_rates_at,
    schedule_factor,
    set_learning_rates,
    trained_groups,
)

TEXT: Mixture = {"text": MixtureEntry(sets={"any": 1.0})}


def test_trapezoid() -> None:
    schedule = ScheduleConfig(warmup_steps=4, decay_steps=5, final_fraction=0.5)
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert [schedule_factor(schedule, step, 12) for step in range(12)] == pytest.approx(expected)


def test_published_first_stage() -> None:
    """100 warm-up steps; decay over the last 200 steps to a tenth (arXiv 2503.06211, stage 1)."""
    schedule = ScheduleConfig(warmup_steps=100, decay_steps=200, final_fraction=0.1)
    factors = [schedule_factor(schedule, step, 1000) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01) and factors[99:800] == [1.0] * 701
    assert factors[899] == pytest.approx(0.55) and factors[999] == pytest.approx(0.1)


def test_without_warmup_and_decay_the_rate_is_constant() -> None:
    assert {schedule_factor(ScheduleConfig(warmup_steps=0), step, 7) for step in range(7)} == {1.0}


def test_a_stage_shorter_than_its_ramps_takes_the_lower_one() -> None:
    schedule = ScheduleConfig(warmup_steps=10, decay_steps=10, final_fraction=0.0)
    assert [schedule_factor(schedule, step, 4) for step in range(4)] == pytest.approx([0.1, 0.2, 0.1, 0.0])


def test_speech_has_its_own_rate_or_the_common_one() -> None:
    stage = StageConfig(name="s", tokens=1, mixture=TEXT, learning_rate=1.0, schedule=ScheduleConfig(warmup_steps=2))
    learning_rates = learning_rates_at(stage.model_copy(update={"speech_learning_rate": 3.0}), 0, 10)
    assert (learning_rates.backbone, learning_rates.speech, learning_rates.of("pooling")) == (0.5, 1.5, 0.5)
    assert learning_rates_at(stage, 5, 10).speech == 1.0


@pytest.fixture(scope="module")
def model() -> SmolTolk:
    backbone = BackboneConfig(
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        ffn_hidden_size=24,
        text_vocab_size=30,
    )
    return SmolTolk(Architecture.from_config(ModelConfig(backbone=backbone)), seed=0)


def test_groups(model: SmolTolk) -> None:
    """Matrices and tables decay, vectors do not; the pooling follows the backbone's rate, as published."""
    views = parameter_views(model)
    freeze(model, views, ("backbone", "pooling", "speech"))
    optimizer = build_optimizer(trained_groups(model, views), OptimizerConfig(weight_decay=0.3))
    assert len(optimizer.param_groups) == 4
    names = {parameter: views[name].names[0] for name, parameter in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            is_speech = names[parameter].startswith(("speech_embedding", "input_adapter", "output_adapter"))
            assert group["rate"] == ("speech" if is_speech else "backbone"), names[parameter]
            assert group["weight_decay"] == (0.3 if parameter.ndim == 2 else 0.0), names[parameter]
            seen.add(names[parameter])
    assert seen == set(names.values())
    assert optimizer.defaults["betas"] == (0.9, 0.95)
    set_learning_rates(
        optimizer, learning_rates_at(StageConfig(name="s", tokens=1, mixture=TEXT, learning_rate=2.0), 200, 300)
    )
    assert {group["lr"] for group in optimizer.param_groups} == {2.0}


def test_frozen_parameters_are_in_no_group(model: SmolTolk) -> None:
    views = parameter_views(model)
    freeze(model, views, ("pooling",))
    optimizer = build_optimizer(trained_groups(model, views), OptimizerConfig())
    in_groups = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert in_groups == {p for name, p in model.named_parameters() if views[name].group == "pooling"}
    assert all(p.requires_grad == (p in in_groups) for p in model.parameters())
    assert isinstance(optimizer, torch.optim.AdamW)
