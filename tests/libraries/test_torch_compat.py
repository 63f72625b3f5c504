"""PyTorch still has what we use of it."""

from tolktrain.libraries.pinned import changes
from tolktrain.libraries.torch_compat import TORCH


def test_torch_has_what_is_used_of_it() -> None:
    found = changes(TORCH)
    assert not found, "\n".join(found)
