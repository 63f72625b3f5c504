"""Stops when asked to by a signal."""

import logging
from typing import Protocol

import torch
import torch.distributed as dist

from tolktrain.parallel.layout import Layout
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.loop import StageRun

logger = logging.getLogger(__name__)


class Stop(Protocol):
    """A request that may arrive at any time, as `tolktrain.cluster.signals.StopRequest`."""

    @property
    def requested(self) -> bool:
        """Whether to stop after the current step."""

    @property
    def reason(self) -> str:
        """Who asked."""


class StopOnRequest(NoCallback):
    """Lets all ranks stop after the same step, at whichever step the signal has reached each of them."""

    def __init__(self, stop: Stop | None, layout: Layout) -> None:
        self._stop = stop
        self._layout = layout

    def on_step(self, run: StageRun) -> None:
        """Ask all ranks."""
        asked = self._stop is not None and self._stop.requested
        if self._layout.world_size > 1:
            anyone = torch.tensor(int(asked))
            dist.all_reduce(anyone, op=dist.ReduceOp.MAX)
            run.stop = bool(anyone.item())
        else:
            run.stop = asked
        if asked and self._stop is not None:
            logger.warning("%s: stopping after step %d with a checkpoint", self._stop.reason, run.step)
