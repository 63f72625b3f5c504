"""Compares the results of our operators with what they promise to the compiler."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


class _Compared(TorchDispatchMode):
    """Runs each operator of a namespace with fake tensors too; the results must have the same form."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self._namespace = namespace
        self._promises: dict[str, list[Any]] = {}  # by the operator and the form of its arguments
        self.num_calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the operator."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace != self._namespace:
            return result
        self.num_calls += 1
        # Layers are alike: what their operators promise depends on nothing else.
        key = repr((str(func), tree_map(_whole_form, (args, kwargs))))
        if key not in self._promises:
            with FakeTensorMode() as mode:
                given = tree_map(
                    lambda value: mode.from_tensor(value) if isinstance(value, Tensor) else value, (args, kwargs)
                )
                promised = func(*given[0], **given[1])
            self._promises[key] = [_form(value) for value in tree_flatten(promised)[0]]
        forms, promises = [_form(value) for value in tree_flatten(result)[0]], self._promises[key]
        assert forms == promises, f"{func} returns {forms}, but its fake returns {promises}"
        return result


def _form(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return tuple(value.shape), value.dtype, value.device.type, value.stride() if value.numel() else None


def _whole_form(value: Any) -> Any:
    """With what a result may depend on."""
    if not isinstance(value, Tensor):
        return value
    return *value.shape, value.dtype, value.device, value.stride(), value.storage_offset(), value.requires_grad


@contextmanager
def conforming(namespace: str, compares: bool = True) -> Iterator[_Compared]:
    """In this context, each operator `namespace::...` must return what its fake says: shape, strides, type, device.

    Raises AssertionError where it does not. Nothing happens without `compares`.
    """
    compared = _Compared(namespace)
    with compared if compares else nullcontext():
        yield compared
