"""Defers the import of torch's compiler until something is compiled: it takes 2 s and 150 MB in every process.

torch imports the compiler when a function is decorated with `torch.compile`, as megatron-core and DeepSpeed decorate
functions that are never called here; when a function is called that is excluded from compilation, such as methods of
torch's optimizers; and in each step of an optimizer, for a graph break. As long as the compiler is not imported,
nothing is compiled, so exclusions and graph breaks are not needed.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_Function = Callable[..., Any]


@contextmanager
def compiling_later() -> Iterator[None]:
    """In this context, the decorators `torch.compile`, `torch.compiler.disable` and `torch._disable_dynamo` act later.

    `torch.compile` acts at the function's first call, the others once the compiler is imported. DeepSpeed excludes the
    functions by which ZeRO 3 gathers and releases parameters.
    """
    compile_now, disable_now, disable_lazily = torch.compile, torch.compiler.disable, torch._disable_dynamo

    def compile_later(function: _Function | None = None, **options: Any) -> Any:
        if function is None or _is_imported():
            return compile_now(function, **options)
        compiled = functools.cache(lambda: compile_now(function, **options))
        return functools.wraps(function)(lambda *arguments, **keywords: compiled()(*arguments, **keywords))

    def disable_later(function: _Function | None = None, *arguments: Any, **options: Any) -> Any:
        if function is None or arguments or options or _is_imported():
            return disable_now(function, *arguments, **options)
        return _spared(function, disable_lazily(function))

    def disable_lazily_later(function: _Function | None = None, *arguments: Any, **options: Any) -> Any:
        if function is None:
            return disable_lazily(function, *arguments, **options)
        return _spared(function, disable_lazily(function, *arguments, **options))

    torch.compile, torch.compiler.disable = compile_later, disable_later  # type: ignore[assignment]
    torch._disable_dynamo = disable_lazily_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile, torch.compiler.disable, torch._disable_dynamo = compile_now, disable_now, disable_lazily


@functools.cache
def spare_optimizers() -> None:
    """Let torch's Adam and AdamW be created and used without importing the compiler. Further calls have no effect."""
    optimizer, adam = torch.optim.Optimizer, torch.optim.Adam
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(optimizer, name)
        setattr(optimizer, name, _spared(method.__wrapped__, method))
    step: _Function = adam.step
    undecorated: _Function = step.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(step)
    def step_without_compiler(self: torch.optim.Adam, closure: Callable[[], float] | None = None) -> float | None:
        if _is_imported() or self.defaults["differentiable"]:
            return step(self, closure)
        with torch.no_grad():
            return undecorated(self, closure)

    adam.step = step_without_compiler  # type: ignore[method-assign]


def _is_imported() -> bool:
    return "torch._dynamo" in sys.modules


def _spared(function: _Function, left_out: _Function) -> _Function:
    """The plain function until the compiler is imported, then the form that torch excludes from compilation."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return (left_out if _is_imported() else function)(*arguments, **options)

    return call
