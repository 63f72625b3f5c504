"""What a person sees of a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from small_runs import small_config

from tolktrain.train.callbacks.progress import Display


@pytest.mark.parametrize(
    ("backend", "line"),
    [
        ("auto", "kernels: torch, the only ones there are (kernels.backend is auto)"),
        ("torch", "kernels: torch, as configured (kernels.backend is torch)"),
    ],
)
def test_the_header_names_the_kernels_and_why(
    tmp_path: Path, sets: Path, capsys: pytest.CaptureFixture[str], backend: str, line: str
) -> None:
    config = small_config(tmp_path, sets, f"kernels.backend={backend}")
    layout = cast(Any, SimpleNamespace(rank=0, describe=lambda: "1 process on cpu"))
    Display(config, [], cast(Any, None), layout).show_header(tmp_path, {"backbone": 1_500}, 0, 0)
    shown = capsys.readouterr().out.splitlines()
    assert line in shown
    assert shown[0] == "small: 1.5k parameters (backbone 1.5k)"
