"""Sees every operation of a training step: those of PyTorch, and Triton's launches inside of ours and of autograd's.

Each belongs to a part of the model and a direction. In a backward pass, the part is that whose forward pass made the
autograd node: modules note the numbers of the nodes that they make.
"""

import ctypes
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tolktrain.benchmark.count.operations import kernel_work, name_of, work_of
from tolktrain.benchmark.count.parts import OPTIMIZER, REST, UNSEEN, part_of, region_of
from tolktrain.cluster.device_models import MEMORY, PRODUCT, VOCABULARY_PRODUCT, Work
from tolktrain.libraries.torch_compat import next_node_number, running_node
from tolktrain.model.cost.operations import BACKWARD, FORWARD, UPDATE

DIRECTIONS = (FORWARD, BACKWARD, UPDATE)
_GRADIENT_SUM = "AccumulateGrad"  # the name of autograd's node for a parameter
ACCUMULATION = "gradient accumulation"


@dataclass(frozen=True)
class Operation:
    """One operation that moves something on the GPU."""

    name: str  # of PyTorch's operator or the Triton kernel
    part: str
    direction: str  # of `DIRECTIONS`
    work: Work


@dataclass
class _Regions:
    """Which region of the model made which autograd nodes."""

    stack: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # numbers of nodes at which a region begins
    names: list[str] = field(default_factory=list)

    def enter(self, name: str) -> None:
        self.stack.append(name)
        self._begin(name)

    def leave(self) -> None:
        self.stack.pop()
        self._begin(self.stack[-1] if self.stack else REST)

    def of_node(self, number: int) -> str:
        place = bisect_right(self.starts, number) - 1
        return self.names[place] if place >= 0 else REST

    def _begin(self, name: str) -> None:
        self.starts.append(next_node_number())
        self.names.append(name)


class StepCounter(TorchDispatchMode):
    """Collects the operations of a step."""

    def __init__(self, model: nn.Module, segment_pairs: float) -> None:
        """Count `model`'s step on a micro batch with that many pairs of positions inside speech segments."""
        super().__init__()
        self.operations: list[Operation] = []
        self._segment_pairs = segment_pairs
        self._regions = _Regions()
        self._model = model
        self._updates = 0  # depth of calls of the engine's step
        self._launched = launch_counter()
        self._claimed = 0.0  # launches of operations that are inside the present one
        self._around: list[Any] = []  # arguments of the operator around a launch

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and note it."""
        kwargs = kwargs or {}
        name = name_of(func)
        outer, self._around = self._around, [*args, *kwargs.values()]
        before, claimed = self._num_launches(), self._claimed
        try:
            result = func(*args, **kwargs)
        finally:
            self._around = outer
        launches = self._num_launches() - before - (self._claimed - claimed)
        if name.startswith("tolktrain::"):  # what it launches is noted by itself
            if launches:
                self._note(UNSEEN, Work(MEMORY, 0.0, launches=launches))
        else:
            work = work_of(name, func, args, kwargs, result, self._segment_pairs)
            if work is not None or launches:
                # The driver's own copies and fills are no launches.
                work = work or Work(MEMORY, 0.0)
                self._note(name, replace(work, launches=max(launches, 1.0 if work.bytes else 0.0)))
        self._claimed = claimed + self._num_launches() - before
        return result

    def launch(self, run: Callable[..., Any], kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Launch a Triton kernel and note it."""
        before = self._num_launches()
        result = run(kernel, *args, **kwargs)
        name = kernel.__name__
        arguments = [*args, *(value for key, value in kwargs.items() if key not in ("grid", "warmup"))]
        self._note(name, replace(kernel_work(name, arguments, self._around), launches=1.0))
        self._claimed += self._num_launches() - before
        return result

    @contextmanager
    def installed(self, engine: Any) -> Iterator["StepCounter"]:
        """In this context, operations of all threads' forward and backward passes are noted.

        Args:
            engine: DeepSpeed's, whose `step` is the optimizer's direction.
        """
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                region = region_of(name, module)
                if region is not None:
                    stack.callback(module.register_forward_pre_hook(self._entering(region)).remove)
                    stack.callback(module.register_forward_hook(self._leaving).remove)
            stack.enter_context(mock.patch.object(engine, "step", self._updating(engine.step)))
            for patch in (*self._entering_our_operators(), *self._seeing_triton()):
                stack.enter_context(patch)
            stack.enter_context(self)
            yield self

    def _note(self, name: str, work: Work) -> None:
        node = running_node()
        if node is not None:
            direction = BACKWARD
            region = ACCUMULATION if _GRADIENT_SUM in node[0] else self._regions.of_node(node[1])
        elif self._updates:
            direction, region = UPDATE, OPTIMIZER
        elif self._regions.stack:
            direction, region = FORWARD, self._regions.stack[-1]
        else:
            direction = FORWARD if not any(o.direction == BACKWARD for o in self.operations) else BACKWARD
            region = REST if direction == FORWARD else ACCUMULATION
        part = UNSEEN if name == UNSEEN else part_of(region, name, work.kind)
        if work.kind == PRODUCT and region == "text head":
            work = replace(work, kind=VOCABULARY_PRODUCT)
        self.operations.append(Operation(name, part, direction, work))

    def _num_launches(self) -> float:
        return float(self._launched()) if self._launched else 0.0

    def _entering(self, region: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._regions.enter(region)

        return hook

    def _leaving(self, *_: Any) -> None:
        self._regions.leave()

    def _updating(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def updating(*args: Any, **kwargs: Any) -> Any:
            self._updates += 1
            try:
                return step(*args, **kwargs)
            finally:
                self._updates -= 1

        return updating

    def _entering_our_operators(self) -> Iterator[Any]:
        """PyTorch leaves the mode inside of an operator: enter it where ours begin to launch."""
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("tolktrain_kernels.") and module_name.endswith("_op"):
                for name, function in list(vars(module).items()):
                    if name.startswith("run_") and callable(function):
                        yield mock.patch.object(module, name, self._inside(function))

    def _inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            outer, self._around = self._around, [*args]
            try:
                with self:
                    return function(*args, **kwargs)
            finally:
                self._around = outer

        return inside

    def _seeing_triton(self) -> Iterator[Any]:
        try:
            from triton.runtime.jit import JITFunction
        except ImportError:
            return
        run, counter = JITFunction.run, self

        def seen(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            return counter.launch(run, kernel, args, kwargs)

        yield mock.patch.object(JITFunction, "run", seen)


def launch_counter() -> Callable[[], int] | None:
    """Reads the number of kernels that a null GPU has been given by this process; None on a real GPU."""
    library = os.environ.get("NULLGPU_LIBRARY")
    if library is None:
        return None
    counted = ctypes.c_uint64.in_dll(ctypes.CDLL(library), "null_counters")  # the first field
    return lambda: counted.value
