"""Reports the rank that the others wait for."""

import logging
import socket

import torch
import torch.distributed as dist

from tolktrain.cluster.straggler import PERSISTENT, OwnTime, Slowest, find_slowest
from tolktrain.parallel.layout import Layout
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.loop import StageRun
from tolktrain.train.timing import ForwardClock

logger = logging.getLogger(__name__)


class Straggler(NoCallback):
    """Every `every_steps` steps, finds the rank with the most time for its own data and forward passes.

    It is written to the step's line of metrics.jsonl, and a warning is logged if the same rank stays slow.
    `tolktrain.cluster.straggler` describes the limits of this method.
    """

    def __init__(self, every_steps: int, layout: Layout, gathers_parameters: bool) -> None:
        """`gathers_parameters`: whether data ranks wait for each other in the forward pass too (ZeRO 3)."""
        self._every_steps = every_steps
        self._layout = layout
        self._gathers_parameters = gathers_parameters
        self._clock = ForwardClock(layout.device)
        self._hosts: list[str] = []
        self._sums = torch.zeros(3, dtype=torch.float64)  # seconds of data, forward passes, whole steps
        self._num_steps = 0
        self._is_first = True
        self._slow: list[Slowest] = []  # the last consecutive findings that name the same ranks

    def on_stage_start(self, run: StageRun) -> None:
        """Start measuring the stage's model. Collective."""
        if self._layout.world_size == 1:
            return
        run.engine.model.time_training(self._clock.measured)
        self._is_first = True
        if not self._hosts:
            hosts = [""] * self._layout.world_size
            dist.all_gather_object(hosts, socket.gethostname())
            self._hosts = hosts

    def on_step(self, run: StageRun) -> None:
        """Add the times of the step; compare all ranks if it is due. Collective."""
        if self._layout.world_size == 1:
            return
        seconds = self._clock.take()
        # The first step starts loader processes and compiles kernels, on some ranks more than on others.
        if not self._is_first:
            self._sums += torch.tensor((run.data_seconds, seconds, run.seconds), dtype=torch.float64)
            self._num_steps += 1
        self._is_first = False
        # The same steps on all ranks, whenever each of them began.
        if run.step % self._every_steps == 0 and self._num_steps:
            run.notes |= self._compare(run.step)

    def _compare(self, step: int) -> dict[str, float | str]:
        mine = self._sums / self._num_steps
        self._sums, num_steps, self._num_steps = torch.zeros_like(mine), self._num_steps, 0
        everyone = [torch.empty_like(mine) for _ in range(self._layout.world_size)]
        dist.all_gather(everyone, mine)  # on the host
        if self._layout.rank != 0:
            return {}
        times = [self._own_time(rank, *part.tolist()[:2]) for rank, part in enumerate(everyone)]
        slowest = find_slowest(times, float(mine[2]))
        self._check_slowest(slowest, step, num_steps)
        if slowest is None:
            return {}
        return {
            "slowest_rank": slowest.rank,
            "slowest_node": self._hosts[slowest.rank],
            "slowest_factor": slowest.factor,
            "slowest_part": slowest.part,
            "slowest_data_seconds": slowest.data_seconds,
            "slowest_compute_seconds": slowest.compute_seconds,
        }

    def _own_time(self, rank: int, data: float, compute: float) -> OwnTime:
        layout = self._layout
        replica = rank // layout.tensor_size  # counts tensor groups: data rank in pipeline stage
        stage = replica // layout.data_size
        return OwnTime(rank, stage, 0 if self._gathers_parameters else replica, data, compute)

    def _check_slowest(self, slowest: Slowest | None, step: int, num_steps: int) -> None:
        """Warn once if the same ranks have been slow for some time, and again when they are no longer slow."""
        before = self._slow
        if slowest is None or not slowest.matters:
            self._slow = []
        else:
            same = bool(before) and before[-1].group == slowest.group
            self._slow = [*(before if same else []), slowest][-PERSISTENT - 1 :]
            if len(self._slow) == PERSISTENT:
                logger.warning("%s", self._message(slowest, step, num_steps))
        if len(before) >= PERSISTENT and len(self._slow) < 2:
            logger.warning("step %d: rank %d is no longer the slowest by far", step, before[-1].rank)

    def _message(self, slowest: Slowest, step: int, num_steps: int) -> str:
        name = f"rank {slowest.rank}"
        if len(slowest.group) > 1:
            name = f"one of ranks {', '.join(map(str, slowest.group))}, which wait for each other in computing,"
        nodes = ", ".join(sorted({self._hosts[rank] for rank in slowest.group}))
        return (
            f"step {step}: {name} on {nodes} is slow and holds the others up. In the last {num_steps} steps it took"
            f" {slowest.seconds:.3g} s per step for its own work, {slowest.factor:.1f} times the median of the others,"
            f" by {slowest.part}; that costs {slowest.share:.0%} of the step. Compare its node's disk, network, clock"
            " rates and other processes with the others'"
        )
