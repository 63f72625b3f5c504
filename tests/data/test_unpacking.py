"""Packed bytes give what was packed, or an error; never more than was asked for."""

import os
import random
import struct
import subprocess
import sys

import pytest
import zstd
from hypothesis import given
from hypothesis import strategies as st
from streaming.base.compression import compress, get_compressions

from tolktrain.data.unpacking import unpack

FAMILIES = sorted(name for name in get_compressions() if ":" not in name)
CONTENTS = [b"", b"a", b"ab" * 50_000, os.urandom(300_000), random.Random(0).randbytes(1000) * 400]


@pytest.mark.parametrize("compression", sorted(get_compressions() - {"br:10", "br:11"}))
def test_each_compression_of_the_library(compression: str) -> None:
    for content in CONTENTS:
        packed = compress(compression, content)
        assert unpack(compression, packed, len(content)) == content == unpack(compression, packed, len(content) + 1)
        if content:
            with pytest.raises(ValueError, match="more than"):
                unpack(compression, packed, len(content) - 1)


@pytest.mark.parametrize("compression", FAMILIES)
@given(data=st.data())
def test_damaged_bytes_give_no_more_than_was_asked_for(compression: str, data: st.DataObject) -> None:
    packed = bytearray(compress(compression, data.draw(st.sampled_from(CONTENTS[1:]))[:20_000]))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, min(len(packed), 60) - 1))] = data.draw(st.integers(0, 255))
    packed = packed[: data.draw(st.integers(0, len(packed)))] + data.draw(st.binary(max_size=4))
    try:
        assert len(unpack(compression, bytes(packed), 20_000)) <= 20_000
    except Exception as error:  # of any kind: the caller names the shard
        assert not isinstance(error, MemoryError)


@pytest.mark.parametrize("level", [1, 3, 19])
def test_several_frames_of_zstd(level: int) -> None:
    parts = [CONTENTS[2], CONTENTS[3], b"", b"x" * 70_000]
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"notes"
    packed = skippable.join(zstd.compress(part, level) for part in parts)
    content = b"".join(parts)
    assert unpack("zstd", packed, len(content)) == content
    with pytest.raises(ValueError, match="more than"):
        unpack("zstd", packed, len(content) - 1)


# A process forks itself for each compression: most of the time would go into importing in each.
BOMBS = """
import os, resource, sys
import tolktrain.libraries.streaming  # imports the library without what costs seconds
from streaming.base.compression import compress
from tolktrain.data.unpacking import unpack

def run(compression):
    if compression in ("br", "snappy"):  # which know no parts
        packed = compress({"br": "br:1"}.get(compression, compression), bytes(1 << 28))
    else:
        packed = compress(f"{compression}:1", bytes(1 << 22)) * 64
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 26), now + (1 << 26)))
    try:
        unpack(compression, packed, 1 << 20)
        print(compression, "was unpacked", flush=True)
    except BaseException as error:
        print(compression, type(error).__name__, error, flush=True)
    finally:
        os._exit(0)

for compression in sys.argv[1:]:
    if os.fork() == 0:
        run(compression)
    os.wait()
"""


@pytest.fixture(scope="module")
def outcomes_of_bombs() -> dict[str, str]:
    """What became of 256 MiB in 64 MiB, by compression."""
    command = [sys.executable, "-c", BOMBS, *FAMILIES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("compression", FAMILIES)
@pytest.mark.slow
def test_what_unpacks_to_256_mib_is_not_unpacked_in_64(outcomes_of_bombs: dict[str, str], compression: str) -> None:
    assert outcomes_of_bombs[compression].startswith("ValueError "), outcomes_of_bombs
    assert "more than 1048576" in outcomes_of_bombs[compression]
