"""Accumulation of gradients and the update under ZeRO 1 in bf16, in few passes over memory.

Replaces methods of DeepSpeed's BF16_Optimizer, whose private names `compat.DEEPSPEED` lists.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tolktrain_kernels.backend import Backend


class Accumulation:
    """ZeRO 1 in bf16: sums of gradients in float32. Made by `accumulate_in_few_passes`."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        # Whether a sum is that of this step.
        self._valid = [[False] * len(group) for group in optimizer.bf16_groups]
        self._actions: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._kept = self._num_done = 0  # the number of the micro batch whose gradients are left, and of those so far
        optimizer.update_hp_grads, optimizer.clear_hp_grads = self._add_all, self._forget

    def after_each(self, added: Callable[[], None], forgotten: Callable[[], None]) -> None:
        """Call `added` after the gradients of each micro batch were added, and `forgotten` when a step has ended."""
        self._actions.append((added, forgotten))

    def add(self, group: int, places: Iterable[int]) -> None:
        """Add the gradients of parameters of a group, and release them. Without a gradient, zero is added."""
        self._add([(group, places)])

    def take(self, group: int, places: Iterable[int]) -> list[Tensor]:
        """The flat gradients of parameters of a group, all of which have one, and release them. Their sums are not
        set, so that they must be overwritten before the end of the step."""
        taken = []
        for place in places:
            parameter = self._optimizer.bf16_groups[group][place]
            taken.append(parameter.grad.reshape(-1))
            self._release(group, place)
        return taken

    def leave_last(self, num_micro_batches: int) -> None:
        """Do not add the gradients of the last micro batch of each step. `last` has them until the step has ended."""
        self._kept = num_micro_batches

    def last(self, group: int) -> list[Tensor | None]:
        """The gradients of the parameters of a group that were left, flat."""
        gradients = (parameter.grad for parameter in self._optimizer.bf16_groups[group])
        return [None if gradient is None else gradient.reshape(-1) for gradient in gradients]

    @property
    def has_sums(self) -> bool:
        """Whether there are sums of other gradients than those that were left."""
        return self._num_done > 1

    def _add_all(self, clear_lp_grads: bool = False) -> None:
        self._num_done += 1
        if self._num_done == self._kept:
            self._clear_absent()
            return
        self._add([(group, range(len(parameters))) for group, parameters in enumerate(self._optimizer.bf16_groups)])
        for added, _ in self._actions:
            added()

    @torch.no_grad()
    def _add(self, parts: Iterable[tuple[int, Iterable[int]]]) -> None:
        copied: tuple[list[Tensor], list[Tensor]] = ([], [])
        added: tuple[list[Tensor], list[Tensor]] = ([], [])
        absent: list[Tensor] = []
        for group, places in parts:
            for place in places:
                parameter = self._optimizer.bf16_groups[group][place]
                total = self._optimizer.fp32_groups_gradients[group][place]
                if parameter.grad is not None:
                    totals, gradients = added if self._valid[group][place] else copied
                    totals.append(total)
                    gradients.append(parameter.grad.reshape(-1))
                    self._release(group, place)
                elif not self._valid[group][place]:
                    absent.append(total)
                    self._valid[group][place] = True
        if copied[0]:
            torch._foreach_copy_(*copied)
        if added[0]:
            torch._foreach_add_(*added)
        if absent:
            torch._foreach_zero_(absent)

    @torch.no_grad()
    def _clear_absent(self) -> None:
        """Of parameters that had no gradient in an earlier micro batch. Without one, sums are not read."""
        if self.has_sums:
            pairs = zip(self._valid, self._optimizer.fp32_groups_gradients, strict=True)
            absent = [total for group in pairs for valid, total in zip(*group, strict=True) if not valid]
            if absent:
                torch._foreach_zero_(absent)

    def _release(self, group: int, place: int) -> None:
        parameter = self._optimizer.bf16_groups[group][place]
        parameter.grad, parameter._hp_grad = None, self._optimizer.fp32_groups_gradients[group][place]
        self._valid[group][place] = self._optimizer.fp32_groups_has_gradients[group][place] = True

    def _forget(self) -> None:
        for flags in (self._valid, self._optimizer.fp32_groups_has_gradients):
            for group in flags:
                group[:] = [False] * len(group)
        if self._num_done and self._num_done == self._kept:
            for parameter in itertools.chain.from_iterable(self._optimizer.bf16_groups):
                parameter.grad = None
        self._num_done = 0
        for _, forgotten in self._actions:
            forgotten()


def accumulate_in_few_passes(engine: Any) -> Accumulation | None:
    """Let ZeRO 1 in bf16 copy the gradients of the first micro batch to float32, add later ones, and clear nothing.

    The sums are the same. DeepSpeed converts, adds and clears every gradient by itself in each micro batch, and clears
    the sums twice in each step: 26 bytes more for each parameter (`tests/train/test_accumulation.py`).

    Returns None for other optimizers, and with `immediate_grad_update`.
    """
    optimizer = engine.optimizer
    if not hasattr(optimizer, "update_hp_grads") or optimizer.immediate_grad_update:
        return None
    return Accumulation(optimizer)


