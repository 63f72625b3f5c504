"""A run continues with moved data and without its backbone, and with nothing else in their places."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from corpora import random_records, write_dataset
from small_runs import NUM_STEPS, StopAfter, read_metrics, small_config, write_config
from streaming.base.compression import decompress
from transformers import LlamaConfig, LlamaForCausalLM

from tolktrain.checkpoint.manifest import digest_files, write_manifest
from tolktrain.config import Config
from tolktrain.config.load import load_config
from tolktrain.data.index import read_index
from tolktrain.errors import UserError
from tolktrain.train.run import train


@pytest.fixture(scope="module")
def halted(tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """Folder of a run that was stopped after its first stage and 2 of 4 steps of the second. Tests must not change
    it."""
    folder = tmp_path_factory.mktemp("halted")
    assert train(small_config(folder, sets), StopAfter(5)) == 75
    return folder


def moved(sets: Path, target: Path) -> Path:
    """The sets in another folder; the files of shards have other names, and are not compressed any more."""
    for name in ("train", "held"):
        folder = target / f"other {name}"
        folder.mkdir(parents=True)
        shutil.copy(sets / name / "dataset.json", folder)
        index = json.loads((sets / name / "index.json").read_text())
        for number, shard in enumerate(index["shards"]):
            packed = (sets / name / shard["zip_data"]["basename"]).read_bytes()
            shard["raw_data"]["basename"] = f"part-{number}.mds"
            shard |= {"compression": None, "zip_data": None}
            content = decompress("zstd", packed)
            (folder / f"part-{number}.mds").write_bytes(content)
        (folder / "index.json").write_text(json.dumps(index))
    return target


@pytest.mark.slow
def test_moved_data_is_the_same_data(halted: Path, tmp_path: Path, sets: Path, uninterrupted: Path) -> None:
    shutil.copytree(halted / "runs", tmp_path / "elsewhere")
    place = moved(sets, tmp_path / "data")
    assert read_index(place / "other train").content_sha256() == read_index(sets / "train").content_sha256()
    assert read_index(place / "other held").content_sha256() != read_index(sets / "train").content_sha256()
    paths = [f"data.sets.{name}.path={place / f'other {name}'}" for name in ("train", "held")]
    assert train(small_config(tmp_path, sets, *paths, f"run.dir={tmp_path / 'elsewhere'}")) == 0
    run_dir = tmp_path / "elsewhere" / "small"
    assert read_metrics(run_dir) == read_metrics(uninterrupted)
    assert not (run_dir / "changes.jsonl").exists()


@pytest.mark.parametrize("released", [False, True], ids=["hashes in the checkpoint", "of an earlier release"])
def test_other_records_under_the_name_are_refused(halted: Path, tmp_path: Path, sets: Path, released: bool) -> None:
    """Also by the place where the set of an earlier release still is."""
    shutil.copytree(halted / "runs", tmp_path / "runs")
    if released:
        forget_identity(tmp_path)
    other = write_dataset(tmp_path / "train", random_records(48, seed=7, words=60))
    before = (tmp_path / "runs" / "small" / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError, match=r"data.sets.train \(.*has other records than the set of this name that the run"
    ):
        train(small_config(tmp_path, sets, f"data.sets.train.path={other}"))
    assert (tmp_path / "runs" / "small" / "metrics.jsonl").read_bytes() == before
    held = f"data.sets.held.path={other}"  # no stage uses it
    assert train(small_config(tmp_path, sets, held, "train.max_steps=6")) == 0


def forget_identity(folder: Path) -> None:
    """Let the checkpoints be those of a release that stored no hashes of the data."""
    for state in folder.glob("runs/small/checkpoints/step-*/state.json"):
        content = json.loads(state.read_text())
        del content["data"]["identity"]
        state.write_text(json.dumps(content))
        names = [str(file.relative_to(state.parent)) for file in state.parent.rglob("*") if file.is_file()]
        write_manifest(state.parent, digest_files(state.parent, [name for name in names if name != "manifest.json"]))


def test_data_of_an_earlier_release_that_was_moved(
    halted: Path, tmp_path: Path, sets: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the old place is empty, the records cannot be compared, which is a warning."""
    shutil.copytree(halted / "runs", tmp_path / "runs")
    forget_identity(tmp_path)
    file = tmp_path / "runs" / "small" / "config.yaml"
    file.write_text(file.read_text().replace(str(sets), "/nowhere"))
    assert train(small_config(tmp_path, sets)) == 0
    assert (
        "data.sets.train has another path than before: it cannot be checked that the records are the same"
        in caplog.text
    )
    assert read_metrics(tmp_path / "runs" / "small") == read_metrics(uninterrupted)


def test_another_end_of_utterances_is_refused(halted: Path, tmp_path: Path, sets: Path) -> None:
    """It is not in the shards, and fills short sequences."""
    shutil.copytree(halted / "runs", tmp_path / "runs")
    for name in ("train", "held"):
        copy = shutil.copytree(sets / name, tmp_path / name)
        content = json.loads((copy / "dataset.json").read_text())
        content["text"]["eos_id"] = 3
        (copy / "dataset.json").write_text(json.dumps(content))
    paths = [f"data.sets.{name}.path={tmp_path / name}" for name in ("train", "held")]
    with pytest.raises(UserError, match="end with the id 0 in the steps done, with 3 here"):
        train(small_config(tmp_path, sets, *paths))


def make_backbone(folder: Path, **changes: int) -> Path:
    """A Llama checkpoint of the sizes of `write_config`."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**sizes | changes)).save_pretrained(folder)
    return folder


def with_backbone(folder: Path, sets: Path, backbone: Path | str, *overrides: str) -> Config:
    """A configuration that names a backbone."""
    path = write_config(folder, sets)
    tree = yaml.safe_load(path.read_text())
    tree["model"]["backbone"] = str(backbone)
    path.write_text(yaml.safe_dump(tree))
    return load_config(path, overrides)


@pytest.mark.slow
@pytest.mark.transformers
def test_a_backbone_that_is_gone_moved_or_another(tmp_path: Path, sets: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run has its weights in the checkpoint: only the architecture must be the same."""
    backbone = make_backbone(tmp_path / "backbone")
    assert train(with_backbone(tmp_path, sets, backbone), StopAfter(2)) == 75
    shutil.copytree(tmp_path / "runs", tmp_path / "undisturbed" / "runs")
    expected = tmp_path / "undisturbed"
    assert train(with_backbone(expected, sets, backbone, "train.max_steps=7")) == 0
    other = make_backbone(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(UserError, match="another architecture .*num_layers: 2, 3"):
        train(with_backbone(tmp_path, sets, other))
    backbone.rename(tmp_path / "gone")
    for steps, named in ((3, backbone), (4, tmp_path / "gone"), (5, tmp_path / "nowhere"), (7, "no-one/no-such-model")):
        caplog.clear()
        assert train(with_backbone(tmp_path, sets, named, f"train.max_steps={steps}")) == 0
        assert ("the run continues without it" in caplog.text) == (steps > 4)
    lines = [
        [line for line in read_metrics(folder / "runs" / "small") if "loss" in line] for folder in (tmp_path, expected)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 7 < NUM_STEPS
