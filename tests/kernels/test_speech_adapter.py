"""Runs of speech and attention inside them, against plain loops and a dense mask."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tolktrain_kernels.speech_adapter import (
    SpeechRuns,
    gather_rows,
    pack_runs,
    place_rows,
    replace_rows,
    run_attention,
    select_columns,
)


def plain_runs(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """(sequence, position) of each run, by walking."""
    runs: list[list[tuple[int, int]]] = []
    for sequence, row in enumerate(mask):
        previous = False
        for position, speech in enumerate(row):
            if speech and not previous:
                runs.append([])
            if speech:
                runs[-1].append((sequence, position))
            previous = bool(speech)
    return runs


def random_mask(seed: int, sequences: int = 4, length: int = 23) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack(
        [np.repeat(rng.random(length) < 0.5, rng.integers(1, 5, length))[:length] for _ in range(sequences)]
    )


@pytest.mark.parametrize("seed", range(20))
def test_packing_equals_walking(seed: int) -> None:
    mask = random_mask(seed)
    runs, expected = pack_runs(mask), plain_runs(mask)
    assert runs.num_runs == len(expected)
    assert runs.max_run == max(map(len, expected))
    boundaries = runs.cu_seqlens.tolist()
    for number, run in enumerate(expected):
        part = slice(boundaries[number], boundaries[number + 1])
        assert runs.rows[part].tolist() == [t * len(mask) + b for b, t in run]
        assert runs.positions[part].tolist() == [t for _, t in run]
        assert runs.scatter[part].tolist() == [number * runs.max_run + i for i in range(len(run))]
    assert boundaries[-1] == runs.num_positions == mask.sum()


@pytest.mark.parametrize("mask", [np.zeros((2, 5), bool), np.ones((2, 5), bool), np.zeros((1, 1), bool)])
def test_packing_of_all_or_nothing(mask: np.ndarray) -> None:
    runs = pack_runs(torch.from_numpy(mask))
    assert runs.num_positions == mask.sum()
    assert runs.num_runs == (len(mask) if mask.any() else 0)
    assert runs.cu_seqlens.dtype == torch.int32
    assert runs.rows.dtype == runs.scatter.dtype == runs.positions.dtype == torch.int64


def test_packing_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="expected"):
        pack_runs(np.zeros(3, bool))


def dense_attention(query: Tensor, key: Tensor, value: Tensor, runs: SpeechRuns) -> Tensor:
    number = torch.repeat_interleave(torch.arange(runs.num_runs), runs.cu_seqlens.diff().long())
    mask = (number[:, None] == number) & torch.ones(len(number), len(number), dtype=torch.bool).tril()
    share = query.shape[1] // key.shape[1]
    keys, values = (t.repeat_interleave(share, dim=1).transpose(0, 1) for t in (key, value))
    return functional.scaled_dot_product_attention(query.transpose(0, 1), keys, values, attn_mask=mask).transpose(0, 1)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_run_attention_equals_a_dense_mask(seed: int, heads: int, groups: int) -> None:
    torch.manual_seed(seed)
    runs = pack_runs(random_mask(seed))
    shapes = ((runs.num_positions, heads, 6), (runs.num_positions, groups, 6), (runs.num_positions, groups, 6))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weight = torch.randn(shapes[0], dtype=torch.float64)
    found, expected = run_attention(*inputs, runs), dense_attention(*inputs, runs)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_row_operations_pass_gradcheck() -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    source = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([4, 1])
    assert torch.equal(gather_rows(base, rows), base[rows])
    assert torch.autograd.gradcheck(lambda x: gather_rows(x, rows), base)
    assert torch.autograd.gradcheck(lambda x: place_rows(x, rows, 6), source)
    assert torch.autograd.gradcheck(lambda x, y: replace_rows(x, rows, y), (base, source))
    states = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(select_columns(states, rows), states[:, rows])
    assert torch.autograd.gradcheck(lambda x: select_columns(x, rows), states)
