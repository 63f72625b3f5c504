"""The search: which settings are measured, in which order, and which one is the answer.

It knows nothing of processes: what it measures with is given, so that the same outcomes give the same search. A search
that is started again with the outcomes of an earlier one therefore continues where that one ended.

1. The shipped settings, at full length: the answer is at least as fast as each of them.
2. For each layout, in the order of its predicted time, the largest micro batch that fits, by bisection. What needs more
   memory than there is by prediction, with a margin, is not tried; nor is a larger micro batch once a smaller one has
   not fitted, or the same without recomputation once it has not fitted with it.
3. Successive halving: the largest and the next smaller micro batch of each layout, with twice the steps for the better
   half, until two are left at full length.
4. Where memory limits the micro batch of the best two, the largest one with recomputation.
5. The conditional entries of the best one, one after the other (coordinate descent).
6. Repetitions: of the best two, until the best one has been measured twice. They give the noise.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tolktrain.tune.setting import Outcome, Setting

MARGIN = 0.15  # of the memory, by which a prediction must exceed it to be believed without a trial
_MOST_LAYOUTS = 5  # that are measured in addition to the shipped ones
_FINALISTS = 2
_MOST_REPEATS = 3  # rounds in which the leading setting may turn out to have been lucky


class Machine(Protocol):
    """What the search asks: predictions, which are free, and measurements."""

    memory_gib: float  # of each rank

    def predicted_gib(self, setting: Setting) -> float:
        """Memory of the fullest rank."""

    def predicted_seconds(self, setting: Setting) -> float:
        """Of a step."""

    def measure(self, setting: Setting, steps: int, repeat: int) -> Outcome:
        """Time that many steps, in processes of their own. Raises `Spent` if no trial is left, unless `repeat`."""


class Spent(Exception):
    """No trial is left."""


@dataclass(frozen=True)
class Space:
    """The settings of one stage of the recipe."""

    shipped: Sequence[Setting]  # measured at full length; the first is the configuration as it is
    layouts: Sequence[Setting]  # one for each layout, with any micro batch
    micro_batch_sizes: Callable[[Setting], Sequence[int]]  # of a layout, ascending
    alternatives: Callable[[Setting], Iterable[tuple[str, Setting]]]  # of the conditional entries, with the knob's name
    may_answer: Callable[[Setting], bool] = lambda setting: True  # whether training would be the same


@dataclass(frozen=True)
class Lengths:
    """Timed steps of a trial."""

    short: int = 2
    full: int = 6


@dataclass(frozen=True)
class Trial:
    """A measured setting."""

    setting: Setting
    steps: int
    repeat: int
    outcome: Outcome


@dataclass(frozen=True)
class Pruned:
    """A setting that was not measured, and why."""

    setting: Setting
    reason: str


@dataclass
class Found:
    """Everything that a search has found out."""

    full: int  # timed steps of a trial that counts for the answer
    loss_tolerance: float  # relative; rounding, and nothing else, may differ
    may_answer: Callable[[Setting], bool]
    trials: list[Trial] = field(default_factory=list)
    pruned: list[Pruned] = field(default_factory=list)
    is_spent: bool = False  # trials ran out before the search ended

    def of(self, setting: Setting, steps: int | None = None) -> list[Trial]:
        """Timed trials of a setting, of any length or of this one."""
        return [
            trial
            for trial in self.trials
            if trial.setting == setting and trial.outcome.is_ok and steps in (None, trial.steps)
        ]

    def rate(self, setting: Setting) -> float | None:
        """Tokens per second: positions of a step over the median of all steps of its longest trials."""
        trials = self.of(setting)
        if not trials:
            return None
        longest = max(trial.steps for trial in trials)
        seconds = [s for trial in trials if trial.steps == longest for s in trial.outcome.seconds]
        return trials[0].outcome.tokens_per_step / statistics.median(seconds)

    @property
    def expected_loss(self) -> float | None:
        """The first loss of most settings; None before anything was measured."""
        losses = [trial.outcome.first_loss for trial in self.trials if trial.outcome.is_ok]
        known = [loss for loss in losses if loss is not None]
        return statistics.median_low(known) if known else None

    def differs(self, setting: Setting) -> bool:
        """Whether a setting has computed something else: its first loss is not that of the others."""
        expected = self.expected_loss
        return any(
            trial.outcome.first_loss is None
            or expected is None
            or not math.isclose(
                trial.outcome.first_loss, expected, rel_tol=self.loss_tolerance, abs_tol=self.loss_tolerance
            )
            for trial in self.of(setting)
        )

    def ranked(self, full_only: bool = True) -> list[Setting]:
        """Settings that may be the answer, the fastest first."""
        settings = dict.fromkeys(trial.setting for trial in self.trials)
        rates = {
            setting: rate
            for setting in settings
            if self.may_answer(setting)
            and not self.differs(setting)
            and (not full_only or self.of(setting, self.full))
            and (rate := self.rate(setting)) is not None
        }
        return sorted(rates, key=lambda setting: rates[setting], reverse=True)

    @property
    def best(self) -> Setting | None:
        """The answer; None if nothing could be measured."""
        return next(iter(self.ranked()), None)

    @property
    def noise(self) -> float | None:
        """Largest difference between repetitions of one setting, as a fraction; None without repetitions."""
        repeated: dict[Setting, list[float]] = {}
        for trial in self.trials:
            if trial.outcome.is_ok and trial.steps == self.full:
                own = trial.outcome.tokens_per_step / statistics.median(trial.outcome.seconds)
                repeated.setdefault(trial.setting, []).append(own)
        spreads = [max(rates) / min(rates) - 1 for rates in repeated.values() if len(rates) > 1]
        return max(spreads, default=None)

    def measure(self, machine: Machine, setting: Setting) -> None:
        """Add a trial of full length."""
        self.trials.append(Trial(setting, self.full, 0, machine.measure(setting, self.full, 0)))

    def brought(self, reference: Setting) -> list[tuple[str, object, object, float]]:
        """What each knob brings: (knob, its value elsewhere, its value in `reference`, factor of the rate).

        Of the measured settings that differ from `reference` in one knob only.
        """
        own = self.rate(reference)
        if own is None:
            return []
        mine, found = reference.knobs(), []
        for setting in dict.fromkeys(trial.setting for trial in self.trials):
            rate, theirs = self.rate(setting), setting.knobs()
            names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
            if len(names) == 1 and rate is not None:
                found.append((names[0], theirs.get(names[0]), mine.get(names[0]), own / rate))
        return sorted(found, key=lambda item: item[3], reverse=True)

    def best_of_values(self) -> list[tuple[str, object, Setting, float]]:
        """The fastest setting for each value of a knob: (knob, value, setting, tokens per second), knob by knob.

        Of the knobs that every setting has, and that were measured with several values.
        """
        best: dict[str, dict[object, tuple[Setting, float]]] = {}
        for setting in reversed(self.ranked(full_only=False)):  # the fastest last, which stays
            rate = self.rate(setting)
            for knob, value in setting.layout_knobs().items():
                if rate is not None:
                    best.setdefault(knob, {})[value] = setting, rate
        return [
            (knob, value, setting, rate)
            for knob, values in best.items()
            if len(values) > 1
            for value, (setting, rate) in sorted(values.items(), key=lambda item: str(item[0]))
        ]


class Search:
    """One search, for one stage of the recipe."""

    def __init__(self, space: Space, machine: Machine, lengths: Lengths, loss_tolerance: float) -> None:
        self._space, self._machine, self._lengths = space, machine, lengths
        self.found = Found(lengths.full, loss_tolerance, space.may_answer)

    def run(self) -> Found:
        """Search until the end, or until no trial is left."""
        try:
            for setting in self._space.shipped:
                self._try(setting, self._lengths.full)
            self._halve(self._pool())
            self._recompute()
            self._descend()
        except Spent:
            self.found.is_spent = True
        self._repeat()
        return self.found

    def fit(self) -> dict[Setting, int | None]:
        """Only the largest micro batch of each layout and recomputation that fits; None if none does."""
        largest: dict[Setting, int | None] = {}
        try:
            for layout in self._ordered_layouts():
                for recompute in (True, False):
                    family = layout.but(recompute=recompute)
                    found = self._largest(family)
                    largest[family] = None if found is None else found.micro_batch_size
        except Spent:
            self.found.is_spent = True
        return largest

    def _ordered_layouts(self) -> list[Setting]:
        """Layouts by their predicted time with the largest micro batch that is predicted to fit."""
        times = {}
        for layout in self._space.layouts:
            sizes = [
                s for s in self._space.micro_batch_sizes(layout) if self._ratio(layout.but(micro_batch_size=s)) <= 1
            ]
            best = min(
                (self._machine.predicted_seconds(layout.but(micro_batch_size=size)) for size in sizes), default=math.inf
            )
            times[layout] = best
        return sorted(times, key=lambda layout: times[layout])

    def _pool(self) -> list[Setting]:
        """Settings for successive halving. Layouts that fit without recomputation are not recomputed yet."""
        pool: list[Setting] = []
        for layout in self._ordered_layouts()[:_MOST_LAYOUTS]:
            largest = self._largest(layout.but(recompute=False)) or self._largest(layout.but(recompute=True))
            if largest is not None:
                sizes = list(self._space.micro_batch_sizes(layout))
                place = sizes.index(largest.micro_batch_size)
                pool += [largest, *([largest.but(micro_batch_size=sizes[place - 1])] if place else [])]
        return list(dict.fromkeys(pool))

    def _largest(self, family: Setting) -> Setting | None:
        """The setting with the largest micro batch that fits, by bisection."""
        settings = [family.but(micro_batch_size=size) for size in self._space.micro_batch_sizes(family)]
        low, high = -1, len(settings)
        for place, setting in enumerate(settings):
            if (reason := self._prune(setting)) is not None:
                self._note(setting, reason)
                high = min(high, place)
        fitting = [place for place in range(high) if self._ratio(settings[place]) <= 1]
        probe = fitting[-1] if fitting else (high - 1) // 2
        while high - low > 1:
            outcome = self._try(settings[probe], self._lengths.short)
            if outcome is not None and outcome.is_ok:
                low = probe
            else:
                high = probe
            probe = (low + high) // 2
        return settings[low] if low >= 0 else None

    def _halve(self, pool: Sequence[Setting]) -> None:
        """Measure the best settings of the pool at full length, by successive halving."""
        left, steps = list(pool), self._lengths.short
        while left:
            for setting in left:
                self._try(setting, steps)
            rates = {setting: self._rate_of(setting, steps) for setting in left}
            known = {setting: rate for setting, rate in rates.items() if rate is not None}
            left = sorted(known, key=lambda setting: known[setting], reverse=True)
            if steps >= self._lengths.full:
                return
            left = left[: max(_FINALISTS, math.ceil(len(left) / 2))]
            steps = self._lengths.full if len(left) <= _FINALISTS else min(2 * steps, self._lengths.full)

    def _recompute(self) -> None:
        """Where memory limits the micro batch of the best two, the largest one with recomputation."""
        for setting in self.found.ranked()[:_FINALISTS]:
            plain, recomputed = (setting.but(recompute=recompute) for recompute in (False, True))
            sizes = self._space.micro_batch_sizes(setting)
            if any(self._prune(plain.but(micro_batch_size=size)) is not None for size in sizes):
                largest = self._largest(recomputed)
                if largest is not None:
                    self._try(largest, self._lengths.full)

    def _descend(self) -> None:
        """Vary the entries of the best setting, each in turn; keep what is faster."""
        best = self.found.best
        if best is None:
            return
        tried = {best}
        changed = True
        while changed:
            changed = False
            for _, other in self._space.alternatives(best):
                if other in tried:
                    continue
                tried.add(other)
                self._try(other, self._lengths.full)
                if self.found.best == other:
                    best, changed = other, True
                    break  # its own alternatives are others

    def _repeat(self) -> None:
        """Measure the best two again, until the leading one has been measured twice."""
        for _ in range(_MOST_REPEATS):
            once = [s for s in self.found.ranked()[:_FINALISTS] if len(self.found.of(s, self.found.full)) < 2]
            if not once:
                return
            for setting in once:
                self._try(setting, self._lengths.full, repeat=1)

    def _rate_of(self, setting: Setting, steps: int) -> float | None:
        """Of the trials of this length or longer."""
        if not any(trial.steps >= steps for trial in self.found.of(setting)) or self.found.differs(setting):
            return None
        return self.found.rate(setting)

    def _try(self, setting: Setting, steps: int, repeat: int = 0) -> Outcome | None:
        """Measure, unless that was done or is known to fail; None if it was pruned."""
        own = [trial for trial in self.found.trials if trial.setting == setting and trial.repeat == repeat]
        known = [trial for trial in own if trial.steps >= steps or not trial.outcome.is_ok]
        if known:
            return known[-1].outcome
        if (reason := self._prune(setting)) is not None:
            self._note(setting, reason)
            return None
        outcome = self._machine.measure(setting, steps, repeat)
        self.found.trials.append(Trial(setting, steps, repeat, outcome))
        return outcome

    def _note(self, setting: Setting, reason: str) -> None:
        if all(item.setting != setting for item in self.found.pruned):
            self.found.pruned.append(Pruned(setting, reason))

    def _prune(self, setting: Setting) -> str | None:
        """Why a setting does not fit, if that is known without a trial."""
        for trial in self.found.trials:
            failed = trial.setting
            if trial.outcome.status == "out of memory" and _needs_no_more(failed, setting):
                return f"{failed.name} did not fit"
        ratio = self._ratio(setting)
        if ratio > 1 + MARGIN:
            return f"needs {ratio * self._machine.memory_gib:.1f} of {self._machine.memory_gib:.1f} GiB, by prediction"
        return None

    def _ratio(self, setting: Setting) -> float:
        return self._machine.predicted_gib(setting) / self._machine.memory_gib


def _needs_no_more(first: Setting, second: Setting) -> bool:
    """Whether `first` needs at most the memory of `second`: a smaller micro batch, or the same recomputed."""
    same = first.but(micro_batch_size=0, recompute=False) == second.but(micro_batch_size=0, recompute=False)
    return same and first.micro_batch_size <= second.micro_batch_size and first.recompute >= second.recompute


def fastest_together(
    stages: Mapping[str, Found], tokens: Mapping[str, int], settings: Iterable[Setting]
) -> Setting | None:
    """The setting that needs least time for all stages of the recipe; None if none was measured in all of them."""

    def seconds(setting: Setting) -> float:
        rates = {name: found.rate(setting) for name, found in stages.items()}
        return math.fsum(tokens[name] / rate if rate else math.inf for name, rate in rates.items())

    usable = [
        setting
        for setting in dict.fromkeys(settings)
        if all(found.of(setting, found.full) and not found.differs(setting) for found in stages.values())
        and all(found.may_answer(setting) for found in stages.values())
    ]
    return min(usable, key=seconds, default=None)
