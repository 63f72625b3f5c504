"""Entries of DeepSpeed's settings that follow from how the engine is used here."""

from typing import Any

_NEVER_PRINT = 2**31
_DEFAULT_BUCKET = 500_000_000


def complete_settings(settings: dict[str, Any], num_trained: int, clips_outside: bool) -> None:
    """Add to the settings of `build_deepspeed_config`, in place.

    Args:
        settings: DeepSpeed's configuration.
        num_trained: elements of the parameters that this rank trains.
        clips_outside: whether gradients are clipped by the caller of DeepSpeed.
    """
    if clips_outside:
        settings["gradient_clipping"] = 0.0
    settings.setdefault("steps_per_print", _NEVER_PRINT)
    # It waits for the GPU twice per micro batch, for a figure that is never shown.
    settings["timers"] = {"throughput": {"enabled": False}, **settings.get("timers", {})}
    zero = settings["zero_optimization"]
    if settings["bf16"]["enabled"]:
        settings["bf16"] = {**settings["bf16"], "check_grad_overflow": True}
        if zero["stage"]:
            settings["data_types"] = {"grad_accum_dtype": "fp32", **settings.get("data_types", {})}
    if zero["stage"]:
        # Buckets are allocated in full, however small the model; DeepSpeed wants an even number of elements.
        for entry in ("reduce_bucket_size", "allgather_bucket_size"):
            size = min(int(zero.get(entry, _DEFAULT_BUCKET)), max(1, num_trained))
            zero[entry] = size + size % 2
    if zero["stage"] and (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
        # Gradients on the host outlive the step: Adam would take a parameter's old one when it gets none, silently.
        # ZeRO 1 and 2 stop instead. ZeRO 3 has no such check.
        zero["ignore_unused_parameters"] = False
