"""Trains the quickstart; prints as JSON what is imported when the first batch is asked for, and at the first save.

Usage, from the root of the repository: python tests/package/first_batch.py key=value ...
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from tolktrain.checkpoint.saver import CheckpointSaver
from tolktrain.config.load import load_config
from tolktrain.train.run import train

imported: list[list[str]] = []
begin = DataLoader.__iter__


def first_batch(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's iterator."""
    imported.append(sorted(sys.modules))
    return begin(loader)


def save(*_: object, **__: object) -> None:
    """Ends the process in the place of a save."""
    imported.append(sorted(sys.modules))
    print(json.dumps(imported))
    raise SystemExit


DataLoader.__iter__ = first_batch  # type: ignore[method-assign]
CheckpointSaver.save = save  # type: ignore[method-assign]
train(load_config("configs/quickstart.yaml", sys.argv[1:]))
