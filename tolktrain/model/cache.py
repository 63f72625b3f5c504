"""Keys and values that attention keeps, so that a position that is added computes itself only."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


class KeyValueCache:
    """The rotated keys and the values of one layer: [B, G, places, d] each. The number of places grows."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def reserve(self, like: Tensor, num_sequences: int, num_places: int) -> None:
        """Make room for `num_places` of each sequence; `like` [..., G, d] has the type and the heads."""
        for name in ("_keys", "_values"):
            old: Tensor | None = getattr(self, name)
            if old is not None and old.shape[2] >= num_places:
                continue
            new = like.new_zeros(num_sequences, like.shape[-2], num_places, like.shape[-1])
            if old is not None:
                new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def write(self, sequences: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values [n, G, d] of sequences [n] int64 at places [n] int64."""
        assert self._keys is not None and self._values is not None
        self._keys[sequences, :, places] = keys
        self._values[sequences, :, places] = values

    def read(self, num_places: int) -> tuple[Tensor, Tensor]:
        """The first places: [B, G, num_places, d]."""
        assert self._keys is not None and self._values is not None
        return self._keys[:, :, :num_places], self._values[:, :, :num_places]

    def keep(self, rows: Tensor) -> None:
        """Continue with the sequences `rows`, int64, in this order, which may be named several times."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys.index_select(0, rows), self._values.index_select(0, rows)


@dataclass(frozen=True)
class CachePlaces:
    """Which keys of a pass are kept, and where."""

    sources: Tensor | None  # [n] int64: rows of the flattened keys; all if None
    sequences: Tensor  # [n] int64: sequence in the cache
    places: Tensor  # [n] int64
    num_sequences: int  # of the cache
    capacity: int  # places that the cache must have


@dataclass(frozen=True)
class CacheAccess:
    """The use of a layer's cache by one pass of attention."""

    cache: KeyValueCache
    written: CachePlaces
    # Without: attention among the positions of the pass. Otherwise the pass adds one position to each sequence, which
    # attends to the first `num_read` places, as far as the mask, bool [B, 1, 1, num_read], says so.
    num_read: int | None = None
    mask: Tensor | None = None

    def store(self, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values [n, B, G, d]."""
        written = self.written
        self.cache.reserve(keys, written.num_sequences, written.capacity)
        flat = (keys.flatten(0, 1), values.flatten(0, 1))
        if written.sources is not None:
            flat = (flat[0].index_select(0, written.sources), flat[1].index_select(0, written.sources))
        self.cache.write(written.sequences, written.places, *flat)

    def attend(self, queries: Tensor) -> Tensor:
        """Attention of the added positions: queries [1, B, H, d] to [1, B, H * d]."""
        assert self.num_read is not None
        keys, values = self.cache.read(self.num_read)
        grouped = queries.shape[2] != keys.shape[1]
        mixed = functional.scaled_dot_product_attention(
            queries.permute(1, 2, 0, 3), keys, values, attn_mask=self.mask, enable_gqa=grouped
        )
        return mixed.permute(2, 0, 1, 3).flatten(2)


def places_mask(num_kept: Tensor, num_read: int) -> Tensor:
    """Bool [B, 1, 1, num_read]: true for the first `num_kept` [B] places of each sequence."""
    places = torch.arange(num_read, device=num_kept.device)
    return (places < num_kept.unsqueeze(1)).view(len(num_kept), 1, 1, num_read)
