"""Triton's interpreter, as exact and faster: most of its time goes into the types of values, which
it makes and compares anew for each operation, and into checks whose outcome it drops."""

from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

core: Any = tl.core
BLOCKS = dict[tuple[str, tuple[int, ...]], dict[str, Any]]()
"""Element and shape -> what a type of blocks holds, which all equal ones share."""


def hasten() -> None:
    """Once a process, before the first kernel runs."""
    # Every sum of integers is checked for overflow in 64 bits, for an assertion that only `debug`
    # has, which is off here as it was.
    options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter.interpreter_builder.options = options
    _keep_block_types()
    _keep_shapes_of_tensors()
    _compare_types_quickly()
    _keep_numpy_types()
    _call_builtins_directly()
    _leave_equal_shapes_alone()


def _keep_block_types() -> None:
    make, kind, constexpr = core.block_type.__init__, core.block_type, core.constexpr

    def init(self: Any, element: Any, shape: Any) -> None:
        numbers = tuple([s.value if type(s) is constexpr else s for s in shape])
        known = BLOCKS.get((element.name, numbers))
        if known is None:
            make(self, element, shape)
            BLOCKS[element.name, numbers] = self.__dict__
        else:
            self.__dict__ = known

    kind.__init__ = init


def _keep_shapes_of_tensors() -> None:
    make = core.tensor.__init__

    def init(self: Any, handle: Any, type: Any) -> None:
        known = type.__dict__.get("_of_tensors")
        if known is None:
            make(self, handle, type)
            type._of_tensors = (self.numel, self.shape, self.dtype)
        else:
            self.handle, self.type = handle, type
            self.numel, self.shape, self.dtype = known

    core.tensor.__init__ = init


def _compare_types_quickly() -> None:
    equal = core.dtype.__eq__

    def same(self: Any, other: Any) -> bool:
        if self is other:
            return True
        return self.name == other.name if type(other) is core.dtype else bool(equal(self, other))

    core.dtype.__eq__ = same


def _keep_numpy_types() -> None:
    find, known = interpreter._get_np_dtype, dict[str, Any]()

    def found(dtype: Any) -> Any:
        if (result := known.get(dtype.name)) is None:
            result = known[dtype.name] = find(dtype)
        return result

    interpreter._get_np_dtype = found


def _call_builtins_directly() -> None:
    semantic = TritonSemantic(interpreter.interpreter_builder)

    def patch(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        assert builder is interpreter.interpreter_builder
        function = getattr(member, "__wrapped__", member)  # which needn't look for `_semantic`

        def builtin(*arguments: Any, **options: Any) -> Any:
            options["_semantic"] = semantic
            return function(*arguments, **options)

        scope.set_attr(owner, name, builtin)

    interpreter._patch_attr = patch


def _leave_equal_shapes_alone() -> None:
    broadcast = TritonSemantic.broadcast_impl_value

    def value(self: Any, left: Any, right: Any) -> Any:
        one, other = left.type, right.type
        if one.is_block() and other.is_block() and one.shape.values == other.shape.values:
            return left, right
        return broadcast(self, left, right)

    TritonSemantic.broadcast_impl_value = value
