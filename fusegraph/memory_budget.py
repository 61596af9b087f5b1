"""`memory_budget=`: sizes as a user writes them, a graph's program under a budget, and what to say where there is none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fusegraph.errors import MemoryBudgetError, OptionError
from fusegraph.ir.graph import Graph, Node
from fusegraph.records import dataclass

if TYPE_CHECKING:
    from fusegraph.build import Options
    from fusegraph.partition import JointGraph, Split
    from fusegraph.passes.budget import Fitted
    from fusegraph.passes.recompute import Fused

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SHOWN = 4  # tensors that an error names


def bytes_of(budget: int | str | None) -> int | None:
    """A budget in bytes: an int, or a text such as "64MB", "1.5 GiB". Raises OptionError for anything else."""
    if budget is None:
        return None
    found = 0
    if type(budget) is int:
        found = budget
    elif isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b)?\s*", budget.lower())
        found = int(float(match[1]) * _UNITS.get(match[2] or "", 0)) if match else 0
    if found <= 0:
        raise OptionError(
            f"memory_budget is a number of bytes, 1 or more, or a text such as '64MB' or '1.5GiB', not {budget!r}"
        )
    return found


def fitted(graph: Graph, options: Options) -> Fitted:
    """The program of an optimised graph under the budget of `options`. Raises MemoryBudgetError if none is found."""
    from fusegraph.passes.budget import DoesNotFit, within_budget

    assert options.memory_budget is not None
    try:
        return within_budget(graph, options.memory_budget, lambda g, save: planned(g, options, save))
    except DoesNotFit as failure:
        raise MemoryBudgetError(refusal(graph.name, options.memory_budget, failure.best)) from None


def split_within(joint: JointGraph, default: Split, options: Options) -> tuple[Split, tuple[int, int]]:
    """How to cut a joint graph: what is kept, and both arenas, together within the budget. Gives the budgets of the two arenas.

    Raises MemoryBudgetError.
    """
    from fusegraph.passes.saved_values import cuts

    assert options.memory_budget is not None
    splits = [default]
    for chosen in cuts(joint.graph, joint.needed, joint.late, joint.updated):
        split = joint.split(joint.keeping(chosen), again=True)
        if split.saved != splits[-1].saved:
            splits.append(split)
    for split in (split for split in splits if split.saved_bytes < options.memory_budget):
        found = _arenas(split, options)
        if found.total_bytes <= options.memory_budget:
            return split, found.budgets
    raise MemoryBudgetError(
        _refusal_of_split(joint.graph.name, options.memory_budget, _arenas(splits[-1], options, thorough=True))
    )


@dataclass(frozen=True)
class _Arenas:
    """A split with its two programs, and the budgets under which they were found."""

    split: Split
    forward: Fitted
    backward: Fitted
    budgets: tuple[int, int]

    @property
    def total_bytes(self) -> int:
        """What is kept, and both arenas."""
        return self.split.saved_bytes + self.forward.arena_bytes + self.backward.arena_bytes


def _arenas(split: Split, options: Options, thorough: bool = False) -> _Arenas:
    """The forward and the backward program, with arenas that fit into what the kept values leave, or small ones.

    `build` finds the same programs under the same budgets: the search depends on nothing else.
    """
    from fusegraph.build import optimised

    assert options.memory_budget is not None
    forward, backward = (optimised(graph, options)[0] for graph in (split.forward, split.backward))
    whole = options.memory_budget - split.saved_bytes
    room = max(whole, 1)
    first = _closest(forward, room, options, thorough)
    left = max(whole - first.arena_bytes, 1)
    second = _closest(backward, left, options, thorough)
    if first.arena_bytes + second.arena_bytes > whole:
        room = max(whole - second.arena_bytes, 1)
        first = _closest(forward, room, options, thorough)
    return _Arenas(split, first, second, (room, left))


def _closest(graph: Graph, room: int, options: Options, thorough: bool) -> Fitted:
    """The program under a budget of `room` bytes; if there is none, that with the smallest arena."""
    from fusegraph.passes.budget import DoesNotFit, within_budget

    try:
        return within_budget(graph, room, lambda g, save: planned(g, options, save), thorough)
    except DoesNotFit as failure:
        return failure.best


def _refusal_of_split(name: str, budget: int, found: _Arenas) -> str:
    forward, backward, split, total = found.forward, found.backward, found.split, found.total_bytes
    largest = max((forward, backward), key=lambda fitted: fitted.arena_bytes)
    kernel, alive = at_the_peak(largest.fused)
    kept = sorted(((node.nbytes, text_of(node, "")) for node in split.saved), key=lambda item: -item[0])
    return "\n".join(
        [
            f"{name}: memory_budget={budget} bytes cannot be kept. The least that was found is {total} bytes: {split.saved_bytes} "
            f"kept for the backward program, arenas of {forward.arena_bytes} and {backward.arena_bytes} bytes.",
            *_listed("Kept:", kept),
            *_listed(f"Alive at the peak of the larger arena, in kernel {kernel}:", alive),
            f"Give a budget of at least {total} bytes, or make these tensors smaller (a smaller batch, say).",
        ]
    )


def _listed(title: str, items: list[tuple[int, str]]) -> list[str]:
    if not items:
        return []
    lines = [title, *(f"  {nbytes} bytes: {text}" for nbytes, text in items[:_SHOWN])]
    return [*lines, f"  and {len(items) - _SHOWN} smaller one(s)"] if len(items) > _SHOWN else lines


def planned(graph: Graph, options: Options, save_memory: bool = False) -> Fused:
    """A graph's program, and where its temps lie: in the arena of the backend that `options` name."""
    from fusegraph.build import fused_program
    from fusegraph.codegen.memory import plan_memory
    from fusegraph.passes.recompute import Fused

    program, report = fused_program(graph, options, save_memory)
    placed = program
    if options.backend == "cpu":
        from fusegraph.codegen.cpu.step import in_memory
        from fusegraph.runtime import llvm

        placed = in_memory(program, llvm.target().vector_bits, options.exact, options.without).program
    plan = plan_memory(placed)
    if options.backend == "cuda":
        from fusegraph.codegen.cuda.step import emit_step
        from fusegraph.runtime.cuda_compile import DEFAULT_TARGET, TARGETS

        capability = TARGETS[options.target or DEFAULT_TARGET]
        plan = emit_step(program, options.exact, capability=capability, precision=options.precision).memory
    return Fused(graph, program, placed, plan, report, save_memory)


