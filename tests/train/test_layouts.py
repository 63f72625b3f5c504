"""Every layout of ranks computes the same training run as one process.

Worker processes train one case after the other (`layout_ranks.py`).
"""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launched import launch
from layout_cases import RATES, VARIANTS, Case, Outcome, run
from layout_traps import taken_away
from small_runs import Tensors, assembled
from warm import Warm

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # relative
MARGIN = 1e-6  # of a margin of preferences near zero, which is a difference of sums that float32 holds to 1e-6 at best
UPDATE = RATES.backbone  # the largest change of an element by a step of Adam
RECOMPUTED = ("train.activation_checkpointing=layers",)

# Of tensor ranks alone, each product of each micro batch waits for a message; two add up like four.
TENSOR = Case(tensor=2, micro_batch_size=4)
SEQUENCE = replace(TENSOR, sequence_parallel=True)

TWO = [
    *(Case(data=2, zero_stage=stage) for stage in (0, 1, 2, 3)),
    *(Case(data=2, zero_stage=stage, stage=1) for stage in (0, 1, 2, 3)),
    Case(data=2, zero_stage=3, overrides=RECOMPUTED),
    Case(data=2, zero_stage=3, variant="odd"),
    Case(data=2, micro_batch_size=1),
    replace(TENSOR, zero_stage=0),
    replace(TENSOR, stage=1),
    replace(TENSOR, zero_stage=3),
    Case(tensor=2, sequence_parallel=True),
    replace(SEQUENCE, stage=1),
    replace(SEQUENCE, overrides=RECOMPUTED),
    *(replace(SEQUENCE, variant=name) for name in ("static", "dynamic", "early-fusion")),
    *(replace(SEQUENCE, variant=name) for name in ("codebooks", "untied", "packed")),
    replace(TENSOR, variant="packed", overrides=RECOMPUTED),
    replace(TENSOR, variant="lora"),
    replace(SEQUENCE, variant="lora", overrides=RECOMPUTED),
    *(Case(data=2, zero_stage=stage, variant=name) for stage in (2, 3) for name in ("packed", "lora")),
    replace(SEQUENCE, variant="preference"),
    Case(data=2, zero_stage=3, variant="preference"),
    Case(data=2, zero_stage=1, variant="preference-codebooks"),
    Case(data=2, zero_stage=2, variant="preference-lora"),
    *(Case(pipeline=2, variant=name) for name in VARIANTS if name not in ("three-groups", "odd")),
    Case(pipeline=2, stage=0),
    Case(pipeline=2, stage=1),
    Case(pipeline=2, micro_batch_size=1),
    Case(pipeline=2, micro_batch_size=8),
    Case(pipeline=2, overrides=RECOMPUTED),
]
THREE = [Case(tensor=3, variant="three-groups", micro_batch_size=4), Case(pipeline=3, variant="three-groups")]
FOUR = [
    Case(pipeline=4),
    Case(pipeline=4, stage=1),
    Case(pipeline=4, variant="codebooks", micro_batch_size=1),
    Case(tensor=2, pipeline=2),
    Case(tensor=2, pipeline=2, sequence_parallel=True),
    Case(tensor=2, pipeline=2, sequence_parallel=True, stage=1),
    Case(tensor=2, pipeline=2, sequence_parallel=True, variant="untied"),
    Case(tensor=2, data=2, overrides=("data.num_workers=2",)),
    Case(tensor=2, data=2, zero_stage=2, sequence_parallel=True),
    Case(tensor=2, data=2, zero_stage=3, sequence_parallel=True, stage=1),
    Case(pipeline=2, data=2),
    Case(pipeline=2, data=2, stage=1, micro_batch_size=1),
    Case(data=4, zero_stage=3, stage=1),
]
ROUNDED = [
    *(Case(data=2, zero_stage=stage, precision="bf16") for stage in (0, 1, 2, 3)),
    Case(data=2, zero_stage=3, variant="odd", precision="bf16"),
    Case(tensor=2, data=2, sequence_parallel=True, precision="bf16"),
    replace(SEQUENCE, zero_stage=3, precision="bf16"),
    Case(pipeline=2, precision="bf16"),
]
TRAPS = [
    replace(SEQUENCE, without="sums over the tensor group", steps=1),
    Case(pipeline=2, without="sums over tied tables", steps=1),
    Case(data=2, without="counts of the global batch", steps=1),
    Case(tensor=2, pipeline=2, sequence_parallel=True, without="whole activations", steps=1),
]
# Three ranks, because two add up to the same in whichever order.
THREE_REPLICAS = Case(pipeline=2, data=3, precision="bf16", overrides=("train.global_batch_size=12",), steps=3)
DIFFERENT_ORDERS = Case(pipeline=2, without="one order of samples")

