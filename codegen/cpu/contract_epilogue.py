"""What follows the sum of a contraction, evaluated on the accumulators while they are in registers.

A micro-kernel ends with a tile of accumulators, rows x vectors. For each of them the stages after the sum are evaluated at
the tile's coordinates. Values that do not depend on the row (a bias along columns) or on the column (a bias along rows)
are computed once a tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.irvector import VectorOps
from fusegraph.codegen.cpu.vecmath import FUNCTIONS, VectorMath
from fusegraph.dtypes import DType
from fusegraph.ir.index import Axis, Index, flatten_index
from fusegraph.ir.loops import Program, Stage, Store
from fusegraph.ir.scalar import Expr, walk

__all__ = ["Epilogue", "TilePlace", "element_type", "memory_type", "supports"]

_TYPES = {"float32": "float", "float64": "double", "int32": "i32", "int64": "i64", "uint32": "i32", "uint8": "i8", "bool": "i1"}
_ARITHMETIC = {"add", "sub", "mul", "div"}
_COMPARISONS = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_FLOAT_ONLY = {*_ARITHMETIC, "neg", "abs", "relu", "maximum", "minimum", *FUNCTIONS}


def element_type(dtype: DType) -> str:
    """The LLVM type of one element in a register."""
    return _TYPES[dtype.name]


def memory_type(dtype: DType) -> str:
    """The LLVM type of one element in memory (bools are bytes)."""
    return "i8" if dtype.kind == "b" else _TYPES[dtype.name]


def supports(stages: Sequence[Stage], program: Program) -> bool:
    """Whether every expression and store of the stages is one that `Epilogue` evaluates."""
    for stage in stages:
        for store in stage.stores:
            if not flatten_index(store.index, program.buffers[store.buffer].shape).is_affine:
                return False
        if not all(_supported(expr, program) for expr in walk(stage.expressions())):
            return False
    return True


def _supported(expr: Expr, program: Program) -> bool:
    if expr.op in ("const", "acc"):
        return True
    if expr.op == "load":
        return not expr.attribute.mask and flatten_index(expr.attribute.index, program.buffers[expr.attribute.buffer].shape).is_affine
    if expr.op == "where":
        return True
    if expr.op == "logical_not":
        return expr.args[0].dtype.kind == "b"
    if expr.op in _COMPARISONS:
        return expr.args[0].dtype.kind == "f"
    if expr.op == "cast":
        return expr.dtype.kind == "f" and expr.args[0].dtype.kind in "bf"
    return expr.op in _FLOAT_ONLY and expr.dtype.kind == "f"


@dataclass(frozen=True)
class TilePlace:
    """Where a tile lies: the value of every space axis at its first element, and the axes that its rows and lanes run along."""

    coordinates: Mapping[Axis, str]
    row: Axis | None
    column: Axis


class Epilogue:
    """Evaluates stages on the accumulators of one tile. `pointers` gives the base address of each buffer."""

    def __init__(
        self, fn: FunctionBuilder, module: Module, program: Program, pointers: Mapping[str, str], place: TilePlace,
        lanes: int, flags: str, exact: bool,
    ) -> None:  # fmt: skip
        self.fn, self.module, self.program = fn, module, program
        self.pointers, self.place = pointers, place
        self.lanes, self.flags, self.exact = lanes, flags, exact
        self._values: dict[tuple[Expr, int, int], str] = {}
        self._origins: dict[tuple[str, Index], str] = {}
        self._row = self._vector = 0
        self._count = lanes
        self._accumulator = ""

    def run(self, stages: Sequence[Stage], tile: Sequence[Sequence[str]], counts: Sequence[int]) -> None:
        """Evaluate at every vector of `tile[row][vector]`; `counts[vector]` lanes of a vector are inside of the output."""
        for row, vectors in enumerate(tile):
            for vector, accumulator in enumerate(vectors):
                self._row, self._vector = row, vector
                self._count, self._accumulator = counts[vector], accumulator
                for stage in stages:
                    self._stage(stage)

    def _stage(self, stage: Stage) -> None:
        order = walk(stage.expressions())
        for expr in order:
            if self._key(expr) not in self._values:
                self._values[self._key(expr)] = self._evaluate(expr)
        for store in stage.stores:
            self._store(store, self._values[self._key(store.value)])
        written = {store.buffer for store in stage.stores}
        stale: set[Expr] = set()
        for expr in order:
            if (expr.op == "load" and expr.attribute.buffer in written) or any(arg in stale for arg in expr.args):
                stale.add(expr)
                self._values.pop(self._key(expr), None)

    def _key(self, expr: Expr) -> tuple[Expr, int, int]:
        has_acc = expr.op == "acc" or any(node.op == "acc" for node in (walk([expr]) if expr.args else ()))
        row = self._row if has_acc or self.place.row in expr.axes else -1
        return expr, row, self._vector if has_acc or self.place.column in expr.axes else -1

    def _ops(self, dtype: DType) -> VectorOps:
        return VectorOps(self.fn, self.lanes, element_type(dtype), self.flags)

    # -- memory -----------------------------------------------------------------------------------------------------------

    def _address(self, buffer: str, flat: Index) -> str:
        """The address of the current vector's first lane."""
        element = memory_type(self.program.buffers[buffer].dtype)
        origin = self._origins.get((buffer, flat))
        if origin is None:
            terms = [(factor, self.place.coordinates[axis]) for axis, factor in flat.terms if isinstance(axis, Axis)]
            origin = self.fn.gep(self.pointers[buffer], self.fn.affine(terms, flat.constant), element)
            self._origins[buffer, flat] = origin
        row_stride = flat.coefficient(self.place.row) if self.place.row is not None else 0
        offset = self._row * row_stride + self._vector * self.lanes * flat.coefficient(self.place.column)
        return self.fn.gep(origin, offset, element)

    def _load(self, expr: Expr) -> str:
        buffer = self.program.buffers[expr.attribute.buffer]
        flat = flatten_index(expr.attribute.index, buffer.shape)
        memory = VectorOps(self.fn, self.lanes, memory_type(buffer.dtype))
        address, stride = self._address(buffer.name, flat), flat.coefficient(self.place.column)
        if stride == 0:
            value = memory.load_scalar_broadcast(address)
        elif stride == 1:
            value = memory.load_first(address, self._count)
        else:
            lanes = [self.fn.load(memory.element, self.fn.gep(address, lane * stride, memory.element)) for lane in range(self._count)]
            value = memory.from_lanes(lanes)
        return memory.compare("ne", value, memory.constant(0)) if buffer.dtype.kind == "b" else value

    def _store(self, store: Store, value: str) -> None:
        buffer = self.program.buffers[store.buffer]
        memory = VectorOps(self.fn, self.lanes, memory_type(buffer.dtype))
        if buffer.dtype.kind == "b":
            value = self._ops(buffer.dtype).convert("zext", value, "i8")
        flat = flatten_index(store.index, buffer.shape)
        address, stride = self._address(buffer.name, flat), flat.coefficient(self.place.column)
        if stride == 1:
            memory.store_first(value, address, self._count)
            return
        for lane in range(self._count):
            self.fn.store(memory.element, memory.extract(value, lane), self.fn.gep(address, lane * stride, memory.element))

    # -- values -----------------------------------------------------------------------------------------------------------

    def _evaluate(self, expr: Expr) -> str:
        ops = self._ops(expr.dtype)
        if expr.op == "const":
            return ops.constant(expr.attribute)
        if expr.op == "acc":
            return self._accumulator
        if expr.op == "load":
            return self._load(expr)
        args = [self._values[self._key(arg)] for arg in expr.args]
        if expr.op == "where":
            return ops.select(args[0], args[1], args[2])
        if expr.op in _COMPARISONS:
            return self._ops(expr.args[0].dtype).compare(_COMPARISONS[expr.op], *args)
        if expr.op == "logical_not":
            return ops.binary("xor", args[0], ops.constant(True))
        if expr.op == "cast":
            return self._cast(expr, args[0])
        return self._floating(expr, ops, args)

    def _cast(self, expr: Expr, value: str) -> str:
        source, target = expr.args[0].dtype, expr.dtype
        if source == target:
            return value
        if source.kind == "b":
            return self._ops(source).convert("uitofp", value, element_type(target))
        return self._ops(source).convert("fpext" if target.itemsize > source.itemsize else "fptrunc", value, element_type(target))

    def _floating(self, expr: Expr, ops: VectorOps, args: list[str]) -> str:
        name = expr.op
        if name in ("add", "sub", "mul", "div"):
            return str(getattr(ops, name)(*args))
        if name == "relu":
            return ops.maximum_constant(args[0], 0.0)
        if name in ("maximum", "minimum"):
            return str(getattr(ops, name)(*args))
        if name == "neg":
            return ops.neg(args[0])
        if name == "abs":
            return ops.unary("fabs", args[0])
        return VectorMath(self.module, self.lanes, ops.element, self.exact).call(self.fn, name, *args)
