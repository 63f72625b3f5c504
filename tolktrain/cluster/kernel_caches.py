"""Chooses the folders of compiled kernels. Kernels are loaded as code, so no other user may write to their folder.

PyTorch's default is a name in the shared temporary folder that anybody can create first.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

from tolktrain.files.shared import is_own_folder


def place_kernel_caches(folder: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the folders of Triton's, PyTorch's and DeepSpeed's compiled code, and whether Triton fuses products with
    sums, unless the user has set them.

    They are in the home folder, so that they persist. Under Slurm, kernels are compiled into `folder`, the temporary
    folder of this process on the node: in a home folder on the network, hundreds of ranks wait for each other's locks.
    """
    home = _own_home_cache()
    on_network = "SLURM_JOB_ID" in environ
    places = {
        "TRITON_CACHE_DIR": folder / "triton" if home is None or on_network else None,
        "TORCHINDUCTOR_CACHE_DIR": (folder if home is None or on_network else home) / "inductor",
        "TORCH_EXTENSIONS_DIR": folder / "extensions" if home is None else None,
    }
    for name, place in places.items():
        if place is not None and not environ.get(name):
            environ[name] = str(place)
    # As in Triton 3.9. From 3.10 on, the default is 0: results would depend on the version. Unset, Triton 3.9 warns.
    environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def _own_home_cache() -> Path | None:
    """tolktrain's cache folder in the home folder, created if absent; None if it cannot be created or trusted."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = os.path.realpath(os.path.expanduser("~"))
    root = os.path.realpath(given if os.path.isabs(given) else os.path.join(home, ".cache"))
    folder = Path(root, "tolktrain")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return None
    trusted = is_own_folder(home) and is_own_folder(root) and is_own_folder(folder) and os.access(folder, os.W_OK)
    return folder if trusted else None
