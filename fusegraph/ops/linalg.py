"""Products of vectors and matrices, diagonals, and Einstein's summation."""

from __future__ import annotations

import math
from typing import Any

from fusegraph.dtypes import int64, promote
from fusegraph.errors import ShapeError
from fusegraph.ir import emit
from fusegraph.ops import elementwise as ew
from fusegraph.ops import reduce, shape
from fusegraph.ops.reduce import resolve_dims
from fusegraph.tensor import Tensor, as_tensor, user_error

__all__ = [
    "addmm",
    "baddbmm",
    "bmm",
    "diag",
    "diag_embed",
    "diagonal",
    "dot",
    "einsum",
    "inner",
    "matrix_power",
    "mm",
    "mv",
    "outer",
    "tensordot",
    "vecdot",
]


def _ranks(name: str, *pairs: tuple[Tensor, int]) -> None:
    for x, ndim in pairs:
        if x.ndim != ndim:
            raise user_error(
                ShapeError,
                f"{name} takes {'vectors' if ndim == 1 else f'tensors with {ndim} axes'}, got shape {list(x.shape)}",
            )


def mm(a: Any, b: Any) -> Tensor:
    """The product of two matrices."""
    a, b = as_tensor(a), as_tensor(b)
    _ranks("mm", (a, 2), (b, 2))
    return shape.matmul(a, b)


def bmm(a: Any, b: Any) -> Tensor:
    """The products of two batches of matrices: [B, n, k], [B, k, m] -> [B, n, m]."""
    a, b = as_tensor(a), as_tensor(b)
    _ranks("bmm", (a, 3), (b, 3))
    if a.shape[0] != b.shape[0]:
        raise user_error(ShapeError, f"bmm: batches of {list(a.shape)} and {list(b.shape)} differ")
    return shape.matmul(a, b)


def mv(a: Any, v: Any) -> Tensor:
    """The product of a matrix and a vector."""
    a, v = as_tensor(a), as_tensor(v)
    _ranks("mv", (a, 2), (v, 1))
    return shape.matmul(a, v)


def dot(a: Any, b: Any) -> Tensor:
    """The sum of the products of two vectors' elements."""
    a, b = as_tensor(a), as_tensor(b)
    _ranks("dot", (a, 1), (b, 1))
    if a.shape != b.shape:
        raise user_error(ShapeError, f"dot: shapes {list(a.shape)} and {list(b.shape)} differ")
    return reduce.sum(ew.mul(a, b))


def vecdot(a: Any, b: Any, dim: int = -1) -> Tensor:
    """The sum of products along `dim`."""
    return reduce.sum(ew.mul(a, b), dim)


def inner(a: Any, b: Any) -> Tensor:
    """Sums of products over the last axes of both."""
    a, b = as_tensor(a), as_tensor(b)
    return ew.mul(a, b) if not a.ndim or not b.ndim else tensordot(a, b, ([-1], [-1]))


def outer(a: Any, b: Any) -> Tensor:
    """All products of an element of one vector and one of another: [n], [m] -> [n, m]."""
    a, b = as_tensor(a), as_tensor(b)
    _ranks("outer", (a, 1), (b, 1))
    return ew.mul(shape.unsqueeze(a, 1), b)


