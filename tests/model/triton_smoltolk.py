"""The whole model in Triton against the whole model in PyTorch: by the interpreter, or on a GPU.

Run by tests/kernels/test_in_triton.py, in a process of its own: the interpreter must be chosen before the
kernels are imported. By hand: TRITON_INTERPRET=1 pytest tests/model/triton_smoltolk.py
"""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tolktrain.model.architecture import Architecture
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.loss import loss_from_sums
from tolktrain.model.smoltolk import SmolTolk
from tolktrain_kernels import cross_entropy_triton, elementwise_op, layer_pooling_op, speech_adapter_triton
from tolktrain_kernels.backend import Kernels, choose_attention

ON_GPU = os.environ.get("TRITON_INTERPRET") != "1"
DEVICE = "cuda" if ON_GPU else "cpu"
PARTS = {
    cross_entropy_triton: ("write_terms",),
    elementwise_op: ("normalize", "normalize_forked", "gate", "split", "split_in_place"),
    layer_pooling_op: ("pool_rows",),
    speech_adapter_triton: ("embed", "merge"),
}


def results(model: SmolTolk, inputs: ModelInputs) -> list[Tensor]:
    model.zero_grad()
    loss = loss_from_sums(model(inputs), 40, 40, 0.3)
    loss.backward()
    return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of what was computed in Triton: a part that stays in PyTorch would pass every comparison."""
    names: set[str] = set()

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            names.add(name)
            return function(*args)

        return noted

    for module, functions in PARTS.items():
        for name in functions:
            monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    yield names


@pytest.mark.parametrize("changes", [{}, {"num_codebooks": 2, "tie_text_embeddings": False}], ids=str)
def test_equals_pytorch_with_every_gradient(
    architecture: Callable[..., Architecture],
    batch: Callable[..., SimpleNamespace],
    called: set[str],
    changes: dict[str, Any],
) -> None:
    sizes = architecture(**changes)
    model = SmolTolk(sizes, 0).to(DEVICE)
    inputs = ModelInputs.from_batch(batch("mst", codebooks=sizes.num_codebooks)).to(DEVICE)
    expected = results(model, inputs)
    assert not called
    model.use_kernels(Kernels("triton"))
    found = results(model, inputs)
    assert called == {name for names in PARTS.values() for name in names}
    assert len(found) == len(expected)
    for ours, plain in zip(found, expected, strict=True):
        assert (ours - plain).norm() <= 5e-5 * plain.norm()


@pytest.mark.skipif(not ON_GPU, reason="no GPU")
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_step_never_waits_for_the_gpu(
    architecture: Callable[..., Architecture], batch: Callable[..., SimpleNamespace], backend: Any
) -> None:
    sizes = architecture()
    attention, _ = choose_attention("auto", "cuda", torch.bfloat16, sizes.head_dim)
    model = SmolTolk(sizes, 0).to("cuda", torch.bfloat16)
    model.use_kernels(Kernels(backend, attention))
    inputs = ModelInputs.from_batch(batch("mst")).to("cuda")
    results(model, inputs)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(model, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
