"""DeepSpeed's settings: a JSON file for settings of DeepSpeed only, the configuration for everything else.

DeepSpeed expects the batch sizes, precision, clipping and optimizer in its own file too. So that each value has one
place, those entries are derived here, and a file that contradicts them is refused. Entries that would silently go
wrong, or are not tested with this model, are refused too (`deepspeed_entries`).

The file is read once per run: its entries are kept in the run directory, and the settings derived from them are
resolved at each start, because a start may change the layout.
"""

import copy
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolktrain.config.deepspeed_entries import REFUSED, REFUSED_IN_ZERO, SUPPORTED, ZERO_ENTRIES, Refusal
from tolktrain.config.root import Config
from tolktrain.errors import UserError
from tolktrain.files.reading import RepeatedKeyError, parse_json, read_text

_LARGEST_BYTES = 1 << 20
_LARGEST_COUNT = 1 << 63  # DeepSpeed passes counts to C libraries
_NEVER_PRINT = 2**31
DEFAULT_BUCKET = 500_000_000  # elements, as DeepSpeed has it
OVERLAPPED_BUCKET = 100_000_000  # of ZeRO 1 in bf16, reduced during the backward pass
_ADAMW = "the optimizer, torch's AdamW,"


@dataclass(frozen=True)
class DeepSpeedSettings:
    """DeepSpeed's configuration under one layout, resolved when a run starts."""

    entries: Mapping[str, Any]  # of DeepSpeed's JSON; must not be changed

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return int(self.entries["zero_optimization"]["stage"])

    @property
    def accumulation_steps(self) -> int:
        """Micro batches of a step on each data rank."""
        return int(self.entries["gradient_accumulation_steps"])

    def for_engine(self, num_trained: int, clips_outside: bool) -> dict[str, Any]:
        """A copy for one engine, with the entries that follow from the use of the engine.

        Args:
            num_trained: number of elements of the parameters that this rank trains.
            clips_outside: whether gradients are clipped by the caller of DeepSpeed.
        """
        settings = copy.deepcopy(dict(self.entries))
        if clips_outside:
            settings["gradient_clipping"] = 0.0
        settings.setdefault("steps_per_print", _NEVER_PRINT)
        # This timer would synchronize with the GPU twice per micro batch, for a figure that is never shown.
        settings["timers"] = {"throughput": {"enabled": False}, **settings.get("timers", {})}
        zero = settings["zero_optimization"]
        if settings["bf16"]["enabled"]:
            settings["bf16"] = {**settings["bf16"], "check_grad_overflow": True}
            if zero["stage"]:
                settings["data_types"] = {"grad_accum_dtype": "fp32", **settings.get("data_types", {})}
        if zero["stage"]:
            # Buckets are allocated in full, even for a small model; DeepSpeed needs an even number of elements.
            overlaps = zero["stage"] == 1 and settings["bf16"]["enabled"]
            defaults = {"reduce_bucket_size": OVERLAPPED_BUCKET if overlaps else DEFAULT_BUCKET}
            for entry in ("reduce_bucket_size", "allgather_bucket_size"):
                size = min(int(zero.get(entry, defaults.get(entry, DEFAULT_BUCKET))), max(1, num_trained))
                zero[entry] = size + size % 2
        if zero["stage"] and (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
            # Gradients on the host persist after the step: if a parameter gets no gradient, Adam would silently use its
            # old one. With this entry, ZeRO 1 and 2 raise an error instead. ZeRO 3 has no such check.
            zero["ignore_unused_parameters"] = False
        return settings


@dataclass(frozen=True)
class DeepSpeedFile:
    """The user's JSON file."""

    path: str | None  # None if there is no file, and therefore no entries
    entries: Mapping[str, Any]


def read_deepspeed_file(config: Config) -> DeepSpeedFile:
    """Read the file that `deepspeed.config` names.

    Raises UserError if it cannot be read.
    """
    path = config.deepspeed.config
    return DeepSpeedFile(path, {} if path is None else _read(Path(path)))


def resolve_deepspeed(config: Config, file: DeepSpeedFile, data_parallel_size: int) -> DeepSpeedSettings:
    """DeepSpeed's configuration for `data_parallel_size` data ranks.

    Adds to the entries of the file those that follow from the configuration: train_batch_size,
    train_micro_batch_size_per_gpu, gradient_accumulation_steps, bf16, gradient_clipping, zero_optimization.stage
    if `deepspeed.zero_stage` is set (by default 1 with tensor or pipeline parallelism, otherwise 0), and how pipeline
    stages exchange tensors. The optimizer and the schedule are passed to `deepspeed.initialize` as objects.

    Raises UserError if an entry contradicts the configuration or is not supported, or the batch cannot be divided.
    """
    source, settings = file.path or "deepspeed", dict(file.entries)
    precision = {"enabled": config.train.precision == "bf16"}
    derived: dict[str, tuple[Any, str]] = {
        **_batch(config, data_parallel_size),
        "gradient_clipping": (config.train.optimizer.clip_grad_norm, "train.optimizer.clip_grad_norm"),
        "bf16": (precision, f"train.precision {config.train.precision}"),
        "fp16": ({"enabled": False}, f"train.precision {config.train.precision}"),
        "zero_allow_untested_optimizer": (True, _ADAMW),
        "zero_force_ds_cpu_optimizer": (False, _ADAMW),
    }
    mistakes = _misspelt(settings, derived)
    for name, (value, reason) in derived.items():
        mistakes += _contradictions(name, settings.get(name), value, reason)
    mistakes += _refused(settings, REFUSED)
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict):
        mistakes.append(f"zero_optimization must be a JSON object, got {json.dumps(zero)}")
    else:
        parallel = config.parallel
        zero = {"stage": int(parallel.pipeline_parallel_size * parallel.tensor_parallel_size > 1), **zero}
        if config.deepspeed.zero_stage is not None:
            zero["stage"] = config.deepspeed.zero_stage
        mistakes += _zero_mistakes(zero)
        mistakes += _combinations(settings, zero, config)
    if mistakes:
        raise UserError("\n".join(f"{source}: {mistake}" for mistake in dict.fromkeys(mistakes)))
    merged = {**settings, **{name: _combined(settings.get(name), value) for name, (value, _) in derived.items()}}
    merged["zero_optimization"] = zero
    if config.parallel.pipeline_parallel_size > 1:
        merged["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    return DeepSpeedSettings(merged)


def _batch(config: Config, data_parallel_size: int) -> dict[str, tuple[Any, str]]:
    """The batch sizes and the reason for each. Raises UserError if the global batch cannot be divided."""
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
    """Entries of the file under `name` that contradict the derived value; "auto" accepts the derived value."""
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


def _refused(section: dict[str, Any], refusals: Mapping[str, Refusal], prefix: str = "") -> list[str]:
    """Entries of the section with values that are refused."""
    mistakes = []
    for entry, refusal in refusals.items():
        head, _, tail = entry.partition(".")
        held = section.get(head, {}) if tail else section
        if not isinstance(held, dict):
            if held is not None:
                mistakes.append(f"{prefix}{head} must be a JSON object, got {json.dumps(held)}")
            continue
        if (tail or head) not in held:
            continue
        value = held[tail or head]
        if not any(value == allowed and type(value) is type(allowed) for allowed in refusal.harmless):
            shown = "set" if isinstance(value, dict | list) else json.dumps(value)
            mistakes.append(f"{prefix}{entry} is {shown}, but {refusal.reason}; {refusal.fix}")
    return mistakes


def _zero_mistakes(zero: dict[str, Any]) -> list[str]:
    """Mistakes in the section zero_optimization, independent of other sections."""
    prefix = "zero_optimization."
    if zero["stage"] not in (0, 1, 2, 3) or isinstance(zero["stage"], bool):
        return [f"{prefix}stage is {json.dumps(zero['stage'])}; ZeRO has the stages 0, 1, 2 and 3"]
    mistakes = _refused(zero, REFUSED_IN_ZERO, prefix)
    for entry, value in zero.items():
        kind = ZERO_ENTRIES.get(entry)
        if kind is None and entry not in REFUSED_IN_ZERO:
            mistakes.append(f"{prefix}{entry} is not supported{_suggestion(entry, ZERO_ENTRIES)}")
        elif kind is bool and not isinstance(value, bool):
            mistakes.append(f"{prefix}{entry} must be true or false, got {json.dumps(value)}")
        elif kind is int and not _is_count(value):
            mistakes.append(f"{prefix}{entry} must be a whole number of elements, got {json.dumps(value)}")
    if zero.get("reduce_bucket_size") == 0:
        mistakes.append(f"{prefix}reduce_bucket_size is 0; expected at least 1 element")
    return mistakes


def _combinations(settings: dict[str, Any], zero: dict[str, Any], config: Config) -> list[str]:
    """Combinations of entries that are not supported."""
    stage, precision = zero["stage"], config.train.precision
    num_stages = config.parallel.pipeline_parallel_size
    offload = zero.get("offload_optimizer")
    offloads = isinstance(offload, dict) and offload.get("device", "none") != "none"
    types = settings.get("data_types")
    accumulation = types.get("grad_accum_dtype") if isinstance(types, dict) else None
    sent = settings.get("communication_data_type")
    mistakes = []
    if num_stages > 1:
        partner = f"cannot be combined with parallel.pipeline_parallel_size {num_stages}"
        if stage != 1:
            mistakes.append(f"ZeRO stage {stage} {partner}; set deepspeed.zero_stage to 1")
        if offloads:
            mistakes.append(
                f"zero_optimization.offload_optimizer {partner}: DeepSpeed's bf16 optimizer of pipeline stages keeps"
                " master weights on the device; remove the entry, or set parallel.pipeline_parallel_size to 1"
            )
        if accumulation == "bf16":
            mistakes.append(f"data_types.grad_accum_dtype bf16 {partner}; remove the entry")
        if isinstance(settings.get("bf16"), dict) and settings["bf16"].get("immediate_grad_update"):
            mistakes.append(f"bf16.immediate_grad_update {partner}; remove the entry")
    elif config.parallel.tensor_parallel_size > 1 and stage == 0 and precision == "bf16":
        mistakes.append(
            "ZeRO stage 0 in bf16 cannot be combined with parallel.tensor_parallel_size"
            f" {config.parallel.tensor_parallel_size}: DeepSpeed would clip by the norm of a part of the gradients; set"
            " deepspeed.zero_stage to 1"
        )
    elif offloads and stage == 0:
        mistakes.append(
            "zero_optimization.offload_optimizer needs ZeRO, and the stage is 0; set deepspeed.zero_stage to 1, 2 or 3"
        )
    if stage == 3 and config.train.compile == "layers":
        mistakes.append(
            "ZeRO stage 3 cannot be combined with train.compile layers: it gathers each layer's parameters in Python,"
            " where torch.compile stops; set train.compile to none, or deepspeed.zero_stage to 2"
        )
    for name, value in (("data_types.grad_accum_dtype", accumulation), ("communication_data_type", sent)):
        if value not in (None, "fp32", "bf16"):
            mistakes.append(f'{name} is {json.dumps(value)}; expected "fp32" or "bf16"')
        elif value == "bf16" and precision == "fp32":
            mistakes.append(f"{name} is bf16, which would round the gradients of train.precision fp32; remove it")
    if accumulation == "fp32" and precision == "bf16" and stage == 0:
        mistakes.append(
            "data_types.grad_accum_dtype is fp32, but without ZeRO DeepSpeed adds up gradients in bf16; set"
            " deepspeed.zero_stage to 1, or remove the entry"
        )
    return mistakes


def _misspelt(settings: dict[str, Any], derived: Iterable[str]) -> list[str]:
    """Top-level names that resemble a known one. DeepSpeed ignores unknown names."""
    known = {*SUPPORTED, *derived, *(entry.partition(".")[0] for entry in REFUSED)}
    return [
        f"{name} is not a DeepSpeed entry{near}"
        for name in settings
        if name not in known and (near := _suggestion(name, known))
    ]


def _suggestion(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else ""


def _is_count(value: Any) -> bool:
    """Whether a JSON number is a count; 5e8 is parsed as a float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value < _LARGEST_COUNT and float(value).is_integer()


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = parse_json(read_text(path, _LARGEST_BYTES))
    except FileNotFoundError:
        raise UserError(
            f"deepspeed.config names {path}, which does not exist; configs/deepspeed has examples"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"deepspeed.config names {path}, which cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except RepeatedKeyError as error:
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected a JSON object of DeepSpeed settings, got {type(settings).__name__}")
    return settings


def _either(values: list[int]) -> str:
    *head, last = [str(value) for value in values]
    return f"{', '.join(head)} or {last}" if head else last
