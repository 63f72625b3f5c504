"""Reduction of gradients over the data ranks under ZeRO 1 in bf16, in buckets, during the last backward pass of a step.

DeepSpeed reduces all gradients after that pass, so that nothing hides the traffic. With offload, in float32, and under
ZeRO 2 and 3, DeepSpeed's own code is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tolktrain.parallel.layout import Layout
from tolktrain.train.deepspeed.bf16_update import Accumulation
from tolktrain.train.deepspeed.compat import (
    FlatGradients,
    copy_each,
    flat_gradients,
    norm_of_partitions,
    reduce_by,
    without_averaging,
)
from tolktrain.train.optimizer import in_buckets


@dataclass(frozen=True)
class Bucket:
    """Consecutive parameters of an optimizer group, whose gradients are reduced in one message."""

    group: int
    places: range  # of the parameters in the group
    sums: Tensor  # float32, flat: the accumulated gradients, and padding in the last bucket of a group
    own: Tensor  # the view of `sums` that this rank updates; only meaningful if gradients are scattered


@dataclass(frozen=True)
class Message:
    """A bucket that is being reduced."""

    work: dist.Work
    outgoing: Tensor  # kept because the collective reads it on another stream
    arriving: Tensor  # the sums
    place: Tensor  # for the sums, float32


class BucketedReduction:
    """Sums gradients over the data ranks. DeepSpeed would average them.

    While the last micro batch of a step is computed, a bucket is sent as soon as all its gradients exist and all
    earlier buckets were sent. The order is the same on all ranks, whatever they compute. What is left is sent after the
    backward pass. `reduce` waits for all buckets, on a GPU without the host.
    """

    def __init__(
        self, engine: Any, accumulation: Accumulation, layout: Layout, settings: Mapping[str, Any], scatter: bool
    ) -> None:
        """`scatter`: each rank gets the sums of the elements that it updates only, and each optimizer group is a bucket
        (`scatters`)."""
        self._accumulation, self._data_group, self._scatter = accumulation, layout.data_group, scatter
        self._dtype = torch.float32 if settings.get("communication_data_type") == "fp32" else torch.bfloat16
        self._num_micro_batches: int = settings["gradient_accumulation_steps"]
        groups, zero = flat_gradients(engine), settings["zero_optimization"]
        size = sum(len(group.sums) for group in groups) if scatter else zero["reduce_bucket_size"]
        order = {parameter: place for place, parameter in enumerate(engine.module.parameters())}
        # The backward pass reaches the first parameters last.
        self._buckets = sorted(
            (bucket for number, group in enumerate(groups) for bucket in cut_group(number, group, size)),
            key=lambda bucket: -min(order[groups[bucket.group].parameters[place]] for place in bucket.places),
        )
        self._sent: list[Message] = []
        self._num_done = 0  # micro batches of this step
        self._missing = [len(bucket.places) for bucket in self._buckets]
        self._hooks: list[RemovableHandle] = []
        if scatter:
            norm_of_partitions(engine, groups, layout)
        accumulation.after_each(self._count, self._forget)
        reduce_by(engine, self.reduce)
        if zero.get("overlap_comm", True):
            self._hooks = [
                groups[bucket.group].parameters[place].register_post_accumulate_grad_hook(self._hook(number))
                for number, bucket in enumerate(self._buckets)
                for place in bucket.places
            ]

    def reduce(self) -> None:
        """Send the buckets that are left, and wait until all sums are those of all data ranks."""
        while len(self._sent) < len(self._buckets):
            self._send(complete=False)
        for message in self._sent:
            message.work.wait()
        arrived = [message for message in self._sent if message.arriving is not message.place]
        if arrived:
            copy_each([item.place for item in arrived], [item.arriving for item in arrived])
        self._sent.clear()

    def remove(self) -> None:
        """Remove the hooks from the parameters."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, number: int) -> Any:
        def ready(parameter: nn.Parameter) -> None:
            if self._num_done < self._num_micro_batches - 1:
                return
            # A second gradient of a parameter would be lost, silently.
            assert self._missing[number] > 0, "a parameter had more than one gradient in a backward pass"
            self._missing[number] -= 1
            while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
                self._send(complete=True)

        return ready

    @torch.no_grad()
    def _send(self, complete: bool) -> None:
        """Send the next bucket. `complete`: all its gradients exist and were not added to the sums."""
        bucket = self._buckets[len(self._sent)]
        if complete and self._num_micro_batches == 1 and self._dtype == torch.bfloat16:
            # The only gradients are in bf16 already.
            gradients = self._accumulation.take(bucket.group, bucket.places)
            padding = len(bucket.sums) - sum(map(len, gradients))
            outgoing = torch.cat([*gradients, bucket.sums.new_zeros(padding, dtype=self._dtype)])
        else:
            self._accumulation.add(bucket.group, bucket.places)
            outgoing = bucket.sums.to(self._dtype)
        if self._scatter:
            arriving, place = outgoing.new_empty(len(bucket.own)), bucket.own
            work = dist.reduce_scatter_tensor(arriving, outgoing, group=self._data_group, async_op=True)
        else:
            arriving, place = outgoing, bucket.sums
            work = dist.all_reduce(outgoing, group=self._data_group, async_op=True)
        assert work is not None  # this rank is in the group
        self._sent.append(Message(work, outgoing, arriving, place))

    def _count(self) -> None:
        self._num_done += 1

    def _forget(self) -> None:
        assert not self._sent
        self._num_done = 0
        self._missing = [len(bucket.places) for bucket in self._buckets]


def reduce_gradients(
    engine: Any, accumulation: Accumulation | None, layout: Layout, settings: Mapping[str, Any]
) -> BucketedReduction | None:
    """Let ZeRO 1 in bf16 reduce in buckets; with one data rank, not at all.

    Returns the reduction if there is one. Gradients are then summed over the data ranks; otherwise, averaged.
    """
    if layout.data_size == 1:
        without_averaging(engine)
    if accumulation is None or layout.data_size == 1:
        return None
    return BucketedReduction(engine, accumulation, layout, settings, scatters(settings, layout))


def scatters(settings: Mapping[str, Any], layout: Layout) -> bool:
    """Whether `reduce_gradients` will scatter the sums. The optimizer must then have one group for each bucket.

    DeepSpeed gives each data rank one contiguous part of each group, so that only a whole group can be scattered.
    Pipeline stages must have the same number of groups, and need whole gradients of tied tables.
    """
    zero = settings["zero_optimization"]
    offloads = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    has_flat_gradients = (
        settings["bf16"]["enabled"]
        and zero["stage"] == 1
        and settings["data_types"]["grad_accum_dtype"] == "fp32"
        and not settings["bf16"].get("immediate_grad_update")
        and not offloads
    )
    several = layout.data_size > 1 and layout.pipeline_size == 1
    return bool(has_flat_gradients and several and zero.get("reduce_scatter", True))


def cut_group(number: int, group: FlatGradients, size: int) -> list[Bucket]:
    """Buckets of a group, of at most `size` elements or one parameter each."""
    buckets, start, offset = [], 0, 0
    for part in in_buckets(group.parameters, size):
        end = start + len(part)
        is_last = end == len(group.parameters)
        stop = len(group.sums) if is_last else offset + sum(parameter.numel() for parameter in part)
        buckets.append(Bucket(number, range(start, end), group.sums[offset:stop], group.own))
        start, offset = end, stop
    return buckets
