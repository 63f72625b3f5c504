"""Low-rank updates: the model of merged matrices, its gradients, and its names in every layout."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from twin import Twin, gradients_of, make_model

from tolktrain.config.model import LoraConfig, ModelConfig
from tolktrain.model.architecture import Architecture, Lora
from tolktrain.model.cost.layers import layer_costs
from tolktrain.model.cost.work import StepCounts
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.lora import A, B, Merged, is_lora
from tolktrain.model.loss import loss_from_sums
from tolktrain.model.parameter_layout import TensorShare, canonical_shapes, canonical_state, parameter_views
from tolktrain.model.smoltolk import SmolTolk

MakeArchitecture = Callable[..., Architecture]
EVERYTHING = LoraConfig(rank=3, alpha=12.0)
SOME = LoraConfig(rank=2, targets=("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"), parts=("backbone",))


def lora_of(config: LoraConfig) -> Lora:
    return Lora(config.rank, config.alpha, config.targets, config.parts)


def with_updates(sizes: Architecture) -> SmolTolk:
    """A model whose updates are not zero, as they are at the start."""
    model = make_model(sizes)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora.b"):
                parameter.normal_(0.0, 0.1, generator=generator)
    return model


def summed(state: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """The matrices with their updates, written down from the formula."""
    found = {}
    for name, tensor in state.items():
        if "lora" not in name:
            stem = name.removesuffix(".weight")
            has_pair = f"{stem}.lora_A.weight" in state
            update = state[f"{stem}.lora_B.weight"] @ state[f"{stem}.lora_A.weight"] if has_pair else 0
            found[name] = tensor + update * (lora.alpha / lora.rank)
    return found


@pytest.mark.parametrize("config", [EVERYTHING, SOME])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1}])
def test_equals_the_twin_with_summed_matrices(
    config: LoraConfig,
    changes: dict[str, Any],
    architecture: MakeArchitecture,
    batch: Callable[..., SimpleNamespace],
) -> None:
    """Sums and the gradient of every pair, float64."""
    sizes = architecture(**changes, lora=lora_of(config))
    model = with_updates(sizes).double()
    state = {name: tensor.clone().requires_grad_() for name, tensor in canonical_state(model).items()}
    pairs = [name for name in state if is_lora(name)]
    targets = len(config.targets) * (3 if config is SOME else 3 + 2 + 2)
    assert len(pairs) == 2 * targets
    data = batch("mst", seed=3)
    found, expected = model(ModelInputs.from_batch(data)), Twin(sizes, summed(state, lora_of(config))).sums(data)
    loss_from_sums(found, 30, 20, 0.5).backward()
    loss_from_sums(expected, 30, 20, 0.5).backward()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-6, atol=1e-9)
    for name, gradient in gradients_of(model).items():
        other = state[name].grad
        assert other is not None
        assert (gradient - other).norm() <= 2e-6 * other.norm(), name


def test_a_merged_model_computes_the_same(
    architecture: MakeArchitecture, batch: Callable[..., SimpleNamespace]
) -> None:
    """Float32, 1e-6."""
    lora = lora_of(EVERYTHING)
    model = with_updates(architecture(lora=lora))
    state = canonical_state(model)
    merged = Merged({name: tuple(tensor.shape) for name, tensor in state.items()}, state.__getitem__, lora)
    plain = SmolTolk(architecture(), seed=None)
    assert merged.shapes == canonical_shapes(plain)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(parameter_views(plain)[name].join(dict(merged)))
    inputs = ModelInputs.from_batch(batch("mst"))
    for ours, theirs in zip(plain(inputs), model(inputs), strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_a_new_model_is_the_model_without_updates(
    architecture: MakeArchitecture, batch: Callable[..., SimpleNamespace]
) -> None:
    """Bitwise; and rank 0 is no update at all."""
    one, other = SmolTolk(architecture(lora=lora_of(EVERYTHING)), 0), SmolTolk(architecture(), 0)
    state = canonical_state(one)
    assert all(torch.equal(state[name], tensor) for name, tensor in canonical_state(other).items())
    assert all((tensor == 0).all() == name.endswith(B) for name, tensor in state.items() if is_lora(name))
    inputs = ModelInputs.from_batch(batch("mst"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(one(inputs), other(inputs), strict=True))


def test_architectures_with_and_without_updates_can_be_written_down(architecture: MakeArchitecture) -> None:
    backbone = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    backbone |= {"ffn_hidden_size": 48, "text_vocab_size": 40}
    plain = Architecture.from_config(ModelConfig.model_validate({"backbone": backbone}))
    assert plain.lora is None and "lora" not in plain.to_dict()
    assert Architecture.from_dict(plain.to_dict()) == plain
    chosen = {"backbone": backbone, "lora": {"rank": 4, "targets": ["mlp.up_proj"]}}
    sizes = Architecture.from_config(ModelConfig.model_validate(chosen))
    assert sizes.lora == Lora(4, 16.0, ("mlp.up_proj",), ("input_adapter", "backbone", "output_adapter"))
    values = sizes.to_dict()
    values["lora"] = {key: list(v) if isinstance(v, tuple) else v for key, v in values["lora"].items()}  # as in JSON
    assert Architecture.from_dict(values) == sizes


@pytest.mark.parametrize("config", [EVERYTHING, SOME])
def test_tensor_ranks_hold_parts_of_the_canonical_matrices(config: LoraConfig, architecture: MakeArchitecture) -> None:
    """Joined by views and split again, on two ranks together all rows, each once where they are split."""
    model = with_updates(architecture(lora=lora_of(config)))
    state = canonical_state(model)
    views = {name: view for name, view in parameter_views(model).items() if view.group == "lora"}
    for view in views.values():
        parts = [view.split(view.join(state, TensorShare(rank, 2)), TensorShare(rank, 2)) for rank in (0, 1)]
        for name in view.names:
            pieces = [part[name] for part in parts]
            whole = pieces[0] if view.dim is None else torch.cat(pieces, dim=view.dim)
            assert torch.equal(whole, state[name])
    assert any(name.endswith(A) for view in views.values() for name in view.names)


def test_costs_count_the_updates(architecture: MakeArchitecture) -> None:
    """Their elements, by the parameters of a model, and two FLOPs of each per row."""
    sizes, counts = architecture(lora=lora_of(EVERYTHING)), StepCounts(positions=10)
    costs = layer_costs(sizes, counts)
    found = sum(cost.sizes.get("lora", 0) for cost in costs)
    assert found == sum(p.numel() for n, p in SmolTolk(sizes, 0).named_parameters() if ".lora." in n)
    plain = layer_costs(replace(sizes, lora=None), counts)
    backbone = [cost for cost in costs if cost.kind == "backbone"]
    more = sum(c.matrices for c in costs) - sum(c.matrices for c in plain)
    assert more == sum(20 * cost.sizes["lora"] for cost in backbone)