def update_in_few_passes(engine: Any, backend: Backend, lone: Accumulation | None = None) -> None:
    """Let ZeRO 1 in bf16 update with few launches, and wait for the GPU once.

    The update is the same, bit by bit with PyTorch's AdamW. DeepSpeed computes the norm of every gradient by itself,
    waits for their norm several times, and clips every gradient by itself, those of other ranks' partitions too. With
    the backend triton, one kernel clips, updates, and rounds to the model's weights.

    `lone`: the gradients of a process without other ranks. With the backend triton, those of the last micro batch are
    then not added: norm and update read them where they are.
    """
    optimizer = engine.optimizer
    if not hasattr(optimizer, "update_hp_grads"):
        return
    left = None
    if backend == "triton" and lone is not None:
        left = _LeftGradients(optimizer, lone, engine.gradient_accumulation_steps())

    @torch.no_grad()
    def step(closure: object = None) -> None:
        gradients = None if left is None else left.of_step()
        norm = _global_norm(optimizer) if gradients is None else _norm_of(gradients)
        value = norm.item()
        optimizer.overflow = not math.isfinite(value)
        optimizer._global_grad_norm = math.inf if optimizer.overflow else value
        if optimizer.overflow:
            optimizer.clear_hp_grads()
            optimizer.clear_lp_grads()
            return
        factor = None
        if 0 < optimizer.clip_grad < 1.0001 * value:  # exactly: if the factor is below 1
            factor = (optimizer.clip_grad / (norm + 1e-6)).clamp(max=1)
        if backend == "triton":
            sums = optimizer.fp32_groups_gradient_flat_partition
            _update_in_triton(optimizer, factor, gradients or [(flat, None) for flat in sums])
        else:
            _update_in_torch(optimizer, factor)
        optimizer.clear_hp_grads()

    optimizer.step = step


class _LeftGradients:
    """The gradients of the last micro batch, which were not added to the sums."""

    def __init__(self, optimizer: Any, accumulation: Accumulation, num_micro_batches: int) -> None:
        from tolktrain_kernels.adamw_triton import LastGradients

        accumulation.leave_last(num_micro_batches)
        self._optimizer, self._accumulation = optimizer, accumulation
        self._groups = [
            LastGradients.of([parameter.numel() for parameter in group], sums.device)
            for group, sums in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients_flat, strict=True)
        ]

    def of_step(self) -> list[tuple[Tensor | None, Any]]:
        """For each group, flat sums of the gradients before, if there are any, and `LastGradients`."""
        sums = self._optimizer.fp32_groups_gradients_flat
        return [
            (sums[place] if self._accumulation.has_sums else None, group.at(self._accumulation.last(place)))
            for place, group in enumerate(self._groups)
        ]


def _norm_of(gradients: Sequence[tuple[Tensor | None, Any]]) -> Tensor:
    from tolktrain_kernels.adamw_triton import sum_squares

    return torch.stack([sum_squares(*group) for group in gradients]).sum().sqrt()


def _update_in_torch(optimizer: Any, factor: Tensor | None) -> None:
    gradients = optimizer.fp32_groups_gradient_flat_partition
    if factor is not None:
        torch._foreach_mul_(gradients, factor)
    for master, gradient in zip(optimizer.fp32_groups_flat_partition, gradients, strict=True):
        master.grad = gradient
    optimizer.optimizer.step()
    optimizer._lazy_init_hp_params_optimizer_state()
    optimizer.update_lp_params()


def _update_in_triton(optimizer: Any, factor: Tensor | None, gradients: Sequence[tuple[Tensor | None, Any]]) -> None:
    from deepspeed.runtime import utils

    from tolktrain_kernels.adamw_triton import step

    groups = optimizer.real_dp_process_group
    for place, settings in enumerate(optimizer.optimizer.param_groups):
        (master,) = settings["params"]
        state = optimizer.optimizer.state[master]
        step(
            master,
            gradients[place][0],
            (state["exp_avg"], state["exp_avg_sq"]),
            optimizer.bf16_partitioned_groups[place][dist.get_rank(group=groups[place])],
            state["step"],
            factor,
            settings["lr"],
            settings["weight_decay"],
            settings["betas"],
            settings["eps"],
            gradients[place][1],
        )
    if any(dist.get_world_size(group=group) > 1 for group in groups):
        utils.all_gather_dp_groups(
            groups_flat=optimizer.bf16_groups_flat,
            partitioned_param_groups=optimizer.bf16_partitioned_groups,
            dp_process_group=groups,
            start_alignment_factor=optimizer.nccl_start_alignment_factor,
            allgather_bucket_size=optimizer.allgather_bucket_size,
        )


def _global_norm(optimizer: Any) -> Tensor:
    """The norm of all gradients of `BF16_Optimizer`, float32 []."""
    gradients, _ = optimizer.get_grads_for_norm()
    norms = torch._foreach_norm(gradients) if gradients else []
    device = optimizer.fp32_groups_gradients_flat[0].device
    squares = torch.stack(list(norms)).pow(2).sum() if norms else torch.zeros((), device=device)
    if optimizer.mpu is not None:
        dist.all_reduce(squares, group=optimizer.mpu.get_model_parallel_group())
    return squares.sqrt()
