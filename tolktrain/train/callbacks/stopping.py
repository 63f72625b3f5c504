"""Stops training after a signal."""

import contextlib
import logging
import signal
import time
from typing import Protocol

import torch
import torch.distributed as dist

from tolktrain.cluster.signals import StopRequest
from tolktrain.parallel.layout import Layout
from tolktrain.train.callbacks.base import NoCallback
from tolktrain.train.loop import StageRun

_UNSAVED_SECONDS = 30.0  # for data that several ranks wait for: if it comes, the steps that are done are saved

logger = logging.getLogger(__name__)


class Stop(Protocol):
    """A request that may arrive at any time, as `tolktrain.cluster.signals.StopRequest`."""

    @property
    def requested(self) -> bool:
        """Whether to stop after the current step."""

    @property
    def reason(self) -> str:
        """The source of the request."""

    @property
    def age_seconds(self) -> float | None:
        """Time since the signal; None without one."""


class StopOnRequest(NoCallback):
    """Stops all ranks after the same step, although the signal may reach them at different steps.

    A signal before the first step stops them there, without a checkpoint.

    A single process has nobody to agree with. So a signal also interrupts it where it waits for data, which may never
    come, by the exception `StopRaised`. Several ranks are ended by their watchdog if one of them waits for longer.
    """

    def __init__(self, stop: Stop | None, layout: Layout) -> None:
        self._stop = stop
        self._layout = layout
        self._interrupts = stop if isinstance(stop, StopRequest) else None
        self._reason = ""
        self._agreed_at = 0.0
        self._seconds_before = 0.0  # from the signal until all ranks had agreed

    def before_training(self) -> bool:
        """Whether a signal has reached any rank; called at several points of the start. Collective."""
        stop = self._stop
        age = None if stop is None else stop.age_seconds
        return self._agree(age is not None, "before the next step")

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """In this context, which begins before the first step, a signal interrupts nothing."""
        return contextlib.nullcontext() if self._interrupts is None else self._interrupts.noted()

    def interrupting(self, unsaved: bool) -> contextlib.AbstractContextManager[None]:
        """In this context, a signal raises `StopRaised` in a single process. If nothing is `unsaved`, the process also
        ends if it does not react to the exception. Of several ranks, a signal ends all that remain in it for long."""
        if self._interrupts is None:
            return contextlib.nullcontext()
        if self.is_alone:
            return self._interrupts.raised_again(not unsaved)
        return self._interrupts.limited(_UNSAVED_SECONDS if unsaved else None)

    def limited(self) -> contextlib.AbstractContextManager[None]:
        """In this context, the job ends some seconds after a signal."""
        return contextlib.nullcontext() if self._interrupts is None else self._interrupts.limited()

    def on_stage_start(self, run: StageRun) -> None:
        """Check all ranks before the first step."""
        run.stop = self.before_training()

    def on_step(self, run: StageRun) -> None:
        """Check all ranks after a step."""
        asked = self._stop is not None and self._stop.requested
        run.stop = self._agree(asked, f"after step {run.step} with a checkpoint", in_step=True)

    def after_validation(self, run: StageRun) -> None:
        """Check all ranks again: a signal during a validation must not wait for another step."""
        if self._interrupts is not None:
            self.on_step(run)

    def on_interrupt(self, run: StageRun) -> None:
        """Stop after the last step."""
        run.stop = self._agree(True, f"after step {run.step}", in_step=True)

    @property
    def is_alone(self) -> bool:
        """Whether this is the only rank."""
        return self._layout.world_size == 1

    @property
    def asked_at_terminal(self) -> bool:
        """Whether it was Ctrl-C."""
        return self._reason == signal.SIGINT.name

    @property
    def must_stop(self) -> bool:
        """Whether this rank was asked to stop, or all ranks have decided to. Not collective."""
        return bool(self._reason) or (self._stop is not None and self._stop.requested)

    def duration(self) -> dict[str, float | str]:
        """The time since the signal: `signal`, `seconds`, `seconds_to_step_end`, `seconds_to_save`."""
        saving = time.monotonic() - self._agreed_at
        return {
            "signal": self._reason,
            "seconds": self._seconds_before + saving,
            "seconds_to_step_end": self._seconds_before,
            "seconds_to_save": saving,
        }

    def _agree(self, asked: bool, when: str, in_step: bool = False) -> bool:
        number, age = -1.0, -1.0
        if asked and self._stop is not None:
            age = self._stop.age_seconds or 0.0
            number = float(_number(self._stop.reason))
            logger.info("%s arrived %.1f s ago on this rank", self._stop.reason, age)
        if self._layout.world_size > 1:
            everyone = torch.tensor((age, number), dtype=torch.float64)
            dist.all_reduce(everyone, op=dist.ReduceOp.MAX)
            age, number = everyone.tolist()
        if age < 0:
            return False
        own = self._stop.reason if asked and self._stop is not None else ""
        self._reason = own or _name(int(number))
        self._agreed_at, self._seconds_before = time.monotonic(), age
        # After Ctrl-C, the message that training stops after the step was already printed.
        level = logging.INFO if in_step and self.asked_at_terminal else logging.WARNING
        logger.log(level, "%s: stopping %s", self._reason, when)
        return True


def _number(reason: str) -> int:
    return signal.Signals[reason].value if reason in signal.Signals.__members__ else 0


def _name(number: int) -> str:
    return signal.Signals(number).name if number else "a request"
