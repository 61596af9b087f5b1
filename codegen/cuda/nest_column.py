"""Column kernels: the threads of a team stand one below the other, neighbouring teams side by side."""

from __future__ import annotations

from fusegraph.codegen.cuda.helpers import helper_name, pair_helper
from fusegraph.codegen.cuda.nest_team import TeamWriter
from fusegraph.codegen.python_text import ATOM, Text
from fusegraph.ir.loops import Reduce


class ColumnWriter(TeamWriter):
    """The parts of a column meet in shared memory."""

    @property
    def whole_block(self) -> bool:
        """Members of a team are in different warps."""
        return True

    def _place_member(self, thread: str, point: str) -> None:
        plan = self.plan
        self.line(f"{self._member} = uint32({thread} // {plan.teams})")
        self.line(f"{point} = uint32(cuda.blockIdx.x * {plan.teams} + {thread} % {plan.teams})")

    def _combine(self, reduce: Reduce, bests: dict[str, str]) -> None:
        name, best, plan = self.accumulators[reduce.name][0], bests.get(reduce.name), self.plan
        dtype = self._accumulated(reduce)
        helper = pair_helper(reduce.op, dtype)  # type: ignore[arg-type]
        self.helpers.add(helper)
        parts = self.shared(f"{best or name}_parts", plan.block, dtype)
        places = self.shared(f"{name}_parts", plan.block, "int32") if best else ""
        self.line(f"{parts}[{self._thread}] = {self.stored(Text(best or name, ATOM), dtype)}")
        if best:
            self.line(f"{places}[{self._thread}] = {name}")
        self.line("cuda.syncthreads()")
        first = f"{self._thread} % {plan.teams}"
        self.line(f"{best or name} = {self.loaded(f'{parts}[{first}]', dtype)}")
        if best:
            self.line(f"{name} = {places}[{first}]")
        with self.block(f"for part in range(1, {plan.team}):"):
            place = self.fresh("other")
            self.line(f"{place} = uint32(part * {plan.teams} + {first})")
            other = self.loaded(f"{parts}[{place}]", dtype)
            if best:
                self.line(
                    f"if {helper_name(*helper)}({other}, {best}, {places}[{place}], {name}):\n"
                    f"    {best} = {other}\n    {name} = {places}[{place}]"
                )
            else:
                self.line(f"{name} = {helper_name(*helper)}({name}, {other})")
