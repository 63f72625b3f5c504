"""Takes work out of Triton's interpreter that does not change results.

The interpreter replaces functions of triton.language at each launch, and once more whenever a kernel calls another
function, which takes almost half of its time: once in a launch is enough.
"""

from collections.abc import Callable
from typing import Any

from triton import language
from triton.runtime import interpreter

LANGUAGES = (language, language.core)


def replace_once_in_a_launch() -> None:
    """From now on, in this process."""
    replace: Callable[[Any], Any] = interpreter._patch_lang
    launch = interpreter.GridExecutor.__call__
    known: dict[int, tuple[bool, ...]] = {}  # which of them a module uses, by its variables, which stay
    replaced: set[tuple[bool, ...]] = set()

    def launching(self: Any, *arguments: Any, **options: Any) -> None:
        replaced.clear()
        launch(self, *arguments, **options)

    def replacing(function: Any) -> Any:
        variables = function.__globals__
        if id(variables) not in known:
            known[id(variables)] = tuple(any(value is one for value in variables.values()) for one in LANGUAGES)
        used = known[id(variables)]
        if used in replaced:
            return interpreter._LangPatchScope()  # nothing to put back
        replaced.add(used)
        return replace(function)

    interpreter.GridExecutor.__call__ = launching
    interpreter._patch_lang = replacing
