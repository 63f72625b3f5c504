"""Runs of speech, against plain loops, and what moves rows."""

import numpy as np
import pytest
import torch

from tolktrain_kernels.speech_adapter import (
    gather_rows,
    pack_segments,
    place_rows,
    replace_rows,
    select_columns,
)


def plain_runs(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """(sequence, position) of each run, by walking."""
    segments: list[list[tuple[int, int]]] = []
    for sequence, row in enumerate(mask):
        previous = False
        for position, speech in enumerate(row):
            if speech and not previous:
                segments.append([])
            if speech:
                segments[-1].append((sequence, position))
            previous = bool(speech)
    return segments


def random_mask(seed: int, sequences: int = 4, length: int = 23) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack(
        [np.repeat(rng.random(length) < 0.5, rng.integers(1, 5, length))[:length] for _ in range(sequences)]
    )


@pytest.mark.parametrize("seed", range(20))
def test_packing_equals_walking(seed: int) -> None:
    mask = random_mask(seed)
    segments, expected = pack_segments(mask), plain_runs(mask)
    assert segments.num_segments == len(expected)
    assert segments.max_segment == max(map(len, expected))
    boundaries = segments.cu_seqlens.tolist()
    for number, run in enumerate(expected):
        part = slice(boundaries[number], boundaries[number + 1])
        assert segments.rows[part].tolist() == [t * len(mask) + b for b, t in run]
        assert segments.positions[part].tolist() == [t for _, t in run]
        assert segments.scatter[part].tolist() == [number * segments.max_segment + i for i in range(len(run))]
    assert boundaries[-1] == segments.num_positions == mask.sum()
    assert segments.places.tolist() == [
        segments.rows.tolist().index(t * len(mask) + b) if mask[b, t] else -1
        for t in range(mask.shape[1])
        for b in range(len(mask))
    ]


@pytest.mark.parametrize("mask", [np.zeros((2, 5), bool), np.ones((2, 5), bool), np.zeros((1, 1), bool)])
def test_packing_of_all_or_nothing(mask: np.ndarray) -> None:
    segments = pack_segments(torch.from_numpy(mask))
    assert segments.num_positions == mask.sum()
    assert segments.num_segments == (len(mask) if mask.any() else 0)
    assert segments.cu_seqlens.dtype == torch.int32
    assert segments.rows.dtype == segments.scatter.dtype == segments.positions.dtype == torch.int64


def test_packing_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="expected"):
        pack_segments(np.zeros(3, bool))


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
