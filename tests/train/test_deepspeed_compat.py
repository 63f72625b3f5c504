"""DeepSpeed still has what we use of it."""

from tolktrain.libraries.pinned import changes
from tolktrain.train.deepspeed.compat import DEEPSPEED
from tolktrain.train.process import import_deepspeed


def test_deepspeed_has_what_is_used_of_it() -> None:
    import_deepspeed()
    found = changes(DEEPSPEED)
    assert not found, "\n".join(found)
