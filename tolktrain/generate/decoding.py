"""Decoders: what a model predicts after contexts that grow by one position at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tolktrain.data.sequences import IntArray
from tolktrain.data.strategies.base import Modality
from tolktrain.generate.context import Context, GrowingContexts
from tolktrain.model.cache import CacheAccess, CachePlaces, KeyValueCache, places_mask
from tolktrain.model.carrier import Carrier
from tolktrain.model.embedding import Embedding
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.layers import BackboneLayer, FinalNorm, InputAdapterLayer, OutputAdapterLayer
from tolktrain.model.pooling import LayerPooling
from tolktrain.model.smoltolk import NextLogits, SmolTolk
from tolktrain.model.transformer import AttentionContext, rotary_angles

NextLogitsOf = Callable[[Tensor, Tensor, Tensor], NextLogits]
"""tokens int64 [B, K, T], speech_in bool [B, T], lengths int64 [B] -> logits of what follows position lengths - 1."""


class Steps(Protocol):
    """What sampling needs of a decoder: contexts that grow by one position at a time. See `Decoder`."""

    def begin(self, contexts: Sequence[Context]) -> Tensor:
        """Logits of what follows contexts."""
        ...

    def extend(self, columns: IntArray) -> Tensor:
        """Add a position [B, K] to each context; logits of what follows."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these contexts, in this order; one that is named several times grows in several ways."""
        ...


