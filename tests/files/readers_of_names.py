"""Every reader of files that name other files, each with a folder of what it reads, in which one name can be chosen.

A new reader is one more entry of READERS.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))  # for `corpora`

from corpora import random_records, write_dataset
from transformers import LlamaConfig, LlamaForCausalLM

from tolktrain.checkpoint.manifest import digest_files, verify, write_manifest
from tolktrain.checkpoint.reader import CheckpointReader
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.config.data import DatasetConfig
from tolktrain.config.model import ModelConfig
from tolktrain.data.folder import RecordFolder
from tolktrain.files.address import parse_address
from tolktrain.generate.inputs import read_entries
from tolktrain.generate.prompts import read_prompts
from tolktrain.inspect import run as inspect_run
from tolktrain.inspect import tokenizers as inspect_tokenizers
from tolktrain.inspect.run import InspectOptions
from tolktrain.inspect.tokenizers import fetch_tokenizers
from tolktrain.interop.huggingface import load_backbone
from tolktrain.interop.weights import load_weights
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.prepare.job.pipeline import _read_part
from tolktrain.prepare.recordings.manifest.format import Manifest
from tolktrain.prepare.recordings.manifest.librispeech import read_librispeech
from tolktrain.prepare.unused import Unused
from tolktrain.runs.remote_checkpoints import find_remote, restore, upload_files
from tolktrain.runs.rollbacks import carry_out
from tolktrain.storage.errors import StorageError
from tolktrain.storage.folder import LocalFolder
from tolktrain.storage.open import open_storage
from tolktrain.storage.retries import RetryPolicy
from tolktrain.units.pretrained import model_digest

Name = Any  # whatever JSON can say in the place of a name
BRIEF = RetryPolicy(retries=0, timeout_seconds=2.0)


@dataclass(frozen=True)
class Reader:
    """How a name gets into a file, and what reads it there."""

    source: str  # what an error names: a file in the folder
    write: Callable[[Path], None]  # good content into a new folder, once
    plant: Callable[[Path, Name], None]  # the name into the file, in a copy of the folder
    read: Callable[[Path], object]  # may create files only in folder / "work"
    key: bool = False  # the name is a key or a word of a text, and so is a text itself
    ignores: bool = False  # a name that is not one of its own is passed over instead of refused
    links: bool = True  # there may be links where the names lead to
    is_refused: Callable[[Name], bool] = lambda name: True  # of the names that no reader should take


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Data sets.


def _packed(folder: Path) -> None:
    write_dataset(folder / "set", random_records(4), packed=True)


def _plain(folder: Path) -> None:
    write_dataset(folder / "set", random_records(4), packed=False)


def _basename(kind: str) -> Callable[[Path, Name], None]:
    def plant(folder: Path, name: Name) -> None:
        _edit(folder / "set" / "index.json", lambda index: index["shards"][0][kind].update(basename=name))

    return plant


def _read_local(folder: Path) -> object:
    return RecordFolder(DatasetConfig(path=str(folder / "set")))[0]


def _read_remote(folder: Path) -> object:
    # The cache holds links, too: whoever fills it from a hostile set may have done so before.
    cache = folder / "work" / "cache"
    shutil.copytree(folder / "links", cache, symlinks=True, dirs_exist_ok=True)
    config = DatasetConfig(path=str(cache), remote=str(folder / "set"))
    return RecordFolder(config, policy=BRIEF)[0]


def _described(key: str) -> Callable[[Path, Name], None]:
    def plant(folder: Path, name: Name) -> None:
        _edit(folder / "set" / "dataset.json", lambda info: info.update({key: name}))

    return plant


def _inspect(folder: Path) -> object:
    options = InspectOptions(path=str(folder / "set"))
    return inspect_run._default_output(RecordFolder(DatasetConfig(path=options.path)).info, options)


def _audio_names(folder: Path) -> None:
    (folder / "work" / "out").mkdir(parents=True)


def _plant_audio(folder: Path, name: Name) -> None:
    (folder / "work" / "out" / "statistics.json").write_text(json.dumps({"sounds": [name]}))


def _replace_audio(folder: Path) -> object:
    (folder / "work" / "new").mkdir()
    return inspect_run._move_files(folder / "work" / "new", folder / "work" / "out")


def _fetch_tokenizers(folder: Path) -> object:
    class Listing(LocalFolder):
        def names(self, prefix: str = "") -> list[str]:
            return ["text_tokenizer/" + (folder / "listing").read_bytes().decode("utf-8", "surrogatepass")]

        def read(self, name: str, *_: object) -> bytes | None:
            return b"content of a stranger"

    original = inspect_tokenizers.open_storage
    inspect_tokenizers.open_storage = lambda address: Listing(parse_address(address), BRIEF)  # type: ignore[misc]
    try:
        return fetch_tokenizers("s3://bucket/list of its files/train", folder / "work")
    finally:
        inspect_tokenizers.open_storage = original


# Models.


def _backbone(folder: Path) -> None:
    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        vocab_size=32,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model", max_shard_size="4kB")


def _weight_map(folder: Path, name: Name) -> None:
    def change(index: Any) -> None:
        index["weight_map"][sorted(index["weight_map"])[0]] = name

    _edit(folder / "model" / "model.safetensors.index.json", change)


def _exported(folder: Path) -> None:
    backbone = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    architecture = Architecture.from_config(
        ModelConfig.model_validate({"backbone": {**backbone, "ffn_hidden_size": 8, "text_vocab_size": 16}})
    )
    tensors = {name: tensor.clone() for name, tensor in canonical_state(SmolTolk(architecture, seed=0)).items()}
    (folder / "model").mkdir()
    save_file(tensors, folder / "model" / "weights.safetensors")
    content = {"format_version": 1, "architecture": architecture.to_dict()}
    (folder / "model" / "architecture.json").write_text(json.dumps(content))
    index = {"weight_map": dict.fromkeys(tensors, "weights.safetensors")}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


# Checkpoints.


def _checkpoint(folder: Path) -> None:
    step = folder / "run" / "checkpoints" / "step-00000005"
    (step / "parameters").mkdir(parents=True)
    save_file({"a": torch.zeros(4)}, step / "parameters" / "shard.safetensors")
    stored = {"file": "parameters/shard.safetensors", "offsets": [0], "sizes": [4]}
    (step / "tensors.json").write_text(json.dumps({"parameters": {"a": {"shape": [4], "slices": [stored]}}}))
    (step / "state.json").write_text("{}")
    _write_manifest(step)


def _write_manifest(step: Path, **more: Any) -> None:
    names = [path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file() and not path.is_symlink()]
    write_manifest(step, digest_files(step, [name for name in names if name != "manifest.json"]) | more)


def _plant_file(folder: Path, name: Name) -> None:
    step = folder / "run" / "checkpoints" / "step-00000005"

    def change(index: Any) -> None:
        index["parameters"]["a"]["slices"][0]["file"] = name

    _edit(step / "tensors.json", change)
    _write_manifest(step)


def _plant_digest(folder: Path, name: Name) -> None:
    victim = (folder.parent / "victim" / "secret").read_bytes()
    (folder / "copy").write_bytes(victim)  # the digest is right: it is the name that must be refused
    digest = digest_files(folder, ["copy"])["copy"]
    _write_manifest(folder / "run" / "checkpoints" / "step-00000005", **{name: digest})


def _read_tensors(folder: Path) -> object:
    with CheckpointReader(folder / "run" / "checkpoints" / "step-00000005") as reader:
        return reader.read_whole("parameters", "a")


def _upload(folder: Path) -> object:
    copies = folder / "work" / "copies"
    try:
        return upload_files(open_storage(str(copies)), folder / "run" / "checkpoints" / "step-00000005")
    except FileNotFoundError:  # a name inside, of a file that is not there
        return None
    finally:
        secret = (folder.parent / "victim" / "secret").read_bytes()
        assert not any(path.read_bytes() == secret for path in copies.rglob("*") if path.is_file())


def _restore(folder: Path) -> object:
    """What a bucket holds after somebody has planted a name there."""
    step, copies = folder / "run" / "checkpoints" / "step-00000005", folder / "work" / "copies"
    digest = hashlib.sha256((step / "manifest.json").read_bytes()).hexdigest()[:12]
    shutil.copytree(step, copies / f"step-00000005-{digest}", symlinks=True)
    storage = open_storage(str(copies), BRIEF)
    assert len(find_remote(storage)) == 1
    restored = restore(storage, folder / "work" / "run", 0)
    assert restored is not None
    return restored


def _restore_latest(folder: Path) -> object:
    class Unlisted(LocalFolder):
        def names(self, prefix: str = "") -> list[str]:
            raise StorageError("listing is refused", "refused")

    return restore(Unlisted(parse_address(str(folder / "copies")), BRIEF), folder / "work" / "run", 0)


def _rollbacks(folder: Path) -> None:
    _checkpoint(folder)
    numbers = {"number": 1, "first_bad_step": 4, "last_bad_step": 4, "to_step": 3, "skipped_data": [3, 4]}
    record = {"time": "", "stage": "joint", "reason": "", "carried_out": False, **numbers}
    (folder / "run" / "rollbacks.jsonl").write_text(json.dumps(record) + "\n")


def _rolled_back(key: str) -> Callable[[Path, Name], None]:
    def plant(folder: Path, name: Name) -> None:
        _edit(folder / "run" / "rollbacks.jsonl", lambda record: record.update({key: name}))

    return plant


# What is spoken, and what is prepared.


def _prompts(folder: Path) -> None:
    (folder / "prompts").mkdir()
    soundfile.write(folder / "prompts" / "a.wav", np.full(160, 0.1), 16_000)
    (folder / "prompts" / "prompts.json").write_text('[{"file": "a.wav"}]')


def _part(folder: Path) -> None:
    write_dataset(folder / "set", random_records(4))
    shards = json.loads((folder / "set" / "index.json").read_text())["shards"]
    content = {"preparation": "p", "num_items": 4, "counts": {"train": {}}, "shards": {"train": shards}, "failures": []}
    (folder / "parts").mkdir()
    (folder / "parts" / "000000.json").write_text(json.dumps(content))


def _part_name(kind: str) -> Callable[[Path, Name], None]:
    def plant(folder: Path, name: Name) -> None:
        def change(part: Any) -> None:
            part["shards"]["train"][0][kind]["basename"] = name

        _edit(folder / "parts" / "000000.json", change)

    return plant


def _transcripts(folder: Path) -> None:
    (folder / "corpus").mkdir()


def _plant_transcript(folder: Path, name: Name) -> None:
    (folder / "corpus" / "1-2.trans.txt").write_text(f"1-2-{name} HELLO\n", errors="surrogatepass")


def _read_corpus(folder: Path) -> object:
    used = [
        item
        for item in read_librispeech(Manifest(str(folder / "corpus"), ".", None, False, Unused()))
        if hasattr(item, "audio")
    ]
    root = (folder / "corpus").resolve()
    assert all(Path(item.audio).resolve().is_relative_to(root) for item in used)
    return used


def _fetched(folder: Path) -> None:
    (folder / "work" / "text_tokenizer").mkdir(parents=True)


_LEADS_ELSEWHERE = "/", "\0", "\n", "\\", "x" * 200


def _no_folder_name(name: Name) -> bool:
    return not isinstance(name, str) or any(part in name for part in _LEADS_ELSEWHERE)


_RUN_MANIFEST = "run/checkpoints/step-00000005/manifest.json"
_TENSORS = "run/checkpoints/step-00000005/tensors.json"
_WEIGHTS = "model/model.safetensors.index.json"

READERS: dict[str, Reader] = {
    "shard of a local set": Reader("set/index.json", _plain, _basename("raw_data"), _read_local),
    "shard that is to be unpacked": Reader("set/index.json", _packed, _basename("raw_data"), _read_local),
    "packed shard of a local set": Reader("set/index.json", _packed, _basename("zip_data"), _read_local),
    "shard of a remote set": Reader("work/cache/index.json", _plain, _basename("raw_data"), _read_remote),
    "unpacked shard of a remote set": Reader("work/cache/index.json", _packed, _basename("raw_data"), _read_remote),
    "packed shard of a remote set": Reader("work/cache/index.json", _packed, _basename("zip_data"), _read_remote),
    "name of a set": Reader("dataset.json", _plain, _described("name"), _inspect, is_refused=_no_folder_name),
    "split of a set": Reader("dataset.json", _plain, _described("split"), _inspect, is_refused=_no_folder_name),
    "audio of an earlier look": Reader("", _audio_names, _plant_audio, _replace_audio, ignores=True),
    "tokenizers in a bucket": Reader(
        "list of its files",
        _fetched,
        lambda folder, name: _write_raw(folder / "listing", name),
        _fetch_tokenizers,
        key=True,
        is_refused=lambda name: name != "",  # an empty folder
    ),
    "backbone": Reader(_WEIGHTS, _backbone, _weight_map, lambda folder: load_backbone(str(folder / "model"))),
    "exported weights": Reader(_WEIGHTS, _exported, _weight_map, lambda folder: load_weights(folder / "model")),
    "model of a tokenizer": Reader(_WEIGHTS, _backbone, _weight_map, lambda folder: model_digest(folder / "model")),
    "tensors of a checkpoint": Reader(_TENSORS, _checkpoint, _plant_file, _read_tensors),
    "files of a checkpoint": Reader(
        _RUN_MANIFEST,
        _checkpoint,
        _plant_digest,
        lambda folder: verify(folder / "run" / "checkpoints" / "step-00000005"),
        key=True,
    ),
    "files to upload": Reader(_RUN_MANIFEST, _checkpoint, _plant_digest, _upload, key=True),
    "files in a bucket": Reader("manifest.json", _checkpoint, _plant_digest, _restore, key=True, links=False),
    "latest in a bucket": Reader(
        "",
        lambda folder: (folder / "copies").mkdir(),
        lambda folder, name: _write_raw(folder / "copies" / "latest", name),
        _restore_latest,
        key=True,
        ignores=True,
    ),
    **{
        f"{key} of a rollback": Reader(
            "run/rollbacks.jsonl",
            _rollbacks,
            _rolled_back(key),
            lambda folder: carry_out(folder / "run", CheckpointStore(folder / "run" / "checkpoints")),
            is_refused=lambda name: type(name) is not int,
        )
        for key in ("to_step", "number")
    },
    "prompt": Reader(
        "prompts/prompts.json",
        _prompts,
        lambda folder, name: _edit(folder / "prompts" / "prompts.json", lambda entries: entries[0].update(file=name)),
        lambda folder: read_prompts(folder / "prompts", 16_000),
    ),
    "prompt before a run": Reader(
        "prompts/prompts.json",
        _prompts,
        lambda folder, name: _edit(folder / "prompts" / "prompts.json", lambda entries: entries[0].update(file=name)),
        lambda folder: read_entries(folder / "prompts"),
    ),
    **{
        f"{kind} of a prepared part": Reader(
            "parts/000000.json",
            _part,
            _part_name(kind),
            lambda folder: _read_part(open_storage(str(folder)), 0, "p"),
            links=False,
        )
        for kind in ("raw_data", "zip_data")
    },
    "line of a corpus": Reader("", _transcripts, _plant_transcript, _read_corpus, key=True, ignores=True),
}


def _write_raw(path: Path, name: str) -> None:
    path.write_bytes(name.encode("utf-8", "surrogatepass"))
