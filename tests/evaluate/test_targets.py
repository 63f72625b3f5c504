"""What counts as reached."""

import pytest

from tolktrain.evaluate.targets import targets


def _losses(speech: float, text: float) -> list[dict]:
    def figures(loss: float) -> dict:
        return {"loss": loss, "bigram_loss": 2.0, "positions": 10, "ratio": loss / 2.0}

    return [
        {"set": "held", "strategy": "text", "text": figures(text), "speech": None},
        {"set": "held", "strategy": "speech", "text": None, "speech": figures(speech)},
        {"set": "held", "strategy": "interleaved", "text": figures(text), "speech": figures(speech)},
    ]


def test_speech_must_be_a_quarter_below_and_text_below() -> None:
    reached = {t["name"]: t["reached"] for t in targets(_losses(speech=1.5, text=1.999), [])}
    assert reached == {"speech_loss": True, "text_loss": True}
    missed = {t["name"]: t["reached"] for t in targets(_losses(speech=1.51, text=2.0), [])}
    assert missed == {"speech_loss": False, "text_loss": False}


def test_statement_says_what_was_reached_either_way() -> None:
    statements = [t["statement"] for t in targets(_losses(speech=2.5, text=1.0), [])]
    assert "text loss 1.000, 50 % below the bigram's 2.000 (goal: below)" in statements
    assert "speech loss 2.500, 25 % above the bigram's 2.000 (goal: 25 % below)" in statements


def test_direction_is_above_chance_only_with_its_whole_interval() -> None:
    row = {"set": "held", "direction": "text_to_speech", "trials": 200, "correct": 110, "accuracy": 0.55, "high": 0.6}
    assert [targets([], [row | {"low": low}])[0]["reached"] for low in (0.499, 0.5, 0.501)] == [False, False, True]


@pytest.mark.parametrize("floor", ["unigram", "bigram"])
def test_direction_must_beat_the_n_grams_on_the_same_trials(floor: str) -> None:
    row = {"set": "held", "direction": "text_to_text", "trials": 200, "correct": 160, "accuracy": 0.8, "high": 0.85}
    for low, value, reached in ((0.75, 0.74, True), (0.75, 0.81, False), (0.75, 0.75, False), (0.49, 0.3, False)):
        found = targets([], [row | {"low": low, "unigram": 0.5, "bigram": 0.5, floor: value}])[0]
        assert found["reached"] is reached
        goal = f"above the {floor}'s {100 * value:.1f} %" if value > 0.5 else "above 50 %"
        assert f"(goal: {goal})" in found["statement"]


@pytest.mark.parametrize("loss", [0.0, 5e-321, float("nan")])
def test_a_loss_of_nothing_is_no_success(loss: float) -> None:
    assert not any(target["reached"] for target in targets(_losses(speech=loss, text=loss), []))


def test_no_target_without_a_baseline() -> None:
    rows = _losses(1.0, 1.0)
    for row in rows:
        for modality in ("text", "speech"):
            if row[modality]:
                row[modality]["bigram_loss"] = None
    assert targets(rows, []) == []
