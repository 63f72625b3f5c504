"""Decoding of one context of text and speech, such as a conversation, that grows by whole turns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tolktrain.data.sequences import BoolArray, IntArray
from tolktrain.data.strategies.base import Modality
from tolktrain.generate.context import Context
from tolktrain.model.cache import CacheAccess, CachePlaces, KeyValueCache
from tolktrain.model.embedding import Embedding
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.layers import BackboneLayer, FinalNorm, InputAdapterLayer, OutputAdapterLayer
from tolktrain.model.pooling import LayerPooling
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.model.transformer import AttentionContext, rotary_angles

_FIRST_PLACES = 256  # of a cache, which then doubles


class MixedDecoder(ABC):
    """Predicts what follows one context, in either modality. `read` makes the context what it should be.

    Logits are text [V_t] or speech [K, V_s], float32.
    """

    @abstractmethod
    def read(self, context: Context, modality: Modality) -> Tensor:
        """Logits of what follows a context of at least one position."""


class PlainMixedDecoder(MixedDecoder):
    """Computes the whole context each time. Reference for `CachedMixedDecoder`."""

    def __init__(self, model: SmolTolk) -> None:
        self._model = model
        self._device = next(model.parameters()).device

    def read(self, context: Context, modality: Modality) -> Tensor:
        """As `MixedDecoder.read`."""
        tokens, is_speech = torch.from_numpy(context.tokens)[None], torch.from_numpy(context.is_speech)[None]
        logits = self._model.next_logits(ModelInputs.for_next(tokens, is_speech).to(self._device))
        return logits.text[0] if modality == "text" else logits.speech[0]


class CachedMixedDecoder(MixedDecoder):
    """Keeps keys and values of the positions that the present context has in common with the last one, and computes
    the others, all positions of a modality at once.

    For a model in evaluation mode whose input adapter attends inside speech segments. Under tensor parallelism, all
    ranks must call the same methods (`tolktrain.generate.tensor_ranks`).
    """

    def __init__(self, model: SmolTolk, window: int) -> None:
        """Args: model; window, the most positions of a context."""
        assert model.architecture.adapter_attention == "runs"
        self._model, self._window = model, window
        embedding, *self._layers = model.trunk
        assert isinstance(embedding, Embedding)
        self._tables = embedding.tables
        self._device = self._tables.text.device
        self._cos, self._sin = rotary_angles(model.architecture, window, self._device)
        self._caches = [KeyValueCache() for _ in self._layers]
        self._tokens: IntArray = np.zeros((model.architecture.num_codebooks, 0), np.int64)
        self._is_speech: BoolArray = np.zeros(0, np.bool_)
        self._segment = 0  # first position of the speech segment whose keys the input adapter keeps
        self._last: dict[Modality, Tensor] = {}  # states [1, D] of the last position before each head

    def read(self, context: Context, modality: Modality) -> Tensor:
        """As `MixedDecoder.read`."""
        assert 0 < len(context) <= self._window
        kept = self._common(context)
        self._tokens, self._is_speech = self._tokens[:, :kept], self._is_speech[:kept]
        changes = np.flatnonzero(np.diff(context.is_speech[kept:].astype(np.int8))) + kept + 1
        bounds = [kept, *changes.tolist(), len(context)]
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            self._add(context.tokens[:, begin:end], bool(context.is_speech[begin]))
        return self._logits(modality)

    def _common(self, context: Context) -> int:
        """Positions that can be kept: those in common, but not the last one, whose output is needed, and not the begin
        of a speech segment that continues differently, unless the input adapter has its keys."""
        size = min(len(self._is_speech), len(context))
        same = (self._tokens[:, :size] == context.tokens[:, :size]).all(axis=0)
        same &= self._is_speech[:size] == context.is_speech[:size]
        kept = size if same.all() else int(np.argmin(same))
        kept = min(kept, len(context) - 1)
        if kept > self._segment or not (kept and context.is_speech[kept] and context.is_speech[kept - 1]):
            return kept
        text = np.flatnonzero(~context.is_speech[:kept])
        return int(text[-1]) + 1 if len(text) else 0

    @torch.inference_mode()
    def _add(self, tokens: IntArray, is_speech: bool) -> None:
        """Read consecutive positions [K, m] of one modality."""
        begin = len(self._is_speech)
        continues = is_speech and begin > 0 and bool(self._is_speech[-1])
        if is_speech and not continues:
            self._segment = begin
        count = tokens.shape[1]
        self._tokens = np.concatenate([self._tokens, tokens], axis=1)
        self._is_speech = np.append(self._is_speech, np.full(count, is_speech))
        ids = torch.from_numpy(np.ascontiguousarray(tokens.T)).to(self._device)
        rows = self._tables.speech_rows(ids) if is_speech else self._tables.text_rows(ids[:, 0])
        hidden = embedded = rows.unsqueeze(1)  # [m, 1, D]
        everywhere = self._context(begin, count)
        in_segment = self._context(begin - self._segment, count) if is_speech else None
        states: list[Tensor] = []
        for layer, cache in zip(self._layers, self._caches, strict=True):
            if isinstance(layer, InputAdapterLayer):
                if in_segment is not None:
                    hidden = layer.block(hidden, in_segment(cache))
            elif isinstance(layer, BackboneLayer):
                hidden = layer.block(hidden, everywhere(cache))
                if layer.keeps:
                    states.append(hidden)
            elif isinstance(layer, FinalNorm):
                hidden = layer.norm(hidden)
                self._last["text"] = hidden[-1]
            elif isinstance(layer, LayerPooling):
                residual = embedded if self._model.architecture.residual else None
                hidden = layer.average([*states, hidden], residual).pooled
            else:
                assert isinstance(layer, OutputAdapterLayer)
                hidden = layer.block(hidden, everywhere(cache))
        self._last["speech"] = hidden[-1]

    def _context(self, begin: int, count: int) -> Callable[[KeyValueCache], AttentionContext]:
        """Attention of `count` positions from `begin` on to themselves and to all before them, with a cache."""
        end = begin + count
        places = torch.arange(begin, end, device=self._device)
        capacity = _FIRST_PLACES
        while capacity < end:
            capacity *= 2
        written = CachePlaces(None, torch.zeros_like(places), places, 1, max(end, min(capacity, self._window)))
        mask = None
        if count > 1:
            mask = (torch.arange(end, device=self._device) <= places.unsqueeze(1)).view(1, 1, count, end)
        angles = (self._cos[begin:end], self._sin[begin:end])
        return lambda cache: AttentionContext(*angles, cached=CacheAccess(cache, written, end, mask))

    @torch.inference_mode()
    def _logits(self, modality: Modality) -> Tensor:
        heads, hidden = self._model.heads, self._last[modality]
        if modality == "text":
            return heads.text.all_logits(hidden)[0].float()
        return torch.stack([head.all_logits(hidden)[0] for head in heads.speech]).float()  # type: ignore[operator]


class OneModality:
    """Continues the context of a mixed decoder in one modality, a position at a time. For `sampling`."""

    def __init__(self, decoder: MixedDecoder, modality: Modality) -> None:
        self._decoder, self._modality = decoder, modality
        self._context: Context

    def begin(self, contexts: Sequence[Context]) -> Tensor:
        """Logits [1, ...] of what follows the only context."""
        (self._context,) = contexts
        return self._decoder.read(self._context, self._modality)[None]

    def extend(self, columns: IntArray) -> Tensor:
        """Add a position [1, K]; logits of what follows."""
        tokens = np.concatenate([self._context.tokens, columns.T], axis=1)
        self._context = Context(tokens, np.append(self._context.is_speech, self._modality == "speech"))
        return self._decoder.read(self._context, self._modality)[None]

    def keep(self, rows: Sequence[int]) -> None:
        """Never called for a single context."""
        raise AssertionError(rows)
