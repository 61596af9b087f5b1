"""Zips: two or three operands of one shape, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusegraph.dtypes import SUPPORTED, DType
from fusegraph.errors import DTypeError, ShapeError
from fusegraph.ir import emit as e
from fusegraph.ir.primitives.base import Array, InferRule, Params, Primitive, Sample, Shape, register, require

_SHAPES: tuple[Shape, ...] = ((), (1,), (7,), (3, 5), (0, 4), (2, 3, 9))


def _infer_zip(name: str, kinds: str, boolean: bool) -> InferRule:
    def infer(inputs: Any, params: Params) -> tuple[Shape, DType]:
        a, b = inputs
        require(a.shape == b.shape, lambda: f"{name}: shapes {list(a.shape)} and {list(b.shape)} differ")
        require(a.dtype == b.dtype, lambda: f"{name}: dtypes {a.dtype.name} and {b.dtype.name} differ", DTypeError)
        require(a.dtype.kind in kinds, lambda: f"{name} does not take {a.dtype.name}{list(a.shape)}", DTypeError)
        return a.shape, SUPPORTED["bool"] if boolean else a.dtype

    return infer


def _float_samples(low: float, high: float) -> Callable[[np.random.Generator], list[Sample]]:
    return lambda rng: [((rng.uniform(low, high, s), rng.uniform(low, high, s)), {}) for s in _SHAPES]


def _int_samples(rng: np.random.Generator) -> list[Sample]:
    return [((rng.integers(0, 20, s).astype(np.int32), rng.integers(1, 6, s).astype(np.int32)), {}) for s in _SHAPES]


def _bool_samples(rng: np.random.Generator) -> list[Sample]:
    return [((rng.random(s) < 0.5, rng.random(s) < 0.5), {}) for s in _SHAPES]


def _errors() -> list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    return [
        ((np.zeros((2, 3)), np.zeros((3, 2))), {}, ShapeError, "differ"),
        ((np.zeros(2), np.zeros(2, np.int32)), {}, DTypeError, "differ"),
    ]


def _zip(
    name: str,
    reference: Callable[[Array, Array], Array],
    derivative: Callable[[Any, Any, Any, Any], Any] | None,
    *,
    kinds: str = "fiu",
    boolean: bool = False,
    cost: str = "cheap",
    traits: set[str] | None = None,
    samples: Callable[[np.random.Generator], list[Sample]] | None = None,
) -> None:
    """Register a zip; `derivative(cotangent, output, a, b)` gives both cotangents."""

    def run(a: Array, b: Array) -> Array:
        return np.asarray(reference(a, b), dtype=np.bool_ if boolean else a.dtype)

    register(
        Primitive(
            name,
            "zip",
            _infer_zip(name, kinds, boolean),
            run,
            vjp=(lambda ct, out, inputs, params: derivative(ct, out, *inputs)) if derivative else None,
            cost=cost,
            traits=frozenset(traits or set()) | (frozenset({"boolean"}) if boolean else frozenset()),
            samples=samples or _float_samples(-2, 2),
            errors=_errors,
        )
    )


def _vjp_pow(ct: Any, out: Any, a: Any, b: Any) -> tuple[Any, Any]:
    to_base = e.where(e.eq(b, 0.0), 0.0, e.mul(ct, e.mul(b, e.bind("pow", a, e.sub(b, 1.0)))))
    flat = e.eq(a, 0.0)  # 0 ** b is 0 on all sides of b, as far as there is a gradient
    return to_base, e.where(flat, 0.0, e.mul(ct, e.mul(out, e.bind("log", e.where(flat, 1.0, a)))))


def _vjp_extreme(compare: str) -> Callable[[Any, Any, Any, Any], tuple[Any, Any]]:
    """The larger (smaller) operand takes the cotangent; equal ones take half each, as in PyTorch (and with NaN both take all)."""

    def vjp(ct: Any, out: Any, a: Any, b: Any) -> tuple[Any, Any]:
        half = e.mul(ct, 0.5)
        tie = e.eq(a, b)
        to_a = e.where(e.bind(compare, b, a), 0.0, ct)
        to_b = e.where(e.bind(compare, a, b), 0.0, ct)
        return e.where(tie, half, to_a), e.where(tie, half, to_b)

    return vjp


_zip("add", np.add, lambda ct, out, a, b: (ct, ct), traits={"commutative"})
_zip("sub", np.subtract, lambda ct, out, a, b: (ct, e.neg(ct)))
_zip("mul", np.multiply, lambda ct, out, a, b: (e.mul(ct, b), e.mul(ct, a)), traits={"commutative"})
_zip(
    "div",
    np.divide,
    lambda ct, out, a, b: (e.div(ct, b), e.neg(e.div(e.mul(ct, out), b))),
    kinds="f",
    cost="div",
    samples=_float_samples(0.3, 2),
)
_zip("pow", np.power, _vjp_pow, kinds="f", cost="transcendental", samples=_float_samples(0.3, 2))
_zip("maximum", np.maximum, _vjp_extreme("gt"), traits={"commutative"})
_zip("minimum", np.minimum, _vjp_extreme("lt"), traits={"commutative"})
_zip("floordiv", np.floor_divide, None, kinds="iu", cost="div", samples=_int_samples)
_zip("mod", np.mod, None, kinds="iu", cost="div", samples=_int_samples)
_zip("bit_and", np.bitwise_and, None, kinds="biu", samples=_int_samples, traits={"commutative"})
_zip("bit_or", np.bitwise_or, None, kinds="biu", samples=_int_samples, traits={"commutative"})
_zip("bit_xor", np.bitwise_xor, None, kinds="biu", samples=_int_samples, traits={"commutative"})
_zip("shift_left", np.left_shift, None, kinds="iu", samples=_int_samples)
_zip("shift_right", np.right_shift, None, kinds="iu", samples=_int_samples)
for _name, _function in (
    ("eq", np.equal),
    ("ne", np.not_equal),
    ("lt", np.less),
    ("le", np.less_equal),
    ("gt", np.greater),
    ("ge", np.greater_equal),
):
    _zip(
        _name,
        _function,
        None,
        kinds="fiub",
        boolean=True,
        samples=lambda rng: [((rng.integers(0, 3, s) * 1.0, rng.integers(0, 3, s) * 1.0), {}) for s in _SHAPES],
    )


def _infer_where(inputs: Any, params: Params) -> tuple[Shape, DType]:
    condition, a, b = inputs
    require(
        condition.dtype.kind == "b",
        lambda: f"where: the condition must be bool, got {condition.dtype.name}",
        DTypeError,
    )
    require(
        condition.shape == a.shape == b.shape,
        lambda: f"where: shapes {list(condition.shape)}, {list(a.shape)} and {list(b.shape)} differ",
    )
    require(a.dtype == b.dtype, lambda: f"where: dtypes {a.dtype.name} and {b.dtype.name} differ", DTypeError)
    return a.shape, a.dtype


def _vjp_where(ct: Any, out: Any, inputs: Any, params: Params) -> tuple[Any, Any, Any]:
    condition = inputs[0]
    return None, e.where(condition, ct, 0), e.where(condition, 0, ct)


register(
    Primitive(
        "where",
        "zip",
        _infer_where,
        lambda c, a, b: np.asarray(np.where(c, a, b)),
        vjp=_vjp_where,
        samples=lambda rng: [
            ((rng.random(s) < 0.5, rng.uniform(-2, 2, s), rng.uniform(-2, 2, s)), {}) for s in _SHAPES
        ],
    )
)
