"""The input adapter's attention as the published training code computes it, for models trained by that code.

There, text that lies beside speech is part of the adapter where a sequence begins with speech: its boundaries are
paired one off. Models of our own attend inside runs (`SpeechSegments`); this dense mask reproduces the other, slowly.
"""

import numpy as np
import torch
from torch import Tensor


def published_adapter_mask(speech_in: Tensor) -> Tensor:
    """Who attends to whom: bool [B, 1, T, T], true where row t sees column u. A row may see nothing at all.

    A sequence that begins with text: each run sees itself, causally, and each text position itself. A sequence that
    begins with speech, with changes of modality at c0, c1, c2, ...: blocks [0, c1), [c0, c3), [c2, c5), ... are causal,
    so that a later run sees the text before it too, and the last run sees nothing if text follows it.

    Args:
        speech_in: bool [B, T].
    """
    masks = [_sequence_mask(row) for row in np.asarray(speech_in.cpu(), dtype=bool)]
    return torch.from_numpy(np.stack(masks)).unsqueeze(1).to(speech_in.device)


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
