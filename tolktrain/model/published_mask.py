"""The input adapter's attention in the reference implementation, for models trained by that code.

If a sequence begins with speech, that code pairs the boundaries of speech segments incorrectly, off by one, so that its
adapter attends to text. Models trained here attend inside segments (`SpeechSegments`). This dense mask reproduces the
published attention; it is slow.
"""

import numpy as np
import torch
from torch import Tensor


def published_adapter_mask(speech_in: Tensor) -> Tensor:
    """The attention mask: bool [B, 1, T, T], true if row t attends to column u. A row may attend to nothing.

    In a sequence that begins with text, each segment attends to itself, causally, and each text position to itself. In
    a sequence that begins with speech, with changes of modality at c0, c1, c2, ..., the blocks [0, c1), [c0, c3),
    [c2, c5), ... are causal. So a later segment also attends to the text before it, and the last segment attends to
    nothing if text follows it.

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
