"""Who is sick or slow, judged from made-up reports."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tolktrain.cluster.health.diagnosis import (
    Finding,
    all_reduce_rate,
    clock_differences,
    clock_offset,
    complaint,
    details,
    diagnose_ranks,
    different_devices,
    different_versions,
    folder_faults,
    node_rates,
    slow_devices,
    slow_nodes,
    summary,
    wrong_products,
    wrong_sums,
)
from tolktrain.cluster.health.formatting import ranks_text
from tolktrain.cluster.health.reports import Device, ExchangeReport, Folder, Product, RankReport, Space
from tolktrain.config.health import HealthConfig

TFLOPS = 1e12
GIB = 2**30
SPACE = Space("/runs/a", 10 * GIB, num_checkpoints=2, num_files=100, keep_last=5, num_existing=0)


def report(rank: int, speed: float = 600.0, name: str = "H100", kind: str = "cuda", per_node: int = 2) -> RankReport:
    """Of a healthy rank; nodes are n0, n1, ..."""
    assert kind in ("cuda", "cpu")
    device = Device("cuda", name, rank % per_node, f"GPU-{rank}") if kind == "cuda" else Device("cpu", name)
    clock = tuple((t + 0.001 * rank, t + 0.010 + 0.001 * rank) for t in (100.0, 101.0))
    folder = Folder("", True, 100 * GIB, 10**6) if rank % per_node == 0 else None
    versions = {"torch": "2.15.0", "our files": "abc"}
    return RankReport(rank, f"n{rank // per_node}", device, Product("", speed * TFLOPS), versions, clock, folder)


def exchange(rank: int, node: str, *rates: float | None, seconds: Sequence[float] = (1.0,)) -> ExchangeReport:
    return ExchangeReport(rank, node, 1000, tuple(seconds), 0, tuple(rates))


def texts(findings: Sequence[Finding]) -> list[str]:
    return [finding.text for finding in findings]


def test_a_gpu_faster_than_its_data_sheet_is_refused() -> None:
    """A null GPU reaches 28,000 TFLOP/s."""
    fast = [report(rank, 1300.0 if rank == 3 else 1000.0) for rank in range(4)]
    (found,) = diagnose_ranks(fast, SPACE, HealthConfig())
    assert found.serious and found.nodes == ("n1",)
    assert "rank 3 (GPU 1, GPU-3)" in found.text and "1300 TFLOP/s" in found.text and "989 TFLOP/s" in found.text
    assert diagnose_ranks([report(0, 1300.0, name="a GPU not yet built")], SPACE, HealthConfig()) == []


def test_healthy_machines_give_no_finding() -> None:
    assert diagnose_ranks([report(rank) for rank in range(8)], SPACE, HealthConfig()) == []
    assert diagnose_ranks([report(0)], SPACE, HealthConfig()) == []


def test_a_rank_that_computes_wrongly() -> None:
    reports = [report(rank) for rank in range(4)]
    reports[3] = replace(reports[3], product=Product("computes wrongly: 1 of 9 elements"))
    (finding,) = wrong_products(reports)
    assert finding == Finding("n1, rank 3 (GPU 1, GPU-3) computes wrongly: 1 of 9 elements", ("n1",), serious=True)


@pytest.mark.parametrize(
    ("speeds", "slow"),
    [
        ([600, 600, 600, 410], [3]),
        ([600, 600, 600, 425], []),
        ([600, 300], [1]),
        ([600, 600, 300, 300], [2, 3]),  # the whole of one of two nodes
        ([600, 599, 100, 601, 90, 600], [2, 4]),
        ([600], []),
    ],
)
def test_slow_gpus(speeds: Sequence[float], slow: list[int]) -> None:
    reports = [report(rank, speed) for rank, speed in enumerate(speeds)]
    findings = slow_devices(reports, 0.7)
    assert [finding.nodes for finding in findings] == [(f"n{rank // 2}",) for rank in slow]
    assert all(finding.serious for finding in findings)
    for rank, finding in zip(slow, findings, strict=True):
        assert f"n{rank // 2}, rank {rank} (GPU {rank % 2}, GPU-{rank}) multiplies" in finding.text
        assert f"{speeds[rank]:.0f} TFLOP/s" in finding.text and "that most H100 reach" in finding.text
    assert slow_devices(reports, 0.0) == []


def test_gpus_are_compared_with_their_own_kind() -> None:
    reports = [report(0), report(1), report(2, 300, "A100"), report(3, 310, "A100")]
    assert slow_devices(reports, 0.7) == []
    (finding,) = different_devices(reports)
    assert not finding.serious and "H100 on n0 (ranks 0-1); A100 on n1 (ranks 2-3)" in finding.text
    assert different_devices([report(0, kind="cpu", name="x"), report(1, kind="cpu", name="y")]) == []


def test_a_broken_gpu_does_not_count_for_the_median() -> None:
    reports = [report(0), replace(report(1), product=Product("broken")), report(2, 590)]
    assert slow_devices(reports, 0.7) == []


def test_slow_cpus_are_only_warned_of() -> None:
    reports = [report(rank, speed, kind="cpu") for rank, speed in enumerate((100, 100, 36, 34))]
    (finding,) = slow_devices(reports, 0.7)
    assert not finding.serious and finding.text.startswith("n1, rank 3 (CPU) multiplies")


def test_other_versions_are_named_with_both_values() -> None:
    reports = [report(rank) for rank in range(6)]
    for rank in (4, 5):
        reports[rank] = replace(reports[rank], versions={"torch": "2.14.1", "our files": "abc"})
    reports[1] = replace(reports[1], versions={"torch": "2.15.0"})
    findings = different_versions(reports)
    assert texts(findings) == [
        "torch: 2.14.1 on n2 (ranks 4-5), but 2.15.0 on n0, n1 (ranks 0-3)",
        "our files: absent on n0 (rank 1), but abc on n0, n1, n2 (ranks 0, 2-5)",
    ]
    assert [finding.nodes for finding in findings] == [("n2",), ("n0",)]
    two = [reports[0], replace(report(2), versions={**reports[0].versions, "driver": "550"})]
    assert texts(different_versions(two)) == ["driver: 550 on n1 (rank 2), but absent on n0 (rank 0)"]


def test_many_nodes_are_counted() -> None:
    reports = [report(rank, per_node=1) for rank in range(20)]
    reports[7] = replace(reports[7], versions={"torch": "1", "our files": "abc"})
    (text,) = texts(different_versions(reports))
    assert text == "torch: 1 on n7 (rank 7), but 2.15.0 on n0, n1, n2, n3 and 15 more nodes (ranks 0-6, 8-19)"


@pytest.mark.parametrize(
    ("free_gib", "changes", "expected"),
    [
        (20, {}, None),
        (19, {}, "has 19 GiB free (seen from n0), but two checkpoints of 10 GiB each need 20 GiB"),
        (19, {"num_checkpoints": 1}, None),
        (9, {"num_checkpoints": 1}, "but one more checkpoint of 10 GiB needs 10 GiB; "),
        (5, {"reclaimed_bytes": 15 * GIB}, None),
        (11, {"num_existing": 3}, "; with checkpoint.keep_last=3, as many as are there, one more is enough"),
        (1, {"num_existing": 5, "num_checkpoints": 1}, "; of the 5 checkpoints that are there the oldest may be"),
    ],
)
def test_space_for_checkpoints(free_gib: int, changes: dict[str, int], expected: str | None) -> None:
    reports = [replace(report(0), folder=Folder("", True, free_gib * GIB, None)), report(1)]
    findings = folder_faults(reports, replace(SPACE, **changes))
    assert len(findings) == (expected is not None)
    if expected is not None:
        assert findings[0].serious and findings[0].nodes == ()
        assert findings[0].text.startswith("run.dir: /runs/a has ") and expected in findings[0].text
        assert "choose another run.dir" in findings[0].text


def test_files_for_checkpoints() -> None:
    reports = [replace(report(0), folder=Folder("", True, 100 * GIB, 99))]
    (text,) = texts(folder_faults(reports, SPACE))
    assert "room for 99 more files (seen from n0), but 100 are needed" in text


def test_folders_that_cannot_be_written_or_are_not_shared() -> None:
    reports = [report(rank) for rank in range(6)]
    reports[2] = replace(reports[2], folder=Folder("Read-only file system"))
    reports[4] = replace(reports[4], folder=Folder("", False, 1, 1))
    unwritable, foreign = texts(folder_faults(reports, SPACE))
    assert unwritable.startswith("run.dir: n1 (rank 2) cannot write to /runs/a: Read-only file system; ")
    assert foreign.startswith("run.dir: /runs/a on n2 is not the folder that n0 has under this name; ")


@pytest.mark.parametrize("wrong", [0, 2, 4])
@pytest.mark.parametrize("seconds", [12.5, -3.0])
def test_a_clock_that_is_wrong(wrong: int, seconds: float) -> None:
    """Also rank 0's, whose node does not make all others seem wrong."""
    reports = [report(rank) for rank in range(6)]
    for rank in (wrong, wrong + 1):
        clock = tuple((before + seconds, after + seconds) for before, after in reports[rank].clock)
        reports[rank] = replace(reports[rank], clock=clock)
    (finding,) = clock_differences(reports, 1.0)
    assert not finding.serious
    way = "ahead of" if seconds > 0 else "behind"
    assert finding.text.startswith(f"the clock of n{wrong // 2} is {abs(seconds):.3g} s (+-0.01) {way} that of n")


