"""The published implementation's own numbers from the whole model in Triton: by the interpreter, or on a GPU.

Run by tests/kernels/test_in_triton.py, in a process of its own: the interpreter must be chosen before the kernels are
imported. By hand: TRITON_INTERPRET=1 pytest tests/interop/triton_published.py
"""

import os

import pytest
import torch
from published_files import FILES, LOSSES, read

from tolktrain.interop.published import gradients, load_published, trace
from tolktrain_kernels.backend import Backend, Kernels

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
BACKENDS: tuple[Backend, ...] = ("triton",) if DEVICE == "cpu" else ("torch", "triton")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FILES)
def test_reproduces_the_published_numbers(name: str, backend: Backend) -> None:
    kinds, hparams = read(name)
    model = load_published(kinds["weight"], hparams).to(DEVICE)
    model.use_kernels(Kernels(backend))
    outputs = trace(model, kinds["input"])
    for key, expected in kinds["output"].items():
        rtol, atol = (1e-5, 0.0) if key in LOSSES else (0.0, 1e-5)
        torch.testing.assert_close(outputs[key].cpu(), expected, rtol=rtol, atol=atol, msg=key)
    outputs["loss"].backward()
    found = gradients(model)
    for key, expected in kinds["grad"].items():
        assert (found[key].cpu() - expected).norm() <= 1e-4 * expected.norm(), key
