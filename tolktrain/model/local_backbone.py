"""The architecture of a configuration whose backbone is already on this machine."""

from pathlib import Path

from tolktrain.config import Config
from tolktrain.config.model import ModelConfig
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture

RANDOM_BACKBONE = (
    "this configuration has the shape of a backbone and no weights, so its first stage would freeze random ones; train"
    " with the same entries and a configuration whose model.backbone names a checkpoint"
)

# Configurations of the repository that have the shape of a backbone.
_SHAPES = {
    "HuggingFaceTB/SmolLM-135M": "configs/bench/smoltolk-150m.yaml",
    "HuggingFaceTB/SmolLM-360M": "configs/bench/smoltolk-400m.yaml",
    "HuggingFaceTB/SmolLM-1.7B": "configs/bench/smoltolk-2b.yaml",
    "meta-llama/Llama-3.1-8B": "configs/bench/smoltolk-8b.yaml",
}


def local_architecture(config: ModelConfig, verb: str) -> Architecture:
    """The architecture; nothing is downloaded.

    Args:
        config: of the model.
        verb: of the command line, for the message.

    Raises:
        UserError: the named backbone is neither a folder nor in the cache of the hub.
    """
    backbone = config.backbone
    if not isinstance(backbone, str) or Path(backbone).expanduser().exists():
        return Architecture.from_config(config)
    import huggingface_hub  # pulls in an HTTP stack that a local folder never needs

    cached = huggingface_hub.try_to_load_from_cache(backbone, "config.json") if backbone.count("/") == 1 else None
    if not isinstance(cached, str):
        known = _SHAPES.get(backbone)
        remedy = (
            f"{verb} {known}, which has its shape"
            if known
            else f"give the backbone's shape in its place, as {_SHAPES['HuggingFaceTB/SmolLM-135M']} does"
        )
        raise UserError(f"model.backbone: {backbone} is not on this machine, and {verb} downloads nothing; {remedy}")
    return Architecture.from_config(config.model_copy(update={"backbone": str(Path(cached).parent)}))


def freezes_random_backbone(config: Config) -> bool:
    """Whether the first stage freezes a backbone that has a shape and no weights, as in configs/bench."""
    has_weights = isinstance(config.model.backbone, str) or config.checkpoint.init_from is not None
    return not has_weights and "backbone" not in config.train.stages[0].trainable
