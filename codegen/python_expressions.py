"""Puts the scalar expressions of a fused loop into its loop nest.

Every value is computed once, at the outermost loop where all that it depends on is known. One with several readers, or
one that leaves a loop, gets a variable; any other stands where it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from fusegraph.codegen.python_helpers import Helper
from fusegraph.codegen.python_layout import INDENT, assignment, line_width
from fusegraph.codegen.python_names import ProgramNames, kernel_buffers, unused
from fusegraph.codegen.python_ops import NOUNS, operation_text
from fusegraph.codegen.python_text import ATOM, TERNARY, Text, constant_text, index_text, mask_text
from fusegraph.dtypes import bool_, int64
from fusegraph.errors import CompilerError
from fusegraph.ir.index import Axis, Div, Index, Indirect, Mod, flatten_index
from fusegraph.ir.loops import Loop
from fusegraph.ir.scalar import Expr, Mask, walk
from fusegraph.records import dataclass, field

_LONG_EXPRESSION = 60
_LONG_INDEX = 40
_LONG_MASKED_INDEX = 20


@dataclass
class Block:
    """The body of one loop: its lines and inner loops, and the variables that live in it."""

    head: str = ""
    items: list[str | Block] = field(default_factory=list)
    names: dict[Expr | Index, str] = field(default_factory=dict)

    def lines(self, indent: int) -> Iterator[str]:
        """Its text, at `indent` spaces."""
        if self.head:
            yield " " * indent + self.head
            indent += INDENT
        for item in self.items or ["pass"]:
            if isinstance(item, Block):
                yield from item.lines(indent)
            else:
                yield from (" " * indent + line for line in item.split("\n"))


@dataclass
class Phase:
    """A set of values that are computed in the innermost of the open loops."""

    order: list[Expr]
    read_at: dict[Expr, int]
    uses: Counter[Expr]
    index_uses: Counter[Index]


class ExpressionWriter:
    """Puts scalar expressions into the open loops; `blocks` are those, outermost first."""

    def __init__(self, loop: Loop, names: ProgramNames) -> None:
        self.loop, self.names = loop, names
        self.blocks = [Block()]
        self.helpers: set[Helper] = set()
        self.taken = {names.buffers[buffer] for buffer in kernel_buffers(loop)}
        self.axis_names: dict[Axis, str] = {}
        self.axis_levels: dict[Axis, int] = {}
        self.accumulators: dict[str, tuple[str, int]] = {}
        self.space_level = 0
        self.written = frozenset(loop.writes())
        self.stage_writes: tuple[str, ...] = ()
        self.texts: dict[Expr, Text] = {}
        self.levels: dict[Expr, int] = {}
        self._flat: dict[Expr, Index] = {}
        self._clamped: dict[Indirect, Expr] = {}
        self._inside: dict[Mask, Expr] = {}
        self._unstable: set[Expr] = set()
        self._edges: dict[Expr, set[object]] = {}
        self._count_readers()

    # -- facts about expressions --------------------------------------------------------------------------------------

    def operands(self, node: Expr) -> list[Expr]:
        """What must be computed before `node`: its arguments, its run-time indices, its mask."""
        found = list(node.args)
        if node.op == "load":
            found += self.run_time_indices(self.flat_index(node))
            found += [self.mask_value(node.attribute.mask)] if node.attribute.mask else []
        elif node.op != "clamp":
            found += [scalar for index in node.indices() for scalar in self.run_time_indices(index)]
        return found

    def run_time_indices(self, index: Index) -> list[Expr]:
        """The scalars inside of an index expression: each one's value, kept inside of its axis (op "clamp")."""
        found: list[Expr] = []
        for atom, _ in index.terms:
            if isinstance(atom, Indirect):
                found.append(self._clamped.setdefault(atom, Expr("clamp", (atom.value,), int64, atom.extent)))
            elif isinstance(atom, (Div, Mod)):
                found += self.run_time_indices(atom.index)
        return found

    def mask_value(self, mask: Mask) -> Expr:
        """The scalar that says whether `mask` holds."""
        return self._inside.setdefault(mask, Expr("inside", (), bool_, mask))

    def flat_index(self, node: Expr) -> Index:
        """The element number that a load reads."""
        if node not in self._flat:
            self._flat[node] = flatten_index(node.attribute.index, self.names.buffer(node.attribute.buffer).shape)
        return self._flat[node]

    def order(self, roots: Sequence[Expr], stop: frozenset[Expr] | None = None) -> list[Expr]:
        """Everything below `roots`, operands first; not below a node that has a variable already (nor the node)."""
        found: dict[Expr, None] = {}
        for root in roots:
            stack = [(root, iter(self.operands(root)))]
            while stack:
                node, rest = stack[-1]
                if node in found or (stop is not None and node in stop):
                    stack.pop()
                    continue
                child = next((c for c in rest if c not in found), None)
                if child is not None:
                    stack.append((child, iter(self.operands(child))))
                else:
                    found[node] = None
                    stack.pop()
        return list(found)

    def _count_readers(self) -> None:
        """For each expression the places in the whole loop that read it; and which ones read what the loop writes."""
        everything = walk([root for stage in self.loop.stages for root in stage.expressions()])
        self._inside = {node.attribute: node for node in everything if node.op == "inside"}
        for number, stage in enumerate(self.loop.stages):
            indices = [index for store in stage.stores for index in store.index]
            roots = stage.expressions() + [scalar for index in indices for scalar in self.run_time_indices(index)]
            for node in self.order(roots):
                operands = self.operands(node)
                for position, operand in enumerate(operands):
                    self._edges.setdefault(operand, set()).add((node, position))
                own = node.op == "load" and node.attribute.buffer in self.written
                if own or any(operand in self._unstable for operand in operands):
                    self._unstable.add(node)
            for position, root in enumerate(roots):
                self._edges.setdefault(root, set()).add((number, position))

    def is_unstable(self, node: Expr) -> bool:
        """Whether it reads memory that this loop writes, so that its value is good for one stage only."""
        return node in self._unstable

    def level(self, node: Expr) -> int:
        """The outermost open loop in which `node` can be computed."""
        if node.op == "acc":
            return self.accumulators[node.attribute][1]
        indices = [self.flat_index(node)] if node.op == "load" else list(node.indices()) if node.op != "clamp" else []
        level = max([0, *(self.index_level(i) for i in indices), *(self.levels[o] for o in self.operands(node))])
        if node.op == "load" and node.attribute.buffer in self.stage_writes:
            return len(self.blocks) - 1
        return max(level, self.space_level) if node.op == "load" and node.attribute.buffer in self.written else level

    def index_level(self, index: Index) -> int:
        """The innermost open loop over an axis that stands in `index` itself."""
        axes = [axis for axis in index.axes if axis.extent != 1]
        if unknown := [axis for axis in axes if axis not in self.axis_levels]:
            raise CompilerError(f"kernel {self.loop.name}: index {index} uses axis {unknown[0]} outside of its loop")
        return max((self.axis_levels[axis] for axis in axes), default=0)

    # -- writing ------------------------------------------------------------------------------------------------------

    def known(self, key: Expr | Index) -> str | None:
        """The variable that holds `key` in the open loops."""
        return next((block.names[key] for block in reversed(self.blocks) if key in block.names), None)

    def fresh(self, base: str) -> str:
        """A variable name that the kernel does not use yet."""
        name = unused(base, self.taken)
        self.taken.add(name)
        return name

    def evaluate(self, roots: Sequence[Expr], indices: Sequence[Index] = ()) -> list[Text]:
        """Texts of `roots`, to be read in the innermost open loop; writes the variables that they need.

        `indices`: flat indices of the stores that follow (their run-time parts are computed too).
        """
        phase = self._plan([*roots, *(scalar for index in indices for scalar in self.run_time_indices(index))], indices)
        hazard = self.stage_writes if len(self.stage_writes) > 1 else ()
        for node in phase.order:
            text = self._shortened(node, phase)
            self.texts[node] = text
            shared = phase.uses[node] > 1 or phase.read_at[node] > self.levels[node]
            if _worth_a_name(node, text) and (shared or (node.op == "load" and node.attribute.buffer in hazard)):
                self._name(node, phase)
        return [self.texts[root] for root in roots]

    def _plan(self, roots: Sequence[Expr], indices: Sequence[Index]) -> Phase:
        named = {key: name for block in self.blocks for key, name in block.names.items()}
        self.texts = {key: Text(name, ATOM) for key, name in named.items() if isinstance(key, Expr)}
        inner = len(self.blocks) - 1
        order = self.order(roots, frozenset(self.texts))
        self.levels = levels = {node: self._named_level(node) for node in self.texts}
        read_at: dict[Expr, int] = dict.fromkeys(roots, inner)
        uses: Counter[Expr] = Counter(roots)
        index_uses: Counter[Index] = Counter(indices)
        for node in order:
            levels[node] = self.level(node)
            if node.op == "load":
                index_uses[self.flat_index(node)] += 1
            for operand in self.operands(node):
                uses[operand] += 1
                read_at[operand] = max(read_at.get(operand, 0), levels[node])
        for node in order:
            if levels[node] <= self.space_level and not self.is_unstable(node):
                uses[node] = max(uses[node], len(self._edges.get(node, ())))
        return Phase(order, read_at, uses, index_uses)

    def _named_level(self, node: Expr) -> int:
        return next(level for level, block in enumerate(self.blocks) if node in block.names)

    def _name(self, node: Expr, phase: Phase) -> None:
        name = self.fresh(self._base_name(node))
        block = self.blocks[self.levels[node]]
        block.items.append(assignment(name, self.texts[node].source, line_width(self.levels[node])))
        block.names[node] = name
        self.texts[node] = Text(name, ATOM)

    def _base_name(self, node: Expr) -> str:
        if node.op == "load":
            return self._load_name(node)
        if node.op == "cast":
            return f"as_{node.dtype.name}"
        if node.op == "clamp":
            value = node.args[0].args[0] if node.args[0].op == "cast" else node.args[0]
            return f"{self.names.buffers[value.attribute.buffer]}_index" if value.op == "load" else "index"
        return node.op if node.op == "inside" else NOUNS.get(node.op, f"{node.op}_value")

    def _load_name(self, node: Expr) -> str:
        """x[r * 7 + c] is x_rc; with long names, or many axes, x_value."""
        buffer = self.names.buffers[node.attribute.buffer]
        used = self.flat_index(node).axes
        axes = [name for axis, name in self.axis_names.items() if axis in used and axis.extent != 1]
        name = f"{buffer}_{('' if all(len(axis) == 1 for axis in axes) else '_').join(axes)}"
        return name if 0 < len(axes) <= 3 and len(name) <= 16 else f"{buffer}_value"

    def _shortened(self, node: Expr, phase: Phase) -> Text:
        """The text of `node`; where it would be long, its longest operands get variables."""
        text = self._text(node, phase)
        while len(text.source) > _LONG_EXPRESSION and node.op != "inside":
            lengths = {
                operand: len(self.texts[operand].source)
                for operand in self.operands(node)
                if _worth_a_name(operand, self.texts[operand])
            }
            if not lengths:
                return text
            self._name(max(lengths, key=lengths.__getitem__), phase)
            text = self._text(node, phase)
        return text

    def _text(self, node: Expr, phase: Phase) -> Text:
        if node.op == "const":
            return constant_text(node.attribute, node.dtype)
        if node.op == "acc":
            return Text(self.accumulators[node.attribute][0], ATOM)
        if node.op == "load":
            return self._load_text(node, phase)
        if node.op == "index":
            return index_text(node.attribute, self._leaf)
        if node.op == "inside":
            return mask_text(node.attribute, self._leaf)
        if node.op == "clamp":
            self.helpers.add(("clamp", None))
            return Text(f"clamp({self.texts[node.args[0]].source}, {node.attribute})", ATOM)
        if node.op == "philox":
            self.helpers.add(("philox", None))
            words = [self.texts[arg].source for arg in node.args] + [index_text(node.attribute, self._leaf).source]
            return Text(f"philox({', '.join(words)})", ATOM)
        return operation_text(node, [self.texts[arg] for arg in node.args], self.helpers.add)

    def _load_text(self, node: Expr, phase: Phase) -> Text:
        longest = _LONG_MASKED_INDEX if node.attribute.mask else _LONG_INDEX
        at = self.position(self.flat_index(node), phase.index_uses, longest)
        element = f"{self.names.buffers[node.attribute.buffer]}[{at}]"
        if not node.attribute.mask:
            return Text(element, ATOM)
        condition = self.texts[self.mask_value(node.attribute.mask)].at_least(TERNARY + 1)
        return Text(f"{element} if {condition} else {constant_text(0, node.dtype).source}", TERNARY)

    def position(self, index: Index, uses: Counter[Index], longest: int = _LONG_INDEX) -> str:
        """The text of a flat index; one that is read more than once, or is longer than `longest`, gets a variable."""
        if (name := self.known(index)) is not None:
            return name
        text = index_text(index, self._leaf).source
        if " " not in text or (uses[index] < 2 and len(text) <= longest):
            return text
        level = max([self.index_level(index), *(self.levels[scalar] for scalar in self.run_time_indices(index))])
        name = self.fresh("at")
        self.blocks[level].items.append(assignment(name, text, line_width(level)))
        self.blocks[level].names[index] = name
        return name

    def _leaf(self, atom: Axis | Indirect) -> str:
        return self.axis_names[atom] if isinstance(atom, Axis) else self.texts[self._clamped[atom]].source


def _worth_a_name(node: Expr, text: Text) -> bool:
    """Whether a variable for `node` says more than its text."""
    if node.op in ("const", "acc") or text.source.isidentifier():
        return False
    return node.op != "index" or " " in text.source
