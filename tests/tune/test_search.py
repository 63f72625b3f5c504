"""The search against synthetic machines, whose optimum, memory and noise are known."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tolktrain.tune.search import MARGIN, Found, Lengths, Search, Space, Spent, fastest_together
from tolktrain.tune.setting import Outcome, Setting

SIZES = (1, 2, 4, 8, 16)
POSITIONS = 1024
Key = tuple[Setting, int, int]


def layout(zero_stage: int, tensor: int = 1, **entries: object) -> Setting:
    document = {"zero_optimization": {"stage": zero_stage, **entries}}
    return Setting.of_entries(document, tensor=tensor, pipeline=1, zero_stage=zero_stage, micro_batch_size=1)


LAYOUTS = (layout(1), layout(2, reduce_bucket_size=4), layout(3), layout(1, tensor=2))


def alternatives(setting: Setting) -> list[tuple[str, Setting]]:
    if setting.zero_stage != 2:
        return []
    return [("reduce_bucket_size", setting.with_zero(reduce_bucket_size=size)) for size in (4, 8, 16)]


def make_space(may_answer: Callable[[Setting], bool] = lambda _: True) -> Space:
    shipped = [Setting(**{**vars(item.but(micro_batch_size=2)), "label": f"zero{item.zero_stage}"}) for item in LAYOUTS]
    return Space(shipped, LAYOUTS, lambda _: SIZES, alternatives, may_answer)


@dataclass
class SyntheticMachine:
    """Seconds and memory are functions of the setting."""

    seconds: Callable[[Setting], float]
    gib: Callable[[Setting], float]
    memory_gib: float = 100.0
    predicted: Callable[[Setting], float] | None = None  # memory; exact if None
    loss: Callable[[Setting], float] = lambda _: 2.0
    noise: float = 0.0
    most: int = 1000
    known: dict[Key, Outcome] = field(default_factory=dict)  # a journal
    asked: list[Key] = field(default_factory=list)
    ran: list[Key] = field(default_factory=list)  # not from the journal
    dies_after: int | None = None

    def predicted_gib(self, setting: Setting) -> float:
        return (self.predicted or self.gib)(setting)

    def predicted_seconds(self, setting: Setting) -> float:
        return self.seconds(setting)

    def measure(self, setting: Setting, steps: int, repeat: int) -> Outcome:
        if len(self.asked) >= self.most and not repeat:
            raise Spent
        key = (setting, steps, repeat)
        self.asked.append(key)
        if key in self.known:
            return self.known[key]
        if self.dies_after is not None and len(self.ran) >= self.dies_after:
            raise KeyboardInterrupt
        self.ran.append(key)
        self.known[key] = self._outcome(setting, steps, repeat)
        return self.known[key]

    def _outcome(self, setting: Setting, steps: int, repeat: int) -> Outcome:
        if self.gib(setting) > self.memory_gib:
            return Outcome("out of memory")
        rng = random.Random(f"{setting.name} {setting.document} {repeat}")
        seconds = tuple(self.seconds(setting) * (1 + self.noise * rng.random()) for _ in range(steps))
        return Outcome("ok", POSITIONS, seconds, self.loss(setting), peak_memory_gib=self.gib(setting))


def search(machine: SyntheticMachine, space: Space | None = None) -> Found:
    return Search(space or make_space(), machine, Lengths(2, 6), 1e-4).run()


def plain_seconds(setting: Setting) -> float:
    """ZeRO 2 with a bucket of 8 and the micro batch of 8 is the fastest."""
    base = {1: 1.3, 2: 1.0, 3: 1.6}[setting.zero_stage] + 0.5 * (setting.tensor - 1)
    bucket = abs(setting.zero.get("reduce_bucket_size", 8) - 8) / 100
    return base + 0.5 / setting.micro_batch_size + bucket + 0.3 * setting.recompute


def plain_gib(setting: Setting) -> float:
    return 20 / setting.zero_stage + setting.micro_batch_size * (3 if setting.recompute else 10) / setting.tensor


def test_the_known_optimum_is_found_in_few_trials() -> None:
    machine = SyntheticMachine(plain_seconds, plain_gib)
    found = search(machine)
    best = found.best
    assert best is not None
    assert (best.zero_stage, best.micro_batch_size, best.recompute, best.zero["reduce_bucket_size"]) == (2, 8, False, 8)
    # Of 4 layouts x 5 sizes x 2 x up to 3 buckets.
    assert len(machine.asked) <= 24
    assert len(found.of(best, 6)) == 2 and found.noise == 0
    assert best.name == "t 1, p 1, ZeRO 2, micro batch 8, reduce_bucket_size 8"
    settings = {trial.setting for trial in found.trials}
    assert len({setting.name for setting in settings}) == len(settings)
    knobs = {knob: factor for knob, _, _, factor in found.brought(best)}
    assert knobs["zero_optimization.reduce_bucket_size"] == pytest.approx(1.1025 / 1.0625)


def test_recomputation_is_tried_where_memory_is_short() -> None:
    def seconds(setting: Setting) -> float:
        return setting.tensor + 8 / setting.micro_batch_size + 0.1 * setting.recompute

    best = search(SyntheticMachine(seconds, plain_gib)).best
    assert best is not None and best.recompute and best.micro_batch_size == 16


def test_the_trials_of_a_wrong_prediction() -> None:
    """The formula says half of what is needed: bisection finds the largest micro batch all the same."""
    machine = SyntheticMachine(plain_seconds, plain_gib, predicted=lambda setting: plain_gib(setting) / 2)
    best = search(machine).best
    assert best is not None and plain_gib(best) <= 100 and best.micro_batch_size == 8
    assert any(outcome.status == "out of memory" for outcome in machine.known.values())


def test_what_is_predicted_not_to_fit_is_never_run() -> None:
    machine = SyntheticMachine(plain_seconds, plain_gib)
    found = search(machine)
    assert all(plain_gib(setting) <= 100 * (1 + MARGIN) for setting, _, _ in machine.ran)
    assert any("by prediction" in item.reason for item in found.pruned)


def test_a_setting_with_another_loss_is_named_and_never_the_answer() -> None:
    machine = SyntheticMachine(plain_seconds, plain_gib, loss=lambda setting: 2.0 if setting.zero_stage != 2 else 2.01)
    found = search(machine)
    assert found.best is not None and found.best.zero_stage == 1
    wrong = {trial.setting.zero_stage for trial in found.trials if found.differs(trial.setting)}
    assert wrong == {2}


def test_a_setting_that_rounds_differently_is_measured_and_never_the_answer() -> None:
    found = search(SyntheticMachine(plain_seconds, plain_gib), make_space(lambda setting: setting.zero_stage != 2))
    assert found.best is not None and found.best.zero_stage == 1
    assert any(trial.setting.zero_stage == 2 for trial in found.trials)


def test_a_loss_that_is_missing_disqualifies() -> None:
    outcome = Outcome("ok", POSITIONS, (1.0,), None)
    machine = SyntheticMachine(plain_seconds, plain_gib)
    machine.known = {(setting, 6, 0): outcome for setting in make_space().shipped if setting.zero_stage == 3}
    found = search(machine)
    assert all(setting.zero_stage != 3 or setting.micro_batch_size != 2 for setting in found.ranked())


def test_trials_are_limited_and_the_best_measured_is_the_answer() -> None:
    machine = SyntheticMachine(plain_seconds, plain_gib, most=5)
    found = search(machine)
    assert found.is_spent and found.best is not None
    assert len([key for key in machine.asked if not key[2]]) == 5


def test_the_largest_micro_batches_alone() -> None:
    machine = SyntheticMachine(plain_seconds, plain_gib, predicted=lambda _: 50.0)
    fits = Search(make_space(), machine, Lengths(1, 1), 1e-4).fit()
    for family, size in fits.items():
        expected = [s for s in SIZES if plain_gib(family.but(micro_batch_size=s)) <= 100]
        assert size == (max(expected) if expected else None)


@st.composite
def machines(draw: st.DrawFn) -> SyntheticMachine:
    """Any times, memory that grows with the micro batch and falls with recomputation, and any error of prediction."""
    unit, held = draw(st.floats(0.5, 60)), draw(st.floats(1, 120))
    saved, error = draw(st.floats(0.2, 1.0)), draw(st.floats(0.3, 1.14))
    salt = draw(st.integers(0, 1000))

    def seconds(setting: Setting) -> float:
        return 0.5 + random.Random(f"{salt} {setting.name} {setting.document}").random()

    def gib(setting: Setting) -> float:
        return held / setting.zero_stage + unit * setting.micro_batch_size * (saved if setting.recompute else 1)

    return SyntheticMachine(
        seconds, gib, predicted=lambda s: gib(s) * error, noise=draw(st.floats(0, 0.5)), most=draw(st.integers(1, 60))
    )


@given(machines())
@settings(max_examples=60)
def test_never_slower_than_a_shipped_setting_and_never_larger_than_what_has_failed(machine: SyntheticMachine) -> None:
    found = search(machine)
    best = found.best
    shipped = [found.rate(setting) for setting in make_space().shipped if found.of(setting)]
    if any(shipped):
        assert best is not None
        rate = found.rate(best)
        assert rate is not None and rate >= max(other for other in shipped if other is not None)
    failed: list[Setting] = []
    for setting, _, _ in machine.ran:
        for other in failed:
            is_same = other.but(micro_batch_size=0) == setting.but(micro_batch_size=0)
            assert not (is_same and other.micro_batch_size <= setting.micro_batch_size)
        if machine.gib(setting) > machine.memory_gib:
            failed.append(setting)
    assert len(machine.asked) == len(set(machine.asked))


@given(machines(), st.integers(0, 40))
@settings(max_examples=40)
def test_a_killed_search_continues_as_if_it_had_not_been_killed(machine: SyntheticMachine, dies_after: int) -> None:
    whole = search(machine)
    again = SyntheticMachine(
        machine.seconds, machine.gib, predicted=machine.predicted, noise=machine.noise, most=machine.most
    )
    again.dies_after = dies_after
    try:
        search(again)
    except KeyboardInterrupt:
        again.dies_after, again.asked = None, []
        continued = search(again)
        assert continued.trials == whole.trials and continued.best == whole.best
        # Nothing was measured twice.
        assert len(again.ran) == len(set(again.ran)) == len(machine.ran)


def test_a_recipe_of_two_stages_takes_what_needs_least_time_together() -> None:
    first, second, both = layout(1), layout(2), layout(3)
    rates = {"a": {first: 10.0, second: 1.0, both: 9.0}, "b": {first: 1.0, second: 10.0, both: 9.0}}
    stages = {name: Found(6, 1e-4, lambda _: True) for name in rates}
    for name, found in stages.items():
        for setting, rate in rates[name].items():
            found.measure(SyntheticMachine(lambda s, r=rate: POSITIONS / r, lambda _: 1.0), setting)
    assert fastest_together(stages, {"a": 100, "b": 100}, [first, second, both]) == both
    assert fastest_together(stages, {"a": 100_000, "b": 1}, [first, second, both]) == first
    assert fastest_together(stages, {"a": 1, "b": 1}, [layout(1, tensor=2)]) is None
