"""DeepSpeed's settings: a JSON file for what is DeepSpeed's own, the configuration for everything else.

DeepSpeed wants the batch triple, precision, clipping and optimizer in its own file too. Two places for one value drift
apart, so those entries are derived here, and a file that says something else is refused.
"""

import difflib
import json
from pathlib import Path
from typing import Any

from tolktrain.config.errors import UserError
from tolktrain.config.root import Config

# DeepSpeed ignores top-level names that it does not know, misspelt ones too.
KNOWN_ENTRIES = (
    *(
        "activation_checkpointing",
        "aio",
        "amp",
        "autotuning",
        "bf16",
        "bfloat16",
        "checkpoint",
        "comms_logger",
        "compile",
    ),
    *("communication_data_type", "compression_training", "csv_monitor", "curriculum_learning", "data_efficiency"),
    *(
        "data_types",
        "dataloader_drop_last",
        "disable_allgather",
        "dump_state",
        "elasticity",
        "eigenvalue",
        "flops_profiler",
    ),
    *("fp16", "gradient_accumulation_steps", "gradient_allreduce_op", "gradient_clipping", "gradient_predivide_factor"),
    *("hybrid_engine", "log_level", "memory_breakdown", "optimizer", "pipeline", "prescale_gradients", "scheduler"),
    *("progressive_layer_drop", "seq_parallel_communication_data_type", "sparse_attention", "sparse_gradients"),
    *(
        "steps_per_print",
        "tensor_parallel",
        "tensorboard",
        "torch_autocast",
        "train_batch_size",
        "wandb",
        "zero_optimization",
    ),
    *("train_micro_batch_size_per_gpu", "wall_clock_breakdown", "zero_allow_untested_optimizer"),
    *("zero_force_ds_cpu_optimizer", "weight_quantization", "nebula", "disable_python_gc", "check_overflow"),
)


