"""The table of primitives: one entry each, in the file of its kind."""

from fusegraph.ir.primitives.base import PRIMITIVES, Primitive, register
from fusegraph.ir.primitives import contract, indexing, maps, reduces, sources, views, zips  # noqa: E402,F401,I001

__all__ = ["PRIMITIVES", "Primitive", "register"]
