"""Refusals of tensor sizes, and what they propose."""

from collections.abc import Callable

import pytest

from tolktrain.config.root import ParallelConfig
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.model.divisibility import check_tensor_parallel

SMOLLM_135M = {"num_attention_heads": 9, "num_key_value_heads": 3, "ffn_hidden_size": 1536, "head_dim": 64}


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (
            2,
            SMOLLM_135M,
            "parallel.tensor_parallel_size 2 does not divide 9 attention heads and 3 key and value heads of the"
            " backbone; use 1 or 3",
        ),
        (
            4,
            {"num_key_value_heads": 4, "ffn_hidden_size": 50},
            "does not divide ffn_hidden_size 50 of the .* use 1 or 2",
        ),
        (8, {"num_key_value_heads": 4}, "does not divide 4 attention heads and 4 key and value heads .* use 1, 2 or 4"),
    ],
)
def test_tensor_sizes_that_do_not_divide(
    architecture: Callable[..., Architecture], size: int, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_tensor_parallel(architecture(**changes), ParallelConfig(tensor_parallel_size=size), 32)


def test_a_vocabulary_need_not_divide(architecture: Callable[..., Architecture]) -> None:
    sizes = architecture(**SMOLLM_135M, text_vocab_size=49152, num_units=500)
    check_tensor_parallel(sizes, ParallelConfig(tensor_parallel_size=3), 32)


def test_sequences_that_cannot_be_shared_out(architecture: Callable[..., Architecture]) -> None:
    parallel = ParallelConfig(tensor_parallel_size=2, sequence_parallel=True)
    with pytest.raises(UserError, match="sequence_length 33 cannot be split over .* 2 ranks .* use 32 or 34, or set"):
        check_tensor_parallel(architecture(), parallel, 33)
    check_tensor_parallel(architecture(), parallel, 32)
