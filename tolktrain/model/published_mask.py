"""The input adapter's attention in the reference implementation, for models trained by that code.

If a sequence begins with speech, that code pairs the boundaries of speech segments incorrectly, off by one, so that its
adapter attends to text. Models trained here attend inside segments (`SpeechSegments`). This dense mask reproduces the
published attention; it is slow.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tolktrain_kernels.documents import PackedDocuments


def published_adapter_mask(speech_in: Tensor, documents: PackedDocuments | None = None) -> Tensor:
    """The attention mask: bool [B, 1, T, T], true if row t attends to column u. A row may attend to nothing.

    In a sequence that begins with text, each segment attends to itself, causally, and each text position to itself. In
    a sequence that begins with speech, with changes of modality at c0, c1, c2, ..., the blocks [0, c1), [c0, c3),
    [c2, c5), ... are causal. So a later segment also attends to the text before it, and the last segment attends to
    nothing if text follows it.

    Args:
        speech_in: bool [B, T].
        documents: each is treated as a sequence.
    """
    rows = np.asarray(speech_in.cpu(), dtype=bool)
    if documents is None:
        masks = np.stack([_sequence_mask(row) for row in rows])
    else:
        masks = np.zeros((*rows.shape, rows.shape[1]), dtype=bool)
        for begin, end in pairwise(documents.every.cu_seqlens.tolist()):
            row, first = divmod(begin, rows.shape[1])
            inside = slice(first, first + end - begin)
            masks[row, inside, inside] = _sequence_mask(rows[row, inside])
    return torch.from_numpy(masks).unsqueeze(1).to(speech_in.device)


def _sequence_mask(speech: np.ndarray) -> np.ndarray:
    changes = np.flatnonzero(speech[1:] != speech[:-1]) + 1
    starts = [0, *changes[::2]] if speech[0] else list(changes[::2])
    ends = [*changes[1::2], speech.size] if speech[-1] else list(changes[1::2])
    mask = np.zeros((speech.size, speech.size), dtype=bool)
    for start, end in zip(starts, ends, strict=False):
        mask[start:end, start:end] = np.tri(end - start, dtype=bool)
    text = np.flatnonzero(~speech)
    mask[np.ix_(text, text)] = np.eye(text.size, dtype=bool)
    return mask
