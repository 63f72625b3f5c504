"""torch's compiler is imported when something is compiled, and then everything is as torch made it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tolktrain.libraries.compiler import compiling_later, spare_optimizers

CASES = Path(__file__).parent / "compiler_cases.py"


NAMES = ("decorated", "left_out", "left_out_lazily", "optimizers")


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """Of each case, what it has failed with. In another process: here, some test has imported the compiler."""
    done = subprocess.run([sys.executable, str(CASES), *NAMES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMES)
def test_the_compiler_is_imported_when_it_is_used(failures: dict[str, str], case: str) -> None:
    assert failures[case] == "", failures[case][-3000:]


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
