"""The published numbers from the whole model in Triton, in a process of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton")

CHECKS = (Path(__file__).with_name("triton_published.py"), Path(__file__).parents[1] / "model" / "triton_smoltolk.py")


@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_computes_what_it_should(checks: Path, run_in_triton: Callable[[Path], None]) -> None:
    run_in_triton(checks)
