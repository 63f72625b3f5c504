"""torch's compiler is imported when something is compiled, and then everything is as torch made it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tolktrain.libraries.compiler import compiling_later, spare_optimizers

CASES = Path(__file__).parent / "compiler_cases.py"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["decorated", "left_out", "left_out_lazily", "optimizers"])
def test_the_compiler_is_imported_when_it_is_used(case: str) -> None:
    """In a process of its own: here, some test has imported it."""
    done = subprocess.run([sys.executable, str(CASES), case], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_torch_has_its_functions_back() -> None:
    before = torch.compile, torch.compiler.disable, torch._disable_dynamo
    with compiling_later():
        assert torch.compile is not before[0] and torch._disable_dynamo is not before[2]
    with pytest.raises(ZeroDivisionError), compiling_later():
        raise ZeroDivisionError
    assert (torch.compile, torch.compiler.disable, torch._disable_dynamo) == before


def test_steps_take_a_closure() -> None:
    spare_optimizers()
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss: Tensor = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert weight.item() == pytest.approx(1.5)