CASES_OF_A_PROCESS = 12

Outcomes = Callable[[Case], list[Outcome]]
Reference = Callable[[Case], Outcome]


@pytest.fixture(scope="module")
def outcomes(warm: Warm, tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Outcomes:
    """What each rank of a case knows; the first question starts all cases of as many ranks."""
    folder = tmp_path_factory.mktemp("layouts")
    started: set[int] = set()

    def of(case: Case) -> list[Outcome]:
        size = case.num_processes
        if size not in started:
            started.add(size)
            cases = [
                other
                for other in (*TWO, *THREE, *FOUR, *ROUNDED, *TRAPS, DIFFERENT_ORDERS, THREE_REPLICAS)
                if other.num_processes == size
            ]
            # The first one that recomputes imports torch's compiler, which takes seconds and slows down what follows.
            cases.sort(key=lambda case: case.overrides == RECOMPUTED)
            for begin in range(0, len(cases), CASES_OF_A_PROCESS):
                listed = folder / f"cases-{size}-{begin}.pkl"
                listed.write_bytes(pickle.dumps(cases[begin : begin + CASES_OF_A_PROCESS]))
                print(launch(warm, "layout_ranks.py", size, folder, sets, listed))
        files = [folder / f"{case.name}-{rank}.pt" for rank in range(size)]
        return [torch.load(file, weights_only=False) for file in files]

    return of


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Reference:
    """The outcome of a case in this process alone."""
    folder = tmp_path_factory.mktemp("reference")
    known: dict[str, Outcome] = {}

    def of(case: Case) -> Outcome:
        if case.name not in known:
            with taken_away(case.without):
                known[case.name] = run(case, folder, sets)
        return known[case.name]

    return of


@pytest.mark.parametrize("case", [*TWO, *THREE, *FOUR], ids=lambda case: case.name)
def test_a_layout_computes_what_one_process_computes(outcomes: Outcomes, reference: Reference, case: Case) -> None:
    ranks, expected = outcomes(case), reference(case.reference)
    assert_same_batches(ranks, expected)
    for rank in ranks:
        assert rank.losses == pytest.approx(expected.losses, rel=TOLERANCE)
        assert rank.grad_norms == pytest.approx(expected.grad_norms, rel=TOLERANCE)
        assert rank.validation == pytest.approx(expected.validation, rel=TOLERANCE, abs=MARGIN)
    for kind in ("gradients", "parameters"):
        found = distances(merged(ranks, kind), merged([expected], kind), UPDATE if kind == "parameters" else 0.0)
        assert max(found.values()) < TOLERANCE, (kind, worst(found))
    if case.pipeline > 1:
        assert_same_tables(ranks, case)


@pytest.mark.parametrize("case", ROUNDED, ids=lambda case: case.name)
def test_in_bf16_a_layout_differs_no_more_than_rounding_does(
    outcomes: Outcomes, reference: Reference, spread: "Spread", case: Case
) -> None:
    """`spread` is how far runs of one process lie apart that differ in nothing but rounding."""
    ranks, expected = outcomes(case), reference(case.reference)
    assert_same_batches(ranks, expected)
    found = Spread.between(ranks, [expected])
    assert found.exceeds(spread, times=3.0) == []


@pytest.mark.parametrize("case", TRAPS, ids=lambda case: case.name)
def test_without_its_cure_a_layout_goes_wrong(outcomes: Outcomes, reference: Reference, case: Case) -> None:
    """What the tests above would not notice, they could not prove."""
    expected = reference(case.reference)
    ranks = outcomes(case)
    assert_same_batches(ranks, replace(expected, batches=expected.batches[: case.steps]))
    gradients = distances(merged(ranks, "gradients"), merged([expected], "gradients"))
    assert max(gradients.values()) > 1e-3, worst(gradients)


def test_copies_of_tied_tables_do_not_drift_apart(outcomes: Outcomes) -> None:
    assert_same_tables(outcomes(THREE_REPLICAS), THREE_REPLICAS, rtol=0.0)


def test_stages_that_read_different_sequences_are_found(outcomes: Outcomes) -> None:
    """Trained on, they would learn nothing, with a loss that looks like one."""
    message = "data.sets: at step 1 rank 1 read other sequences than rank 0 of the same model replica; their copies"
    assert all(str(outcome).startswith(message) for outcome in outcomes(DIFFERENT_ORDERS))


class Spread:
    """How far two runs lie apart: relative, of gradients and parameters by norm."""

    def __init__(self, figures: dict[str, float]) -> None:
        self.figures = figures

    @classmethod
    def between(cls, one: list[Outcome], other: list[Outcome]) -> "Spread":
        """The distance of two runs, each given by what its ranks know."""
        names = ("losses", "grad_norms", "validation")
        pairs = {name: (getattr(one[0], name), getattr(other[0], name)) for name in names}
        figures = {name: max(abs(x - y) / abs(y) for x, y in zip(*pair, strict=True)) for name, pair in pairs.items()}
        for kind in ("gradients", "parameters"):
            # All tensors together: of one that is next to nothing rounding decides alone.
            mine, theirs = merged(one, kind), merged(other, kind)
            difference = sum(float((mine[name] - value).norm()) ** 2 for name, value in theirs.items())
            figures[kind] = (difference / sum(float(value.norm()) ** 2 for value in theirs.values())) ** 0.5
        return cls(figures)

    def exceeds(self, other: "Spread", times: float) -> list[str]:
        """Figures that are larger than those of another spread."""
        mine = self.figures.items()
        return [f"{n}: {x:.1e} against {other.figures[n]:.1e}" for n, x in mine if x > times * other.figures[n]]


@pytest.fixture(scope="module")
def spread(reference: Reference) -> Spread:
    """The largest distance of runs in one process whose sums are rounded at other places."""
    base = Case(precision="bf16").reference
    others = [
        Case(precision="bf16", micro_batch_size=2),
        Case(precision="bf16", micro_batch_size=1),
        Case(precision="bf16", micro_batch_size=2, zero_stage=0),
        Case(precision="bf16", micro_batch_size=2, without="whole products"),
    ]
    found = [Spread.between([reference(other)], [reference(base)]) for other in others]
    largest = Spread({name: max(one.figures[name] for one in found) for name in found[0].figures})
    print("spread of bf16 by rounding alone:", {name: f"{value:.1e}" for name, value in largest.figures.items()})
    return largest


def assert_same_batches(ranks: list[Outcome], expected: Outcome) -> None:
    """Ranks of a replica read the same, replicas share out the global batch."""
    replicas: dict[int, Outcome] = {}
    for rank in ranks:
        assert rank.batches == replicas.setdefault(rank.data_rank, rank).batches
    for step, whole in enumerate(expected.batches):
        assert sorted(row for replica in replicas.values() for row in replica.batches[step]) == sorted(whole)


def assert_same_tables(ranks: list[Outcome], case: Case, rtol: float = 1e-6) -> None:
    """The tables of embedding and heads, which lie on different ranks, are still the same."""
    last = (case.pipeline - 1) * case.data * case.tensor  # ranks count stage by stage
    for number in range(case.data * case.tensor):
        (mine,), (theirs,) = ranks[number].tied.values(), ranks[last + number].tied.values()
        assert mine
        for table, copy in zip(mine, theirs, strict=True):
            torch.testing.assert_close(table, copy, rtol=rtol, atol=0)


def merged(ranks: list[Outcome], kind: str) -> Tensors:
    """Whole tensors, of which each rank gives slices."""
    return assembled(getattr(rank, kind) for rank in ranks)


def distances(found: Tensors, expected: Tensors, least: float = 0.0) -> dict[str, float]:
    """Relative distance by norm; where nothing is expected, relative to a millionth of everything.

    With `least`, relative to elements of at least this size: a vector that begins at zero and passes it again, such as
    the pooling's, may be far smaller than the updates whose rounding it has collected.
    """
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    total = sum(float(value.norm()) ** 2 for value in expected.values()) ** 0.5
    norms = {
        name: max(float(value.norm()), least * value.numel() ** 0.5, 1e-6 * total) for name, value in expected.items()
    }
    return {name: float((found[name] - value).norm()) / norms[name] for name, value in expected.items()}


def worst(found: dict[str, float]) -> list[tuple[str, float]]:
    """The three largest."""
    return sorted(found.items(), key=lambda item: -item[1])[:3]
