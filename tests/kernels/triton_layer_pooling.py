"""The Triton layer pooling, computed: by the interpreter on the CPU, or on a GPU.

Run by test_in_triton.py, in a process of its own: the interpreter must be chosen before the kernels are
imported. By hand: TRITON_INTERPRET=1 pytest tests/kernels/triton_layer_pooling.py
"""

import os

import pytest
import torch
from torch import Tensor

from tolktrain_kernels import layer_pooling_triton
from tolktrain_kernels.bench.pooling import Shape
from tolktrain_kernels.bench.pooling_check import Case, deviations, make_case
from tolktrain_kernels.bench.tune import tune_pooling
from tolktrain_kernels.compilation import Build
from tolktrain_kernels.layer_pooling import PooledLayers, pool_layers, pool_layers_plain
from tolktrain_kernels.layer_pooling_triton import Setting

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [
    (1, 72, (1,)),
    (1, 576, (7,)),
    (2, 96, (83,)),  # three programs of the selector's gradient, the last of which has few rows
    (3, 100, (4, 3)),
    (24, 96, (3,)),
    (24, 2048, (2,)),
    (30, 576, (3,)),
    (32, 960, (2,)),
    (32, 4096, (1,)),
    (64, 72, (2,)),
]
# All modes where they are quick, in the interpreter, which takes a tenth of a second for each token of 30 layers.
CASES = [("both", *shape) for shape in SHAPES]
CASES += [(mode, *shape) for mode in ("static", "dynamic") for shape in SHAPES if shape[2] != (83,) and shape[0] < 32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("mode", "num_layers", "width", "positions"), CASES, ids=str)
def test_equals_float64(mode: str, num_layers: int, width: int, positions: tuple[int, ...], dtype: torch.dtype) -> None:
    case = Case(mode, num_layers, width, positions, dtype, residual=width != 96)
    found = deviations(case, DEVICE)
    assert not [deviation for deviation in found if not deviation.is_within(dtype)]


def arguments_of(mode: str, positions: tuple[int, ...] = (3, 2), num_layers: int = 3, width: int = 72) -> dict:
    case = Case(mode, num_layers, width, positions, torch.float32)
    made, _ = make_case(case)
    leaves = [None if t is None else t.to(DEVICE, torch.float32).requires_grad_() for t in made]
    names = ("static_weights", "selector_weight", "selector_bias", "residual")
    return {"states": leaves[:num_layers], **dict(zip(names, leaves[num_layers:], strict=True))}


def leaves_of(arguments: dict) -> list[Tensor]:
    return [*arguments["states"], *(arguments[name] for name in arguments if isinstance(arguments[name], Tensor))]


def gradients_of(found: PooledLayers, arguments: dict) -> tuple[Tensor, ...]:
    total = sum(output.sin().sum() for output in found if output is not None)
    return torch.autograd.grad(total, leaves_of(arguments))


