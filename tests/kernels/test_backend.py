"""Choice between the kernels."""

import importlib.util
import warnings

import pytest

from tolktrain_kernels.backend import choose_backend


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nobody asked for the interpreter, with Triton installed, and with warnings as errors."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    warnings.simplefilter("error")


@pytest.mark.parametrize(
    ("requested", "device", "expected"),
    [
        ("auto", "cuda", ("triton", "a GPU and Triton are there")),
        ("auto", "cpu", ("torch", "there is no GPU")),
        ("torch", "cuda", ("torch", "requested")),
        ("torch", "cpu", ("torch", "requested")),
        ("triton", "cuda", ("triton", "requested")),
    ],
)
def test_choice(requested: str, device: str, expected: tuple[str, str]) -> None:
    assert choose_backend(requested, device) == expected


def test_triton_without_a_gpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="triton cannot run: there is no GPU; use auto or torch"):
        choose_backend("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("triton", "cpu") == ("triton", "requested")
    assert choose_backend("auto", "cpu") == ("torch", "there is no GPU")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_backend("auto", "cuda") == ("torch", "Triton is not installed")
    with pytest.raises(ValueError, match="triton cannot run: Triton is not installed"):
        choose_backend("triton", "cuda")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'cuda' is unknown; use auto, triton or torch"):
        choose_backend("cuda", "cuda")
