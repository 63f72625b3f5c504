"""Messages about steps from which nothing is learned."""

from tolktrain.config import Config
from tolktrain.config.training import StageConfig


def nothing_scored(stage: StageConfig, config: Config) -> str:
    """A step without a scored position: what it means and what to change."""
    return (
        f"the stage {stage.name!r} learns nothing from a step: none of its {config.train.global_batch_size} sequences"
        f" of {config.train.sequence_length} positions has a position that is scored; {_change(stage)}"
    )


def zero_loss(stage: StageConfig) -> str:
    """A step whose loss is exactly 0: what it means and what to change."""
    return (
        f"the stage {stage.name!r} learns nothing from a step: its loss is exactly 0, so every scored position was"
        " predicted with certainty; check that its data is not a single repeated token (tolktrain prepare --inspect"
        f" shows it) and that model.backbone has not learned it already; otherwise {_change(stage)}"
    )


def _change(stage: StageConfig) -> str:
    prefixed = [name for name in stage.mixture if name in ("recognition", "synthesis")]
    reason = f", because of {' and '.join(prefixed)} only what follows the condition is scored" if prefixed else ""
    return f"raise train.sequence_length{reason}, or change the strategies or data sets in the mixture of the stage"
