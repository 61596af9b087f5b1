"""Small numba-cuda kernels as source text, so that tests can plant mistakes in them by replacing a piece of it."""

from __future__ import annotations

import functools
import textwrap
from typing import Any

from .compile import compile_ptx

AXPY = """
def axpy(out, a, x, y, n):
    i = uint32(cuda.grid(1))
    if i < n:
        out[i] = a * x[i] + y[i]
"""

COPY4 = """
def copy4(out, x, n):
    i = uint32(cuda.grid(1)) * uint32(4)
    if i < n:
        a, b, c, d = load4(x, i)
        store4(out, i, a, b, c, d)
"""

MATMUL = """
def matmul(out, a, b, m, n, k):
    sa = cuda.shared.array((16, 16), float32)
    sb = cuda.shared.array((16, 16), float32)
    tx = uint32(cuda.threadIdx.x)
    ty = uint32(cuda.threadIdx.y)
    row = uint32(cuda.blockIdx.y * 16 + ty)
    col = uint32(cuda.blockIdx.x * 16 + tx)
    acc = float32(0)
    for start in range(uint32(0), k, uint32(16)):
        sa[ty, tx] = float32(0)
        sb[ty, tx] = float32(0)
        if row < m and start + tx < k:
            sa[ty, tx] = a[uint32(row * k + start + tx)]
        if start + ty < k and col < n:
            sb[ty, tx] = b[uint32((start + ty) * n + col)]
        cuda.syncthreads()  # tiles are complete
        for q in range(uint32(16)):
            acc += sa[ty, q] * sb[q, tx]
        cuda.syncthreads()  # tiles are used up
    if row < m and col < n:
        out[uint32(row * n + col)] = acc
"""

SOFTMAX = """
def softmax(out, x, n):
    part = cuda.shared.array(8, float32)
    t = uint32(cuda.threadIdx.x)
    lane = t & uint32(31)
    warp = t >> uint32(5)
    base = uint32(cuda.blockIdx.x) * n
    high = float32(-3.4e38)
    for i in range(t, n, uint32(128)):
        high = max(high, x[base + i])
    for d in (16, 8, 4, 2, 1):
        high = max(high, cuda.shfl_xor_sync(0xFFFFFFFF, high, d))
    if lane == 0:
        part[warp] = high
    cuda.syncthreads()  # the warps' maxima are there
    for w in range(uint32(4)):
        high = max(high, part[w])
    cuda.syncthreads()  # the maxima were read
    total = float32(0)
    for i in range(t, n, uint32(128)):
        total += math.exp(x[base + i] - high)
    for d in (16, 8, 4, 2, 1):
        total += cuda.shfl_xor_sync(0xFFFFFFFF, total, d)
    if lane == 0:
        part[warp] = total
    cuda.syncthreads()  # the warps' sums are there
    total = part[0] + part[1] + part[2] + part[3]
    for i in range(t, n, uint32(128)):
        out[base + i] = math.exp(x[base + i] - high) / total
"""

HISTOGRAM = """
def histogram(counts, x):
    local = cuda.shared.array(16, int32)
    t = cuda.threadIdx.x
    if t < 16:
        local[t] = 0
    cuda.syncthreads()  # all bins are zero
    i = cuda.grid(1)
    if i < x.shape[0]:
        cuda.atomic.add(local, x[i], 1)
    cuda.syncthreads()  # all elements are counted
    if t < 16:
        cuda.atomic.add(counts, t, local[t])
"""

TREE = """
def tree(out, x, n):
    s = cuda.shared.array(128, float32)
    t = uint32(cuda.threadIdx.x)
    i = uint32(cuda.blockIdx.x) * uint32(128) + t
    s[t] = x[i] if i < n else float32(0)
    cuda.syncthreads()  # values are there
    step = uint32(64)
    while step > 0:
        if t < step:
            s[t] += s[t + step]
        cuda.syncthreads()  # one level is summed
        step >>= uint32(1)
    if t == 0:
        out[uint32(cuda.blockIdx.x)] = s[0]
"""

LAST_BLOCK = """
def last_block(out, partial, ticket, x):
    s = cuda.shared.array(64, float32)
    last = cuda.shared.array(1, int32)
    t = cuda.threadIdx.x
    s[t] = x[cuda.grid(1)]
    cuda.syncthreads()  # values are there
    if t == 0:
        total = float32(0)
        for k in range(64):
            total += s[k]
        partial[cuda.blockIdx.x] = total
        cuda.threadfence()  # the partial sum is published
        last[0] = cuda.atomic.add(ticket, 0, 1)
    cuda.syncthreads()  # the ticket is drawn
    if last[0] == cuda.gridDim.x - 1 and t == 0:
        total = float32(0)
        for k in range(cuda.gridDim.x):
            total += partial[k]
        out[0] = total
"""

