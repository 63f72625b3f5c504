"""Ways in which layouts go wrong without a word, if what guards against them is taken away."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import layout_cases
import torch
from torch import Tensor, nn
from torch.nn import functional

from tolktrain.config.deepspeed import DeepSpeedSettings
from tolktrain.data.batch import Batch
from tolktrain.model.loss import LossCounts
from tolktrain.model.transformer import RowLinear
from tolktrain.train.deepspeed import engine
from tolktrain.train.deepspeed.engine import Engine


@contextlib.contextmanager
def taken_away(cure: str) -> Iterator[None]:
    """Train without a cure; "" leaves all in place."""
    with contextlib.ExitStack() as stack:
        if cure:
            stack.enter_context(_patch(cure))
        yield


def _patch(cure: str) -> Any:
    if cure == "sums over the tensor group":
        return mock.patch.object(engine, "sum_over_tensor_group", lambda *_: [])
    if cure == "sums over tied tables":
        from tolktrain.train.deepspeed.pipeline import StageModule

        return mock.patch.object(StageModule, "get_tied_weights_and_groups", lambda self: [])
    if cure == "counts of the global batch":
        return mock.patch.object(Engine, "_exchange_counts", _own_counts)
    if cure == "whole activations":
        return mock.patch.object(DeepSpeedSettings, "for_engine", _partitioned(DeepSpeedSettings.for_engine))
    if cure == "one order of samples":
        return mock.patch.object(layout_cases, "order_seed", lambda layout: 3 + layout.pipeline_rank)
    if cure == "whole products":
        return mock.patch.object(RowLinear, "forward", _in_halves)
    raise AssertionError(f"no such cure: {cure}")


def _own_counts(self: Engine, batches: Sequence[Batch]) -> LossCounts:
    """As if each rank took the mean over its own positions, and DeepSpeed the mean over ranks."""
    counts = [(batch.num_text_scored, batch.num_speech_scored, batch.num_entropy_positions) for batch in batches]
    return LossCounts(*(sum(column) * self._layout.data_size for column in zip(*counts, strict=True)))


def _partitioned(for_engine: Any) -> Any:
    def with_partitions(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**for_engine(*args, **kwargs), "pipeline": {"pipe_partitioned": True, "grad_partitioned": True}}

    return with_partitions


def _in_halves(self: nn.Module, hidden: Tensor) -> tuple[Tensor, None]:
    """A product as two tensor ranks compute it: two sums, each rounded, then added. No trap: what rounding may do."""
    halves = zip(hidden.chunk(2, dim=-1), self.weight.chunk(2, dim=1), strict=True)
    first, second = (functional.linear(part, weight) for part, weight in halves)
    return torch.add(first, second), None
