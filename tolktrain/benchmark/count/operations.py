"""What one operation of PyTorch, or one launch of a Triton kernel, reads, writes and computes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tolktrain.cluster.device_models import ATTENTION, ATTENTION_BACKWARD, MEMORY, PRODUCT, Work

# Operations that move nothing, in addition to views.
_FREE = {
    *("alias", "detach", "lift_fresh", "_reshape_alias", "_unsafe_view", "set_", "resize_", "record_stream"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "pin_memory", "is_pinned"),
    "_local_scalar_dense",
}
_WRITE_ONLY = {"zero_", "fill_", "copy_", "_foreach_zero_", "_foreach_copy_"}
_ROWS = {"embedding", "index_select", "index", "gather"}  # read as many elements as they write
# How often arguments of Triton kernels are moved: logits three times, or twice if they are kept; what AdamW changes,
# twice.
_PASSES: dict[str, dict[int, float]] = {
    "softmax_terms_kernel": {0: 3},
    "kept_softmax_terms_kernel": {0: 2},
    "adamw_kernel": {0: 2, 2: 2, 3: 2},
}
# Kernels of which arguments are tables of addresses: of the list of tensors that the operator around the launch was
# given, or of as many and as large ones that it makes.
_TABLES = frozenset({"forward_kernel", "backward_kernel"})
# Of kernels that read gradients in bf16 from a table of addresses: places of the table, and of their elements.
_LAST_GRADIENTS = {"squares_kernel": (2, 3), "adamw_kernel": (8, 9)}


def name_of(func: Any) -> str:
    """Short name of an operator: "mm" of aten::mm.out, "tolktrain::rms_norm" of ours."""
    name = str(func.name()).rpartition("::")
    base = name[2].partition(".")[0]
    return base if name[0] == "aten" else f"{name[0]}::{base}"


def work_of(
    name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, segment_pairs: float
) -> Work | None:
    """Of an operator; None if it moves nothing on a GPU. Launches are counted elsewhere.

    Args:
        name: from `name_of`.
        func: the operator.
        args: positional ones.
        kwargs: others.
        result: what it has returned.
        segment_pairs: pairs of a query and a key in the speech segments of the micro batch.
    """
    if name in _FREE or name.startswith("c10d::") or getattr(func, "is_view", False):
        return None  # collectives have a time of their own
    outputs = list(_on_device(result))
    inputs = list(_on_device((args, {key: value for key, value in kwargs.items() if key != "out"})))
    if not outputs and not inputs:
        return None
    moved = _bytes(name, args, kwargs, inputs, outputs)
    if name in ("mm", "addmm", "bmm", "baddbmm", "addmm_"):
        left, right = inputs[-2:] if name != "addmm_" else inputs[1:3]
        rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
        batch = left.shape[0] if left.ndim == 3 else 1
        return Work(PRODUCT, moved, 2.0 * batch * rows * inner * columns, min(rows, inner, columns))
    if "attention" in name or "attn" in name:
        is_backward = "backward" in name
        query = max((tensor for tensor in inputs if tensor.ndim >= 3), key=lambda tensor: tensor.numel())
        if query.ndim == 3:  # packed: [N, H, d]
            flops = 4.0 * query.shape[1] * query.shape[2] * segment_pairs
        else:
            batch, heads, length, width = query.shape
            flops = 4.0 * batch * heads * width * length * (length + 1) / 2
        return Work(ATTENTION_BACKWARD if is_backward else ATTENTION, moved, flops * (2.5 if is_backward else 1.0))
    return Work(MEMORY, moved)


def kernel_work(name: str, arguments: Sequence[Any], around: Sequence[Any]) -> Work:
    """Of a launch of a Triton kernel: each tensor once, except as `_PASSES` says.

    Args:
        name: of the kernel.
        arguments: of the launch.
        around: arguments of the operator around it.
    """
    passes = _PASSES.get(name, {})
    if name == "rotate_heads_kernel" and arguments[3] is None:  # queries and keys, two of three heads, both ways
        passes = {0: 4 / 3}
    seen: dict[tuple[int, int], float] = {}
    for place, value in enumerate(arguments):
        if isinstance(value, Tensor) and value.device.type == "cuda":
            key = value.data_ptr(), value.numel()
            seen[key] = seen.get(key, 0.0) or _size(value) * passes.get(place, 1)
    moved = sum(seen.values())
    if name in _LAST_GRADIENTS:
        addresses, size = (arguments[place] for place in _LAST_GRADIENTS[name])
        moved += 0 if addresses is None else 2 * size
    if name in _TABLES:
        tables = [v for v in arguments if isinstance(v, Tensor) and v.dtype == torch.int64 and v.ndim == 1]
        of_one = sum(_size(tensor) for value in around if isinstance(value, list) for tensor in _on_device(value))
        moved += len(tables) * of_one
    return Work(MEMORY, moved)


def _bytes(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], inputs: list[Tensor], outputs: list[Tensor]
) -> float:
    if name == "_fused_adamw_":  # parameters and moments are written too; gradients are read alone
        return 2 * sum(map(_size, inputs)) - sum(map(_size, _on_device(args[1])))
    if name in _ROWS:
        return 2 * sum(map(_size, outputs)) + sum(map(_size, inputs[1:]))
    if name.endswith("_"):  # in place
        target = list(_on_device(args[:1]))
        written = sum(map(_size, target))
        return sum(map(_size, inputs)) + (0.0 if name in _WRITE_ONLY else written)
    return sum(map(_size, inputs)) + sum(map(_size, outputs or _on_device(kwargs.get("out"))))


def _on_device(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        if tree.device.type == "cuda":
            yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _on_device(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _on_device(item)


def _size(tensor: Tensor) -> float:
    """Bytes that exist: an expanded tensor has fewer than elements."""
    if torch.numel(tensor) == 0:
        return 0.0
    return float(min(tensor.nbytes, tensor.untyped_storage().nbytes()))
