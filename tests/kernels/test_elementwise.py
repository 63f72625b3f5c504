"""The elementwise operations in plain PyTorch: against their formulas, and their gradients."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tolktrain_kernels.bench.elementwise_check import make_angles
from tolktrain_kernels.elementwise import add_rms_norm, rms_norm, rotate, split_heads, swiglu


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def test_norms_are_what_the_formula_says() -> None:
    hidden, update, weight = random(3, 2, 6), random(3, 2, 6), random(6)
    total, normed = add_rms_norm(hidden, update, weight, 0.1)
    for states, found in ((hidden, rms_norm(hidden, weight, 0.1)), (hidden + update, normed)):
        expected = states / torch.sqrt((states**2).mean(dim=-1, keepdim=True) + 0.1) * weight
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(total, hidden + update)


def test_the_gated_activation_is_what_the_formula_says() -> None:
    gate_up = random(4, 10)
    gate, up = gate_up[:, :5], gate_up[:, 5:]
    torch.testing.assert_close(swiglu(gate_up), gate / (1 + torch.exp(-gate)) * up)


def test_a_rotation_multiplies_complex_numbers() -> None:
    heads = random(5, 2, 3, 8)
    cos, sin = make_angles(7, 8, "cpu")
    turned = rotate(heads, cos, sin)
    angles = torch.complex(cos, -sin)[:5, ..., :4]
    expected = torch.complex(heads[..., :4], heads[..., 4:]) * angles
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), dim=-1))
    torch.testing.assert_close(rotate(turned, cos, -sin), heads, rtol=1e-6, atol=1e-6)


def test_heads_are_those_of_their_groups() -> None:
    """Two groups of three queries, a key and a value; one head at a time."""
    product = random(5, 2, 2, 5 * 8)
    cos, sin = make_angles(7, 8, "cpu")
    queries, keys, values = split_heads(product, cos, sin)
    assert (queries.shape, keys.shape, values.shape) == ((5, 2, 6, 8), (5, 2, 2, 8), (5, 2, 2, 8))
    for group in range(2):
        heads = product[:, :, group].unflatten(-1, (5, 8))
        for query in range(3):
            expected = rotate(heads[:, :, query : query + 1], cos, sin)
            torch.testing.assert_close(queries[:, :, 3 * group + query : 3 * group + query + 1], expected)
        torch.testing.assert_close(keys[:, :, group : group + 1], rotate(heads[:, :, 3:4], cos, sin))
        torch.testing.assert_close(values[:, :, group], heads[:, :, 4])


@pytest.mark.parametrize(
    ("form", "inputs"),
    [
        (lambda *given: rms_norm(*given, 0.1), (random(3, 6), random(6))),
        (lambda *given: add_rms_norm(*given, 0.1), (random(3, 6), random(3, 6), random(6))),
        (swiglu, (random(3, 8),)),
        (lambda product: split_heads(product, *make_angles(3, 4, "cpu")), (random(3, 1, 2, 16),)),
    ],
    ids=["norm", "norm and residual", "swiglu", "heads"],
)
def test_gradients(form: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    assert torch.autograd.gradcheck(form, inputs)


def test_results_are_of_the_states_type() -> None:
    states, weight = torch.randn(2, 8).bfloat16(), torch.randn(8)
    results = [rms_norm(states, weight, 1e-5), *add_rms_norm(states, states.float(), weight, 1e-5), swiglu(states)]
    results += split_heads(torch.randn(2, 1, 1, 24).bfloat16(), *make_angles(2, 8, "cpu"))
    assert {result.dtype for result in results} == {torch.bfloat16}


def test_an_unknown_backend_is_refused() -> None:
    states, backend = torch.ones(1, 1, 1, 2), "cuda"
    calls: list[Callable[[], object]] = [
        lambda: rms_norm(states, states[0, 0, 0], 1e-5, backend),
        lambda: add_rms_norm(states, states, states[0, 0, 0], 1e-5, backend),
        lambda: swiglu(states, backend),
        lambda: split_heads(states, states, states, backend),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="'cuda' is unknown; use torch or triton"):
            call()


def test_the_plain_forms_work_where_triton_is_missing() -> None:
    program = """
import sys
sys.modules["triton"] = None
import torch
from tolktrain_kernels.elementwise import swiglu
import tolktrain_kernels.bench.elementwise
assert swiglu(torch.ones(2, 4)).shape == (2, 2)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
