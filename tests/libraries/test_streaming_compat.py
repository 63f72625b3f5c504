"""mosaicml-streaming still has what we use of it."""

from tolktrain.libraries.pinned import changes
from tolktrain.libraries.streaming_compat import STREAMING


def test_streaming_has_what_is_used_of_it() -> None:
    found = changes(STREAMING)
    assert not found, "\n".join(found)
