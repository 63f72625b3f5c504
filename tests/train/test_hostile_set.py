"""A run whose data set is a stranger's: its index cannot reach the files of whoever trains on it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import random_records, small_config, write_dataset

from tolktrain.errors import UserError
from tolktrain.train.run import train


@pytest.mark.parametrize("place", [str, lambda path: f"../{path.name}"], ids=["absolute", "climbing"])
@pytest.mark.parametrize("kind", ["raw_data", "zip_data"])
def test_a_file_outside_survives(tmp_path: Path, sets: Path, kind: str, place: Callable[[Path], str]) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("ten years of work")
    before = thesis.stat().st_mtime_ns
    remote = write_dataset(tmp_path / "bucket", random_records(48, words=60), packed=kind == "zip_data")
    index = json.loads((remote / "index.json").read_text())
    index["shards"][1][kind]["basename"] = place(thesis)
    (remote / "index.json").write_text(json.dumps(index))
    cache = tmp_path / "cache"
    config = small_config(
        tmp_path, sets, f"data.sets.train.path={cache}", f"data.sets.train.remote={remote}", "train.max_steps=2"
    )
    there = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match="cache/index.json names the file .*thesis.txt"):
        train(config)
    assert thesis.read_text() == "ten years of work" and thesis.stat().st_mtime_ns == before
    assert set(os.listdir(tmp_path)) <= {*there, "cache", "runs"}
    assert sorted(os.listdir(cache)) == ["dataset.json", "index.json"]
