"""Row kernels: the threads of a team stand side by side along a row.

Rows that do not begin where a sector of memory does cost a request more than they need. Short ones go through a tile in shared
memory: a block copies its rows, neighbours in memory, as one piece. Longer ones are skewed: the first thread of a row stands
where the sector begins, up to seven elements before the row (and does nothing there).
"""

from __future__ import annotations

from collections import Counter

from fusegraph.codegen.cuda.helpers import helper_name, team_helper
from fusegraph.codegen.cuda.nest_plan import SECTOR, VECTOR, WARP, NestPlan, extent, length_is_ragged, stage_axes
from fusegraph.codegen.cuda.nest_rows import row_part
from fusegraph.codegen.cuda.nest_team import TeamWriter
from fusegraph.codegen.python_names import ProgramNames
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Reduce
from fusegraph.ir.scalar import walk


class RowWriter(TeamWriter):
    """Teams are parts of a warp that reduce by shuffles, or whole blocks that also use shared memory."""

    def __init__(self, plan: NestPlan, names: ProgramNames) -> None:
        super().__init__(plan, names)
        self._spans = dict(plan.tiles)
        self._tiles: dict[str, str] = {}
        self._longest = max(extent(stage_axes(stage)) for stage in plan.loop.stages)
        self._row = Axis("row in the block", plan.teams)

    def write(self) -> None:
        """Everything below the signature."""
        super().write()
        written = [name for name in self._tiles if name in self.loop.writes()]
        if written:
            self.line("cuda.syncthreads()")
        for name in written:
            self._copy(name, into=False)

    # -- where threads stand ----------------------------------------------------------------------------------------------

    def _open_team(self) -> None:
        super()._open_team()
        plan, point = self.plan, self._point
        if plan.tiles:
            self._fill_tiles()
        elif self._is_skewed(self._longest):
            step, turns = self._longest // plan.vector, SECTOR // plan.vector
            self._skew = self.fresh("skew")
            self.line(f"{self._skew} = uint32({point} * {step} % {turns})")

    def _place_member(self, thread: str, point: str) -> None:
        plan = self.plan
        self.line(f"{self._member} = uint32({thread} % {plan.team})")
        self.line(f"{point} = uint32(cuda.blockIdx.x * {plan.teams} + {thread} // {plan.team})")

    def _is_skewed(self, count: int) -> bool:
        plan = self.plan
        ragged = count == self._longest and length_is_ragged(count) and count > SECTOR
        return ragged and plan.points > 1 and plan.team >= WARP and not plan.tiles

    # -- tiles ------------------------------------------------------------------------------------------------------------

    def _fill_tiles(self) -> None:
        plan = self.plan
        row = self.fresh("row")
        self.line(f"{row} = uint32({self._point} - cuda.blockIdx.x * {plan.teams})")
        self.axis_names[self._row], self.axis_levels[self._row] = row, len(self.blocks) - 1
        for name, span in self._spans.items():
            dtype = self.names.buffer(name).dtype
            title = f"{self.names.buffers[name]}_tile"
            self._tiles[name] = self.shared(title, plan.teams * span, dtype, aligned=True)
        read = [name for name in self._tiles if self._is_read_first(name)]
        for name in read:
            self._copy(name, into=True)
        if read:
            self.line("cuda.syncthreads()")

    def _is_read_first(self, name: str) -> bool:
        """Whether a stage loads from the buffer before one has stored to it."""
        for stage in self.loop.stages:
            if any(e.op == "load" and e.attribute.buffer == name for e in walk(stage.expressions())):
                return True
            if any(store.buffer == name for store in stage.stores):
                return False
        return True  # only run-time indices of stores read it

    def _copy(self, name: str, into: bool) -> None:
        """The block's rows of a buffer into their tile, or back: side by side, by 128 bits where all rows together allow it."""
        plan, buffer, tile = self.plan, self.names.buffers[name], self._tiles[name]
        count, total = plan.teams * self._spans[name], self.names.buffer(name).size
        width = VECTOR if total % VECTOR == 0 and count % VECTOR == 0 else 1
        first, at = self.fresh("first"), self.fresh("quad" if width > 1 else "element")
        self.line(f"{first} = uint32(cuda.blockIdx.x * {count})")
        limit = str(count // width)
        if total % count:
            limit = self.fresh("count")
            whole = f"min({count}, {total} - {first})"
            self.line(f"{limit} = uint32({f'{whole} // {width}' if width > 1 else whole})")
        self.line(f"{at} = {self._thread}")
        with self.block(f"while {at} < {limit}:"):
            self._move(buffer, tile, first, at, width, into)
            self.line(f"{at} = uint32({at} + {plan.block})")
        self.taken -= {first, at, limit}

    def _move(self, buffer: str, tile: str, first: str, at: str, width: int, into: bool) -> None:
        if width == 1:
            inside, outside = f"{tile}[{at}]", f"{buffer}[uint32({first} + {at})]"
            self.line(f"{inside} = {outside}" if into else f"{outside} = {inside}")
            return
        inside, outside = f"{tile}, uint32({at} * {width})", f"{buffer}, uint32({first} + {at} * {width})"
        source, target = (outside, inside) if into else (inside, outside)
        four = self.fresh("four")
        self.line(f"{four} = load4({source})")
        self.line(f"store4({target}, {', '.join(f'{four}[{lane}]' for lane in range(width))})")
        self.taken.discard(four)

    def element_text(self, buffer: str, index: Index, uses: Counter[Index], longest: int = 48) -> str:
        """An element of a buffer, or of its tile."""
        if buffer not in self._tiles:
            return super().element_text(buffer, index, uses, longest)
        span = self._spans[buffer]
        inner = row_part(index, self.loop.space, self.plan.points, span)
        assert inner is not None
        place = Index.of(self._row) * span + inner
        return f"{self._tiles[buffer]}[{self.position(place, Counter({place: uses[index]}), longest)}]"

    # -- reductions -------------------------------------------------------------------------------------------------------

    def _combine(self, reduce: Reduce, bests: dict[str, str]) -> None:
        name, best = self.accumulators[reduce.name][0], bests.get(reduce.name)
        dtype = self._accumulated(reduce)
        helper = (team_helper(reduce.op, self.plan.team), dtype)
        self.helpers.add(helper)  # type: ignore[arg-type]
        arguments = [best, name] if best else [name]
        if self.plan.team > WARP:
            arguments.append(self.shared(f"{best or name}_parts", WARP, dtype))
            arguments += [self.shared(f"{name}_parts", WARP, "int32")] if best else []
            arguments.append(self._thread)
        target = f"{best}, {name}" if best else name
        self.line(f"{target} = {helper_name(*helper)}({', '.join(map(str, arguments))})")  # type: ignore[arg-type]
