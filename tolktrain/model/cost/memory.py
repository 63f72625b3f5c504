"""The memory that a layer keeps for its backward pass."""

from tolktrain.model.architecture import Architecture


def activation_bytes(
    architecture: Architecture,
    tensor_size: int = 1,
    sequence_parallel: bool = False,
    recompute: bool = False,
    is_frozen: bool = False,
) -> float:
    """Bytes in bf16 that the backward pass of one transformer layer needs of each position, on each tensor rank.

    With q and g the widths of queries and keys, and F that of the feed-forward layer, these are (2 bytes each)

        4 D                  inputs of both norms, and what both give to the matrices
        2 q + 2 g            q and k rotated, v; attention's result; q more if q > g, because q then leaves the product
        3 F                  gate and up, and what goes into down
        2 H                  logarithms of attention's sums (float32)

    for Triton's kernels. Those of PyTorch keep more: norms on a CPU float32 copies, 12 D bytes, and rotated q and k
    outside of the product of q, k and v. A recomputed layer keeps only its input, which is the state that the
    pooling reads.

    Args:
        architecture: sizes and switches.
        tensor_size: tensor ranks, which split everything except the 4 D.
        sequence_parallel: whether they split those too.
        recompute: whether the backward pass recomputes the layer; then only one layer at a time needs the rest.
        is_frozen: whether gradients pass through the layer and its parameters get none.
    """
    slices = tensor_size if sequence_parallel else 1
    if recompute:
        return 2 * architecture.hidden_size / slices
    apart = architecture.query_width if architecture.query_width > architecture.key_width else 0
    heads = 4 * (architecture.query_width + architecture.key_width + architecture.num_attention_heads) + 2 * apart
    inputs, inner = (4, 4) if is_frozen else (8, 6)
    return inputs * architecture.hidden_size / slices + (heads + inner * architecture.ffn_hidden_size) / tensor_size
