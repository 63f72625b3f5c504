"""A model in stages against the same model in one piece, in one process."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.cut import carried_slices, cut_points
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import LossSums
from tolktrain.model.parameter_layout import canonical_shapes, canonical_state, copy_canonical
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import initialize

VARIANTS: list[dict[str, Any]] = [
    {},
    {"layer_pooling": "static", "residual": False},
    {"layer_pooling": "none", "input_adapter_layers": 0},
    {"tie_text_embeddings": False, "num_codebooks": 2},
]


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("kinds", ["smtm", "tt", "s"])
def test_every_cut_gives_the_sums_and_gradients_of_the_whole(
    architecture: Callable[..., Architecture], inputs: Callable[..., ModelInputs], changes: dict[str, Any], kinds: str
) -> None:
    sizes = architecture(**changes)
    data = inputs(kinds, codebooks=sizes.num_codebooks)
    whole = SmolTolk(sizes, seed=0)
    expected = whole(data)
    sum(expected).backward()
    num_layers = len(whole.layers)
    for cut in cut_points(sizes):
        stages = [SmolTolk(sizes, 0, initialize(), bounds) for bounds in (range(cut), range(cut, num_layers))]
        sent = stages[0].run_stage(None, data)
        assert isinstance(sent, torch.Tensor)
        assert sent.shape == (carried_slices(sizes, cut), data.sequence_length, data.num_sequences, sizes.hidden_size)
        received = sent.detach().requires_grad_()
        sums = stages[1].run_stage(received, data)
        assert isinstance(sums, LossSums)
        for mine, theirs in zip(sums, expected, strict=True):
            assert torch.equal(mine, theirs)
        sum(sums).backward()
        assert received.grad is not None
        sent.backward(received.grad)
        tied = dict(zip(*([id(t) for t in stage.tied_tables] for stage in stages), strict=True))
        gradients = {n: p.grad for stage in stages for n, p in stage.named_parameters() if id(p) not in tied.values()}
        copies = {id(copy): copy for copy in stages[1].tied_tables}
        for name, parameter in stages[0].named_parameters():
            if id(parameter) in tied:
                gradients[name] = gradients[name] + copies[tied[id(parameter)]].grad
        for name, parameter in whole.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


@pytest.mark.parametrize("changes", VARIANTS)
def test_stages_have_the_names_of_the_whole(architecture: Callable[..., Architecture], changes: dict[str, Any]) -> None:
    sizes = architecture(**changes)
    whole = SmolTolk(sizes, seed=0)
    state = canonical_state(whole)
    cut = cut_points(sizes)[1]
    stages = [SmolTolk(sizes, None, initialize(), range(*bounds)) for bounds in ((0, cut), (cut, len(whole.layers)))]
    names = [canonical_shapes(stage) for stage in stages]
    assert not names[0].keys() & names[1].keys()
    assert names[0] | names[1] == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for stage in stages:
        with torch.no_grad():
            for parameter in stage.parameters():
                parameter.fill_(torch.nan)
        copy_canonical(stage, state)
        assert all(
            torch.equal(p, whole.state_dict()[n]) for n, p in stage.named_parameters() if n in whole.state_dict()
        )
    tables = [stage.tied_tables for stage in stages]
    assert len(tables[0]) == sizes.num_codebooks + sizes.tie_text_embeddings
    assert all(torch.equal(first, last) for first, last in zip(*tables, strict=True))


def test_a_kept_state_that_is_also_the_way_on_travels_once(
    architecture: Callable[..., Architecture], inputs: Callable[..., ModelInputs]
) -> None:
    sizes = replace(architecture(), num_layers=3)
    first = cut_points(sizes).start
    stage = SmolTolk(sizes, 0, initialize(), range(first + 2))
    sent = stage.run_stage(None, inputs("sm"))
    assert isinstance(sent, torch.Tensor)
    assert len(sent) == 3  # h_1, h_2, e
