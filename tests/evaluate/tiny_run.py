"""A run directory with a checkpoint of a tiny random model, over the embedded corpus."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from tolktrain.checkpoint.retention import Retention
from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.checkpoint.slices import Slice, Snapshot
from tolktrain.checkpoint.store import CheckpointStore
from tolktrain.config.load import load_config
from tolktrain.model.architecture import Architecture
from tolktrain.model.parameter_layout import canonical_state
from tolktrain.model.smoltolk import SmolTolk

SETS = ("stories", "heldout_stories", "heldout_voices")
FOLDERS = ("train", "heldout_stories", "heldout_voices")


def tiny_tree(folder: Path, repository: Path) -> dict[str, Any]:
    """Configuration of the run."""
    sample = repository / "data" / "sample"
    backbone = {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    everything = {"sets": {"stories": 1}}
    return {
        "run": {"name": "tiny", "dir": str(folder)},
        "model": {
            "backbone": {**backbone, "ffn_hidden_size": 24, "text_vocab_size": 1024},
            "speech": {"input_adapter_layers": 1, "output_adapter_layers": 1},
        },
        "data": {
            "sets": {name: {"path": str(sample / sub)} for name, sub in zip(SETS, FOLDERS, strict=True)},
            "text_tokenizer": str(sample / "text_tokenizer"),
            "speech_tokenizer": str(sample / "speech_tokenizer"),
        },
        "train": {
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "sequence_length": 192,
            "precision": "fp32",
            "stages": [
                {"name": "text", "tokens": 768, "mixture": {"text": everything}, "learning_rate": 1e-3},
                {
                    "name": "joint",
                    "tokens": 768,
                    "mixture": {"speech": everything, "recognition": everything},
                    "learning_rate": 1e-3,
                },
            ],
        },
        "evaluation": {
            "train_set": "stories",
            "heldout_sets": ["heldout_stories", "heldout_voices"],
            "baseline_records": 40,
            "sequences": 6,
            "choices": 8,
            "prompts": str(sample / "prompts"),
            "generated_seconds": 0.5,
        },
    }


def write_run(
    folder: Path, tree: dict[str, Any], seed: int = 0, tune: Callable[[SmolTolk], None] = lambda model: None
) -> Path:
    """Write config.yaml, metrics.jsonl and a checkpoint after two steps; returns the run directory.

    `tune` may train the model before.
    """
    run_dir = folder / tree["run"]["name"]
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = load_config(run_dir / "config.yaml")
    architecture = Architecture.from_config(config.model)
    model = SmolTolk(architecture, seed)
    parameters = canonical_state(model)
    # Random weights as small as those at the start of training make every choice a near tie.
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in parameters.items():
        if "embedding" in name:
            with torch.no_grad():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    tune(model)
    parameters = {name: tensor.detach().clone() for name, tensor in canonical_state(model).items()}
    store = CheckpointStore(run_dir / "checkpoints")
    store.prepare()
    slices = {name: Slice.whole(tensor) for name, tensor in parameters.items()}
    state = {"step": 2, "stage": 1, "stage_complete": True, "architecture": architecture.to_dict()}
    CheckpointSaver(store, Retention(last=1)).save(2, Snapshot(slices), state)
    lines = '{"step": 1, "stage": "text", "tokens": 768, "loss": 7.0, "text_loss": 7.0, "seconds_per_step": 1}\n'
    lines += '{"step": 2, "stage": "joint", "tokens": 1536, "loss": 6.2, "text_loss": 6.5, "speech_loss": 6.1}\n'
    (run_dir / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return run_dir
