"""The elementwise operations in plain PyTorch: against their formulas, and their gradients."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tolktrain_kernels.bench.elementwise_check import make_angles
from tolktrain_kernels.elementwise import add_rms_norm, rms_norm, rotate, swiglu


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


@pytest.mark.parametrize(
    ("form", "inputs"),
    [
        (lambda *given: rms_norm(*given, 0.1), (random(3, 6), random(6))),
        (lambda *given: add_rms_norm(*given, 0.1), (random(3, 6), random(3, 6), random(6))),
        (swiglu, (random(3, 8),)),
        (lambda heads: rotate(heads, *make_angles(3, 4, "cpu")), (random(3, 1, 2, 4),)),
    ],
    ids=["norm", "norm and residual", "swiglu", "rotation"],
)
def test_gradients(form: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    assert torch.autograd.gradcheck(form, inputs)


def test_results_are_of_the_states_type() -> None:
    states, weight = torch.randn(2, 8).bfloat16(), torch.randn(8)
    results = [rms_norm(states, weight, 1e-5), *add_rms_norm(states, states.float(), weight, 1e-5), swiglu(states)]
    results.append(rotate(states.view(2, 1, 1, 8), *make_angles(2, 8, "cpu")))
    assert {result.dtype for result in results} == {torch.bfloat16}


def test_an_unknown_backend_is_refused() -> None:
    states, backend = torch.ones(1, 1, 1, 2), "cuda"
    calls: list[Callable[[], object]] = [
        lambda: rms_norm(states, states[0, 0, 0], 1e-5, backend),
        lambda: add_rms_norm(states, states, states[0, 0, 0], 1e-5, backend),
        lambda: swiglu(states, backend),
        lambda: rotate(states, states, states, backend),
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
