"""What an engine gives to checkpoints: every element once, and nothing whose place is not known."""

from pathlib import Path

import pytest
import torch
from small_runs import assembled, small_config

from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import canonical_state, parameter_views
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize
from tolktrain.train.deepspeed.engine import Engine
from tolktrain.train.deepspeed.tensors import ModelTensors, UnknownSlicingError
from tolktrain.train.resolved import ResolvedSettings


@pytest.fixture
def engine(tmp_path: Path, sets: Path) -> Engine:
    """Of the last stage."""
    config = small_config(tmp_path, sets)
    model = SmolTolk(Architecture.from_config(config.model), seed=0)
    settings = ResolvedSettings.of(config, model.architecture, initialize())
    return Engine(model, config.train.stages[2], config, initialize(), settings)


def tensors_of(engine: Engine, **changes: object) -> ModelTensors:
    """Made again, with another idea of the model."""
    given: dict[str, object] = {
        "parameters": dict(engine.model.named_parameters()),
        "views": parameter_views(engine.model),
        "share": engine.model.share,
        "states": engine._states,
        "layout": initialize(),
    }
    return ModelTensors(**{**given, **changes})  # type: ignore[arg-type]


def test_a_snapshot_is_the_whole_model(engine: Engine) -> None:
    expected = canonical_state(SmolTolk(engine.model.architecture, seed=0))
    found = assembled([engine.snapshot().parameters])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_memory_is_used_again(engine: Engine) -> None:
    first = engine.snapshot()
    places = {(kind, name): block.tensor.data_ptr() for kind, name, block in first.items()}
    with torch.no_grad():
        next(iter(engine.model.parameters())).add_(1.0)
    second = engine.snapshot(first)
    assert {(kind, name): block.tensor.data_ptr() for kind, name, block in second.items()} == places


def test_a_parameter_without_a_canonical_name_stops_the_save(engine: Engine) -> None:
    views = parameter_views(engine.model)
    name = "layers.0.text.weight" if "layers.0.text.weight" in views else next(iter(views))
    del views[name]
    with pytest.raises(UnknownSlicingError, match=f"parameter {name}: no canonical name is known"):
        tensors_of(engine, views=views).snapshot()


def test_a_parameter_of_another_shape_than_its_view_says_stops_the_save(engine: Engine) -> None:
    parameters = dict(engine.model.named_parameters())
    name = next(name for name, parameter in parameters.items() if parameter.dim() == 2)
    narrow = torch.nn.Parameter(parameters[name][:, :-1].clone(), requires_grad=False)
    with pytest.raises(UnknownSlicingError, match=f"parameter {name}: has shape .* its canonical view gives"):
        tensors_of(engine, parameters={**parameters, name: narrow}).snapshot()
