"""Steps from which nothing is learned: an error at the beginning of a run, later a warning with their number."""

import json
import logging
from pathlib import Path

import pytest
from launched import launch
from small_runs import NOTHING_SCORED, read_metrics, small_config
from warm import Warm

from tolktrain.errors import UserError
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import LossSums
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.train.run import train

LENGTH = "raise train.sequence_length, because of recognition only what follows the condition is scored"
ZERO = "its loss is exactly 0"


def test_a_first_step_without_a_scored_position_is_refused(tmp_path: Path, sets: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(small_config(tmp_path, sets, *NOTHING_SCORED))
    message = str(caught.value)
    assert message.startswith("the stage 'text' learns nothing from a step: none of its 8 sequences of 2 positions ")
    assert LENGTH in message and message.endswith("or change the strategies or data sets in the mixture of the stage")
    assert not list((tmp_path / "runs" / "small" / "checkpoints").glob("step-*"))


def test_later_steps_are_counted(tmp_path: Path, sets: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second stage has five steps without a scored position: reported at the first, second, fourth and last. Its
    validations have none either, which is reported once."""
    nothing = [setting.replace("stages.0", "stages.1") for setting in NOTHING_SCORED]
    overrides = ("train.stages.0.tokens=16", "train.stages.1.tokens=80", "train.last_stage=adapter")
    overrides += ("train.stages.0.schedule.warmup_steps=0", "train.stages.0.schedule.decay_steps=0")
    overrides += ("train.validation.strategies=[text, recognition]", "train.validation.every_steps=2")
    with caplog.at_level(logging.WARNING):
        assert train(small_config(tmp_path, sets, *nothing, *overrides)) == 0
    found = [record.getMessage() for record in caplog.records if "learns nothing" in record.getMessage()]
    assert [message.partition(" of the stage so far: ")[0] for message in found] == [
        "step 2, 1 such steps",
        "step 3, 2 such steps",
        "step 5, 4 such steps",
        "step 6, 5 such steps",
    ]
    assert all("the stage 'adapter' learns nothing" in message and LENGTH in message for message in found)
    lines = read_metrics(tmp_path / "runs" / "small")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 7))
    unscored = [record.getMessage() for record in caplog.records if "none of the positions" in record.getMessage()]
    assert unscored == [
        "validation.recognition.held.loss is 0 because none of the positions is scored; raise train.sequence_length, or"
        " remove recognition from train.validation.strategies"
    ]
    losses = [[line[f"validation.{name}.held.loss"] for line in lines if f"validation.{name}.held.loss" in line]
              for name in ("recognition", "text")]  # fmt: skip
    assert len(losses[0]) > 1 and set(losses[0]) == {0.0} and all(loss > 0 for loss in losses[1])


@pytest.mark.parametrize("first", [1, 3])
def test_a_loss_of_exactly_zero(
    tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    """From the first step of the run, or from the third."""
    forward, calls = SmolTolk.forward, iter(range(1, 1000))

    def certain(self: SmolTolk, inputs: ModelInputs) -> LossSums:
        sums = forward(self, inputs)
        return LossSums(*(part * 0.0 for part in sums)) if next(calls) >= first else sums

    monkeypatch.setattr(SmolTolk, "forward", certain)
    overrides = (
        "train.micro_batch_size=8",
        "train.validation.sets=[]",
        "train.max_steps=4",
        "checkpoint.every_steps=1",
    )
    config = small_config(tmp_path, sets, *overrides)
    if first == 1:
        with pytest.raises(UserError, match=f"^the stage 'text' learns nothing from a step: {ZERO}.*--inspect"):
            train(config)
        assert not list((tmp_path / "runs" / "small" / "checkpoints").glob("step-*"))
        return
    with caplog.at_level(logging.WARNING):
        assert train(config) == 0
    found = [record.getMessage() for record in caplog.records if ZERO in record.getMessage()]
    assert [message[:20] for message in found] == ["step 3, 1 such steps", "step 4, 1 such steps"]


@pytest.mark.slow
def test_a_run_that_learns_says_nothing(uninterrupted: Path) -> None:
    logs = "".join(path.read_text() for path in (uninterrupted / "logs").glob("*"))
    assert "learns nothing" not in logs


@pytest.mark.slow
def test_all_ranks_decide_alike(warm: Warm, tmp_path: Path, sets: Path) -> None:
    """Under data, tensor and pipeline parallelism; also where the loss is 0 on rank 0 alone."""
    launch(warm, "idle_ranks.py", 2, tmp_path, sets)
    refusals = [json.loads((tmp_path / f"refusals-{rank}.json").read_text()) for rank in range(2)]
    assert refusals[0] == refusals[1] and len(refusals[0]) == 6
    assert all(LENGTH in message for message in refusals[0][::2])
    assert all(ZERO in message for message in refusals[0][1::2])
