"""Takes work out of Triton's interpreter that does not change results.

Almost all of its time goes into Python objects around numpy's arrays, of which a few are computed so often that they
are worth remembering: types of blocks, shapes of tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from triton import language
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

LANGUAGES = (language, language.core)


def make_faster() -> None:
    """From now on, in this process."""
    replace_once_in_a_launch()
    call_builtins_directly()
    remember_types()
    remember_shapes()
    shorten_arithmetic()
    shift_bfloat16()


def replace_once_in_a_launch() -> None:
    """The interpreter replaces functions of triton.language at each launch, and once more whenever a kernel calls
    another function, which takes almost half of its time: once in a launch is enough."""
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


def call_builtins_directly() -> None:
    """Not through a function that looks whether there is a semantic, and one that filters the options."""
    checking = core.builtin(lambda: None).__code__

    def patch(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        semantic = interpreter.interpreter_semantic
        function = member.__wrapped__ if member.__code__ is checking else member

        def call(*arguments: Any, **options: Any) -> Any:
            options["_semantic"] = semantic
            return function(*arguments, **options)

        scope.set_attr(owner, name, call)

    interpreter._patch_attr = patch


def remember_types() -> None:
    """Types of blocks by the type of the elements and the shape, and numpy's types by ours."""
    make = core.block_type.__init__
    numpy_type = interpreter._get_np_dtype
    made: dict[tuple[int, tuple[Any, ...]], dict[str, Any]] = {}  # values keep the types whose ids are in the keys
    by_name: dict[str, np.dtype[Any]] = {}
    pointer = np.dtype(np.uint64)

    def making(self: Any, element_type: Any, shape: Sequence[Any]) -> None:
        values = shape.values if type(shape) is core.tuple else shape
        key = (
            id(element_type),
            tuple(value if type(value) is int else core._unwrap_if_constexpr(value) for value in values),
        )
        if key not in made:
            make(self, element_type, shape)
            made[key] = dict(self.__dict__)
        else:
            self.__dict__.update(made[key])

    def finding(type_: Any) -> Any:
        element = type_.scalar
        if element.is_ptr():
            return pointer
        if element.name not in by_name:
            by_name[element.name] = numpy_type(element)
        return by_name[element.name]

    core.block_type.__init__ = making
    interpreter._get_np_dtype = finding


def remember_shapes() -> None:
    """The shape of a tensor and its number of elements, as constants of Triton."""
    made: dict[tuple[int, ...], tuple[Any, Any]] = {}
    make = core.tensor.__init__

    def making(self: Any, handle: Any, type: Any) -> None:  # its callers name `type`
        values = tuple(type.shape.values) if type.is_block() else ()
        if values not in made:
            make(self, handle, type)
            made[values] = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = made[values]

    core.tensor.__init__ = making


def shorten_arithmetic() -> None:
    """What binary operations do to operands that are what they should be already."""
    broadcast, cast, check = (
        getattr(TritonSemantic, name) for name in ("broadcast_impl_value", "cast", "binary_op_sanitize_overflow_impl")
    )

    def splat(self: Any, value: Any, block: Any) -> Any:
        made = block.with_element_ty(value.type.scalar)
        return self.make_tensor(self.builder.create_splat(made, value.handle), made)

    def broadcasting(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        left, right = lhs.type, rhs.type
        if not left.is_block():
            return (splat(self, lhs, right) if right.is_block() else lhs), rhs
        if not right.is_block():
            return lhs, splat(self, rhs, left)
        return (lhs, rhs) if left.shape.values == right.shape.values else broadcast(self, lhs, rhs)

    def casting(self: Any, input: Any, dst_ty: Any, fp_downcast_rounding: str | None = None) -> Any:  # as it has them
        return input if input.dtype is dst_ty else cast(self, input, dst_ty, fp_downcast_rounding)

    def checking(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
        if self.builder.options.debug:  # else it is computed whether integers overflow, and nobody is told
            check(self, lhs, rhs, operation)

    TritonSemantic.broadcast_impl_value = broadcasting
    TritonSemantic.cast = casting
    TritonSemantic.binary_op_sanitize_overflow_impl = checking


def shift_bfloat16() -> None:
    """From and to float32, which is cut off: 16 bits more or less. Subnormal numbers are left to the interpreter."""
    convert = interpreter._convert_float

    def converting(values: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        names = given.name, wanted.name
        if rounding is None and names in (("bf16", "fp32"), ("fp32", "bf16")):
            is_wide = names[0] == "fp32"
            bits = values.view(np.uint32 if is_wide else np.uint16)
            exponent, significand = (0x7F800000, 0x7FFFFF) if is_wide else (0x7F80, 0x7F)
            if not np.any(((bits & exponent) == 0) & ((bits & significand) != 0)):
                return (bits >> 16).astype(np.uint16) if is_wide else bits.astype(np.uint32) << 16
        return convert(values, given, wanted, rounding)

    interpreter._convert_float = converting
