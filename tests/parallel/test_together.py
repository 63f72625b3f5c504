"""Which ranks are of one node, however a launcher deals them out."""

import pytest

from tolktrain.errors import UserError
from tolktrain.parallel.together import first_ranks


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ("a0 a1 b0 b1", [0, 0, 2, 2]),
        ("a0 b0 a1 b1", [0, 1, 0, 1]),  # srun --distribution=cyclic
        ("a0 a1 a2 b0", [0, 0, 0, 3]),
        ("a0 b0 b1 a1", [0, 1, 1, 0]),
        ("a0 a1 a0 a1", [0, 0, 2, 2]),  # two nodes that one machine pretends to be
        ("a0 a0 a0", [0, 1, 2]),  # each rank in a container, and told that it is alone
    ],
)
def test_ranks_of_a_node_have_one_first(places: str, expected: list[int]) -> None:
    assert first_ranks([(place[0], int(place[1])) for place in places.split()]) == expected


def test_a_machine_without_a_first_rank_is_refused() -> None:
    with pytest.raises(UserError, match="rank 2 is the first one on its machine, but its launcher says local rank 1"):
        first_ranks([("a", 0), ("a", 1), ("b", 1)])