def assert_same(one: dict, other: dict | None = None) -> None:
    """The Triton pooling of one case equals the plain one of the other, with gradients."""
    found, expected = pool_layers(**one, backend="triton"), pool_layers_plain(**(other or one))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(gradients_of(found, one), gradients_of(expected, other or one), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", ["both", "static", "dynamic"])
@pytest.mark.parametrize("positions", [(0,), (4, 0)], ids=str)
def test_no_tokens(mode: str, positions: tuple[int, ...]) -> None:
    assert_same(arguments_of(mode, positions))


def test_states_out_of_line_or_misaligned() -> None:
    plain = arguments_of("both", positions=(5,))
    odd = dict(plain)
    strided = torch.empty(5, 144, device=DEVICE)[:, ::2]
    turned = torch.empty(72, 5, device=DEVICE).T
    shifted = torch.empty(5 * 72 + 1, device=DEVICE)[1:].view(5, 72)
    assert shifted.data_ptr() % 16
    odd["states"] = [
        empty.copy_(state.detach()).requires_grad_()
        for empty, state in zip((strided, turned, shifted), plain["states"], strict=True)
    ]
    assert_same(odd, plain)


def test_one_output_alone() -> None:
    arguments = arguments_of("both")
    for name in PooledLayers._fields:
        totals = [
            getattr(pool(**arguments), name).sin().sum()
            for pool in (lambda **given: pool_layers(**given, backend="triton"), pool_layers_plain)
        ]
        found, expected = (
            torch.autograd.grad(total, leaves_of(arguments), allow_unused=True, materialize_grads=True)
            for total in totals
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_frozen_states_get_no_gradient() -> None:
    arguments = arguments_of("both")
    weights = [arguments[name] for name in ("static_weights", "selector_weight", "selector_bias")]
    expected = torch.autograd.grad(pool_layers_plain(**arguments).pooled.sin().sum(), weights)
    arguments["states"] = [state.detach() for state in arguments["states"]]
    found = pool_layers(**arguments, backend="triton").pooled.sin().sum()
    for one, other in zip(torch.autograd.grad(found, weights), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_residual_and_weights_of_another_type() -> None:
    arguments = arguments_of("both")
    low = {**arguments, "states": [state.detach().bfloat16() for state in arguments["states"]]}
    found = pool_layers(**low, backend="triton")
    expected = pool_layers_plain(**{**arguments, "states": [state.float() for state in low["states"]]})
    assert found.pooled.dtype == torch.float32
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-2, atol=1e-2)
    weights = [arguments["static_weights"], arguments["selector_weight"]]
    for one, other in zip(
        torch.autograd.grad(found.pooled.sum(), weights),
        torch.autograd.grad(expected.pooled.sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_a_decided_selector_has_no_entropy() -> None:
    states = [torch.randn(4, 72, device=DEVICE) for _ in range(3)]
    bias = torch.tensor([-200.0, 200.0, -200.0], device=DEVICE, requires_grad=True)
    found = pool_layers(states, None, torch.zeros(3, 72, device=DEVICE), bias, backend="triton")
    torch.testing.assert_close(found.pooled, states[1])
    assert not found.entropy.any()
    (gradient,) = torch.autograd.grad(found.entropy.sum() + found.pooled.sum(), bias)
    assert gradient.isfinite().all()


def test_two_runs_are_equal_to_the_bit() -> None:
    arguments = arguments_of("both", positions=(35,))
    segments = []
    for _ in range(2):
        found = pool_layers(**arguments, backend="triton")
        segments.append([*found, *gradients_of(found, arguments)])
    assert all(torch.equal(one, other) for one, other in zip(*segments, strict=True))


@pytest.mark.parametrize("mode", ["both", "static", "dynamic"])
def test_opcheck(mode: str) -> None:
    arguments = arguments_of(mode)
    w = arguments["static_weights"]
    probs = None if w is None else torch.softmax(w.detach(), dim=0).requires_grad_()
    given = (arguments["states"], probs, *(arguments[n] for n in ("selector_weight", "selector_bias", "residual")))
    torch.library.opcheck(torch.ops.tolktrain.pool_layers.default, given)


@pytest.mark.parametrize("mode", ["both", "static", "dynamic"])
def test_compiles_without_a_break(mode: str) -> None:
    arguments = arguments_of(mode)

    def total(**given: object) -> Tensor:
        found = pool_layers(**given, backend="triton")
        return sum(output.sin().sum() for output in found if output is not None)

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    found, expected = (torch.autograd.grad(form(**arguments), leaves_of(arguments)) for form in (compiled, total))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_cannot_be_pooled_is_refused() -> None:
    state = torch.zeros(2, 8, device=DEVICE)
    weights = torch.zeros(65, device=DEVICE)
    with pytest.raises(ValueError, match="65 layers are too many for the Triton pooling .64.; use backend torch"):
        pool_layers([state] * 65, weights, backend="triton")
    with pytest.raises(ValueError, match="takes 16 and 32 bit states, not torch.float64; use backend torch"):
        pool_layers([state.double()], weights[:1], backend="triton")


def test_tuning_names_the_fastest_setting_and_leaves_the_tables_alone() -> None:
    before = dict(layer_pooling_triton.FORWARD_SETTINGS)
    tried = []

    def usable(build: Build, setting: Setting) -> bool:
        assert build.constants["GROUP"] == setting.group and build.num_warps == setting.num_warps
        tried.append(setting)
        return setting.group == 2

    candidates = [Setting(4, 2, 1, 2), Setting(4, 4, 1, 2)]
    lines = list(tune_pooling(DEVICE, [Shape(3, 72, 2)], candidates, usable))
    assert tried == candidates * 2
    assert [line.split(":")[0].strip() for line in lines] == ["FORWARD_SETTINGS", "(3, 72)"] + [
        "BACKWARD_SETTINGS",
        "(3, 72)",
    ]
    assert "ms at present" in lines[1] and "Setting(num_warps=" in lines[3]
    assert before == layer_pooling_triton.FORWARD_SETTINGS
