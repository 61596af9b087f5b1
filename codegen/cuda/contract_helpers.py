"""Device functions of the tiles, as source: one step along the sums, from shared memory to a thread's accumulators."""

from __future__ import annotations

from fusegraph.dtypes import DType

OUTER_PRODUCT, TENSOR_PRODUCT = "outer_product_", "tensor_product_"

_OUTER_PRODUCT = '''
def {name}(total, left, at_left, right, at_right):
    """total += (a column of the left part) x (a row of the right part): {tall} x {wide} products."""
    a = cuda.local.array({tall}, {dtype})
    b = cuda.local.array({wide}, {dtype})
{loads}
    for i in range({tall}):
        for j in range({wide}):
            total[i * {wide} + j] += a[i] * b[j]
'''

_TENSOR_PRODUCT = '''
def {name}(total, left, left_read, at_left, right, right_read, at_right, step):
    """total += left x right over 8 sums: {tall} x {wide} pieces of 16 x 8 outputs a warp, on tensor cores.

    step: which 8 sums of the parts; left_read, right_read: where this thread begins to read.
    """
    a = cuda.local.array({a_count}, uint32)
    b = cuda.local.array({b_count}, uint32)
{loads}
    for i in range({tall}):
        for j in range({wide}):
            n = (i * {wide} + j) * 4
            total[n], total[n + 1], total[n + 2], total[n + 3] = mma_tf32(
                a[i * 4], a[i * 4 + 1], a[i * 4 + 2], a[i * 4 + 3], b[j * 2], b[j * 2 + 1],
                total[n], total[n + 1], total[n + 2], total[n + 3],
            )
'''


def is_tile_helper(kind: str) -> bool:
    """Whether `tile_helper_source` knows it."""
    return kind.startswith((OUTER_PRODUCT, TENSOR_PRODUCT))


def tile_helper_source(kind: str, name: str, dtype: DType) -> str:
    """The source of a helper of this kind."""
    if kind.startswith(OUTER_PRODUCT):
        return _outer_product(kind.removeprefix(OUTER_PRODUCT), name, dtype)
    return _tensor_product(kind.removeprefix(TENSOR_PRODUCT), name)


def _pairs(text: str) -> list[list[int]]:
    return [[int(n) for n in part.split("x")] for part in text.split("_")]


def _outer_product(shape: str, name: str, dtype: DType) -> str:
    """8x8_128x128: 8 x 8 outputs a thread of a tile of 128 x 128; a thread's fours lie side by side across it."""
    counts, sizes = _pairs(shape)
    lines = []
    for part, side, count, size in zip("ab", ("left", "right"), counts, sizes, strict=True):
        fours = count // 4 if count % 4 == 0 else count
        for piece in range(fours):
            place = f"at_{side} + {piece * size // fours}" if piece else f"at_{side}"
            if count % 4:
                lines.append(f"    {part}[{piece}] = {side}[{place}]")
            else:
                targets = ", ".join(f"{part}[{piece * 4 + lane}]" for lane in range(4))
                lines.append(f"    {targets} = load4({side}, {place})")
    fields = {"name": name, "dtype": dtype.name, "tall": counts[0], "wide": counts[1], "loads": "\n".join(lines)}
    return _OUTER_PRODUCT.strip("\n").format(**fields)


def _tensor_product(shape: str, name: str) -> str:
    """rows_columns_4x4_128x128: the left part lies in swizzled rows, the right one in swizzled columns, 4 x 4 pieces a warp.

    Element h of a thread's pair is 4 sums further on; the left operand's blocks of 8 outer elements come in twos.
    """
    *kinds, counts_text, sizes_text = shape.split("_")
    (tall, wide), sizes = _pairs(f"{counts_text}_{sizes_text}")
    lines = []
    for part, side, kind, blocks, size in zip("ab", ("left", "right"), kinds, (2 * tall, wide), sizes, strict=True):
        for block in range(blocks):
            for half in range(2):
                place = (block // 2) * 4 + half * 2 + block % 2 if part == "a" else block * 2 + half
                lines.append(f"    {part}[{place}] = as_tf32({side}[{_read(kind, side, block, half, size)}])")
    fields = {"name": name, "tall": tall, "wide": wide, "a_count": 4 * tall, "b_count": 2 * wide}
    return _TENSOR_PRODUCT.strip("\n").format(loads="\n".join(lines), **fields)


def _read(kind: str, side: str, block: int, half: int, size: int) -> str:
    """Where the element lies: see the layouts of contract_layout.py; what is exchanged is in `left_read` already."""
    if kind == "rows":  # 16 sums side by side
        start = f"{side}_read[step * 2 + {half}]"
        return f"{start} + at_{side} + {block * 128}"
    start = f"{side}_read[{block % 4}] + at_{side} + step * {8 * size}"
    more = block // 4 * 32 + half * 4 * size
    return f"{start} + {more}" if more else start
