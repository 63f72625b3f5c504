"""Generation by several processes, each of which computes a part of every layer (tensor parallelism).

Rank 0 reads prompts, draws, and writes; the others compute what it sends. So nothing that is drawn, and no limit,
depends on files or rounding of another machine.
"""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tolktrain.config import Config
from tolktrain.config.root import ParallelConfig
from tolktrain.data.sequences import IntArray
from tolktrain.data.strategies.base import Modality
from tolktrain.errors import UserError
from tolktrain.generate.context import Context
from tolktrain.generate.decoding import CachedDecoder, Decoder, PlainDecoder, use_accelerator
from tolktrain.generate.mixed_decoding import CachedMixedDecoder, MixedDecoder, PlainMixedDecoder
from tolktrain.interop.trained import load_trained
from tolktrain.model.architecture import Architecture
from tolktrain.model.divisibility import check_tensor_parallel
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.layout import Layout

# The other ranks wait while rank 0 waits for a prompt. The watchdog ends all ranks if one of them fails.
LONGEST_WAIT = timedelta(days=2)


def _check_ranks(architecture: Architecture, num_ranks: int) -> None:
    """Raise UserError unless so many processes can generate with a model."""
    if num_ranks == 1:
        return
    try:
        check_tensor_parallel(architecture, ParallelConfig(tensor_parallel_size=num_ranks), 1)
    except UserError as error:
        raise UserError(
            f"{num_ranks} processes generate together by splitting every layer, but {error} processes; weights of any"
            " layout can be loaded into one process"
        ) from None
    if architecture.adapter_attention != "runs":
        raise UserError(
            f"{num_ranks} processes cannot generate together with a model whose input adapter attends as the reference"
            " implementation does; start one process"
        )


def load_part(
    source: str | Path, step: int | None = None, overrides: Sequence[str] = (), layout: Layout | None = None
) -> tuple[SmolTolk, Config, dict[str, Any]]:
    """`load_trained`, of this rank's part of the model if there are several ranks; on a GPU, if there is one.

    Raises UserError likewise, and if so many processes cannot split the model.
    """
    num_ranks = 1 if layout is None else layout.tensor_size
    model, config, state = load_trained(source, step, overrides, layout, lambda sizes: _check_ranks(sizes, num_ranks))
    return use_accelerator(model), config, state


def make_decoder(model: SmolTolk, modality: Modality, window: int) -> Decoder:
    """The decoder of a model; under tensor parallelism that of rank 0, while the other ranks run `follow`.

    With the reference implementation's adapter attention, what is added to a context changes what came before it, so
    that nothing can be kept: such a model is computed without caches.
    """
    if model.share.size > 1:
        return _LeadingDecoder(model, modality, window)
    if model.architecture.adapter_attention == "published":
        return PlainDecoder.of(model, modality, window)
    return CachedDecoder(model, modality, window)


def make_mixed_decoder(model: SmolTolk, window: int) -> MixedDecoder:
    """The decoder of a conversation, as `make_decoder`."""
    if model.share.size > 1:
        return _LeadingMixedDecoder(model, window)
    return (
        PlainMixedDecoder(model)
        if model.architecture.adapter_attention == "published"
        else CachedMixedDecoder(model, window)
    )


def follow(model: SmolTolk) -> None:
    """Compute this rank's part of everything that rank 0 decodes, until it calls `release_followers`."""
    decoder: Decoder | MixedDecoder | None = None
    while True:
        name, arguments = _exchange(None)
        if name == "release":
            return
        if name == "make":
            decoder = CachedDecoder(model, *arguments)
        elif name == "make mixed":
            decoder = CachedMixedDecoder(model, *arguments)
        else:
            getattr(decoder, name)(*arguments)


def release_followers() -> None:
    """Let the other ranks return from `follow`."""
    _exchange(("release", ()))


class _LeadingDecoder(CachedDecoder):
    """The decoder of rank 0. Each call is sent to the other ranks first."""

    def __init__(self, model: SmolTolk, modality: Modality, window: int) -> None:
        _exchange(("make", (modality, window)))
        super().__init__(model, modality, window)

    def begin(self, contexts: Sequence[Context]) -> Tensor:
        """As `Decoder.begin`."""
        _exchange(("begin", (list(contexts),)))
        return super().begin(contexts)

    def extend(self, columns: IntArray) -> Tensor:
        """As `Decoder.extend`."""
        _exchange(("extend", (columns,)))
        return super().extend(columns)

    def keep(self, rows: Sequence[int]) -> None:
        """As `Decoder.keep`."""
        _exchange(("keep", (list(rows),)))
        super().keep(rows)


class _LeadingMixedDecoder(CachedMixedDecoder):
    """The same of a conversation."""

    def __init__(self, model: SmolTolk, window: int) -> None:
        _exchange(("make mixed", (window,)))
        super().__init__(model, window)

    def read(self, context: Context, modality: Modality) -> Tensor:
        """As `MixedDecoder.read`."""
        _exchange(("read", (context, modality)))
        return super().read(context, modality)


def _exchange(order: tuple[str, tuple[Any, ...]] | None) -> tuple[str, tuple[Any, ...]]:
    """The order of rank 0, on all ranks."""
    shared: list[Any] = [order]
    dist.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
    found: tuple[str, tuple[Any, ...]] = shared[0]
    return found
