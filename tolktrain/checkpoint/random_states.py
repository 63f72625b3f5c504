"""States of the random generators, as JSON."""

import base64
import random
from typing import Any

import numpy as np
import torch


def capture_random_states() -> dict[str, Any]:
    """States of Python's, numpy's and torch's default generators (and of this rank's GPU, if any)."""
    version, internal, gauss = random.getstate()
    # The dictionary form is numpy's legacy generator (MT19937): 624 words and a position.
    legacy: Any = np.random.get_state(legacy=False)
    states: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": {
            "words": _encode(legacy["state"]["key"]),
            "position": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": _encode(torch.get_rng_state().numpy()),
    }
    if torch.cuda.is_available():
        states["cuda"] = _encode(torch.cuda.get_rng_state().numpy())
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the generators into the states that `capture_random_states` gave; GPU states only where there is a GPU."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    saved = states["numpy"]
    words = np.frombuffer(base64.b64decode(saved["words"]), dtype=np.uint32)
    np.random.set_state(("MT19937", words, saved["position"], saved["has_gauss"], saved["gauss"]))
    torch.set_rng_state(_decode(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(states["cuda"]))


def _encode(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())
