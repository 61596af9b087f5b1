"""Tensors: numpy arrays with PyTorch's face and a memory of how they were made; or, while tracing, symbols.

The methods that are plain functions of tensors (`x.relu()`, `x.sum(1)`) live in `fusegraph.ops`;
`fusegraph.methods` says which of them are methods, and under which name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fusegraph import autograd
from fusegraph.dtypes import ENTRY_CASTS, SUPPORTED, DType, as_dtype, float32, int64
from fusegraph.errors import DTypeError, FusegraphError, GradientError, ShapeError, TraceError, UnsupportedError
from fusegraph.ir.graph import Node
from fusegraph.ir.interpret import apply
from fusegraph.ir.location import user_location
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.trace import Trace, current_trace

if TYPE_CHECKING:
    from fusegraph.methods import TensorMethods
else:
    TensorMethods = object

Array = np.ndarray[Any, Any]


class Tensor(TensorMethods):
    """An n-dimensional array (float32, float64, int32, int64, uint32, uint8 or bool) that can be differentiated through.

    Made by `fg.tensor`, `fg.zeros`, ...; not by this class. `numpy()` shares memory where the tensor is concrete.
    """

    __slots__ = (
        "_value",
        "_record",
        "_output",
        "_leaf",
        "_trace",
        "_version",
        "requires_grad",
        "_grad",
        "name",
        "__weakref__",
    )
    __array_priority__ = 1000
    _value: Any
    _record: autograd.Record | None
    _output: int
    _leaf: Tensor | None
    _trace: Trace | None
    _version: int
    requires_grad: bool
    _grad: Tensor | None
    name: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("make tensors with fg.tensor(data), fg.zeros(shape), ...")

    @classmethod
    def _make(
        cls, value: Any, requires_grad: bool = False, record: autograd.Record | None = None, output: int = 0
    ) -> Tensor:
        self = object.__new__(cls)
        self._value, self.requires_grad, self._record, self._output = value, requires_grad, record, output
        self._leaf, self._trace, self._version, self._grad, self.name = None, None, 0, None, ""
        return self

    @classmethod
    def _symbol_type(cls) -> type[Tensor]:
        return Tensor

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents of its axes."""
        return self._value.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self._value.dtype  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made it."""
        return self._record is None

    @property
    def is_symbol(self) -> bool:
        """Whether it stands for a value that is known only when the compiled function runs."""
        return isinstance(self._value, Node)

    @property
    def owns_memory(self) -> bool:
        """Whether it can be overwritten without changing another tensor: it is no reshaped, permuted or expanded view of one."""
        if not isinstance(self._value, Node):
            return bool(self._value.flags.writeable)
        root = self._value
        while root.op in PRIMITIVES and PRIMITIVES[root.op].kind == "view":
            root = root.inputs[0]
        return root is self._value or not root.inputs and root.op != "input"

    @property
    def leaf(self) -> Tensor:
        """The tensor that collects the gradient: itself, or what this symbol was captured from."""
        return self if self._leaf is None else self._leaf

    @property
    def data(self) -> Tensor:
        """The same values without a gradient (memory is shared)."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        with autograd.no_grad():
            self.copy_(value)

    def size(self, dim: int | None = None) -> Any:
        """`shape`, or one extent of it."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def is_floating_point(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return bool(self.dtype.kind == "f")

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len() of a 0-d tensor: it has no axis")
        return self.shape[0]

    # -- applying primitives ------------------------------------------------------------------------------------------

    def __fg_bind__(self, name: str, inputs: Sequence[Any], params: Any) -> Tensor:
        """Apply primitive `name`: compute it (eager) or add it to the graph (while tracing); recorded for the gradient."""
        trace = current_trace()
        try:
            if trace is not None:
                inputs = [trace.lift(value) for value in inputs]
                out = Tensor._make(trace.add(name, inputs, params))
                out._trace = trace
            else:
                out = Tensor._make(_compute(name, inputs, params))
        except FusegraphError as error:
            if getattr(error, "placed", False):
                raise
            raise _placed(error) from None
        if autograd.is_grad_enabled() and any(value.requires_grad for value in inputs):
            autograd.record_primitive(name, inputs, params, out)
        return out

    # -- gradients ----------------------------------------------------------------------------------------------------

    def backward(self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        """Add the gradient of this (scalar) tensor to `.grad` of every leaf that it depends on.

        gradient: same shape as this tensor; may be left out for a scalar. The graph is kept, so `retain_graph` does nothing.
        Raises GradientError when nothing that it depends on requires a gradient.
        """
        autograd.backward(self, gradient, create_graph)

    @property
    def grad(self) -> Tensor | None:
        """What `backward` has collected for this leaf, or None. In a compiled function it is read anew at each call."""
        trace = current_trace()
        if trace is not None:
            trace.read_grad(self, self._grad)
        return self._grad

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        trace = current_trace()
        if trace is not None:
            trace.set_grad(self, gradient)
        self._grad = gradient

    def _accumulate(self, gradient: Tensor) -> None:
        before = self.grad
        self.grad = gradient if before is None else before + gradient

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set whether a gradient is collected for this leaf."""
        if requires_grad and self.dtype.kind != "f":
            raise GradientError(
                f"only floating point tensors have gradients, this one is {self.dtype.name}{list(self.shape)}"
            )
        if self.is_symbol and requires_grad and not self.requires_grad:
            self._leaf = None  # a leaf of its own, no longer what it was detached from
        self.requires_grad = requires_grad
        return self

    def detach(self) -> Tensor:
        """The same values, cut off from the gradient (memory is shared)."""
        source: Tensor = self
        trace = current_trace()
        if trace is not None:
            source = trace.lift(self)
        out = Tensor._make(source._value)
        out._trace, out._leaf = source._trace, source._leaf
        return out

    # -- changing it in place -----------------------------------------------------------------------------------------

    def copy_(self, source: Any) -> Tensor:
        """Overwrite the values, in the same memory. In a compiled function: an in-place output of the step.

        Raises GradientError when a gradient is being recorded through this tensor (use `fg.no_grad()`), ShapeError when
        `source` cannot be broadcast to this shape.
        """
        if autograd.is_grad_enabled() and (self.requires_grad or self._record is not None):
            raise user_error(
                GradientError,
                f"a tensor of shape {list(self.shape)} that requires a gradient is overwritten in place; do it "
                "under fg.no_grad()",
            )
        if not self.owns_memory:
            raise user_error(
                UnsupportedError,
                f"a tensor of shape {list(self.shape)} that is a view of another one (or of read-only memory) is "
                "overwritten in place; overwrite the whole tensor, or take a .clone() first",
            )
        value = as_tensor(source, dtype=self.dtype).expand(self.shape)
        trace = current_trace()
        if self.is_symbol:
            self._value = value._value if trace is None else trace.lift(value)._value
            if self._leaf is not None and trace is not None:  # detached from a captured tensor: the same memory
                trace.assign(self._leaf, trace.lift(value))
        elif trace is not None:
            trace.assign(self, trace.lift(value))
        else:
            np.copyto(self._value, value._value)
            self._version += 1
        return self

    # -- values -------------------------------------------------------------------------------------------------------

    def _concrete(self, wanted: str) -> Array:
        value = self._value
        trace = current_trace()
        known = trace.captured.get(id(self)) if trace is not None else None
        if trace is not None and not isinstance(value, Node):
            trace.values_read[id(self)] = (self, self._version)
        if isinstance(value, Node) or (known is not None and known.assigned):
            raise TraceError(
                f"{wanted} needs the value of a {self.dtype.name}{list(self.shape)} tensor, which is known only when "
                f"the compiled function runs\n  at {user_location()}\n  "
                "Use fg.where(condition, a, b) in place of `if`, keep numbers as tensors, "
                "or do this outside of the compiled function."
            )
        return value  # type: ignore[no-any-return]

    def numpy(self) -> Array:
        """The values as a numpy array (shared memory). Raises GradientError when it requires a gradient: detach() first."""
        if self.requires_grad:
            raise GradientError("numpy() of a tensor that requires a gradient: use .detach().numpy()")
        return self._concrete("numpy()")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        value = self._concrete("a numpy function")
        return np.array(value, dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._concrete("DLPack").__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._concrete("DLPack").__dlpack_device__()  # type: ignore[return-value]

    def item(self) -> Any:
        """The one element as a Python number. Raises ShapeError when there are more."""
        value = self._concrete("item()")
        if value.size != 1:
            raise ShapeError(
                f"item() of a tensor of shape {list(self.shape)}: only one element can become a Python number"
            )
        return value.item()

    def tolist(self) -> Any:
        """The values as nested Python lists."""
        return self._concrete("tolist()").tolist()

    def __bool__(self) -> bool:
        value = self._concrete("`if`, `while`, `and`, `or` or bool()")
        if value.size != 1:
            raise ShapeError(f"the truth of a tensor of shape {list(self.shape)} is ambiguous; use .any() or .all()")
        return bool(value.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise DTypeError(f"a {self.dtype.name} tensor is no index")
        return int(self.item())

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    def __repr__(self) -> str:
        tail = ", requires_grad=True" if self.requires_grad else ""
        if isinstance(self._value, Node):
            return f"tensor(<traced {self.dtype.name}{list(self.shape)}>{tail})"
        values = np.array2string(self._value, separator=", ", prefix="tensor(", precision=4)
        kind = "" if self.dtype in (float32, int64, SUPPORTED["bool"]) else f", dtype={self.dtype.name}"
        return f"tensor({values}{kind}{tail})"

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("tensors are not pickled; save state_dict() with safetensors, or .numpy()")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = type(self)._make(self._concrete("copy.deepcopy").copy(), self.requires_grad)
        copy.name = self.name
        memo[id(self)] = copy
        return copy


def _compute(name: str, inputs: Sequence[Tensor], params: Any) -> Array:
    arrays = [value._concrete(name) for value in inputs]
    PRIMITIVES[name].infer(inputs, params)
    out = np.asarray(apply(name, arrays, params))
    if PRIMITIVES[name].kind == "view" and arrays and np.may_share_memory(out, arrays[0]):
        out = out.view()
        out.flags.writeable = (
            False  # compiled code has no views: writing to one must not change another tensor here either
        )
    return out


def _placed(error: FusegraphError) -> FusegraphError:
    """`error` with the user's file, line and module path added."""
    placed = type(error)(f"{error}\n  at {user_location()}")
    placed.placed = True  # type: ignore[attr-defined]
    return placed


def user_error(kind: type[FusegraphError], message: str) -> FusegraphError:
    """An error that says where in the user's program it happened."""
    return _placed(kind(message))


def as_tensor(value: Any, dtype: Any = None) -> Tensor:
    """`value` (a tensor, an array, numbers in nested lists) as a tensor; memory is shared with an array that fits.

    Python floats become float32, integers int64; arrays keep their type. Raises DTypeError for anything that is not numeric.
    """
    if isinstance(value, Tensor):
        return value if dtype is None or value.dtype == as_dtype(dtype) else value.to(dtype)
    if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
        from fusegraph.ops import stack

        return as_tensor(stack([as_tensor(part) for part in value]), dtype)
    return Tensor._make(_as_array(value, dtype))


def _as_array(value: Any, dtype: Any) -> Array:
    from_python = not hasattr(value, "dtype")
    if from_python and not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
        value = np.from_dlpack(value)
        from_python = False
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise user_error(ShapeError, f"these nested lists are no array: {error}") from None
    if array.dtype.kind not in "biuf" or (from_python and array.dtype.kind == "u"):
        raise user_error(
            DTypeError,
            f"cannot make a tensor of {array.dtype} values ({type(value).__name__}); numbers or bools are needed",
        )
    if dtype is not None:
        return array.astype(as_dtype(dtype), copy=False)
    if from_python and array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.name in ENTRY_CASTS:
        return array.astype(ENTRY_CASTS[array.dtype.name])
    return array.astype(as_dtype(array.dtype.name), copy=False)


def tensor(data: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a copy of `data` (numbers, nested lists, an array, a tensor)."""
    source = data.detach()._concrete("fg.tensor") if isinstance(data, Tensor) else _as_array(data, dtype)
    array = np.array(source, dtype=as_dtype(dtype) if dtype is not None else None, copy=True, order="C")
    return Tensor._make(array).requires_grad_(requires_grad)


def from_numpy(array: Array) -> Tensor:
    """A tensor that shares memory with `array` (float16 and small integers are widened, which copies)."""
    return as_tensor(array)


def from_dlpack(source: Any) -> Tensor:
    """A tensor that shares memory with any object that speaks DLPack (a torch, CuPy or JAX array, on the CPU or the GPU)."""
    if hasattr(source, "__dlpack_device__") and int(source.__dlpack_device__()[0]) == 2:  # kDLCUDA
        from fusegraph.runtime.cuda.interop import adopt

        return adopt(source)  # type: ignore[no-any-return]
    return as_tensor(np.from_dlpack(source))
