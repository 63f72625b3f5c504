"""Buckets of gradients: how they are cut, when they are sent, and in which order."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tolktrain.parallel.layout import initialize
from tolktrain.train.deepspeed.bf16_update import accumulate_in_few_passes
from tolktrain.train.deepspeed.reduction import BucketedReduction
from tolktrain.train.optimizer import in_buckets

SIZES = (4, 2, 2, 3)  # of the parameters, in the order of the forward pass; two in each bucket


def parameters_of(*sizes: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(size, dtype=torch.bfloat16)) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([3, 3, 3, 3], 6, [[3, 3], [3, 3]]),
        ([1, 2, 3], 3, [[1, 2], [3]]),
        ([9, 1, 1], 4, [[9], [1, 1]]),
        ([1, 9, 1], 4, [[1], [9], [1]]),
        ([2, 3, 3], 6, [[2], [3, 3]]),  # the first one is not full
        ([5], 1, [[5]]),
        ([1, 2], 100, [[1, 2]]),
    ],
)
def test_buckets(sizes: list[int], limit: int, expected: list[list[int]]) -> None:
    assert [[p.numel() for p in bucket] for bucket in in_buckets(parameters_of(*sizes), limit)] == expected


class Step:
    """A reduction over one rank whose messages are noted, and the parameters and sums of one group."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_micro_batches: int, **entries: Any) -> None:
        self.parameters, self.flat = parameters_of(*SIZES), torch.full((12,), 7.0)  # one element is padding
        optimizer = SimpleNamespace(
            bf16_groups=[self.parameters],
            fp32_groups_gradients=[list(self.flat[:11].split(list(SIZES)))],
            fp32_groups_gradients_flat=[self.flat],
            fp32_groups_gradient_flat_partition=[self.flat],
            fp32_groups_has_gradients=[[False] * 4],
            immediate_grad_update=False,
            update_hp_grads=None,
        )
        self.engine = SimpleNamespace(optimizer=optimizer, module=torch.nn.ParameterList(self.parameters))
        accumulation = accumulate_in_few_passes(self.engine)
        assert accumulation is not None
        settings = {
            "gradient_accumulation_steps": num_micro_batches,
            "zero_optimization": {"reduce_bucket_size": 6, **entries},
        }
        self.reduction = BucketedReduction(self.engine, accumulation, initialize(), settings, scatter=False)
        self.sent: list[list[float]] = []
        all_reduce = dist.all_reduce

        def noting(tensor: torch.Tensor, **options: Any) -> Any:
            self.sent.append(tensor.tolist())
            return all_reduce(tensor, **options)

        monkeypatch.setattr(dist, "all_reduce", noting)

    def backward(self, *order: int, factor: float = 1.0) -> None:
        """The backward pass of a micro batch that reaches parameters in this order."""
        for place in order:
            (self.parameters[place].sum() * factor * (place + 1)).backward()

    def finish_micro_batch(self) -> None:
        self.engine.optimizer.update_hp_grads()

    def finish(self) -> None:
        self.engine._reduce_non_expert_gradients([], 0)
        self.found = self.flat.tolist()
        self.engine.optimizer.clear_hp_grads()


FIRST, LAST = [1.0] * 4 + [2.0] * 2, [3.0] * 2 + [4.0] * 3


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_a_bucket_is_sent_in_the_last_backward_pass_once_it_is_complete(
    monkeypatch: pytest.MonkeyPatch, num_micro_batches: int
) -> None:
    """The last parameters first, whichever is complete first."""
    step = Step(monkeypatch, num_micro_batches)
    last = [num_micro_batches * value for value in LAST]
    for seed in range(2):  # of two steps
        step.sent.clear()
        for _ in range(num_micro_batches - 1):
            step.backward(3, 2, 1, 0)
            assert not step.sent
            step.finish_micro_batch()
        step.backward(0, 1, 2)
        assert not step.sent
        step.backward(3)
        assert len(step.sent) == 2 and step.sent[0][:5] == last, seed
        step.finish_micro_batch()
        step.finish()
        assert step.found[:11] == [num_micro_batches * value for value in FIRST + LAST]
        assert all(parameter.grad is None for parameter in step.parameters)


def test_without_overlap_all_is_sent_after_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch, 1, overlap_comm=False)
    step.backward(3, 2, 1, 0)
    step.finish_micro_batch()
    assert not step.sent
    step.finish()
    assert len(step.sent) == 2 and step.found[:11] == FIRST + LAST


def test_a_part_without_gradients_is_sent_as_zero_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks may have one: the order must not depend on it."""
    step = Step(monkeypatch, 1)
    step.backward(1, 0, 3)
    assert not step.sent
    step.finish_micro_batch()
    step.finish()
    assert step.found[:11] == [*FIRST, 0.0, 0.0, *[4.0] * 3]
    assert [len(message) for message in step.sent] == [6, 6] and step.sent[0][:5] == [0.0, 0.0, 4.0, 4.0, 4.0]


def test_a_second_gradient_in_a_backward_pass_is_not_lost_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(monkeypatch, 1)
    step.backward(3, 2)
    with pytest.raises(AssertionError, match="more than one gradient"):
        step.backward(2)
