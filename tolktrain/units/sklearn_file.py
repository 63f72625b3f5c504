"""Centroids from a k-means file of scikit-learn, pickled plainly or by joblib, without running code from it."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tolktrain.errors import UserError
from tolktrain.files.compressed import TooLargeError, read_unpacked
from tolktrain.files.pickles import NameInPickleError, Standin, read_pickle

_LARGEST: Final = 1 << 28  # bytes, unpacked
_OBJECTS: Final = ("sklearn", "numpy.random", "joblib.numpy_pickle.NumpyArrayWrapper")
_LZ4: Final = b"\x04\x22\x4d\x18"
_INSTEAD: Final = "save cluster_centers_ as centroids.safetensors there"


def read_sklearn_centroids(path: str | Path) -> npt.NDArray[np.float32]:
    """`cluster_centers_` [num_clusters, dim] of a scikit-learn k-means, as pickle or joblib wrote it.

    Nothing that the file names is imported or called. Any version of scikit-learn will do, and none is needed.

    Raises:
        UserError: the file cannot be read, is too large, names something else than such a k-means needs, or holds no
            centroids.
    """
    model = _read(Path(path))
    value = model.state.get("cluster_centers_") if isinstance(model, Standin) else None
    centroids = value.array if isinstance(value, Standin) else None
    if centroids is None or centroids.ndim != 2 or centroids.dtype.kind != "f":
        kind = model.kind if isinstance(model, Standin) else type(model).__name__
        raise UserError(f"{path} holds a {kind} without centroids; give a fitted KMeans or MiniBatchKMeans")
    with np.errstate(over="ignore", invalid="ignore"):
        kept = np.ascontiguousarray(centroids, np.float32)
    if not kept.size or not np.isfinite(kept).all():
        raise UserError(f"{path} holds centroids that are empty or not finite; get it from its source")
    return kept


def _read(path: Path) -> Any:
    """The value in the file."""
    try:
        content = read_unpacked(path, _LARGEST)
        if content.startswith(_LZ4):
            raise UserError(f"{path} is compressed by LZ4; load it with joblib and dump it again with compress=3")
        return read_pickle(content, _OBJECTS)
    except NameInPickleError as error:
        raise UserError(
            f"{path} names {error}, which a scikit-learn k-means does not need; it was not loaded, because a pickle can"
            f" run any program: get the file from its source, or {_INSTEAD}"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a file that joblib wrote") from None
    except TooLargeError:
        raise UserError(
            f"{path} holds more than {_LARGEST >> 20} MiB, which no file of centroids does; get it from its source, or"
            f" {_INSTEAD}"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not a readable pickle or joblib file ({error}); get it from its source") from None
