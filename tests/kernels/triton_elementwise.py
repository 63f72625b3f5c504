"""The elementwise kernels in Triton, computed: by the interpreter on the CPU, or on a GPU.

Run by test_in_triton.py, in a process of its own: the interpreter must be chosen before the kernels are
imported. By hand: TRITON_INTERPRET=1 pytest tests/kernels/triton_elementwise.py
"""

import os

import pytest
import torch
from torch import Tensor

from tolktrain_kernels.bench.elementwise_check import (
    EPS,
    KERNELS,
    Case,
    compute,
    deviations,
    make_angles,
    relative_error,
)
from tolktrain_kernels.elementwise import add_rms_norm, fork_rms_norm, rms_norm, split_heads, swiglu
from tolktrain_kernels.elementwise_triton import rotation_setting

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
WIDE = [(1, 576), (7, 960), (2, 3, 2048), (1, 4096), (2, 6144), (7, 72), (67, 96), (1, 8192), (0, 576), (3, 6)]
HEADS = [
    *((7, 1, 3, 3, 64), (199, 1, 1, 1, 16), (3, 2, 3, 1, 72), (2, 3, 5, 2, 128), (33, 2, 2, 4, 64), (0, 2, 3, 1, 64)),
    (1, 1, 1, 1, 2),
]
CASES = [(kernel, shape) for kernel in KERNELS for shape in (HEADS if kernel == "heads" else WIDE)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("kernel", "shape"), CASES, ids=str)
def test_equals_float64(kernel: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = deviations(Case(kernel, shape, dtype), DEVICE)
    assert not [deviation for deviation in found if not deviation.is_within(dtype)]


def inputs_of(kernel: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs that want gradients, and angles."""
    case = Case(kernel, (5, 2, 3, 2, 16) if kernel == "heads" else (5, 3, 72), dtype)
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_()
        for shape in case.input_shapes().values()
    ]
    return leaves, make_angles(7, 16, DEVICE) if kernel == "heads" else []


def results_of(kernel: str, leaves: list[Tensor], angles: list[Tensor], backend: str) -> list[Tensor]:
    """Outputs and gradients."""
    found = compute(kernel, leaves, angles, backend)
    return [*found, *torch.autograd.grad(sum(output.sin().sum() for output in found), leaves)]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision(kernel: str) -> None:
    found = deviations(Case(kernel, (5, 2, 3, 2, 16) if kernel == "heads" else (15, 72), torch.float16), DEVICE)
    assert not [deviation for deviation in found if deviation.ours > min(1e-3, 2 * deviation.eager)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["strided", "turned", "shifted"])
def test_inputs_out_of_line_or_misaligned(kernel: str, layout: str) -> None:
    leaves, angles = inputs_of(kernel)

    def displaced(leaf: Tensor) -> Tensor:
        if layout == "strided":
            room = leaf.new_empty(*leaf.shape[:-1], 2 * leaf.shape[-1])[..., ::2]
        elif layout == "turned":
            room = leaf.new_empty(leaf.shape[::-1]).permute(*reversed(range(leaf.ndim)))
        else:
            room = leaf.new_empty(leaf.numel() + 1)[1:].view(leaf.shape)
            assert room.data_ptr() % 16
        return room.copy_(leaf.detach()).requires_grad_()

    odd, odd_angles = [displaced(leaf) for leaf in leaves], [displaced(angle).detach() for angle in angles]
    assert_same(results_of(kernel, odd, odd_angles, "triton"), results_of(kernel, leaves, angles, "torch"))


@pytest.mark.parametrize("width", [64, 72, 6])
def test_gradients_of_other_layouts(width: int) -> None:
    """As attention gives them back: with the heads first, or a part of a larger tensor."""
    product = torch.randn(5, 2, 3, 4 * width, device=DEVICE).requires_grad_()
    angles = make_angles(5, width, DEVICE)

    def results(backend: str) -> list[Tensor]:
        queries, keys, values = found = split_heads(product, *angles, backend)
        assert backend == "torch" or all(heads.is_contiguous() for heads in found)
        room = torch.cat((keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3)), dim=-1)
        total = queries.permute(1, 2, 0, 3).sin().sum() + room.sin().sum()
        return [*found, *torch.autograd.grad(total, product)]

    assert_same(results("triton"), results("torch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_heads_in_place_are_those_of_their_own_memory(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bit by bit, through a product whose backward pass must not notice; keys and values stay where they were."""
    *outer, queries, width = shape
    given = torch.randn(*outer[:2], 24, device=DEVICE, dtype=dtype)
    weight = torch.randn(outer[2] * (queries + 2) * width, 24, device=DEVICE, dtype=dtype)
    angles = make_angles(shape[0] + 1, width, DEVICE)
    results = []
    for in_place in (False, True):
        leaves = [given.clone().requires_grad_(), weight.clone().requires_grad_()]
        product = torch.nn.functional.linear(*leaves).view(*outer, (queries + 2) * width)
        heads = split_heads(product, *angles, "triton", in_place=in_place)
        if in_place and product.numel():
            assert heads[1].data_ptr() == product.data_ptr() + queries * width * dtype.itemsize
            assert (heads[0].data_ptr() == product.data_ptr()) == (queries == 1)
        derived = torch.autograd.grad([head.sin().sum() for head in heads], leaves)
        results.append([*(head.detach().clone() for head in heads), *derived])
    for apart, within in zip(*results, strict=True):
        assert torch.equal(apart, within)


def test_a_product_with_gaps_is_left_as_it_is() -> None:
    (product,), angles = inputs_of("heads")
    room = torch.stack((product.detach(), product.detach()), dim=-1)[..., 0]
    before = room.clone()
    heads = split_heads(room, *angles, "triton", in_place=True)
    assert torch.equal(room, before)
    assert_same(list(heads), list(split_heads(before, *angles, "torch")))


def test_values_are_not_rotated_and_only_copied() -> None:
    """An infinite half leaves the other half as it is."""
    (product,), angles = inputs_of("heads")
    with torch.no_grad():
        product[..., -16:-8] = torch.inf
    _, _, values = split_heads(product, *angles, "triton")
    assert torch.equal(values, product[..., -16:])


def test_a_rotation_and_its_inverse_cancel() -> None:
    (product,), angles = inputs_of("heads")
    heads = split_heads(product, *angles, "triton")
    torch.testing.assert_close(torch.ops.tolktrain.join_heads(*heads, *angles), product)
    assert not torch.allclose(heads[1][1:], product[1:, ..., -32:-16])


@pytest.mark.parametrize("output", ["sum", "normed"])
def test_one_output_alone(output: str) -> None:
    leaves, angles = inputs_of("norm and residual")
    found, expected = (
        torch.autograd.grad(
            compute("norm and residual", leaves, angles, backend)[output == "normed"].sin().sum(),
            leaves,
            allow_unused=True,
            materialize_grads=True,
        )
        for backend in ("triton", "torch")
    )
    assert_same(list(found), list(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("used", [(0, 1, 2), (0, 2), (1, 2), (0, 1), (2,), (1,)], ids=str)
@pytest.mark.parametrize("has_update", [True, False], ids=["sum", "alone"])
def test_a_forked_norm_adds_the_gradients_of_both(has_update: bool, used: tuple[int, ...], dtype: torch.dtype) -> None:
    """Against plain PyTorch in float64, whatever is used of it."""
    leaves, _ = inputs_of("norm and residual", dtype)
    scales = (1.0, 3.0, 0.5)  # of the gradients of the three

    def results(backend: str, dtype: torch.dtype) -> list[Tensor]:
        hidden, update, weight = (leaf.detach().to(dtype).requires_grad_() for leaf in leaves)
        found = fork_rms_norm(hidden.sin(), update if has_update else None, weight, EPS, backend)
        wanted = [hidden, weight, *([update] if has_update else [])]
        gradients = torch.autograd.grad(
            [found[place] for place in used],
            wanted,
            [torch.linspace(-1, 1, hidden.numel()).view_as(hidden).to(hidden) * scales[place] for place in used],
            allow_unused=True,
            materialize_grads=True,
        )
        return [*found, *gradients]

    exact, ours = results("torch", torch.float64), results("triton", dtype)
    plain = results("torch", dtype)
    for one, mine, theirs in zip(exact, ours, plain, strict=True):
        assert mine.dtype == dtype
        error = relative_error(mine, one)
        # The interpreter cuts bfloat16 off instead of rounding it.
        assert error <= max(2.5 * relative_error(theirs, one), 1e-6)


def test_a_forked_norm_gives_the_sum_twice_in_the_same_memory() -> None:
    leaves, _ = inputs_of("norm and residual")
    total, kept, _ = fork_rms_norm(*leaves, EPS, "triton")
    assert total.data_ptr() == kept.data_ptr()
    first, second, _ = fork_rms_norm(leaves[0], None, leaves[2], EPS, "triton")
    assert first.data_ptr() == second.data_ptr() == leaves[0].data_ptr()


def test_gradients_in_place_do_not_mix() -> None:
    leaves, _ = inputs_of("norm and residual")
    sum(output.sum() for output in add_rms_norm(*leaves, EPS, "triton")).backward()
    hidden, update = leaves[0].grad, leaves[1].grad
    assert hidden is not None and update is not None and torch.equal(hidden, update)
    before = update.clone()
    hidden.zero_()
    assert torch.equal(update, before)


def test_frozen_weights_and_frozen_inputs() -> None:
    for kept in range(3):
        leaves, angles = inputs_of("norm and residual")
        for index, leaf in enumerate(leaves):
            leaf.requires_grad_(index == kept)
        found, expected = (
            torch.autograd.grad(
                sum(o.sin().sum() for o in compute("norm and residual", leaves, angles, backend)), leaves[kept]
            )
            for backend in ("triton", "torch")
        )
        assert_same(list(found), list(expected))


def test_weights_and_updates_of_another_type() -> None:
    leaves, _ = inputs_of("norm and residual")
    hidden, update, weight = leaves
    low = hidden.detach().bfloat16().requires_grad_()
    total, normed = add_rms_norm(low, update, weight, EPS, "triton")
    assert total.dtype == normed.dtype == torch.bfloat16
    alone = rms_norm(low, weight, EPS, "triton")
    assert alone.dtype == torch.bfloat16
    derived = torch.autograd.grad(normed.float().sin().sum() + alone.float().sum(), [low, update, weight])
    assert [gradient.dtype for gradient in derived] == [torch.bfloat16, torch.float32, torch.float32]
    exact = low.detach().float().requires_grad_()
    expected = add_rms_norm(exact, update, weight, EPS)[1].sin().sum() + rms_norm(exact, weight, EPS).sum()
    for one, other in zip(derived, torch.autograd.grad(expected, [exact, update, weight]), strict=True):
        assert (one - other).square().mean() < 1e-4 * other.square().mean()


@pytest.mark.parametrize("gate", [-1e4, -100.0, 100.0, 1e4])
def test_a_gate_far_from_zero(gate: float) -> None:
    gate_up = torch.tensor([[gate, 2.0]], device=DEVICE, requires_grad=True)
    found = swiglu(gate_up, "triton")
    torch.testing.assert_close(found, torch.tensor([[max(gate, 0.0) * 2]], device=DEVICE))
    (gradient,) = torch.autograd.grad(found.sum(), gate_up)
    torch.testing.assert_close(gradient, torch.tensor([[2.0 if gate > 0 else 0.0, max(gate, 0.0)]], device=DEVICE))


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_runs_are_equal_to_the_bit(kernel: str) -> None:
    leaves, angles = inputs_of(kernel)
    segments = [results_of(kernel, leaves, angles, "triton") for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*segments, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_opcheck(kernel: str) -> None:
    leaves, angles = inputs_of(kernel)
    ops = torch.ops.tolktrain
    if kernel == "swiglu":
        torch.library.opcheck(ops.swiglu.default, leaves)
    elif kernel == "heads":
        torch.library.opcheck(ops.split_heads.default, (*leaves, *angles))
    else:
        update = leaves[1] if kernel == "norm and residual" else None
        torch.library.opcheck(ops.rms_norm.default, (leaves[0], update, leaves[-1], EPS))


@pytest.mark.parametrize("kernel", KERNELS)
def test_compiles_without_a_break(kernel: str) -> None:
    leaves, angles = inputs_of(kernel)

    def total(*leaves: Tensor) -> Tensor:
        return sum(output.sin().sum() for output in compute(kernel, leaves, angles, "triton"))

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    assert_same(list(torch.autograd.grad(compiled(*leaves), leaves)), list(torch.autograd.grad(total(*leaves), leaves)))


def test_what_cannot_be_computed_is_refused() -> None:
    row = torch.zeros(2, 8, device=DEVICE)
    with pytest.raises(
        ValueError, match="Triton norm takes 16 and 32 bit tensors, not torch.float64; use backend torch"
    ):
        rms_norm(row.double(), row[0], EPS, "triton")
    wide = torch.zeros(1, 8200, device=DEVICE)
    with pytest.raises(ValueError, match="width 8200 is too much for the Triton norm .8192.; use backend torch"):
        rms_norm(wide, wide[0], EPS, "triton")
    with pytest.raises(ValueError, match="of one shape and a weight .D., not .*7"):
        rms_norm(row, row[0, :7], EPS, "triton")
    with pytest.raises(ValueError, match="of one shape and a weight"):
        add_rms_norm(row, row[:1], row[0], EPS, "triton")
    with pytest.raises(ValueError, match="two halves .*7"):
        swiglu(row[:, :7], "triton")
    product = torch.zeros(4, 1, 1, 24, device=DEVICE)
    for angles in (make_angles(3, 8, DEVICE), make_angles(4, 10, DEVICE), make_angles(4, 12, DEVICE)):
        with pytest.raises(ValueError, match="heads .T, B, G, .r . 2. d., d even, and angles .T or more, 1, 1, d."):
            split_heads(product, *angles, "triton")


def test_the_last_tile_may_be_partly_filled() -> None:
    rows = rotation_setting(32).block_rows
    product = torch.randn(rows // 3 + 1, 1, 1, 3 * 64, device=DEVICE)
    angles = make_angles(rows // 3 + 1, 64, DEVICE)
    assert_same(list(split_heads(product, *angles, "triton")), list(split_heads(product, *angles)))
