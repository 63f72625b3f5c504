"""Sources of initial weights: runs with one checkpoint, written without training."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from tolktrain.checkpoint.manifest import digest_files, write_manifest
from tolktrain.config import Config
from tolktrain.config.load import dump_config
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk


@contextmanager
def source_run(
    folder: Path,
    config: Config,
    tokenizers: Mapping[str, str | None] | None = None,
    step: int = 7,
    seed: int = 5,
    spoiled: tuple[str, float] | None = None,
) -> Iterator[tuple[Path, SmolTolk]]:
    """The run <folder>/source with a checkpoint, and its model, of which every value is random; removed at the end.

    `spoiled` is a tensor and the value that its first element gets in the checkpoint.
    """
    model = SmolTolk(Architecture.from_config(config.model), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    run_dir = folder / "source"
    write_checkpoint(run_dir, model, config, tokenizers, step, spoiled)
    try:
        yield run_dir, model
    finally:
        shutil.rmtree(run_dir / "checkpoints" / f"step-{step:08d}")


def write_checkpoint(
    run_dir: Path,
    model: SmolTolk,
    config: Config,
    tokenizers: Mapping[str, str | None] | None = None,
    step: int = 7,
    spoiled: tuple[str, float] | None = None,
) -> None:
    """A checkpoint of one shard, whose parameters are those of `model`."""
    checkpoint = run_dir / "checkpoints" / f"step-{step:08d}"
    (checkpoint / "tensors").mkdir(parents=True)
    tensors = {name: tensor.clone() for name, tensor in canonical_state(model).items()}
    if spoiled is not None:
        tensors[spoiled[0]].flatten()[0] = spoiled[1]
    file = "tensors/shard-00001-of-00001.safetensors"
    save_file({f"parameters/{name}": tensor for name, tensor in tensors.items()}, checkpoint / file)
    slices = {
        name: {
            "shape": list(tensor.shape),
            "slices": [{"file": file, "offsets": [0] * tensor.dim(), "sizes": list(tensor.shape)}],
        }
        for name, tensor in tensors.items()
    }
    (checkpoint / "tensors.json").write_text(json.dumps({"parameters": slices}))
    state = {"step": step, "stage_name": "joint", "architecture": model.architecture.to_dict()}
    if tokenizers is not None:
        state["tokenizers"] = dict(tokenizers)
    (checkpoint / "state.json").write_text(json.dumps(state))
    write_manifest(checkpoint, digest_files(checkpoint, [file, "state.json", "tensors.json"]))
    (run_dir / "config.yaml").write_text(dump_config(config))