def refusal(name: str, budget: int, best: Fitted) -> str:
    """Why a program does not fit, what is alive where its arena is largest, and what to do."""
    kernel, alive = at_the_peak(best.fused)
    return "\n".join(
        [
            f"{name}: memory_budget={budget} bytes cannot be kept. The smallest arena that was found has {best.arena_bytes} bytes "
            f"(without a budget {best.unlimited_bytes}), with {len(best.copies)} value(s) computed again.",
            *_listed(f"Alive at its peak, in kernel {kernel}:", alive),
            f"Give a budget of at least {best.arena_bytes} bytes, or make these tensors smaller (a smaller batch, say).",
        ]
    )


def at_the_peak(fused: Fused) -> tuple[str, list[tuple[int, str]]]:
    """(the kernel at which most bytes are alive; the values then, largest first: bytes, what and where)."""
    loops, buffers = fused.placed.loops, fused.placed.buffers
    spans: dict[str, tuple[int, int]] = {}
    for number, loop in enumerate(loops):
        for buffer in (*loop.reads(), *loop.writes()):
            if buffer in fused.plan.arena and buffer in buffers:
                spans[buffer] = (spans.get(buffer, (number, 0))[0], number)

    def alive(number: int) -> list[str]:
        return [buffer for buffer, (first, last) in spans.items() if first <= number <= last]

    peak = max(range(len(loops)), key=lambda number: sum(buffers[b].nbytes for b in alive(number)))
    nodes = {buffer: node for node, buffer in fused.report.buffers.items()}
    found = [(buffers[b].nbytes, text_of(nodes.get(b), b)) for b in alive(peak)]
    return loops[peak].name, sorted(found, key=lambda item: -item[0])


def text_of(node: Node | None, buffer: str) -> str:
    """A value in words: operation, shape, the user's line."""
    if node is None:
        return buffer
    where = f" at {node.location}" if node.location.file else ""
    return f"{node.op} {node.dtype.name}{list(node.shape)}{where}"
