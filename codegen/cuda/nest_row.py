"""Row kernels: the threads of a team stand side by side along a row."""

from __future__ import annotations

from fusegraph.codegen.cuda.helpers import helper_name, team_helper
from fusegraph.codegen.cuda.nest_plan import WARP
from fusegraph.codegen.cuda.nest_team import TeamWriter
from fusegraph.ir.loops import Reduce


class RowWriter(TeamWriter):
    """Teams are parts of a warp that reduce by shuffles, or whole blocks that also use shared memory."""

    def _place_member(self, thread: str, point: str) -> None:
        plan = self.plan
        self.line(f"{self._member} = uint32({thread} % {plan.team})")
        self.line(f"{point} = uint32(cuda.blockIdx.x * {plan.teams} + {thread} // {plan.team})")

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
