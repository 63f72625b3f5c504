"""Choice between the kernels."""

import importlib
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tolktrain_kernels.backend import choose_attention, choose_backend


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nobody asked for the interpreter, with Triton installed, and with warnings as errors."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton" or find_spec(name))
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


FUNCTIONS = {"flash_attn": "flash_attn_varlen_func", "torch.nn.attention.varlen": "varlen_attn"}


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """An H100, and which of the modules are installed: both, until a test says otherwise."""
    there = dict.fromkeys(FUNCTIONS, True)
    for name, function in FUNCTIONS.items():
        module = ModuleType(name)
        setattr(module, function, lambda: None)
        monkeypatch.setitem(sys.modules, name, module)
    import_module = importlib.import_module

    def importing(name: str) -> ModuleType:
        if not there.get(name, True):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", importing)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    return there


@pytest.mark.parametrize(
    ("requested", "missing", "expected"),
    [
        ("auto", [], ("flash", "flash_attn is there")),
        ("auto", ["flash_attn"], ("varlen", "torch.nn.attention.varlen is there")),
        ("auto", list(FUNCTIONS), ("padded", "neither flash_attn nor torch.nn.attention.varlen is there")),
        ("flash", [], ("flash", "requested")),
        ("flash", ["torch.nn.attention.varlen"], ("flash", "requested")),
        ("varlen", [], ("varlen", "requested")),
        ("varlen", ["flash_attn"], ("varlen", "requested")),
        ("padded", [], ("padded", "requested")),
    ],
)
def test_choice_of_attention(
    packages: dict[str, bool], requested: str, missing: list[str], expected: tuple[str, str]
) -> None:
    packages.update(dict.fromkeys(missing, False))
    for dtype in (torch.bfloat16, torch.float16):
        assert choose_attention(requested, "cuda", dtype, 64) == expected


@pytest.mark.parametrize(("device", "dtype", "head_dim"), [("cpu", torch.float32, 7), ("cuda", torch.float64, 7)])
def test_padded_runs_take_everything(device: str, dtype: torch.dtype, head_dim: int) -> None:
    assert choose_attention("padded", device, dtype, head_dim) == ("padded", "requested")


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "capability", "obstacle"),
    [
        ("cpu", torch.bfloat16, 64, (9, 0), "there is no GPU"),
        ("cuda", torch.float32, 64, (9, 0), "attention over packed segments takes 16-bit states, not float32"),
        (
            "cuda",
            torch.bfloat16,
            264,
            (9, 0),
            "attention over packed segments takes heads up to 256 wide, a multiple of 8, not 264",
        ),
        (
            "cuda",
            torch.float16,
            36,
            (9, 0),
            "attention over packed segments takes heads up to 256 wide, a multiple of 8, not 36",
        ),
        (
            "cuda",
            torch.float16,
            64,
            (7, 5),
            "NVIDIA H100 is older than Ampere, which attention over packed segments needs",
        ),
    ],
)
def test_where_packed_attention_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int],
    obstacle: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_attention("auto", device, dtype, head_dim) == ("padded", obstacle)
    for name in ("flash", "varlen"):
        with pytest.raises(ValueError) as error:
            choose_attention(name, device, dtype, head_dim)
        assert str(error.value) == f"kernels.attention {name} cannot run: {obstacle}; use auto or padded"


@pytest.mark.parametrize(("requested", "module"), [("flash", "flash_attn"), ("varlen", "torch.nn.attention.varlen")])
def test_a_demanded_attention_that_is_missing(packages: dict[str, bool], requested: str, module: str) -> None:
    packages[module] = False
    with pytest.raises(ValueError) as error:
        choose_attention(requested, "cuda", torch.bfloat16, 64)
    assert str(error.value) == (
        f"kernels.attention {requested} cannot run: {module} cannot be imported (No module named {module!r});"
        " use auto or padded"
    )


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105Error')",
            r"flash_attn cannot be imported \(.*undefined symbol: _ZN3c105Error\)",
        ),
        ("cute = None", "flash_attn has no flash_attn_varlen_func"),
    ],
    ids=["built for another torch", "another distribution"],
)
def test_a_flash_attn_that_is_found_but_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "flash_attn.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn")
    assert choose_attention("auto", "cuda", torch.bfloat16, 64)[0] == "varlen"
    with pytest.raises(ValueError, match=f"flash cannot run: {reason}; use auto or padded"):
        choose_attention("flash", "cuda", torch.bfloat16, 64)


def test_only_what_could_run_is_imported(monkeypatch: pytest.MonkeyPatch, packages: dict[str, bool]) -> None:
    imported: list[str] = []
    importing = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: imported.append(name) or importing(name))
    choose_attention("auto", "cpu", torch.bfloat16, 64)
    choose_attention("auto", "cuda", torch.float32, 64)
    choose_attention("padded", "cuda", torch.bfloat16, 64)
    assert not imported
    choose_attention("varlen", "cuda", torch.bfloat16, 64)
    choose_attention("auto", "cuda", torch.bfloat16, 64)
    assert imported == ["torch.nn.attention.varlen", "flash_attn"]


def test_the_installed_torch_has_attention_over_packed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert choose_attention("varlen", "cuda", torch.bfloat16, 64) == ("varlen", "requested")


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="kernels.attention 'sdpa' is unknown; use auto, flash, varlen or padded"):
        choose_attention("sdpa", "cuda", torch.bfloat16, 64)