def test_of_two_clocks_both_are_named() -> None:
    reports = [report(0), replace(report(2), clock=tuple((b + 5, a + 5) for b, a in report(2).clock))]
    assert "the clock of n1 is 5 s (+-0.01) ahead of that of n0" in texts(clock_differences(reports, 1.0))[0]
    assert clock_differences(reports, 5.1) == []


def test_a_clock_is_only_named_when_it_is_certain() -> None:
    ours, theirs = ((100.0, 103.0),), ((99.0, 101.5),)
    assert clock_offset(ours, theirs) == (-1.5, 4.0)
    reports = [replace(report(0), clock=theirs), replace(report(2), clock=ours)]
    assert clock_differences(reports, 1.0) == []


def test_several_exchanges_narrow_the_bounds() -> None:
    assert clock_offset(((0.0, 9.0), (10.0, 10.1)), ((0.0, 9.0), (10.0, 10.1))) == pytest.approx((-0.1, 0.1))


def test_wrong_sums_name_the_ranks() -> None:
    exchanges = [replace(exchange(rank, f"n{rank}"), num_wrong_sums=rank // 2) for rank in range(4)]
    (finding,) = wrong_sums(exchanges)
    assert finding.serious and "wrong sums on ranks 2-3 (1 elements)" in finding.text
    assert wrong_sums(exchanges[:2]) == []


def test_a_slow_node_is_told_from_its_partners() -> None:
    exchanges = [exchange(0, "a", 40, 4), exchange(1, "b", 40, 40), exchange(2, "c", 4, 3), exchange(3, "d", 4, 40)]
    (finding,) = slow_nodes(exchanges, 0.5, on_gpus=True)
    assert finding.serious and finding.nodes == ("c",)
    assert finding.text.startswith("c (rank 2) exchanges 0.00391 KiB/s with other nodes at best, 0.10 of the")
    assert not slow_nodes(exchanges, 0.5, on_gpus=False)[0].serious
    assert slow_nodes(exchanges, 0.05, on_gpus=True) == []


def test_of_two_nodes_none_is_accused() -> None:
    assert slow_nodes([exchange(0, "a", 1), exchange(1, "b", 100)], 0.5, on_gpus=True) == []


def test_rates_of_a_nodes_ranks_add_up() -> None:
    exchanges = [exchange(0, "a", 1, 5), exchange(1, "a", 2, None), exchange(2, "b", 1, None), exchange(3, "b", 2, 1)]
    exchanges += [exchange(4, "c", None, None)]
    assert node_rates(exchanges) == {"a": 5, "b": 3}


def test_the_slowest_rank_of_the_best_repetition_counts() -> None:
    exchanges = [exchange(0, "a", seconds=(2.0, 1.0)), exchange(1, "a", seconds=(3.0, 4.0))]
    assert all_reduce_rate(exchanges) == pytest.approx(2 * 1 / 2 * 1000 / 3.0)


def test_a_complaint_says_what_to_leave_out() -> None:
    sick, full = Finding("n1, rank 3 computes wrongly", ("n1",)), Finding("run.dir: full")
    assert complaint([sick], ["n0", "n1"]) == (
        "n1, rank 3 computes wrongly\n"
        "leave out n1 (sbatch --exclude=n1) and have it repaired, or start with --skip-health-check"
    )
    both = complaint([sick, Finding("n2 too", ("n2", "n1")), full], ["n0", "n1", "n2"])
    assert both.startswith("the machines are not fit for this run:\n  n1, rank 3 computes wrongly\n  n2 too\n  run.dir")
    assert "sbatch --exclude=n1,n2)" in both
    assert complaint([full], ["n0", "n1"]) == "run.dir: full\n--skip-health-check starts without this check"
    assert "exclude" not in complaint([sick], ["n1", "n1"])  # there is no other node


def test_the_summary() -> None:
    reports = [report(rank, 600 + rank) for rank in range(4)]
    exchanges = [exchange(rank, f"n{rank // 2}", 2.0 * GIB) for rank in range(4)]
    assert summary(reports, exchanges, 1.234) == (
        "4 ranks on 2 nodes, checked in 1.23 s: products at 600-603 TFLOP/s, all-reduce 1.46 KiB/s,"
        " between nodes 4 GiB/s, 100 GiB free"
    )
    assert summary(reports[:1], [], 0.01) == "1 rank, checked in 0.01 s: products at 600 TFLOP/s, 100 GiB free"
    found = details(reports, SPACE)
    assert (
        found == "clocks within 0.012 s; a checkpoint takes at most 10 GiB; on all ranks: torch 2.15.0, our files abc"
    )


def test_ranks_in_words() -> None:
    assert [ranks_text(ranks) for ranks in ([4], [2, 0, 1], [5, 1, 2])] == ["rank 4", "ranks 0-2", "ranks 1-2, 5"]
