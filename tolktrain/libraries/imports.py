"""Imports that are deferred until the package is used.

Libraries import packages for features that a process never uses: mosaicml-streaming imports transformers for its text
data sets, megatron-core TensorBoard for its timers. They would add to the start-up time of every rank.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Union


@contextmanager
def deferred(*packages: str) -> Iterator[None]:
    """In this context, importing one of `packages` gives a stand-in; its first use imports the package.

    Packages that are loaded already, or are not installed, are imported as usual. Afterwards, no stand-in is left in
    `sys.modules`, so that later imports give the package itself. Modules that were imported in this context keep
    stand-ins, which forward calls, attributes and `isinstance`, and serve as base classes. If a module uses a stand-in
    while it is being imported, the context ends early: still correct, but nothing more is deferred.

    Args:
        packages: dotted names; submodules are included.
    """
    finder = _Finder(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        finder.end()


class _Finder:
    """Finds and creates stand-ins; an entry of `sys.meta_path`."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages
        self._names: list[str] = []  # of stand-ins

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """The specification of a stand-in, or None for a module that is not deferred."""
        package = next((package for package in self._packages if f"{name}.".startswith(f"{package}.")), None)
        if package is None or (name == package and not _is_installed(name, path)):
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]  # a loader by its methods

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A stand-in."""
        self._names.append(spec.name)
        return _Module(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing."""

    def end(self) -> None:
        """Create no more stand-ins, and remove them from `sys.modules`. Further calls have no effect."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            for name in self._names:
                module = sys.modules.get(name)
                if isinstance(module, _Module) and module._finder is self:
                    del sys.modules[name]

    def is_active(self) -> bool:
        """Whether stand-ins are still created."""
        return self in sys.meta_path


def _is_installed(name: str, path: Sequence[str] | None) -> bool:
    finders = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    return any(finder.find_spec(name, path) is not None for finder in finders)


class _Module(ModuleType):
    """The stand-in of a module."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by the import system
            raise AttributeError(f"{self.__name__} has no {name} yet")
        if self._finder.is_active():
            return _Name(self, name)
        return getattr(importlib.import_module(self.__name__), name)


class _Name:
    """The stand-in of a class or function of a module."""

    def __init__(self, module: _Module, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        self._module._finder.end()
        return getattr(self._module, self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._real()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and self._module._finder.is_active():  # `typing` looks for some of an annotation
            raise AttributeError(f"{self._name} has no {name} yet")
        return getattr(self._real(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._real())

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self._real(),)

    # Of annotations. `|` would look for these methods again.
    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007
