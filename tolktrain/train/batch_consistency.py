"""Batch consistency: checks that all ranks of a model replica read the same batches."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist

from tolktrain.data.batch import Batch
from tolktrain.errors import UserError
from tolktrain.parallel.layout import Layout


def consistent_batches(
    steps: Iterable[list[Batch]], layout: Layout, first_step: int, every_step: bool
) -> Iterator[list[Batch]]:
    """The micro batches of each step, compared between tensor ranks and pipeline stages: at the first step, to find
    nodes whose copies of the data differ, or at every step. Collective.

    If the inputs of the first pipeline stage and the targets of the last one came from different batches, training
    would run, but learn nothing.

    Raises:
        UserError: names the ranks that read other batches; on all ranks of the replica.
    """
    for step, batches in enumerate(steps, start=first_step + 1):
        if layout.tensor_size * layout.pipeline_size > 1 and (every_step or step == first_step + 1):
            _compare(batches, layout, step)
        yield batches


def batch_checksum(batches: Sequence[Batch]) -> int:
    """A hash of 63 bits over everything that the model reads of the batches."""
    digest = hashlib.blake2b(digest_size=8)
    for batch in batches:
        for tensor in (batch.tokens, batch.targets, batch.speech_in, batch.speech_pred, batch.text_pred):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        if batch.documents is not None:
            digest.update(batch.documents.every.cu_seqlens.numpy().tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


def _compare(batches: Sequence[Batch], layout: Layout, step: int) -> None:
    ranks = dist.get_process_group_ranks(layout.replica_group)
    mine = torch.tensor([batch_checksum(batches)])
    found = [torch.empty_like(mine) for _ in ranks]
    dist.all_gather(found, mine, group=layout.replica_group)
    others = [rank for rank, checksum in zip(ranks, found, strict=True) if checksum != found[0]]
    if others:
        listed = ", ".join(map(str, others))
        raise UserError(
            f"data.sets: at step {step} rank {listed} read other sequences than rank {ranks[0]} of the same model"
            " replica; their copies of the data sets differ: compare index.json on their nodes, and copy them again"
        )
