"""Cases of test_compiler.py: `python compiler_cases.py NAME...`

Each runs in a process of its own, forked when torch is imported and nothing else has been done. Printed is JSON: by
name, what a case failed with, nothing if it did not.
"""

import hashlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tolktrain.libraries.compiler import compiling_later, spare_optimizers


def is_imported() -> bool:
    """Whether torch's compiler is."""
    return "torch._dynamo" in sys.modules


def decorated() -> None:
    """A function is compiled when it is called."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def triple(x: Tensor) -> Tensor:
        """Three times x."""
        return x * 3

    with compiling_later():
        compiled = torch.compile(triple, backend=backend)
    assert not is_imported()
    assert (compiled.__name__, compiled.__doc__) == ("triple", triple.__doc__)
    assert compiled(torch.ones(2)).tolist() == [3.0, 3.0]
    assert is_imported() and len(graphs) == 1


def left_out() -> None:
    """A function that is to be left out runs as it is, and is left out of what is compiled later."""
    with compiling_later():

        @torch.compiler.disable
        def pair(x: Tensor) -> Tensor:
            return torch.stack((x, x))

    assert pair(torch.ones(2)).shape == (2, 2)
    assert not is_imported()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    result = torch.compile(lambda x: pair(x + 1) * 2, backend=backend)(torch.ones(2))
    assert result.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    assert graphs and torch.stack not in {node.target for graph in graphs for node in graph.graph.nodes}


def left_out_lazily() -> None:
    """The same of what DeepSpeed excludes, which would otherwise import the compiler at the first call."""
    with compiling_later():
        decorate = torch._disable_dynamo

        @decorate
        def pair(x: Tensor) -> Tensor:
            return torch.stack((x, x))

        @decorate(recursive=False)
        def single(x: Tensor) -> Tensor:
            return x

    assert pair(torch.ones(2)).shape == (2, 2) and pair.__name__ == "pair"
    assert not is_imported()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    result = torch.compile(lambda x: pair(x + 1) * 2, backend=backend)(torch.ones(2))
    assert result.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    assert graphs and torch.stack not in {node.target for graph in graphs for node in graph.graph.nodes}
    assert single(torch.ones(2)).tolist() == [1.0, 1.0]


def trained() -> str:
    """Hash of what a small model is after some steps."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW([{"params": [model.weight]}], lr=0.1, weight_decay=0.1, fused=True)
    optimizer.add_param_group({"params": [model.bias], "lr": 0.2})
    for _ in range(4):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
    values = [*model.state_dict().values(), *(v for s in optimizer.state_dict()["state"].values() for v in s.values())]
    assert all(not value.requires_grad for value in values)
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()


def optimizers() -> None:
    """They step to the same values without the compiler, with it, and as torch made them."""
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: getattr(torch.optim.Optimizer, name) for name in names}
    step = torch.optim.Adam.step
    spare_optimizers()
    spare_optimizers()
    without = trained()
    assert not is_imported()
    importlib.import_module("torch._dynamo")
    with_it = trained()
    for name, method in methods.items():
        setattr(torch.optim.Optimizer, name, method)
    torch.optim.Adam.step = step  # type: ignore[method-assign]
    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    assert without == with_it == trained()


def in_a_fork(case: Callable[[], None]) -> str:
    """What a case fails with in a process of its own."""
    with tempfile.TemporaryFile("w+") as output:
        process = os.fork()
        if not process:
            code = 1
            try:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                case()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        output.seek(0)
        return f"exit code {code}: {output.read()}" if code else ""


if __name__ == "__main__":
    assert not is_imported()
    cases = {case.__name__: case for case in (decorated, left_out, left_out_lazily, optimizers)}
    print(json.dumps({name: in_a_fork(cases[name]) for name in sys.argv[1:]}))
