"""Checks whether a model can be split over tensor ranks."""

import math

from tolktrain.config.root import ParallelConfig
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture


def check_tensor_parallel(architecture: Architecture, parallel: ParallelConfig, sequence_length: int) -> None:
    """Check that the tensor ranks divide heads, widths and sequence. Vocabularies are padded instead.

    Raises:
        UserError: with the sizes that cannot be divided, and valid values.
    """
    size = parallel.tensor_parallel_size
    parts = {
        "attention heads": architecture.num_attention_heads,
        "key and value heads": architecture.num_key_value_heads,
        "ffn_hidden_size": architecture.ffn_hidden_size,
    }
    obstacles = [
        f"{number} {what}" if " " in what else f"{what} {number}" for what, number in parts.items() if number % size
    ]
    if obstacles:
        common = math.gcd(*parts.values())
        fitting = [str(n) for n in range(1, common + 1) if common % n == 0]
        raise UserError(
            f"parallel.tensor_parallel_size {size} does not divide {' and '.join(obstacles)} of the backbone;"
            f" use {_either(fitting)}"
        )
    if parallel.sequence_parallel and sequence_length % size:
        below = sequence_length - sequence_length % size
        raise UserError(
            f"train.sequence_length {sequence_length} cannot be split over parallel.tensor_parallel_size {size}"
            f" ranks (parallel.sequence_parallel); use {_either([str(n) for n in (below, below + size) if n > 1])}, or"
            " set parallel.sequence_parallel to false"
        )


def _either(values: list[str]) -> str:
    *head, last = values
    return f"{', '.join(head)} or {last}" if head else last
