"""What a person reads when training is asked to stop."""

import logging
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tolktrain.cluster.signals import StopRequest
from tolktrain.train.callbacks.stopping import StopOnRequest


@pytest.mark.parametrize(
    ("number", "level"), [(signal.SIGINT, logging.INFO), (signal.SIGUSR1, logging.WARNING)], ids=["int", "usr1"]
)
def test_after_ctrl_c_nothing_is_said_twice(
    number: signal.Signals, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Warnings reach the terminal, where the handler of Ctrl-C has spoken. That training stops before a step it did
    not say."""
    stop, run = StopRequest(), cast(Any, SimpleNamespace(step=3, stop=False))
    stopping = StopOnRequest(stop, cast(Any, SimpleNamespace(world_size=1)))
    assert not stopping.before_training()
    stop.request(number)
    with caplog.at_level(logging.INFO, "tolktrain"):
        stopping.on_step(run)
        assert stopping.before_training()
    assert run.stop
    said = [(record.levelno, record.getMessage()) for record in caplog.records if ": stopping" in record.getMessage()]
    assert said == [
        (level, f"{number.name}: stopping after step 3 with a checkpoint"),
        (logging.WARNING, f"{number.name}: stopping before the next step"),
    ]
