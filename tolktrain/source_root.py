"""Keeps the source folder `kernels/` from being imported as the Hugging Face library of that name."""

import sys
from pathlib import Path

import tolktrain


def hide_source_root() -> None:
    """Take the repository's root off `sys.path`, if it is there and holds our `kernels/`.

    `python -m` puts the working folder first on the path. In the root of the repository `import kernels`, which
    transformers tries, would then find our folder, which is the package `tolktrain_kernels`. Nothing of ours is found
    through the root: `tolktrain` is imported already, and `tolktrain_kernels` is installed.
    """
    root = Path(tolktrain.__file__).resolve().parent.parent
    if (root / "kernels" / "__init__.py").exists():
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