def addmm(x: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * (a @ b)."""
    return _scaled_sum(x, mm(a, b), beta, alpha)


def baddbmm(x: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * (a @ b), for batches of matrices."""
    return _scaled_sum(x, bmm(a, b), beta, alpha)


def _scaled_sum(x: Any, product: Tensor, beta: float, alpha: float) -> Tensor:
    product = product if alpha == 1 else ew.mul(product, alpha)
    return product if beta == 0 else ew.add(x if beta == 1 else ew.mul(x, beta), product)


def matrix_power(a: Any, n: int) -> Tensor:
    """`a` multiplied by itself n times (n >= 0)."""
    a = as_tensor(a)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or n < 0:
        raise user_error(
            ShapeError, f"matrix_power takes square matrices and n >= 0, got shape {list(a.shape)} and n = {n}"
        )
    from fusegraph.ops.create import eye

    result, base = None, a
    while n:
        if n & 1:
            result = base if result is None else shape.matmul(result, base)
        n >>= 1
        base = shape.matmul(base, base) if n else base
    return shape.expand(eye(a.shape[-1], dtype=a.dtype), a.shape) if result is None else result


def diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements [i, i + offset] of axes dim1 and dim2, as a new last axis."""
    x = as_tensor(x)
    (first,), (second,) = resolve_dims("diagonal", x, dim1), resolve_dims("diagonal", x, dim2)
    if first == second:
        raise user_error(ShapeError, f"diagonal: dims {dim1} and {dim2} of shape {list(x.shape)} are the same")
    order = [axis for axis in range(x.ndim) if axis not in (first, second)]
    x = emit.permute(x, (*order, first, second))
    rows, columns = x.shape[-2:]
    size = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
    flat = emit.reshape(x, (*x.shape[:-2], rows * columns))
    start = max(offset, 0) + max(-offset, 0) * columns
    return shape.slice_axis(flat, flat.ndim - 1, start if size else 0, size, columns + 1)


_diagonal = diagonal


def diag_embed(x: Any, offset: int = 0) -> Tensor:
    """The last axis as the diagonal of square matrices, zero elsewhere."""
    x = as_tensor(x)
    if not x.ndim:
        raise user_error(ShapeError, "diag_embed of a 0-d tensor: it has no axis")
    size = x.shape[-1] + abs(offset)
    rows = emit.reshape(emit.iota(size, int64, x), (size, 1))
    on_diagonal = ew.eq(ew.add(rows, offset), emit.iota(size, int64, x))
    low = [0] * (2 * x.ndim)
    low[0:2] = (abs(offset), 0) if offset > 0 else (0, abs(offset))
    return ew.where(on_diagonal, shape.unsqueeze(shape.pad(x, low), -2), 0)


def diag(x: Any, diagonal: int = 0) -> Tensor:
    """A vector as a diagonal matrix, or the diagonal of a matrix."""
    x = as_tensor(x)
    if x.ndim == 1:
        return diag_embed(x, diagonal)
    _ranks("diag", (x, 2))
    return _diagonal(x, diagonal)


def trace(x: Any) -> Tensor:
    """The sum of a matrix' diagonal."""
    x = as_tensor(x)
    _ranks("trace", (x, 2))
    return reduce.sum(diagonal(x))


def tensordot(a: Any, b: Any, dims: Any = 2) -> Tensor:
    """Sums of products over the last `dims` axes of `a` and the first of `b`, or over two given lists of axes."""
    a, b = as_tensor(a), as_tensor(b)
    if isinstance(dims, int):
        left, right = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    else:
        left, right = ([axis % x.ndim for axis in axes] for axes, x in zip(dims, (a, b), strict=True))
    if [a.shape[i] for i in left] != [b.shape[i] for i in right]:
        raise user_error(
            ShapeError, f"tensordot: axes {left} of {list(a.shape)} and {right} of {list(b.shape)} have different sizes"
        )
    kept_a = [i for i in range(a.ndim) if i not in left]
    kept_b = [i for i in range(b.ndim) if i not in right]
    inner_size = math.prod(a.shape[i] for i in left)
    rows = emit.reshape(emit.permute(a, (*kept_a, *left)), (math.prod(a.shape[i] for i in kept_a), inner_size))
    columns = emit.reshape(emit.permute(b, (*right, *kept_b)), (inner_size, math.prod(b.shape[i] for i in kept_b)))
    out = shape.matmul(rows, columns)
    return emit.reshape(out, (*(a.shape[i] for i in kept_a), *(b.shape[i] for i in kept_b)))  # type: ignore[no-any-return]


# -- einsum ----------------------------------------------------------------------------------------------------------

_DOTS = "\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007"  # names for the axes that "..." stands for


def _equation(equation: str, operands: list[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand's axes and of the output's."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise user_error(ShapeError, f"einsum {equation!r} names {len(terms)} operands, got {len(operands)}")
    spare = [
        x.ndim - len(term.replace("...", "")) if "..." in term else 0 for term, x in zip(terms, operands, strict=True)
    ]
    most = max(spare)
    if min(spare) < 0 or most > len(_DOTS):
        raise user_error(
            ShapeError, f"einsum {equation!r} does not fit operands of shapes {[list(x.shape) for x in operands]}"
        )
    letters = [term.replace("...", _DOTS[most - n : most]) for term, n in zip(terms, spare, strict=True)]
    for term, x in zip(letters, operands, strict=True):
        if len(term) != x.ndim:
            raise user_error(
                ShapeError,
                f"einsum {equation!r}: {term!r} names {len(term)} axes of an operand of shape {list(x.shape)}",
            )
    everything = "".join(letters)
    output = (
        right.replace("...", _DOTS[:most])
        if arrow
        else _DOTS[:most] + "".join(sorted(c for c in set(everything) - set(_DOTS) if everything.count(c) == 1))
    )
    if not set(output) <= set(everything) or len(set(output)) != len(output):
        raise user_error(ShapeError, f"einsum {equation!r}: the output must name axes of the operands, each once")
    return letters, output


def _one_axis_a_letter(x: Tensor, letters: str) -> tuple[Tensor, str]:
    """Diagonals of axes that have the same letter."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first = letters.index(letter)
            second = letters.index(letter, first + 1)
            if x.shape[first] != x.shape[second]:
                raise user_error(
                    ShapeError,
                    f"einsum: axes {letter!r} of one operand have sizes {x.shape[first]} and {x.shape[second]}",
                )
            x = diagonal(x, 0, first, second)
            letters = letters[:first] + letters[first + 1 : second] + letters[second + 1 :] + letter
    return x, letters


def _arranged(x: Tensor, letters: str, order: str) -> Tensor:
    """`x` with the axes `order`; size 1 for those that it does not have."""
    x = emit.permute(x, [letters.index(c) for c in order if c in letters])
    sizes = iter(x.shape)
    return emit.reshape(x, tuple(next(sizes) if c in letters else 1 for c in order))  # type: ignore[no-any-return]


def _contract(a: Tensor, la: str, b: Tensor, lb: str, needed: str) -> tuple[Tensor, str]:
    """One operand for two: letters that are in both and in nothing else (`needed`) are summed over, by a batched
    product.
    """
    shared = [c for c in la if c in lb]
    summed = "".join(c for c in shared if c not in needed)
    batch = "".join(c for c in shared if c in needed)
    rows, columns = ("".join(c for c in own if c not in shared) for own in (la, lb))
    size: dict[str, int] = {}
    for letters, x in ((la, a), (lb, b)):
        for c, n in zip(letters, x.shape, strict=True):
            if size.get(c, 1) != n and size.get(c, 1) != 1 and n != 1:
                raise user_error(ShapeError, f"einsum: axis {c!r} has sizes {size[c]} and {n}")
            size[c] = n if size.get(c, 1) == 1 else size[c]

    def block(x: Tensor, letters: str, order: tuple[str, str, str]) -> Tensor:
        x = _arranged(x, letters, "".join(order))
        x = shape.expand(x, tuple(size[c] for c in "".join(order)))
        return emit.reshape(x, tuple(math.prod(size[c] for c in part) for part in order))  # type: ignore[no-any-return]

    if not summed:
        order = batch + rows + columns
        return ew.mul(_arranged(a, la, order), _arranged(b, lb, order)), order
    out = shape.matmul(block(a, la, (batch, rows, summed)), block(b, lb, (batch, summed, columns)))
    order = batch + rows + columns
    return emit.reshape(out, tuple(size[c] for c in order)), order


def einsum(equation: str, *operands: Any) -> Tensor:
    """Sums of products over named axes, such as ``einsum("bij,bjk->bik", a, b)``; operands are joined from left to
    right.

    Raises ShapeError when the equation does not fit the operands.
    """
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    tensors = [as_tensor(x) for x in given]
    kind = tensors[0].dtype
    for x in tensors[1:]:
        kind = promote(kind, x.dtype)
    letters, output = _equation(equation, tensors)
    parts = [_one_axis_a_letter(ew.cast(x, kind), term) for x, term in zip(tensors, letters, strict=True)]
    current, names = parts[0]
    for index in range(1, len(parts)):
        later = output + "".join(term for _, term in parts[index + 1 :])
        current, names = _without(current, names, later + parts[index][1])
        other, term = _without(*parts[index], later + names)
        current, names = _contract(current, names, other, term, later)
    current, names = _without(current, names, output)
    return _arranged(current, names, output)


def _without(x: Tensor, letters: str, needed: str) -> tuple[Tensor, str]:
    """Summed over the letters that nothing else needs."""
    dead = tuple(i for i, c in enumerate(letters) if c not in needed)
    if not dead:
        return x, letters
    return reduce.sum(x, dead), "".join(c for c in letters if c in needed)
