"""The table of primitives: one entry each, in the file of its kind."""

from fusegraph.ir.primitives import contract, indexing, maps, reduces, sources, views, zips  # noqa: F401
from fusegraph.ir.primitives.base import PRIMITIVES, Primitive, register

__all__ = ["PRIMITIVES", "Primitive", "register"]
