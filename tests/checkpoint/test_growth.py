"""What a start and a save do at 64 to 8,192 ranks, counted with all ranks played in turn."""

import builtins
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from tolktrain.checkpoint.manifest import MANIFEST, digest_files, read_manifest, verify_files, write_manifest
from tolktrain.checkpoint.sharing import MOST_FILES
from tolktrain.checkpoint.slices import PARAMETERS
from tolktrain.checkpoint.writer import Written, _Planner, _Writer

Fit = Callable[[Mapping[int, float]], float]


@contextmanager
def counting_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every file that is opened or asked for its size meanwhile."""
    asked: list[str] = []

    def counted(function: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            asked.append(str(path))
            return function(path, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((os, "stat"), (os, "open"), (builtins, "open")):
            patch.setattr(module, name, counted(getattr(module, name)))
        yield asked


def make_checkpoint(folder: Path, num_ranks: int) -> None:
    """As many files as that many ranks write, all but empty."""
    (folder / "tensors").mkdir(parents=True)
    names = [f"tensors/{number}.safetensors" for number in range(min(num_ranks, MOST_FILES))]
    for number, name in enumerate(names):
        (folder / name).write_bytes(bytes(number % 7))
    write_manifest(folder, digest_files(folder, names))


def test_all_ranks_together_look_at_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, growth_exponent: Fit
) -> None:
    """Its size and its content. Where ranks are more than files, some have nothing to do."""
    totals: dict[int, float] = {}
    for num_ranks in (64, 256, 1024):
        folder = tmp_path / str(num_ranks)
        make_checkpoint(folder, num_ranks)
        expected = read_manifest(folder)
        with counting_files(monkeypatch) as asked:
            for rank in range(num_ranks):
                verify_files(folder, expected, rank, num_ranks)
        assert {Path(path).name for path in asked} >= {Path(name).name for name in expected}
        assert not any(path.endswith(MANIFEST) for path in asked)
        totals[num_ranks] = len(asked)
    assert 0.9 < growth_exponent(totals) < 1.05, totals


def test_one_rank_looks_at_no_more_at_8192(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path, 8192)
    expected, looked = read_manifest(tmp_path), {}
    for rank in (0, 1, 4095, 4096, 8191):
        with counting_files(monkeypatch) as asked:
            verify_files(tmp_path, expected, rank, 8192)
        looked[rank] = len({path for path in asked if path.endswith(".safetensors")})
    assert looked == {0: 1, 1: 1, 4095: 1, 4096: 0, 8191: 0}


@pytest.mark.parametrize("num_parts", [1, 2, 5, 40])
def test_nothing_is_left_unchecked(tmp_path: Path, num_parts: int) -> None:
    """Whatever happens to whichever file, one of the parts finds it, and the others have nothing to say."""
    make_checkpoint(tmp_path, 12)
    expected = read_manifest(tmp_path)

    def complaints() -> list[str]:
        found = []
        for part in range(num_parts):
            try:
                verify_files(tmp_path, expected, part, num_parts)
            except Exception as error:
                found.append(str(error))
        return found

    assert complaints() == []
    for name in expected:
        content = (tmp_path / name).read_bytes()
        for change in (content + b"x", None, bytes([1]) * len(content) if content else b"y"):
            if change is None:
                (tmp_path / name).unlink()
            else:
                (tmp_path / name).write_bytes(change)
            assert len(found := complaints()) == 1 and name in found[0]
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tensors" / "more.safetensors").touch()
    assert len(found := complaints()) == 1 and "more.safetensors" in found[0]


def plan_of(rank: int, num_ranks: int, rows: int) -> SavePlan:
    """Rows of 240 matrices, laid end to end and cut evenly: what data rank `rank` plans to write of one kind."""
    total = 240 * rows
    begin, end = total * rank // num_ranks, total * (rank + 1) // num_ranks
    items = []
    for number in range(begin // rows, -(-end // rows)):
        first, last = max(begin - number * rows, 0), min(end - number * rows, rows)
        offsets = torch.Size((first, 0))
        chunk = ChunkStorageMetadata(offsets, torch.Size((last - first, 2048)))
        data = TensorWriteData(chunk, TensorProperties(dtype=torch.float32), torch.Size((rows, 2048)))
        index = MetadataIndex(f"{PARAMETERS}/layers.{number}.weight", offsets)
        items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
    return SavePlan(items, storage_data=0)


def test_what_rank_0_plans_and_writes_down_grows_less_than_ranks_do(tmp_path: Path, growth_exponent: Fit) -> None:
    """Each rank adds a slice or two, and its file; no more than the most files, then."""
    sizes: dict[int, float] = {}
    for num_ranks in (64, 1024, 8192):
        plans = [plan_of(rank, num_ranks, rows=2048) for rank in range(num_ranks)]
        written: list[Written] = []
        writer = _Writer(tmp_path, 0, None, lambda: None, written.append, 0, MOST_FILES)
        plans, metadata = _Planner().create_global_plan(plans)
        files = {id(plan.storage_data): plan.storage_data for plan in writer.prepare_global_plan(plans)}
        digest = {"size": 1, "sha256": "0" * 64}
        results = [
            [WriteResult(MetadataIndex(b.key, b.offsets), 1, (f"tensors/{file.name}", digest, b)) for b in file.blocks]
            for file in files.values()
        ]
        writer.finish(metadata, results)
        assert len(written[0].files) == min(num_ranks, MOST_FILES)
        sizes[num_ranks] = len(json.dumps(written[0].tensors)) + len(json.dumps(written[0].files))
    assert growth_exponent(sizes) < 0.95 and sizes[8192] < 2.5e6, sizes
