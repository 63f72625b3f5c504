"""What a rank finds by itself: products, space, versions; and who is to meet whom."""

import itertools
import logging
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_disk import MakeDisk
from small_runs import small_config
from torch import Tensor

from tolktrain.cluster.health import arithmetic, probes
from tolktrain.cluster.health.arithmetic import GPU, Effort, known_product, measure_product
from tolktrain.cluster.health.check import check_health
from tolktrain.cluster.health.disk import Mark, look
from tolktrain.cluster.health.exchange import own_numbers, summed_numbers
from tolktrain.cluster.health.probes import Probes
from tolktrain.cluster.health.schedule import pairings, partners
from tolktrain.errors import UserError
from tolktrain.parallel.layout import initialize
from tolktrain.train.disk_space import checkpoint_bytes, needed_space

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_product_is_known_and_exact(dtype: torch.dtype) -> None:
    a, b, c = known_product(Effort(size=512, tile=128, repetitions=1, seconds=0, warm_up_seconds=0))
    left, right = (torch.from_numpy(np.tile(tile, (4, 4))).to(dtype) for tile in (a, b))
    assert torch.equal(left @ right, torch.from_numpy(np.tile(c, (4, 4))).to(dtype))
    assert len(np.unique(c)) > 10


def test_the_gpus_product_is_exact_in_bfloat16() -> None:
    *_, c = known_product(GPU)
    assert 64 < np.abs(c).max() <= 256
    assert torch.equal(torch.from_numpy(c), torch.from_numpy(c).bfloat16().long())


def test_a_healthy_device() -> None:
    product = measure_product(CPU, torch.float32)
    assert product.fault == "" and product.flops_per_second > 1e6


def test_one_wrong_element_in_a_later_repetition_is_found() -> None:
    made = 0

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        nonlocal made
        made += 1
        product = a @ b
        if made == arithmetic.CPU.repetitions:
            product[17, 40] += 1
        return product

    product = measure_product(CPU, torch.float32, multiply)
    assert product.fault == "computes wrongly: 1 of 65,536 elements of a known product of matrices"


def test_results_that_are_no_numbers_are_wrong() -> None:
    fault = measure_product(CPU, torch.float32, lambda a, b: torch.full_like(a, torch.nan)).fault
    assert "65,536 of 65,536" in fault


