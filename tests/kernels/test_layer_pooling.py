"""Layer pooling against a stacked twin written from the formulas, in float64, with every gradient."""

import pytest
import torch
from torch import Tensor

from tolktrain_kernels.layer_pooling import pool_layers

MODES = {"none": (False, False), "static": (True, False), "dynamic": (False, True), "both": (True, True)}


def twin(
    states: list[Tensor], w: Tensor | None, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """h_pool + residual and the entropy at each position."""
    h = torch.stack(states, dim=-2)  # [..., L, D]
    average = h[..., -1, :] if w is None else torch.einsum("l,...ld->...d", w.exp() / w.exp().sum(), h)
    entropy = None
    if weight is not None and bias is not None:
        p = torch.softmax(average @ weight.T + bias, dim=-1)
        average = torch.einsum("...l,...ld->...d", p, h)
        entropy = torch.distributions.Categorical(probs=p).entropy()
    return (average if residual is None else average + residual), entropy


def case(
    mode: str, num_layers: int, residual: bool, shape: tuple[int, ...] = (5, 2), dim: int = 7
) -> dict[str, object]:
    torch.manual_seed(num_layers)
    static, dynamic = MODES[mode]

    def random(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, requires_grad=True)

    return {
        "states": [random(*shape, dim) for _ in range(num_layers)],
        "static_weights": random(num_layers) if static else None,
        "selector_weight": random(num_layers, dim) if dynamic else None,
        "selector_bias": random(num_layers) if dynamic else None,
        "residual": random(*shape, dim) if residual else None,
    }


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 5])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_twin_with_gradients(mode: str, num_layers: int, residual: bool) -> None:
    arguments = case(mode, num_layers, residual)
    found = pool_layers(**arguments)
    expected, entropy = twin(*arguments.values())
    torch.testing.assert_close(found.pooled, expected)
    assert (found.entropy is None) == (entropy is None) == (mode in ("none", "static"))
    leaves = [*arguments["states"], *(t for t in list(arguments.values())[1:] if t is not None)]
    weight = torch.randn_like(expected)
    totals = [(found.pooled * weight).sum(), (expected * weight).sum()]
    if found.entropy is not None and entropy is not None:
        torch.testing.assert_close(found.entropy, entropy)
        torch.testing.assert_close(found.probs.sum(-1), torch.ones_like(entropy))
        totals = [totals[0] + 3 * found.entropy.sum(), totals[1] + 3 * entropy.sum()]
    ours, theirs = (torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True) for total in totals)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_of_every_output(mode: str) -> None:
    arguments = case(mode, 3, residual=True, shape=(2,), dim=3)
    states = arguments.pop("states")
    names = [name for name, value in arguments.items() if value is not None]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        found = pool_layers(list(tensors[:3]), **dict(zip(names, tensors[3:], strict=True)))
        return tuple(output for output in found if output is not None)

    assert torch.autograd.gradcheck(run, (*states, *(arguments[name] for name in names)))


def test_bfloat16_stays_bfloat16_and_close() -> None:
    arguments = case("both", 4, residual=True, shape=(6, 3), dim=32)
    exact = pool_layers(**arguments)

    def rounded(value: object) -> object:
        return value.detach().bfloat16() if isinstance(value, Tensor) else value

    low = {k: [rounded(t) for t in v] if isinstance(v, list) else rounded(v) for k, v in arguments.items()}
    found = pool_layers(**low)
    assert found.pooled.dtype == torch.bfloat16
    assert found.entropy.dtype == torch.float32
    error = (found.pooled.double() - exact.pooled).pow(2).mean().sqrt() / exact.pooled.pow(2).mean().sqrt()
    assert error < 3e-2


def test_one_layer_or_a_decided_selector() -> None:
    states = [torch.randn(4, 3) for _ in range(3)]
    bias = torch.tensor([-200.0, 200.0, -200.0])
    found = pool_layers(states, None, torch.zeros(3, 3), bias)
    torch.testing.assert_close(found.pooled, states[1])
    assert not found.entropy.any()


def test_weights_in_float32_with_states_in_bfloat16() -> None:
    arguments = case("both", 3, residual=False)
    low = {k: v.float() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    low["states"] = [state.detach().bfloat16().requires_grad_() for state in arguments["states"]]
    found = pool_layers(**low)
    assert found.pooled.dtype == torch.bfloat16
    found.pooled.float().sum().backward()
    assert arguments["selector_weight"].grad.dtype == torch.float64
    assert all(state.grad.dtype == torch.bfloat16 for state in low["states"])


def test_compiles_without_a_break() -> None:
    arguments = case("both", 3, residual=True)
    compiled = torch.compile(pool_layers, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**arguments).pooled, pool_layers(**arguments).pooled)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'cuda' is unknown; use torch or triton"):
        pool_layers([torch.zeros(2, 3)], backend="cuda")
