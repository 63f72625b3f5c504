"""mosaicml-streaming still has what we use of it."""

from tolktrain.data.streaming_compat import STREAMING
from tolktrain.pinned import changes


def test_streaming_has_what_is_used_of_it() -> None:
    found = changes(STREAMING)
    assert not found, "\n".join(found)