TRANSPOSE = """
def transpose(out, x, rows, cols):
    tile = cuda.shared.array((32, 33), float32)
    tx = uint32(cuda.threadIdx.x)
    ty = uint32(cuda.threadIdx.y)
    col = uint32(cuda.blockIdx.x * 32 + tx)
    row = uint32(cuda.blockIdx.y * 32 + ty)
    if row < rows and col < cols:
        tile[ty, tx] = x[uint32(row * cols + col)]
    cuda.syncthreads()  # the tile is there
    row = uint32(cuda.blockIdx.x * 32 + ty)
    col = uint32(cuda.blockIdx.y * 32 + tx)
    if row < cols and col < rows:
        out[uint32(row * rows + col)] = tile[tx, ty]
"""

WARP_SCAN = """
def warp_scan(out, x):
    s = cuda.shared.array(32, float32)
    t = cuda.threadIdx.x
    s[t] = x[t]
    cuda.syncwarp()  # values are there
    for d in (1, 2, 4, 8, 16):
        below = s[t - d] if t >= d else float32(0)
        cuda.syncwarp()  # neighbours were read
        s[t] += below
        cuda.syncwarp()  # one step is done
    out[t] = s[t]
"""

GATHER = """
def gather(out, x, index, n):
    window = cuda.local.array(4, float32)
    i = uint32(cuda.grid(1))
    if i < n:
        for k in range(uint32(4)):
            window[k] = x[index[i] + k]
        out[i] = window[index[i] & 3]
"""

STRIDED = """
def strided(out, x, stride):
    i = uint32(cuda.grid(1))
    out[i] = x[uint32(i * stride)]
"""

BANKS = """
def banks(out, x, stride):
    s = cuda.shared.array(1024, float32)
    t = uint32(cuda.threadIdx.x)
    for k in range(uint32(32)):
        s[k * uint32(32) + t] = x[k * uint32(32) + t]
    cuda.syncthreads()  # values are there
    out[t] = s[uint32(t * stride)]
"""

FUNCTION = """
def function_of_KIND(out, x):
    i = uint32(cuda.grid(1))
    if i < x.shape[0]:
        out[i] = math.FUNCTION(x[i])
"""

SIGNATURES = {
    "axpy": "void(P, float32, P, P, uint32)",
    "copy4": "void(P, P, uint32)",
    "matmul": "void(P, P, P, uint32, uint32, uint32)",
    "softmax": "void(P, P, uint32)",
    "histogram": "void(I1, I1)",
    "tree": "void(P, P, uint32)",
    "last_block": "void(F1, F1, I1, F1)",
    "transpose": "void(P, P, uint32, uint32)",
    "warp_scan": "void(F1, F1)",
    "gather": "void(P, P, CPointer(int32), uint32)",
    "strided": "void(P, P, uint32)",
    "banks": "void(P, P, uint32)",
    "function_of_float32": "void(F1, F1)",
    "function_of_float64": "void(D1, D1)",
}


def _vector_access() -> tuple[Any, Any]:
    """load4 and store4: 16 bytes at an index of a pointer to float32."""
    from llvmlite import ir
    from numba.core import types
    from numba.cuda.extending import intrinsic

    lanes = ir.VectorType(ir.FloatType(), 4)

    def place(builder: Any, pointer: Any, index: Any) -> Any:
        element = builder.gep(pointer, [builder.zext(index, ir.IntType(64))])
        return builder.bitcast(element, ir.PointerType(lanes))

    @intrinsic
    def load4(typing: Any, pointer: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(place(builder, *args), align=16)
            items = [builder.extract_element(value, ir.IntType(32)(k)) for k in range(4)]
            return context.make_tuple(builder, signature.return_type, items)

        return types.UniTuple(types.float32, 4)(pointer, index), generate

    @intrinsic
    def store4(typing: Any, pointer: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = ir.Constant(lanes, ir.Undefined)
            for k, item in enumerate(args[2:]):
                value = builder.insert_element(value, item, ir.IntType(32)(k))
            builder.store(value, place(builder, *args[:2]), align=16)
            return context.get_dummy_value()

        return types.void(pointer, index, a, b, c, d), generate

    return load4, store4


@functools.cache
def _namespace() -> dict[str, Any]:
    import math

    from numba import cuda, float32, float64, int32, uint32, void
    from numba.core.types import CPointer

    load4, store4 = _vector_access()
    names = {"cuda": cuda, "math": math, "float32": float32, "float64": float64, "int32": int32, "uint32": uint32}
    kinds = {
        "void": void,
        "CPointer": CPointer,
        "P": CPointer(float32),
        "F1": float32[::1],
        "D1": float64[::1],
        "I1": int32[::1],
    }
    return {**names, **kinds, "load4": load4, "store4": store4}


@functools.cache
def compile_source(source: str, **options: Any) -> str:
    """The PTX of one of the kernels above, or of a changed text of it; the signature goes by the kernel's name."""
    scope = dict(_namespace())
    exec(compile(textwrap.dedent(source), "<sample kernel>", "exec"), scope)
    name = source.split("def ", 1)[1].split("(", 1)[0]
    return compile_ptx(scope[name], eval(SIGNATURES[name], scope), **options)
