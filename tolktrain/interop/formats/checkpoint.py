"""A checkpoint of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from tolktrain.checkpoint.manifest import MANIFEST, digest_of, read_manifest, verify_files
from tolktrain.checkpoint.reader import CheckpointReader
from tolktrain.checkpoint.slices import PARAMETERS, Shape
from tolktrain.checkpoint.store import STATE, read_state
from tolktrain.errors import UserError
from tolktrain.interop.formats.format import Weights, WeightsFormat
from tolktrain.model.architecture import Architecture


def describe_checkpoint(folder: Path) -> Weights:
    """What the checkpoint holds. Reads all of its files.

    Raises UserError if it is damaged.
    """
    files = read_manifest(folder)
    verify_files(folder, files)
    state = read_state(folder)
    architecture = state.get("architecture")
    if not isinstance(architecture, dict):
        raise UserError(f"{folder / STATE} describes no architecture; take another checkpoint")
    with CheckpointReader(folder) as reader:
        shapes = dict(reader.shapes(PARAMETERS))
    return Weights(
        format=FORMAT.name,
        folder=folder,
        architecture=Architecture.from_dict(architecture),
        shapes=shapes,
        step=state.get("step"),
        stage=state.get("stage_name"),
        digest=digest_of(files),
        tokenizers=state.get("tokenizers", {}),
    )


class _Parameters:
    """The parameters of a checkpoint."""

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader

    def block(self, name: str, offsets: Shape, sizes: Shape) -> Tensor:
        """The part of a parameter that begins at `offsets`."""
        return self._reader.read(PARAMETERS, name, offsets, sizes)


@contextmanager
def _open(weights: Weights) -> Iterator[_Parameters]:
    with CheckpointReader(weights.folder) as reader:
        yield _Parameters(reader)


FORMAT = WeightsFormat(
    "checkpoint", lambda folder: (folder / MANIFEST).is_file() or (folder / STATE).is_file(), describe_checkpoint, _open
)
