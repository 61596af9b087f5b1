"""Values that several stages of a row need: kept in the thread's scratch memory, where a row is too long for registers.

In softmax over 1024 columns the sum and the division both need exp(x - max). The stage that computes it first stores
it to a scratch row, which stays in the first-level cache, and the later stage loads it.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusegraph.codegen.cpu.nest_plan import Plan, operation_cost
from fusegraph.codegen.cpu.nest_rewrite import inner_axes, stage_roots
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Reduce, Stage, Store
from fusegraph.ir.scalar import Expr, load, make, walk
from fusegraph.records import dataclass, replace

_WORTH = 8.0  # instructions; a store and a load of a vector cost about as much as 4
_MOST_BYTES = 1 << 16  # of a scratch row
_ALIGN = 64


@dataclass(frozen=True)
class SharedRows:
    """The loop with its scratch rows: `rows` are local buffers, `offsets` their places in the scratch memory."""

    loop: Loop
    rows: dict[str, Buffer]
    offsets: dict[str, int]
    scratch_bytes: int


def share_rows(loop: Loop, plan: Plan) -> SharedRows:
    """`loop` (canonical) with expensive values that later stages use again stored to, and loaded from, scratch rows."""
    maker = _Sharing(loop, plan)
    stages = list(loop.stages)
    for number in range(1, len(stages)):
        maker.reuse(stages, number)
    return SharedRows(replace(loop, stages=tuple(stages)), maker.rows, maker.offsets, maker.scratch_bytes)


class _Sharing:
    def __init__(self, loop: Loop, plan: Plan) -> None:
        self._plan, self._written = plan, frozenset(loop.writes())
        self.rows: dict[str, Buffer] = {}
        self.offsets: dict[str, int] = {}
        self.scratch_bytes = 0
        self._saved: dict[Expr, Expr] = {}

    def _axis(self, stage: Stage, number: int) -> Axis | None:
        """The axis of a stage that runs over one row in a loop."""
        if self._plan.axis is not None:
            return None
        plan, inner = self._plan.stages[number], inner_axes(stage)
        return inner[0] if len(inner) == 1 and plan.axis == inner[0] and not plan.static else None

    def reuse(self, stages: list[Stage], number: int) -> None:
        """Let stage `number` load what an earlier one computed."""
        axis = self._axis(stages[number], number)
        if axis is None:
            return
        earlier: dict[Expr, int] = {}
        for place in reversed(range(number)):
            if self._axis(stages[place], place) == axis:
                earlier |= dict.fromkeys(walk(stages[place].expressions()), place)
        for node in self._wanted(stages[number], earlier, axis):
            if node not in self._saved:
                self._save(stages, earlier[node], node, axis)
        stages[number] = self._replaced(stages[number])

    def _wanted(self, stage: Stage, earlier: Mapping[Expr, int], axis: Axis) -> list[Expr]:
        """The largest expensive expressions of `stage` that an earlier stage computes too."""
        found: dict[Expr, None] = {}
        seen: set[Expr] = set()
        stack = list(reversed(stage_roots(stage)))
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in earlier and axis in node.axes and self._is_worth_it(node, axis):
                found[node] = None
            else:
                stack += reversed(node.below)
        return list(found)

    def _is_worth_it(self, node: Expr, axis: Axis) -> bool:
        if node.op == "load" or node.dtype.itemsize * axis.extent > _MOST_BYTES:
            return False
        below = walk([node])
        if any(n.op == "load" and n.attribute.buffer in self._written for n in below):
            return False
        return sum(operation_cost(n) for n in below if axis in n.axes) >= _WORTH

    def _save(self, stages: list[Stage], place: int, node: Expr, axis: Axis) -> None:
        """Stage `place` stores `node` to a new scratch row."""
        name = f"scratch.{len(self.rows)}"
        row = Buffer(name, (axis.extent,), node.dtype, "local")
        self.rows[name], self.offsets[name] = row, self.scratch_bytes
        self.scratch_bytes += -(-row.nbytes // _ALIGN) * _ALIGN
        index = (Index.of(axis),)
        self._saved[node] = load(name, index, node.dtype)
        stages[place] = replace(stages[place], stores=(*stages[place].stores, Store(name, index, node)))

    def _replaced(self, stage: Stage) -> Stage:
        """`stage` with saved expressions loaded."""
        new: dict[Expr, Expr] = {}
        for node in walk(stage.expressions()):
            if node in self._saved:
                new[node] = self._saved[node]
            else:
                new[node] = make(node.op, tuple(new[arg] for arg in node.args), node.dtype, node.attribute)
        reduces = tuple(Reduce(r.name, r.op, new[r.value], r.dtype) for r in stage.reduces)
        stores = tuple(Store(s.buffer, s.index, new[s.value], s.mode) for s in stage.stores)
        return replace(stage, reduces=reduces, stores=stores)
