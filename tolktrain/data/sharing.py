"""Indexes of data sets that one rank of a node reads for all ranks of the node."""

import mmap
import os
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tolktrain.data.index import TABLE_TYPE, ShardIndex, read_index
from tolktrain.parallel.collectives import all_gather_objects, is_distributed, on_each_node


class _Published(NamedTuple):
    """The memory in which the first rank of a node has stored indexes one after the other: table, texts, table, ..."""

    process: int
    descriptor: int
    name: str  # of the memory; no other has it
    parts: list[tuple[str, Any, int, int]]  # of each index: folder, kinds, shards, bytes of texts


def read_indexes(folders: Sequence[str]) -> list[ShardIndex]:
    """The indexes of some data sets; collective. They are parsed and stored once per node.

    Raises `UserError` on all ranks if `read_index` does on one.
    """
    if not is_distributed():
        return [read_index(folder) for folder in folders]
    own: list[ShardIndex] = []
    published = on_each_node(lambda: _publish(folders, own))
    try:
        return own or _attach(published, folders)
    finally:
        all_gather_objects(None)  # barrier: the others have opened the memory
        if own:
            os.close(published.descriptor)


def _publish(folders: Sequence[str], own: list[ShardIndex]) -> _Published:
    own += [read_index(folder) for folder in folders]
    # Anonymous memory, which is freed however the processes end.
    name = f"tolktrain-index-{secrets.token_hex(16)}"
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        for index in own:
            file.write(index.table.tobytes())
            file.write(index.texts)
    parts = [(index.folder, index.kinds, len(index), index.texts.nbytes) for index in own]
    return _Published(os.getpid(), descriptor, name, parts)


def _attach(published: _Published, folders: Sequence[str]) -> list[ShardIndex]:
    path = f"/proc/{published.process}/fd/{published.descriptor}"
    try:
        # In another container, another process may have the number; its open files are unrelated.
        found = os.readlink(path) == f"/memfd:{published.name} (deleted)"
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if found else None
    except OSError:  # in a container where processes of other containers are invisible
        descriptor = None
    if descriptor is None:
        return [read_index(folder) for folder in folders]
    try:
        block = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    indexes = []
    begin = 0
    for folder, kinds, shards, text_bytes in published.parts:
        table = np.frombuffer(block, TABLE_TYPE, shards, begin)
        begin += table.nbytes + text_bytes
        indexes.append(ShardIndex(folder, kinds, table, memoryview(block)[begin - text_bytes : begin]))
    return indexes
