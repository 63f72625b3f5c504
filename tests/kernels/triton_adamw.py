"""AdamW in Triton, computed: by the interpreter on the CPU, or on a GPU.

Run by test_in_triton.py, in a process of its own. By hand: TRITON_INTERPRET=1 pytest tests/kernels/triton_adamw.py
"""

import os

import pytest
import torch

from tolktrain_kernels.adamw_triton import BLOCK, LastGradients, step, sum_squares

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.mark.parametrize("size", [1, BLOCK + 1])
@pytest.mark.parametrize(("weight_decay", "factor", "eps"), [(0.1, None, 1e-8), (0.0, 0.3, 1e-3)])
def test_updates_as_torch_does(size: int, weight_decay: float, factor: float | None, eps: float) -> None:
    """Four updates against torch.optim.AdamW in float64; what follows in memory stays as it is."""
    generator = torch.Generator().manual_seed(size)
    room = torch.randn(5, size + 16, generator=generator).to(DEVICE)
    room[3].zero_()  # the second moment is never negative
    room[2].zero_()
    before = room.clone()
    master, gradient, first, second, _ = room[:, :size]
    low = torch.zeros(size + 16, device=DEVICE, dtype=torch.bfloat16)
    exact = master.double().requires_grad_()
    adam = torch.optim.AdamW([exact], lr=0.01, betas=(0.9, 0.95), eps=eps, weight_decay=weight_decay)
    updates = torch.zeros((), device=DEVICE)
    for number in range(4):
        gradient.copy_(torch.randn(size, generator=generator) * 10.0 ** (number - 3))
        scale = None if factor is None else torch.tensor(factor, device=DEVICE)
        step(master, gradient, (first, second), low[:size], updates, scale, 0.01, weight_decay, (0.9, 0.95), eps)
        exact.grad = gradient.double() * (1.0 if scale is None else scale.double())
        adam.step()
        torch.testing.assert_close(master.double(), exact.detach(), rtol=1e-6, atol=1e-6)
        for mine, name in ((first, "exp_avg"), (second, "exp_avg_sq")):
            torch.testing.assert_close(mine.double(), adam.state[exact][name], rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(low[:size].float(), master, rtol=2**-7, atol=0)  # the interpreter cuts off
    assert updates == 4
    assert torch.equal(room[:, size:], before[:, size:]) and not low[size:].any()


def test_a_gradient_that_is_no_number_is_not_hidden() -> None:
    """The caller checks the norm; if it did not, it would be seen."""
    tensors = torch.zeros(4, 8, device=DEVICE)
    tensors[1, 3] = torch.nan
    low = torch.zeros(8, device=DEVICE, dtype=torch.bfloat16)
    master, gradient, first, second = tensors
    step(master, gradient, (first, second), low, torch.zeros((), device=DEVICE), None, 0.1, 0.1, (0.9, 0.95), 1e-8)
    assert master.isnan().tolist() == [place == 3 for place in range(8)]


@pytest.mark.parametrize("has_sums", [False, True])
@pytest.mark.parametrize("sizes", [(BLOCK + 8, 24, 1, 40), (16, 2 * BLOCK), (3,)])
def test_last_gradients_are_read_where_they_are(sizes: tuple[int, ...], has_sums: bool) -> None:
    """The norm and the update of gradients that were added before; a parameter has none, another's is no plain tensor.
    What pads the flat tensors stays as it is."""
    total, padding = sum(sizes), 5
    generator = torch.Generator().manual_seed(total)
    sums = torch.randn(total + padding, generator=generator).to(DEVICE)
    gradients = [torch.randn(2 * size, generator=generator).bfloat16().to(DEVICE)[::2] for size in sizes]
    given = [None if place == 1 else gradient for place, gradient in enumerate(gradients)]
    last = LastGradients.of(sizes, torch.device(DEVICE)).at(given)
    zeros = torch.zeros(padding, device=DEVICE)
    added = torch.cat([*(gradient.float() * (place != 1) for place, gradient in enumerate(gradients)), zeros])
    if has_sums:
        added += torch.cat([sums[:total], zeros])
    squares = sum_squares(sums if has_sums else None, last)
    torch.testing.assert_close(squares, added.square().sum(), rtol=1e-6, atol=0)
    room = torch.rand(3, total + padding, generator=generator).to(DEVICE)
    found = []
    for gradient, left in ((sums if has_sums else None, last), (added, None)):
        master, *moments = tensors = room.clone()
        low = torch.zeros(total + padding, device=DEVICE, dtype=torch.bfloat16)
        updates, factor = torch.zeros((), device=DEVICE), torch.tensor(0.5, device=DEVICE)
        step(master, gradient, tuple(moments), low, updates, factor, 0.1, 0.1, (0.9, 0.95), 1e-8, left)
        assert updates == 1
        found.append((tensors[:, :total], low[:total]))
        if left is not None:
            assert torch.equal(tensors[:, total:], room[:, total:]) and not low[total:].any()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
