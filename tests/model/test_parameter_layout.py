"""Canonical names: complete, invertible, and in Hugging Face's order."""

import itertools
from collections.abc import Callable

import pytest
import torch

from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import (
    ParameterView,
    TensorShare,
    canonical_shapes,
    canonical_state,
    load_canonical,
    parameter_views,
)
from tolktrain.model.smoltolk import SmolTolk

MakeArchitecture = Callable[..., Architecture]
LAYER = (
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.k_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
)


def test_names_are_complete(architecture: MakeArchitecture) -> None:
    sizes = architecture(num_codebooks=2, tie_text_embeddings=False)
    stacks = {"backbone": 3, "input_adapter": 2, "output_adapter": 2}
    expected = {f"{stack}.layers.{i}.{part}" for stack, count in stacks.items() for i in range(count) for part in LAYER}
    expected |= {"backbone.norm.weight", "text_embedding.weight", "text_head.weight"}
    expected |= {"speech_embedding.0.weight", "speech_embedding.1.weight"}
    expected |= {"pooling.layer_weights", "pooling.selector.weight", "pooling.selector.bias"}
    model = SmolTolk(sizes, 0)
    assert set(canonical_state(model)) == expected
    shapes = canonical_shapes(model)
    assert shapes["text_embedding.weight"] == (43, 32)
    assert shapes["text_head.weight"] == (40, 32)
    assert shapes["backbone.layers.0.self_attn.k_proj.weight"] == (16, 32)
    assert shapes["backbone.layers.0.mlp.gate_proj.weight"] == (48, 32)
    assert {name: tuple(t.shape) for name, t in canonical_state(model).items()} == shapes


def test_split_and_join_are_inverse(architecture: MakeArchitecture) -> None:
    model = SmolTolk(architecture(), 0)
    parameters = dict(model.named_parameters())
    for name, view in parameter_views(model).items():
        tensor = torch.randn_like(parameters[name])
        pieces = view.split(tensor)
        assert tuple(pieces) == view.names
        assert tuple(tuple(piece.shape) for piece in pieces.values()) == view.shapes
        assert torch.equal(view.join(pieces), tensor)


def merged(
    view: ParameterView, parameters: list[torch.Tensor], shares: list[TensorShare], num_cuts: int
) -> dict[str, torch.Tensor]:
    """Whole tensors from the sections of every rank, whose rows are cut into about equal parts."""
    result = {name: torch.full(shape, torch.nan) for name, shape in zip(view.names, view.shapes, strict=True)}
    for parameter, share in zip(parameters, shares, strict=True):
        assert view.local_shape(share) == tuple(parameter.shape)
        rows = view.num_rows(share)
        bounds = [rows * cut // num_cuts for cut in range(num_cuts + 1)]
        for start, stop in itertools.pairwise(bounds):
            for section in view.sections(share, start, stop):
                where = tuple(slice(o, o + n) for o, n in zip(section.offsets, section.sizes, strict=True))
                again = view.dim is None and share.rank > 0
                assert again or result[section.name][where].isnan().all(), "every element comes from one place"
                found = (parameter if parameter.dim() else parameter.view(1))[start:stop][section.rows]
                result[section.name][where] = found.view(section.sizes)
    return result


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_shares_of_tensor_ranks_make_up_the_whole(architecture: MakeArchitecture, size: int) -> None:
    sizes = architecture(num_attention_heads=12, num_key_value_heads=6, tie_text_embeddings=False, num_codebooks=2)
    model = SmolTolk(sizes, 0)
    for view in parameter_views(model).values():
        whole = {name: torch.randn(shape) for name, shape in zip(view.names, view.shapes, strict=True)}
        shares = [TensorShare(rank, size) for rank in range(size)]
        parameters = [view.join(whole, share) for share in shares]
        assert len({parameter.shape for parameter in parameters}) == 1
        for name, tensor in merged(view, parameters, shares, num_cuts=1).items():
            assert torch.equal(tensor, whole[name]), name
        for name, tensor in merged(view, parameters, shares, num_cuts=5).items():
            assert torch.equal(tensor, whole[name]), name
        elements = sum(parameter.numel() for parameter in parameters)
        padding = elements - sum(tensor.numel() for tensor in whole.values()) * (1 if view.dim is not None else size)
        assert 0 <= padding < size * sizes.hidden_size
        assert padding == 0 or "embedding" in view.names[0] or "head" in view.names[0]


def test_a_rank_beyond_the_vocabulary_holds_padding_alone() -> None:
    view = ParameterView(("table",), ((5, 2),), "speech", "normal", decays=True, dim=0)
    parts = [view.join({"table": torch.ones(5, 2)}, TensorShare(rank, 4)) for rank in range(4)]
    assert [part.sum().item() for part in parts] == [4, 4, 2, 0]


def test_groups_and_decay(architecture: MakeArchitecture) -> None:
    views = parameter_views(SmolTolk(architecture(), 0)).values()
    found = {name: (view.group, view.decays) for view in views for name in view.names}
    assert found["text_embedding.weight"] == ("backbone", True)
    assert found["backbone.norm.weight"] == ("backbone", False)
    assert found["backbone.layers.1.self_attn.q_proj.weight"] == ("backbone", True)
    assert found["pooling.layer_weights"] == ("pooling", False)
    assert found["pooling.selector.weight"] == ("pooling", True)
    assert found["pooling.selector.bias"] == ("pooling", False)
    assert found["speech_embedding.0.weight"] == ("speech", True)
    assert found["input_adapter.layers.0.input_layernorm.weight"] == ("speech", False)
    assert all(decays == (len(name.split("norm")) == 1) for name, (_, decays) in found.items() if "layers" in name)


def test_state_moves_between_models(architecture: MakeArchitecture) -> None:
    one, other = SmolTolk(architecture(), 0), SmolTolk(architecture(), 1)
    load_canonical(other, canonical_state(one))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    other.load_state_dict(SmolTolk(architecture(), 2).state_dict())
    assert not any("_extra_state" in name for name in other.state_dict())


def test_a_state_that_does_not_fit_is_named(architecture: MakeArchitecture) -> None:
    model = SmolTolk(architecture(), 0)
    state = canonical_state(model)
    with pytest.raises(UserError, match=r"lacks backbone\.norm\.weight; .* another architecture"):
        load_canonical(model, {k: v for k, v in state.items() if k != "backbone.norm.weight"})
    with pytest.raises(UserError, match="has unknown extra"):
        load_canonical(model, {**state, "extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"pooling\.layer_weights has shape \[4\], the model needs \[3\]"):
        load_canonical(model, {**state, "pooling.layer_weights": torch.zeros(4)})


def test_weights_depend_on_seed_and_name_alone(architecture: MakeArchitecture) -> None:
    small = canonical_state(SmolTolk(architecture(), 0))
    deep = canonical_state(SmolTolk(architecture(input_adapter_layers=0, layer_pooling="none"), 0))
    assert all(torch.equal(tensor, small[name]) for name, tensor in deep.items())
    other = canonical_state(SmolTolk(architecture(), 1))
    key = "backbone.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(small[key], other[key])
    assert not torch.equal(small[key], small["backbone.layers.1.self_attn.q_proj.weight"])
    assert small[key].std().item() == pytest.approx(0.2, rel=0.1)
    assert small["backbone.layers.0.mlp.down_proj.weight"].std().item() == pytest.approx(0.2 / 6**0.5, rel=0.1)
    assert not small["pooling.layer_weights"].any()
    assert small["backbone.norm.weight"].eq(1).all()
