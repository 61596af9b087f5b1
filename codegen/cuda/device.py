"""Device functions that Python cannot say: 128-bit access and atomic addition on bare pointers. Imports numba-cuda.

Emitted modules import them. Pointers are CPointer arguments, local or shared arrays; indices are taken as they are.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.cuda import nvvmutils, types
from numba.cuda.extending import intrinsic

from fusegraph.codegen.cuda.device_storage import narrowed, widened

_INT64 = ir.IntType(64)


def _element(context: Any, builder: Any, kind: Any, base: Any, index_kind: Any, index: Any) -> Any:
    """The address of an element."""
    if not isinstance(kind, types.CPointer):
        base = context.make_array(kind)(context, builder, base).data
    if index.type != _INT64:
        index = builder.sext(index, _INT64) if index_kind.signed else builder.zext(index, _INT64)
    return builder.gep(base, [index])


def _quad(builder: Any, pointer: Any) -> tuple[Any, int]:
    """The address as that of four elements, and the alignment that its user has seen to."""
    kind = pointer.type.pointee
    vector = ir.VectorType(kind, 4)
    width = 8 if isinstance(kind, ir.DoubleType) else 4 if isinstance(kind, ir.FloatType) else kind.width // 8
    return builder.bitcast(pointer, ir.PointerType(vector, pointer.type.addrspace)), min(16, 4 * width)


@intrinsic
def load4(typingctx: Any, base: Any, index: Any) -> Any:
    """base[index : index + 4] as a tuple, read at once; `index` is a multiple of 4 and `base` aligned for four elements."""
    element = base.dtype
    signature = types.UniTuple(element, 4)(base, index)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _quad(
            builder, _element(context, builder, signature.args[0], args[0], signature.args[1], args[1])
        )
        value = builder.load(pointer)
        value.align = align
        parts = [builder.extract_element(value, ir.IntType(32)(i)) for i in range(4)]
        parts = [widened(builder, signature.args[0], part) for part in parts]
        return context.make_tuple(builder, signature.return_type, parts)

    return signature, generate


@intrinsic
def store4(typingctx: Any, base: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """base[index : index + 4] = a, b, c, d, written at once; alignment as load4."""
    element = base.dtype
    signature = types.void(base, index, element, element, element, element)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _quad(
            builder, _element(context, builder, signature.args[0], args[0], signature.args[1], args[1])
        )
        value = ir.Constant(pointer.type.pointee, ir.Undefined)
        for i in range(4):
            part = narrowed(builder, signature.args[0], args[2 + i])
            value = builder.insert_element(value, part, ir.IntType(32)(i))
        store = builder.store(value, pointer)
        store.align = align
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def as_stored(typingctx: Any, base: Any, value: Any) -> Any:
    """The value that base[i] is after base[i] = value."""
    signature = base.dtype(base, base.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        return widened(builder, kind, narrowed(builder, kind, args[1]))

    return signature, generate


@intrinsic
def atomic_add(typingctx: Any, base: Any, index: Any, value: Any) -> Any:
    """base[index] += value, whole even where several threads do it. In no certain order. Elements of 4 or 8 bytes."""
    signature = types.void(base, index, base.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], args[0], signature.args[1], args[1])
        if isinstance(args[2].type, ir.FloatType):
            builder.call(nvvmutils.declare_atomic_add_float32(builder.module), (pointer, args[2]))
        elif isinstance(args[2].type, ir.DoubleType):
            builder.call(nvvmutils.declare_atomic_add_float64(builder.module), (pointer, args[2]))
        else:
            builder.atomic_rmw("add", pointer, args[2], "monotonic")
        return context.get_dummy_value()

    return signature, generate


# -- asynchronous copies to shared memory, compute capability 8.0 and later -------------------------------------------------


def _shared_address(context: Any, builder: Any, kind: Any, base: Any, index_kind: Any, index: Any) -> Any:
    """The 32-bit address of an element of a shared array."""
    pointer = _element(context, builder, kind, base, index_kind, index)
    if pointer.type.addrspace != 3:
        pointer = builder.addrspacecast(pointer, ir.PointerType(pointer.type.pointee, 3))
    return builder.ptrtoint(pointer, ir.IntType(32))


def _copy(name: str, count: int, conditional: bool) -> Any:
    """The intrinsic that copies `count` elements of 4 bytes; conditional: zeros, and nothing is read, where it is not so."""
    level, size = ("cg", 16) if count == 4 else ("ca", 4)

    def typed(typingctx: Any, target: Any, at: Any, source: Any, index: Any, *inside: Any) -> Any:
        signature = types.void(target, at, source, index, *inside)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            to = _shared_address(context, builder, kinds[0], args[0], kinds[1], args[1])
            operands = [to, _element(context, builder, kinds[2], args[2], kinds[3], args[3])]
            text = f"cp.async.{level}.shared.global [$0], [$1], {size}"
            if conditional:
                operands.append(builder.select(args[4], ir.IntType(32)(size), ir.IntType(32)(0)))
                text += ", $2"
            kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
            constraints = ",".join(["r", "l", "r"][: len(operands)] + ["~{memory}"])
            builder.call(ir.InlineAsm(kind, f"{text};", constraints, side_effect=True), operands)
            return context.get_dummy_value()

        return signature, generate

    def plain(typingctx: Any, target: Any, at: Any, source: Any, index: Any) -> Any:
        return typed(typingctx, target, at, source, index)

    def where(typingctx: Any, target: Any, at: Any, source: Any, index: Any, inside: Any) -> Any:
        return typed(typingctx, target, at, source, index, inside)

    chosen = where if conditional else plain
    chosen.__name__ = chosen.__qualname__ = name
    return intrinsic(chosen)


def _order(name: str, text: str) -> Any:
    """The intrinsic of an instruction without operands."""

    def typed(typingctx: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(ir.InlineAsm(kind, text, "~{memory}", side_effect=True), [])
            return context.get_dummy_value()

        return types.void(), generate

    typed.__name__ = typed.__qualname__ = name
    return intrinsic(typed)


# target[at : at + n] = source[index : index + n] for n = 1, or 4 at multiples of 4, some time before its group is waited for;
# the `where` forms take a last argument, and write zeros without reading where it is false
copy1_async = _copy("copy1_async", 1, False)
copy4_async = _copy("copy4_async", 4, False)
copy1_async_where = _copy("copy1_async_where", 1, True)
copy4_async_where = _copy("copy4_async_where", 4, True)
commit_copies = _order("commit_copies", "cp.async.commit_group;")  # those since the last commit are a group
wait_copies = _order("wait_copies", "cp.async.wait_group 0;")  # until all of this thread's groups have landed
wait_older_copies = _order("wait_older_copies", "cp.async.wait_group 1;")  # all but the last one committed


# -- tensor cores -----------------------------------------------------------------------------------------------------------


@intrinsic
def as_tf32(typingctx: Any, value: Any) -> Any:
    """The bits of a float32 rounded to tf32 (10 bits of mantissa; halves away from zero), capability 8.0 and later."""
    signature = types.uint32(types.float32)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [ir.FloatType()])
        return builder.call(ir.InlineAsm(kind, "cvt.rna.tf32.f32 $0, $1;", "=r,f"), args)

    return signature, generate


@intrinsic
def mma_tf32(
    typingctx: Any, a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any, c0: Any, c1: Any, c2: Any, c3: Any
) -> Any:
    """c + a x b of a warp: 16 x 8 outputs, 8 sums. A thread (group = lane // 4, quad = lane % 4) holds

    a0 ... a3   (group, quad), (group + 8, quad), (group, quad + 4), (group + 8, quad + 4), as tf32
    b0, b1      (quad, group), (quad + 4, group), as tf32
    c0 ... c3   (group, 2 quad), (group, 2 quad + 1), (group + 8, 2 quad), (group + 8, 2 quad + 1), float32
    """
    signature = types.UniTuple(types.float32, 4)(*[types.uint32] * 6, *[types.float32] * 4)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        result = ir.LiteralStructType([ir.FloatType()] * 4)
        kind = ir.FunctionType(result, [ir.IntType(32)] * 6 + [ir.FloatType()] * 4)
        text = (
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
        value = builder.call(ir.InlineAsm(kind, text, constraints, side_effect=True), args)
        parts = [builder.extract_value(value, i) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, parts)

    return signature, generate


# -- float32 arithmetic of the hardware ---------------------------------------------------------------------------------------


def _float32_instruction(name: str, instruction: str, count: int) -> Any:
    """The intrinsic of one instruction on `count` float32 operands. Other operands are cast to float32."""

    def typed(typingctx: Any, *operands: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * count)
            places = ", ".join(f"${place}" for place in range(count + 1))
            text = ir.InlineAsm(kind, f"{instruction} {places};", ",".join(["=f", *["f"] * count]))
            return builder.call(text, args)

        return types.float32(*[types.float32] * count), generate

    def one(typingctx: Any, a: Any) -> Any:
        return typed(typingctx, a)

    def two(typingctx: Any, a: Any, b: Any) -> Any:
        return typed(typingctx, a, b)

    chosen = one if count == 1 else two
    chosen.__name__ = chosen.__qualname__ = name
    return intrinsic(chosen)


# The errors are those that the PTX manual states, over the full range of operands; subnormals, infinities and NaN are as IEEE has
# them. div.rn and sqrt.rn, which are correctly rounded, are subroutines of about 8 instructions and a branch for rare operands.
div_full = _float32_instruction("div_full", "div.full.f32", 2)  # 2 units in the last place
sqrt_approx = _float32_instruction("sqrt_approx", "sqrt.approx.f32", 1)  # 1 unit (relative 2**-23)
rsqrt_approx = _float32_instruction("rsqrt_approx", "rsqrt.approx.f32", 1)  # relative 2**-22.9