def build_deepspeed_config(config: Config, data_parallel_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for `data_parallel_size` data ranks.

    Reads `deepspeed.config` and adds what follows from the configuration: train_batch_size,
    train_micro_batch_size_per_gpu, gradient_accumulation_steps, bf16, gradient_clipping, and zero_optimization.stage
    when `deepspeed.zero_stage` is set. The optimizer and the schedule are ours, and go to
    `deepspeed.initialize` as objects.

    Raises UserError when the file cannot be read, an entry contradicts the configuration, or the batch does not divide.
    """
    source = config.deepspeed.config or "deepspeed"
    settings = {} if config.deepspeed.config is None else _read(Path(config.deepspeed.config))
    mistakes = [*_misspelt(settings), *_foreign(settings)]
    precision = {"enabled": config.train.precision == "bf16"}
    derived: dict[str, tuple[Any, str]] = {
        **_batch(config, data_parallel_size),
        "gradient_clipping": (config.train.optimizer.clip_grad_norm, "train.optimizer.clip_grad_norm"),
        "bf16": (precision, f"train.precision {config.train.precision}"),
        "fp16": ({"enabled": False}, f"train.precision {config.train.precision}"),
    }
    for name, (value, reason) in derived.items():
        mistakes += _contradictions(name, settings.get(name), value, reason)
    zero = settings.get("zero_optimization", {})
    mistakes += _zero_mistakes(zero, config)
    if mistakes:
        raise UserError("\n".join(f"{source}: {mistake}" for mistake in mistakes))
    merged = {**settings, **{name: _combined(settings.get(name), value) for name, (value, _) in derived.items()}}
    stage = config.deepspeed.zero_stage
    merged["zero_optimization"] = {"stage": 0, **zero, **({} if stage is None else {"stage": stage})}
    return merged


def _batch(config: Config, data_parallel_size: int) -> dict[str, tuple[Any, str]]:
    """The batch triple and the reason for each entry. Raises UserError when the global batch does not divide."""
    batch, micro = config.train.global_batch_size, config.train.micro_batch_size
    if batch % data_parallel_size:
        below = batch - batch % data_parallel_size
        near = [size for size in (below, below + data_parallel_size) if size > 0]
        raise UserError(
            f"train.global_batch_size {batch} cannot be split over {data_parallel_size} data-parallel ranks;"
            f" use {_either(near)}, or another number of processes"
        )
    share = batch // data_parallel_size
    if share % micro:
        fitting = [size for size in range(1, share + 1) if share % size == 0]
        near = sorted(sorted(fitting, key=lambda size: abs(size - micro))[:3])
        raise UserError(
            f"train.micro_batch_size {micro} does not divide the {share} sequences of each data-parallel rank"
            f" (train.global_batch_size {batch} / {data_parallel_size} ranks); use {_either(near)}"
        )
    return {
        "train_batch_size": (batch, "train.global_batch_size"),
        "train_micro_batch_size_per_gpu": (micro, "train.micro_batch_size"),
        "gradient_accumulation_steps": (
            share // micro,
            f"train.global_batch_size {batch} / train.micro_batch_size {micro} / {data_parallel_size} data ranks",
        ),
    }


def _contradictions(name: str, given: Any, derived: Any, reason: str) -> list[str]:
    """Entries of the file under `name` that differ from what is derived; "auto" leaves an entry to us."""
    if given is None or given == "auto" or given == derived:
        return []
    if isinstance(derived, dict):
        if not isinstance(given, dict):
            return [f"{name} must be a JSON object, got {json.dumps(given)}"]
        return [
            m for key, value in derived.items() for m in _contradictions(f"{name}.{key}", given.get(key), value, reason)
        ]
    return [f"{name} is {json.dumps(given)}, but {reason} gives {json.dumps(derived)}; remove the entry, it is derived"]


def _combined(given: Any, derived: Any) -> Any:
    return {**given, **derived} if isinstance(given, dict) and isinstance(derived, dict) else derived


def _zero_mistakes(zero: Any, config: Config) -> list[str]:
    if not isinstance(zero, dict):
        return [f"zero_optimization must be a JSON object, got {json.dumps(zero)}"]
    stage = zero.get("stage", 0) if config.deepspeed.zero_stage is None else config.deepspeed.zero_stage
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        return [f"zero_optimization.stage is {json.dumps(stage)}; ZeRO has the stages 0, 1, 2 and 3"]
    if config.parallel.pipeline_parallel_size > 1 and stage > 1:
        return [
            f"ZeRO stage {stage} cannot be combined with parallel.pipeline_parallel_size"
            f" {config.parallel.pipeline_parallel_size}; set deepspeed.zero_stage to 1 or 0"
        ]
    return []


def _foreign(settings: dict[str, Any]) -> list[str]:
    """Entries that would take over what the configuration decides."""
    owners = {"optimizer": "train.optimizer", "scheduler": "the schedule of each stage (train.stages.N.schedule)"}
    mistakes = [
        f"{name} is set, but {owner} decides; remove the entry" for name, owner in owners.items() if name in settings
    ]
    for name in ("amp", "torch_autocast"):
        section = settings.get(name)
        if isinstance(section, dict) and section.get("enabled"):
            mistakes.append(f"{name}.enabled is true, but train.precision decides; remove the entry")
    for name in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
        section = settings.get("bf16")
        if isinstance(section, dict) and section.get(name):
            mistakes.append(f"bf16.{name} is true, but masters and moments are kept in float32; remove the entry")
    if "bfloat16" in settings:
        mistakes.append(
            "bfloat16 is DeepSpeed's old name for bf16, which is derived from train.precision; remove the entry"
        )
    if settings.get("gradient_allreduce_op", "mean") != "mean":
        mistakes.append(
            f"gradient_allreduce_op is {json.dumps(settings['gradient_allreduce_op'])}, but the loss is scaled for"
            ' "mean"; remove the entry'
        )
    return mistakes


def _misspelt(settings: dict[str, Any]) -> list[str]:
    mistakes = []
    for name in settings:
        near = [] if name in KNOWN_ENTRIES else difflib.get_close_matches(name, KNOWN_ENTRIES, n=1, cutoff=0.85)
        if near:
            mistakes.append(f"{name} is not a DeepSpeed entry; did you mean {near[0]}?")
    return mistakes


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise UserError(
            f"deepspeed.config names {path}, which does not exist; configs/deepspeed has examples"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"deepspeed.config names {path}, which cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except _DuplicateKeyError as error:
        raise UserError(f"{path}: {error}; keep one of them") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected a JSON object of DeepSpeed settings, got {type(settings).__name__}")
    return settings


class _DuplicateKeyError(Exception):
    """A JSON object names a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _DuplicateKeyError(f"{key} is given twice")
    return dict(pairs)


def _either(values: list[int]) -> str:
    *head, last = [str(value) for value in values]
    return f"{', '.join(head)} or {last}" if head else last
