"""Puts scalar expressions into CUDA kernels: the Python printer's writer, with CUDA's types and a thread's own coordinates.

A thread knows the number of its point (or of its column in a row), not the coordinates that the loop program speaks of. `places`
maps each axis of the program to an expression over the thread's own variables. An index is printed over those where that needs
no division (`x[point]` for x[n, c] of a point n * C + c); else over the axis's name, a variable that is set where it is first
needed (`c = uint32(point % 784)`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from fusegraph.codegen.cuda.names import RESERVED
from fusegraph.codegen.cuda.ops import operation_text
from fusegraph.codegen.cuda.text import IndexPrinter, constant_text
from fusegraph.codegen.python_expressions import ExpressionWriter, Phase
from fusegraph.codegen.python_layout import assignment, line_width
from fusegraph.codegen.python_names import ProgramNames, axis_name, unused
from fusegraph.codegen.python_text import ATOM, TERNARY, Text
from fusegraph.errors import CompilerError
from fusegraph.ir.index import Atom, Axis, Div, Index, Indirect, Mod
from fusegraph.ir.loops import Loop
from fusegraph.ir.scalar import Expr

_LONG_INDEX = 48


class CudaExpressionWriter(ExpressionWriter):
    """places: axes of the program by the thread's variables; `hidden` loads have a text of their own (a register)."""

    def __init__(self, loop: Loop, names: ProgramNames) -> None:
        super().__init__(loop, names)
        self.places: dict[Axis, Index] = {}
        self._placed: dict[Axis, Index] = {}  # also axes that are out of scope now
        self.registers: dict[Expr, Callable[[], Text]] = {}
        self._wide_axes: set[Axis] = set()
        self._views: dict[Index, Index] = {}
        self.printer = IndexPrinter(self._leaf, lambda axis: axis in self._wide_axes)

    def fresh(self, base: str) -> str:
        """A variable name that neither the kernel nor its module uses yet."""
        name = unused(base, self.taken | RESERVED)
        self.taken.add(name)
        return name

    # -- coordinates ----------------------------------------------------------------------------------------------------

    def set_places(self, places: dict[Axis, Index], anew: bool = False) -> None:
        """From here on axes are these expressions. What was computed for other ones is not used again.

        anew: the variables in them have got new values.
        """
        changed = {axis for axis, place in places.items() if anew or self._placed.get(axis, place) != place}
        for block in self.blocks if changed else ():
            for key in [key for key in block.names if self._depends(key) & changed]:
                del block.names[key]
        self._placed.update(places)
        self.places.update(places)
        self._views.clear()

    def _depends(self, key: Expr | Index) -> frozenset[Axis]:
        """The axes of a value, also through run-time indices and masks."""
        if isinstance(key, Index):
            return key.axes
        found: frozenset[Axis] = (
            frozenset().union(*(index.axes for index in key.indices())) if key.op != "clamp" else frozenset()
        )
        return found.union(*(self._depends(operand) for operand in self.operands(key)))

    def forget_axes(self, axes: tuple[Axis, ...]) -> None:
        """These axes are out of scope."""
        for axis in axes:
            self.places.pop(axis, None)
            self.axis_levels.pop(axis, None)
        self._views.clear()

    def moved(self, index: Index) -> Index:
        """`index` over the thread's own variables; parts that are known only at run time stay as they are."""
        fixed = {atom: c for atom, c in index.terms if _reads_memory(atom)}
        if not fixed:
            return index.substitute(self.places)
        plain = Index(index.constant, tuple(term for term in index.terms if term[0] not in fixed))
        return plain.substitute(self.places) + Index.from_terms(0, fixed)

    def view(self, index: Index) -> Index:
        """The form of `index` that is printed: without new divisions, unless they let it be computed further out."""
        if index not in self._views:
            moved = self.moved(index)
            plain = _divisions(moved) <= _divisions(index) or self._level_of(moved) < self._level_of(index)
            self._views[index] = moved if plain else index
        return self._views[index]

    def index_level(self, index: Index) -> int:
        """The innermost open block that one of its variables belongs to."""
        return self._level_of(self.view(index))

    def _level_of(self, index: Index) -> int:
        axes: set[Axis] = set()
        for axis in index.axes:
            axes |= self.places[axis].axes if axis in self.places else {axis}
        long = [axis for axis in axes if axis.extent != 1]
        if unknown := [axis for axis in long if axis not in self.axis_levels]:
            raise CompilerError(f"kernel {self.loop.name}: index {index} uses axis {unknown[0]} outside of its loop")
        return max((self.axis_levels[axis] for axis in long), default=0)

    def own_axis(self, axis: Axis, name: str, wide: bool = False) -> str:
        """Make `axis` a variable of the thread that belongs to the innermost open block; gives its name."""
        self.axis_names[axis] = self.fresh(name)
        self.axis_levels[axis] = len(self.blocks) - 1
        self._views.clear()
        if wide:
            self._wide_axes.add(axis)
        return self.axis_names[axis]

    def _leaf(self, atom: Axis | Indirect) -> str:
        if isinstance(atom, Indirect):
            return self.texts[self._clamped[atom]].source
        return self._coordinate(atom) if atom in self.places else self.axis_names[atom]

    def _coordinate(self, axis: Axis) -> str:
        """The variable of an axis of the program; it is set where all that it depends on is known."""
        index = Index.of(axis)
        if (name := self.known(index)) is not None:
            return name
        place = self.places[axis]
        if place.axis is not None and place.axis not in self.places:
            return self.axis_names[place.axis]
        if axis not in self.axis_names:
            self.axis_names[axis] = self.fresh(axis_name(axis.name, self.taken))
        name = self.axis_names[axis]
        level = self._level_of(place)
        text = self.printer.narrow(place).source
        self.blocks[level].items.append(assignment(name, text, line_width(level)))
        self.blocks[level].names[index] = name
        return name

    # -- text -----------------------------------------------------------------------------------------------------------

    def _text(self, node: Expr, phase: Phase) -> Text:
        if node.op == "const":
            return constant_text(node.attribute, node.dtype)
        if node.op == "index":
            return Text(f"int64({self.printer.bare(self.view(node.attribute)).source})", ATOM)
        if node.op == "inside":
            return self.printer.mask(tuple(replace(part, index=self.view(part.index)) for part in node.attribute))
        if node.op == "clamp":
            self.helpers.add(("clamp", None))
            return Text(f"clamp({self.texts[node.args[0]].source}, {node.attribute})", ATOM)
        if node.op == "philox":
            self.helpers.add(("philox", None))
            words = [self.texts[arg].source for arg in node.args]
            return Text(f"philox({', '.join([*words, self.printer.bare(self.view(node.attribute)).source])})", ATOM)
        if node.op in ("acc", "load"):
            return super()._text(node, phase)
        exact = getattr(self.names, "exact", False)
        return operation_text(node, [self.texts[arg] for arg in node.args], self.helpers.add, exact)

    def _load_text(self, node: Expr, phase: Phase) -> Text:
        if node in self.registers:
            return self.registers[node]()
        element = Text(self.element_text(node.attribute.buffer, self.flat_index(node), phase.index_uses), ATOM)
        if node.dtype.kind == "b":
            element = Text(f"({element.source} != 0)", ATOM)
        if not node.attribute.mask:
            return element
        condition = self.texts[self.mask_value(node.attribute.mask)].at_least(TERNARY + 1)
        return Text(f"{element.source} if {condition} else {constant_text(0, node.dtype).source}", TERNARY)

    def element_text(self, buffer: str, index: Index, uses: Counter[Index], longest: int = _LONG_INDEX) -> str:
        """An element of a buffer, where it lies in memory."""
        return f"{self.names.buffers[buffer]}[{self.position(index, uses, longest)}]"

    def position(self, index: Index, uses: Counter[Index], longest: int = _LONG_INDEX) -> str:
        """The text of a flat index; one that is read more than once, or is longer than `longest`, gets a variable."""
        if (name := self.known(index)) is not None:
            return name
        text = self.printer.narrow(self.view(index)).source
        if not text.endswith(")") or (uses[index] < 2 and len(text) <= longest):
            return text
        level = max([self.index_level(index), *(self.levels[scalar] for scalar in self.run_time_indices(index))])
        name = self.fresh("at")
        self.blocks[level].items.append(assignment(name, text, line_width(level)))
        self.blocks[level].names[index] = name
        return name


def _reads_memory(atom: Atom) -> bool:
    if isinstance(atom, (Div, Mod)):
        return any(_reads_memory(inner) for inner, _ in atom.index.terms)
    return isinstance(atom, Indirect)


def _divisions(index: Index) -> int:
    """How many // and % stand in an index."""
    return sum(1 + _divisions(atom.index) for atom, _ in index.terms if isinstance(atom, (Div, Mod)))
