"""What a person sees of a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from small_runs import small_config

from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.train.callbacks.progress import Display
from tolktrain.train.resolved import choose_kernels


def test_the_header_names_the_kernels(tmp_path: Path, sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path, sets)
    layout = cast(Any, SimpleNamespace(rank=0, describe=lambda: "1 process on cpu"))
    Display(config, [], cast(Any, None), layout).show_header(tmp_path, {"backbone": 1_500}, 0, 0, "torch (requested)")
    shown = capsys.readouterr().out.splitlines()
    assert "kernels: torch (requested)" in shown
    assert shown[0] == "small: 1.5k parameters (backbone 1.5k)"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "torch (there is no GPU), attention over speech padded (there is no GPU)"),
        (
            ["kernels.backend=torch", "kernels.attention=padded", "train.compile=layers"],
            "torch (requested), attention over speech padded (requested), layers compiled by torch.compile",
        ),
    ],
)
def test_what_was_chosen_and_why(tmp_path: Path, sets: Path, overrides: list[str], expected: str) -> None:
    config = small_config(tmp_path, sets, *overrides)
    assert choose_kernels(config, Architecture.from_config(config.model), "cpu").description == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kernels.backend=triton", "kernels.backend triton cannot run: there is no GPU; use auto or torch"),
        ("kernels.attention=flash", "kernels.attention flash cannot run: there is no GPU; use auto or padded"),
    ],
)
def test_what_cannot_run_is_refused(
    tmp_path: Path, sets: Path, override: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    config = small_config(tmp_path, sets, override)
    with pytest.raises(UserError) as raised:
        choose_kernels(config, Architecture.from_config(config.model), "cpu")
    assert str(raised.value) == message


@pytest.mark.parametrize(("reserved", "shown"), [(None, "1.5k tokens/s  0:00:00 left"), (73.25, "73.2 GiB reserved")])
def test_a_line_of_a_step_has_the_reserved_memory(
    tmp_path: Path, sets: Path, capsys: pytest.CaptureFixture[str], reserved: float | None, shown: str
) -> None:
    line = {"loss": 2.0, "text_loss": 2.0, "speech_loss": None, "tokens_per_second": 1500.0, "skipped": 0}
    plan = SimpleNamespace(num_steps=4, last_step=4)
    run = SimpleNamespace(plan=plan, step=4, step_in_stage=4, seconds=1.0, at_last_step=True)
    metrics = SimpleNamespace(recent=[{**line, "memory_reserved_gib": reserved}])
    layout = cast(Any, SimpleNamespace(rank=0))
    Display(small_config(tmp_path, sets), cast(Any, [plan]), cast(Any, metrics), layout).on_step(cast(Any, run))
    assert shown in capsys.readouterr().out
