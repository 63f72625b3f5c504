"""Choice between the kernels."""

import importlib.util
import subprocess
import sys
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


def test_the_pooling_works_where_triton_is_missing() -> None:
    program = """
import sys
sys.modules["triton"] = None
import torch
from tolktrain_kernels.backend import choose_backend
from tolktrain_kernels.layer_pooling import pool_layers
import tolktrain_kernels.bench.__main__, tolktrain_kernels.bench.pooling
states = [torch.ones(2, 4) for _ in range(3)]
assert pool_layers(states, torch.zeros(3)).pooled.equal(states[0])
"""
    subprocess.run([sys.executable, "-c", program], check=True)