class Decoder(ABC):
    """Continues contexts in one modality, each inside the window of `GrowingContexts`.

    Logits are text [B, V_t] or speech [B, K, V_s], float32 or better on any device.
    """

    def __init__(self, modality: Modality, window: int) -> None:
        """Args: modality, of what is predicted; window, the most positions of context."""
        self.modality: Modality = modality
        self.window = window
        self.contexts: GrowingContexts

    def begin(self, contexts: Sequence[Context]) -> Tensor:
        """Read contexts, at least one, of at least one position each; logits of what follows them."""
        self.contexts = GrowingContexts(contexts, self.window)
        return self._read()

    def extend(self, columns: IntArray) -> Tensor:
        """Add a position [B, K] of the modality to each context; logits of what follows."""
        cut = self.contexts.extend(columns, self.modality == "speech")
        return self._read_last(columns, cut)

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these contexts, in this order; one that is named several times grows in several ways."""
        self.contexts.keep(rows)

    @abstractmethod
    def _read(self) -> Tensor:
        """Read all contexts."""

    @abstractmethod
    def _read_last(self, columns: IntArray, cut: IntArray) -> Tensor:
        """Read the last position of all contexts, and all positions of the rows that were cut."""


class PlainDecoder(Decoder):
    """Computes the whole context at every step. Reference for `CachedDecoder`."""

    def __init__(self, next_logits: NextLogitsOf, modality: Modality, window: int) -> None:
        """Args: next_logits, see `NextLogitsOf`; modality and window, as for `Decoder`."""
        super().__init__(modality, window)
        self._next_logits = next_logits

    @classmethod
    def of(cls, model: SmolTolk, modality: Modality, window: int) -> "PlainDecoder":
        """The decoder of a model in one process."""
        device = next(model.parameters()).device

        def next_logits(tokens: Tensor, speech_in: Tensor, lengths: Tensor) -> NextLogits:
            return model.next_logits(ModelInputs.for_next(tokens, speech_in, lengths).to(device))

        return cls(next_logits, modality, window)

    def _read(self) -> Tensor:
        arrays = self.contexts.arrays(np.arange(len(self.contexts)))
        logits = self._next_logits(*(torch.from_numpy(array) for array in arrays))
        return logits.text if self.modality == "text" else logits.speech

    def _read_last(self, columns: IntArray, cut: IntArray) -> Tensor:
        return self._read()


class CachedDecoder(Decoder):
    """Computes added positions only. Keeps keys and values of backbone and output adapter, and in the input adapter
    those of the speech segment that a context ends with; everything else depends on the added position alone.

    For a model in evaluation mode whose input adapter attends inside speech segments. Under tensor parallelism, all
    ranks must call the same methods (`tolktrain.generate.tensor_ranks`).
    """

    def __init__(self, model: SmolTolk, modality: Modality, window: int) -> None:
        """Args: model; modality and window, as for `Decoder`."""
        super().__init__(modality, window)
        assert model.architecture.adapter_attention == "runs"
        self._model = model
        embedding, *self._layers = model.trunk
        assert isinstance(embedding, Embedding)
        self._embedding = embedding
        self._device = embedding.tables.text.device
        if modality == "text":  # pooling and output adapter are for speech only
            self._layers = [x for x in self._layers if not isinstance(x, (LayerPooling, OutputAdapterLayer))]
        self._adapts = any(isinstance(layer, InputAdapterLayer) for layer in self._layers)
        self._cos, self._sin = rotary_angles(model.architecture, window, self._device)
        self._segment_lengths: IntArray = np.zeros(0, np.int64)

    def begin(self, contexts: Sequence[Context]) -> Tensor:
        """As `Decoder.begin`."""
        self._caches = [KeyValueCache() for _ in self._layers]
        return super().begin(contexts)

    def keep(self, rows: Sequence[int]) -> None:
        """As `Decoder.keep`."""
        super().keep(rows)
        kept = torch.tensor(rows, device=self._device)
        for cache in self._caches:
            cache.keep(kept)
        self._segment_lengths = self._segment_lengths[np.asarray(rows)]

    def _read(self) -> Tensor:
        rows = np.arange(len(self.contexts))
        self._segment_lengths = self.contexts.segment_lengths(rows)
        return self._prefill(rows)

    def _read_last(self, columns: IntArray, cut: IntArray) -> Tensor:
        self._segment_lengths += 1
        self._segment_lengths[cut] = 1  # any place that exists
        if len(cut) < len(self.contexts):
            logits = self._step(columns)
        if len(cut):
            self._segment_lengths[cut] = self.contexts.segment_lengths(cut)
            again = self._prefill(cut)
            logits = again if len(cut) == len(self.contexts) else logits.index_copy(0, self._to_device(cut), again)
        return logits

    @torch.inference_mode()
    def _prefill(self, rows: IntArray) -> Tensor:
        """Read all positions of some contexts."""
        tokens, is_speech, lengths = self.contexts.arrays(rows)
        host = [torch.from_numpy(array) for array in (tokens, is_speech, lengths)]
        inputs = ModelInputs.for_next(*host).to(self._device)
        carrier: Carrier = self._embedding(inputs)
        everywhere = self._everywhere(rows, lengths)
        in_segments = self._open_segments(rows, is_speech, lengths)
        for layer, cache in zip(self._layers, self._caches, strict=True):
            if isinstance(layer, InputAdapterLayer):
                assert carrier.segment_context is not None
                access = CacheAccess(cache, in_segments)
                carrier = replace(carrier, segment_context=replace(carrier.segment_context, cached=access))
            elif isinstance(layer, (BackboneLayer, OutputAdapterLayer)):
                carrier = replace(carrier, context=replace(carrier.context, cached=CacheAccess(cache, everywhere)))
            carrier = layer(carrier)
        heads = self._model.heads
        if self.modality == "text":
            return heads.text_logits(carrier).float()
        return torch.stack(heads.speech_logits(carrier), dim=1).float()

    def _everywhere(self, rows: IntArray, lengths: IntArray) -> CachePlaces:
        """Keep every position of the contexts."""
        places, row = np.nonzero(np.arange(max(lengths))[:, None] < lengths)
        return self._places(places * len(rows) + row, rows[row], places)

    def _open_segments(self, rows: IntArray, is_speech: "np.ndarray", lengths: IntArray) -> CachePlaces:
        """Keep the positions of the speech segments that contexts end with, out of packed speech."""
        row, position = np.nonzero(is_speech)  # in the order of packed speech
        place = position - (lengths - self._segment_lengths[rows])[row]
        sources = np.flatnonzero(place >= 0)
        return self._places(sources, rows[row[sources]], place[sources])

    def _places(self, sources: IntArray | None, sequences: IntArray, places: IntArray) -> CachePlaces:
        longest = int(max(self.contexts.lengths))
        # Some room ahead, so that the cache is copied rarely.
        capacity = min(self.window, -(-max(longest, 64) // 256) * 256)
        taken = None if sources is None else self._to_device(sources)
        return CachePlaces(
            taken, self._to_device(sequences), self._to_device(places), len(self.contexts), max(capacity, longest)
        )

    @torch.inference_mode()
    def _step(self, columns: IntArray) -> Tensor:
        """Read the last position of each context. What a cut context gets is replaced afterwards."""
        positions = self.contexts.lengths - 1
        tokens = self._to_device(columns)
        tables = self._embedding.tables
        embedded = tables.text_rows(tokens[:, 0]) if self.modality == "text" else tables.speech_rows(tokens)
        hidden = embedded = embedded.unsqueeze(0)  # [1, B, D]
        at = self._to_device(positions)
        cos, sin = (angles[at].transpose(0, 1) for angles in (self._cos, self._sin))
        context = self._context_of_step(cos, sin, positions)
        in_segments = context
        if self._adapts and self.modality == "speech":
            in_segments = self._context_of_step(cos, sin, self._segment_lengths - 1)
        states: list[Tensor] = []
        for layer, cache in zip(self._layers, self._caches, strict=True):
            if isinstance(layer, InputAdapterLayer):
                if self.modality == "speech":
                    hidden = layer.block(hidden, _using(in_segments, cache))
            elif isinstance(layer, BackboneLayer):
                hidden = layer.block(hidden, _using(context, cache))
                if layer.keeps:
                    states.append(hidden)
            elif isinstance(layer, FinalNorm):
                hidden = layer.norm(hidden)
            elif isinstance(layer, LayerPooling):
                residual = embedded if self._model.architecture.residual else None
                hidden = layer.average([*states, hidden], residual).pooled
            else:
                assert isinstance(layer, OutputAdapterLayer)
                hidden = layer.block(hidden, _using(context, cache))
        heads = self._model.heads
        if self.modality == "text":
            return heads.text.all_logits(hidden[0]).float()
        return torch.stack([head.all_logits(hidden[0]) for head in heads.speech], dim=1).float()  # type: ignore[operator]

    def _context_of_step(self, cos: Tensor, sin: Tensor, places: IntArray) -> AttentionContext:
        """Write one position of each sequence at `places` [B], and read all places up to it."""
        num_read = int(max(places)) + 1
        written = self._places(None, np.arange(len(places)), places)
        # If all have the same length, nothing has to be masked.
        mask = None if min(places) + 1 == num_read else places_mask(written.places + 1, num_read)
        return AttentionContext(cos, sin, cached=CacheAccess(KeyValueCache(), written, num_read, mask))

    def _to_device(self, array: "np.ndarray") -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _using(context: AttentionContext, cache: KeyValueCache) -> AttentionContext:
    assert context.cached is not None
    return replace(context, cached=replace(context.cached, cache=cache))


def use_accelerator(model: SmolTolk) -> SmolTolk:
    """The model on a GPU, if there is one."""
    return model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
