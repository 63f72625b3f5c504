"""megatron-core still has what we use of it."""

import tolktrain.parallel.megatron  # noqa: F401  # imports megatron-core without its warnings
from tolktrain.libraries.pinned import changes
from tolktrain.parallel.megatron_compat import MEGATRON


def test_megatron_core_has_what_is_used_of_it() -> None:
    found = changes(MEGATRON)
    assert not found, "\n".join(found)
