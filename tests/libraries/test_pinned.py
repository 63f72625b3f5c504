"""The comparison of a table with the installed libraries finds what an upgrade may change."""

import pytest

from tolktrain.libraries.pinned import Pinned, changes


class Owner:
    """A replacement of a library."""

    limit: int
    constant = 3

    def __init__(self) -> None:
        self.hidden = self.pair, self.other = 1, 2

    def act(self, first: int, *, second: int = 0) -> int:
        """Does nothing."""
        return first + second


HERE = f"{__name__}:Owner"


@pytest.mark.parametrize(
    "entry",
    [
        Pinned(HERE, "act", ("self", "first", "second")),
        Pinned(HERE, "constant"),
        Pinned(__name__, "HERE"),
        *(Pinned(HERE, name, "assigned") for name in ("limit", "hidden", "pair", "other")),
        Pinned(__name__, "hidden", "assigned"),
    ],
)
def test_what_is_as_expected(entry: Pinned) -> None:
    assert changes([entry]) == []


def test_all_changes_are_named_at_once() -> None:
    table = [
        Pinned("tolktrain.nowhere", "x"),
        Pinned(f"{__name__}:Nobody", "x"),
        Pinned(HERE, "gone"),
        Pinned(HERE, "constant"),
        Pinned(HERE, "act", ("self", "first")),
        Pinned(HERE, "constant", ("self",)),
        Pinned(HERE, "never", "assigned"),
    ]
    found = changes(table)
    assert [line.partition(": ")[2].partition(" (")[0] for line in found] == [
        "tolktrain.nowhere does not exist any more",
        f"{__name__}:Nobody does not exist any more",
        "is gone",
        "takes",
        "is no function any more",
        "nothing sets it any more",
    ]
    assert found[3].endswith("takes ('self', 'first', 'second'), expected ('self', 'first')")