def test_a_device_that_fails_is_reported() -> None:
    def fails(a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore")

    product = measure_product(CPU, torch.float32, fails)
    assert product.fault == "cannot multiply matrices: CUDA error: uncorrectable ECC error encountered"


@pytest.mark.parametrize("num_nodes", range(1, 12))
def test_nodes_meet_each_other_once(num_nodes: int) -> None:
    rounds = pairings(num_nodes, most_rounds=99)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    met = [pair for pairs in rounds for pair in pairs]
    assert sorted(met) == list(itertools.combinations(range(num_nodes), 2))


@pytest.mark.parametrize("num_nodes", [3, 4, 7, 50, 51])
def test_a_few_rounds_suffice_for_two_partners(num_nodes: int) -> None:
    rounds = pairings(num_nodes)
    assert len(rounds) <= 5
    met = [node for pairs in rounds for pair in pairs for node in pair]
    assert all(met.count(node) >= 2 for node in range(num_nodes))


def test_partners_are_mutual() -> None:
    ranks = {"a": [0, 3], "b": [1], "c": [2, 4]}
    found = {rank: partners(rank, ranks) for rank in range(5)}
    assert {len(partners) for partners in found.values()} == {3}
    for rank, others in found.items():
        for turn, other in enumerate(others):
            assert other is None or found[other][turn] == rank
    assert 4 in found[3] and found[3].count(None) == 2  # node b has no second rank, and in one round a sits out


def test_the_size_of_a_checkpoint(tmp_path: Path, sets: Path) -> None:
    counts = {"backbone": 1000, "pooling": 10, "speech": 100}
    config = small_config(tmp_path, sets)
    assert checkpoint_bytes(counts, config, 0) == 12 * 1110
    stages = config.train.stages[1:2]  # trains pooling and speech
    frozen = config.model_copy(update={"train": config.train.model_copy(update={"stages": stages})})
    assert checkpoint_bytes(counts, frozen, 0) == 12 * 110 + 4 * 1000


def test_room_is_needed_for_checkpoints_that_do_not_replace_others(tmp_path: Path, sets: Path) -> None:
    config = small_config(tmp_path, sets, "checkpoint.keep_last=2")
    needed = []
    for step in range(4):
        space = needed_space({"backbone": 1}, config, 1, tmp_path / "checkpoints", restarts=False)
        needed.append((space.num_checkpoints, space.num_existing, space.reclaimed_bytes))
        folder = tmp_path / "checkpoints" / f"step-{step:08d}" / "parameters"
        folder.mkdir(parents=True)
        (folder / "a.safetensors").write_bytes(bytes(1000))
    aside = tmp_path / "checkpoints" / "step-00000009.damaged"
    aside.mkdir()
    (aside / "a.safetensors").write_bytes(bytes(1000))
    assert needed == [(2, 0, 0), (2, 1, 0), (1, 2, 0), (1, 3, 0)]
    space = needed_space({"backbone": 1}, config, 1, tmp_path / "checkpoints", restarts=True)
    assert (space.num_checkpoints, space.num_existing, space.reclaimed_bytes) == (2, 0, 5000)
    for step in range(1, 4):
        (tmp_path / "checkpoints" / f"step-{step:08d}").rename(tmp_path / f"{step}")
    space = needed_space({"backbone": 1}, config, 1, tmp_path / "checkpoints", restarts=False)
    assert (space.num_checkpoints, space.num_existing) == (2, 1)  # what was set aside does not make way


def test_a_folder_is_known_by_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tolktrain.cluster.health.disk._RETRY_DELAYS_SECONDS", (0.0, 0.0))
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    mark = Mark(shared)
    said = mark.leave()
    assert look(shared, said, 1, Probes()).is_rank_zeros
    assert not look(other, said, 1, Probes()).is_rank_zeros
    assert "No such file" in look(tmp_path / "none", said, 1, Probes()).fault
    mark.remove()
    assert not list(shared.iterdir()) and not list(other.iterdir())


def test_free_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    free_bytes, free_files = probes.free_space(tmp_path)
    assert free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert free_files is None or free_files > 0


def test_a_changed_source_file_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "healthy_package"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    (package / "b.py").write_text("b = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(probes, "_OURS", ("healthy_package",))
    digests = [probes.source_digest()]
    (package / "b.py").write_text("b = 2\n")
    digests.append(probes.source_digest())
    (package / "b.py").rename(package / "c.py")
    digests.append(probes.source_digest())
    assert len(set(digests)) == 3 and probes.source_digest() == digests[2]


def test_versions_of_what_is_installed() -> None:
    versions = probes.installed_versions()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert len(versions["tolktrain's source files"]) == 12 and "deepspeed" in versions


def test_slurms_name_of_a_node_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu007")
    assert probes.node_name() == "gpu007"


def test_a_real_small_disk(make_disk: MakeDisk, tmp_path: Path, sets: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, folder = small_config(tmp_path, sets), make_disk(256).path
    layout = initialize()
    arguments = (config, 1, folder / "checkpoints", False)
    fitting, too_large = {"backbone": 4000}, {"backbone": 10_000}  # twice 80 and 152 KB
    with caplog.at_level(logging.INFO):
        assert check_health(config, layout, folder, partial(needed_space, fitting, *arguments)) == ""
    assert "KiB free" in caplog.text
    with pytest.raises(UserError, match=r"disk-0 has 25. KiB free .*but two checkpoints of 149 KiB each need 298 KiB"):
        check_health(config, layout, folder, partial(needed_space, too_large, *arguments))
    assert not list(folder.iterdir())


@pytest.mark.parametrize("world_size", [2, 1000, 8192, 1 << 17])
def test_sums_over_all_ranks_are_exact(world_size: int) -> None:
    """Whatever is added first. Ranks themselves, added up, are not from 5,800 ranks on: a sound network seemed bad."""
    numbers = np.stack([own_numbers(7, rank, CPU).numpy() for rank in range(world_size)])
    assert numbers.dtype == np.float32 and len(np.unique(numbers)) > min(world_size, 240)
    expected = summed_numbers(7, world_size, CPU).numpy()
    for order in (numbers, numbers[::-1], np.sort(numbers, axis=0)):
        assert np.array_equal(np.add.accumulate(order, axis=0)[-1], expected)
    assert np.array_equal(numbers.astype(np.int64).sum(axis=0), expected)


def test_files_are_as_many_as_ranks(tmp_path: Path, sets: Path) -> None:
    """Of each checkpoint, and a few more."""
    config, folder = small_config(tmp_path, sets), tmp_path / "checkpoints"
    few, many = (needed_space({"backbone": 1}, config, size, folder, True).num_files for size in (8, 108))
    assert many - few == 2 * 100
