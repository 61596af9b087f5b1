"""A whole program as one native function: `void step(ptr table, ptr ctl, i64 tid, i64 nt)`.

table[0]  the arena        table[1]  thread 0's workspace (the others follow, `workspace_bytes` apart)
table[2]  set to 1 + the number of a guard that failed (then nothing has been changed)
table[3]  n, the number of rows of this call, where axes have an extent that is known at run time only
table[4+] addresses of inputs, states and outputs, in the order of the memory plan

All threads run the same function. Between two kernels there is a barrier only where one needs what another thread wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from fusegraph.codegen.cpu.barriers import place_buffers
from fusegraph.codegen.cpu.batch_blocks import batch_blocked
from fusegraph.codegen.cpu.contract import emit_contract
from fusegraph.codegen.cpu.few_rows import FEW, FewRows, few_rows, few_rows_alone, with_room_for
from fusegraph.codegen.cpu.gemm_bands import masks_of
from fusegraph.codegen.cpu.halos import Halo, with_halos
from fusegraph.codegen.cpu.irparts import ModuleParts
from fusegraph.codegen.cpu.irtext import FunctionBuilder, Module
from fusegraph.codegen.cpu.kernel import EmittedKernel, kernel_buffers
from fusegraph.codegen.cpu.kernel_share import Key, kernel_key
from fusegraph.codegen.cpu.narrow import narrow_positions
from fusegraph.codegen.cpu.nest import emit_nest
from fusegraph.codegen.cpu.nest_order import in_written_order
from fusegraph.codegen.cpu.nest_unswitch import unswitched
from fusegraph.codegen.cpu.partial_blocks import PartialBlocks, partly_filled
from fusegraph.codegen.cpu.run_time import SIZE, Refused, product, whole_part
from fusegraph.codegen.cpu.scatter import emit_scatter
from fusegraph.codegen.cpu.step_calls import call_kernels
from fusegraph.codegen.cpu.step_clock import StepClock
from fusegraph.codegen.cpu.step_stand_ins import StandIn, StandIns, clear_tail, with_room
from fusegraph.codegen.cpu.stretches import Stretch, find_stretches
from fusegraph.codegen.cpu.winners_kernels import emit_winners
from fusegraph.codegen.memory import ALIGN, THREAD_GAP, MemoryPlan
from fusegraph.ir.loops import Guard, Loop, Program
from fusegraph.records import dataclass, field, replace

TABLE_ARENA, TABLE_WORKSPACE, TABLE_ERROR, TABLE_SIZE, TABLE_FIRST = 0, 1, 2, 3, 4

SMALL_PRODUCT = 4096  # elements of a result that a plain nest computes as well


@dataclass(frozen=True)
class StepCode:
    """A program's IR and what its caller must provide.

    program: as it lies in memory (see `in_memory`). barriers: how many a step passes.
    stretches: kernels that are run together (see stretches.py).
    module, runtime: its functions; the text of further ones, that they call.
    """

    program: Program
    module: Module
    runtime: str
    memory: MemoryPlan
    workspace_bytes: int
    barriers: int
    kernels: tuple[EmittedKernel, ...]
    stretches: tuple[Stretch, ...] = ()

    @cached_property
    def text(self) -> str:
        """All of the IR, as one module."""
        return self.runtime + "\n" + self.module.text()


def emit_kernel(module: Module, loop: Loop, program: Program, vector_bits: int, exact: bool) -> EmittedKernel:
    """One Loop as a function of `module`, by the emitter of its schedule.

    Raises Refused where a product over an axis of run-time extent would have to run as a plain nest.
    """
    if loop.schedule == "contract":
        made = emit_contract(module, loop, program, vector_bits, exact=exact)
        if made is not None:
            return made
        if loop.sized and loop.points() > SMALL_PRODUCT:
            raise Refused(f"{loop.name} is a product or convolution that is planned for one number of rows")
    if not exact and (made := emit_winners(module, loop, program, vector_bits)) is not None:
        return made
    if loop.schedule == "scatter":
        return emit_scatter(module, loop, program, vector_bits, exact=exact)
    return emit_nest(module, loop, program, vector_bits, exact=exact)


def emit_step(
    program: Program,
    vector_bits: int,
    barrier_text: str,
    exact: bool = False,
    data_field: int | None = None,
    clock: str | None = None,
    take: Callable[[str], None] | None = None,
    without: frozenset[str] = frozenset(),
) -> StepCode:
    """The whole program. `barrier_text` defines @fg_barrier.

    data_field: the table has the addresses of objects from table[4] on; in each the address wanted stands so many bytes in.
    clock: name of an LLVM intrinsic; the step then notes when each kernel begins and ends (see step_clock.py), and runs
    kernels one after another, none block by block (see stretches.py).
    take: is given the IR part by part, as it is written: modules that make up the step when they are linked.
    without: names of choices that are switched off (see fusegraph.passes.choices).
    """
    module = Module(vector_bits=vector_bits)
    placed = in_memory(program, vector_bits, exact, without)
    program = placed.program
    parts = None if take is None else ModuleParts(module, take)
    kernels = _emit_kernels(module, placed, vector_bits, exact, parts)
    stretches = find_stretches(program, kernels) if clock is None and "stretches" not in without else ()
    memory, stretches = _placed(program, kernels, stretches)
    memory, stand_ins = with_room(memory, program, placed.stand_ins())
    scratch = max((kernel.scratch_bytes for kernel in kernels), default=0)
    workspace = -(-(memory.local_bytes + scratch) // ALIGN) * ALIGN + THREAD_GAP
    guards = [_emit_guard(module, guard, number, program) for number, guard in enumerate(program.guards)]
    barriers = _emit_driver(
        module,
        program,
        memory,
        kernels,
        stretches,
        guards,
        workspace,
        data_field,
        clock,
        stand_ins,
    )
    module.merge_equal()
    if parts is not None:
        parts.finish(barrier_text + "\n")
    return StepCode(program, module, barrier_text, memory, workspace, barriers, kernels, stretches)


def _placed(
    program: Program, kernels: Sequence[EmittedKernel], stretches: tuple[Stretch, ...]
) -> tuple[MemoryPlan, tuple[Stretch, ...]]:
    """Places for all buffers; without stretches where these would need a larger arena."""
    alone = place_buffers(program, kernels)
    if not stretches:
        return alone, ()
    together = place_buffers(program, kernels, stretches)
    return (together, stretches) if together.arena_bytes <= alone.arena_bytes else (alone, ())


@dataclass(frozen=True)
class Placed:
    """A program as it lies in memory; borders of zeros by the loop that writes them; what a partly filled block takes.

    few: by loop, how it runs for few rows.
    """

    program: Program
    halos: Mapping[str, Sequence[Halo]] = field(default_factory=dict)
    blocks: PartialBlocks | None = None
    few: Mapping[str, FewRows] = field(default_factory=dict)

    def tails(self, loop: Loop) -> tuple[str, ...]:
        """Buffers whose rows a loop sets to zero behind the last one (see partial_blocks.py)."""
        return () if self.blocks is None else self.blocks.tails.get(loop.name, ())

    def stand_ins(self) -> list[StandIn]:
        """Arguments and results that need room behind their last row (see step_stand_ins.py)."""
        size, most = (self.blocks.size if self.blocks else 0), dict[str, int]()
        for few in self.few.values():
            size = size or few.size
            for name in few.rows:
                if self.program.buffers[name].role in ("input", "output"):
                    most[name] = max(most.get(name, 0), few.limit)
        found = {name: StandIn(name, size, most[name], most[name]) for name in most}
        for name in self.blocks.stand_ins if self.blocks else ():
            found[name] = StandIn(name, size, self.program.buffers[name].shape[0], None)
        return [found[name] for name in sorted(found)]


def in_memory(program: Program, vector_bits: int, exact: bool, without: frozenset[str] = frozenset()) -> Placed:
    """`program` with its temps as they lie in memory, walked through as they are written: positions in 32 bits, images in blocks
    with borders of zeros.

    Loops keep their names, their number and their order. Images whose number is known at run time only lie in memory as
    everything else does where they cannot lie in blocks.
    """
    program = in_written_order(narrow_positions(program))
    if exact or "blocks" in without:
        return Placed(program)
    if program.rows:
        try:
            blocks = partly_filled(program, vector_bits)
        except Refused:
            blocks = None
        placed = Placed(program) if blocks is None else Placed(*with_halos(blocks.program, blocks.blocked), blocks)
        return _with_few(placed, vector_bits)
    blocked = batch_blocked(unswitched(program), vector_bits)
    changed = [name for name, buffer in blocked.buffers.items() if buffer is not program.buffers[name]]
    return Placed(*with_halos(blocked, changed))


def _with_few(placed: Placed, vector_bits: int) -> Placed:
    """With ways to run for few rows, and room for what they write behind the last one."""
    loops = (loop for loop in placed.program.loops if loop.sized and not placed.tails(loop))
    few = {loop.name: made for loop in loops if (made := few_rows(loop, placed.program, vector_bits)) is not None}
    buffers = dict(placed.program.buffers)
    for made in few.values():
        buffers = with_room_for(buffers, dict.fromkeys(made.rows, made.limit))
    return replace(placed, program=replace(placed.program, buffers=buffers), few=few)


def _emit_kernels(
    module: Module,
    placed: Placed,
    vector_bits: int,
    exact: bool,
    parts: ModuleParts | None,
) -> tuple[EmittedKernel, ...]:
    """A kernel for each loop; loops that differ only in names share one function."""
    kernels: list[EmittedKernel] = []
    first: dict[Key, tuple[Loop, EmittedKernel]] = {}
    program = placed.program
    for loop in program.loops:
        borders, tails = placed.halos.get(loop.name, ()), placed.tails(loop)
        masks = () if exact else masks_of(loop, program)
        cleared = tuple(kernel_buffers(loop).index(name) for name in tails)
        key = (kernel_key(loop, program), masks, tuple((halo.before, halo.behind) for halo in borders), cleared)
        if key not in first:
            kernel = emit_kernel(module, loop, program, vector_bits, exact)
            zeros = [
                emit_nest(module, halo.zeros, program, vector_bits, exact=exact, parallel=kernel.parallel)
                for halo in borders
            ]
            if (few := placed.few.get(loop.name)) is not None:
                made = emit_kernel(module, few.loop, program, vector_bits, exact)
                kernel = _by_rows(module, loop, kernel, few, made)
            kernel = _with_zeros(module, loop, kernel, zeros) if zeros else kernel
            first[key] = (loop, _with_tails(module, loop, kernel, tails, placed) if tails else kernel)
            if parts is not None:
                parts.cut()
        like, kernel = first[key]
        renamed = dict(zip(kernel_buffers(like), kernel_buffers(loop), strict=True))
        kernels.append(replace(kernel, buffers=tuple(renamed[name] for name in kernel.buffers)))
    return tuple(kernels)


def _with_zeros(module: Module, loop: Loop, kernel: EmittedKernel, zeros: Sequence[EmittedKernel]) -> EmittedKernel:
    """A kernel that writes an image and, in the same go, the zeros around it: both along the same blocks of images."""
    name = f"{kernel.name}_and_halo"
    fn = _calling(module, name, loop, kernel)
    for part in (kernel, *zeros):
        _call_part(fn, part, loop, kernel)
    scratch = max(part.scratch_bytes for part in (kernel, *zeros))
    return replace(kernel, name=name, scratch_bytes=scratch, rows=0)


def _with_tails(
    module: Module, loop: Loop, kernel: EmittedKernel, tails: Sequence[str], placed: Placed
) -> EmittedKernel:
    """A kernel that writes rows and sets those behind the last one to zero, as far as its block goes."""
    assert placed.blocks is not None
    name = f"{kernel.name}_and_tail"
    fn = _calling(module, name, loop, kernel)
    _call_part(fn, kernel, loop, kernel)
    with fn.if_(fn.compare("eq", "i64", "%tid", 0)):
        for buffer in tails:
            pointer = f"%p{kernel.buffers.index(buffer)}"
            clear_tail(fn, pointer, placed.program.buffers[buffer], placed.blocks.size)
    return replace(kernel, name=name, rows=0)


def _by_rows(module: Module, loop: Loop, many: EmittedKernel, few: FewRows, made: EmittedKernel) -> EmittedKernel:
    """A kernel that is one for few rows, and another one for more."""
    name, parallel = f"{loop.name}_by_rows", many.parallel or made.parallel
    fn = _calling(module, name, loop, many)
    with fn.if_else(fn.compare("sle", "i64", SIZE, few.limit)) as branch:
        for part, of, enter in ((made, few.loop, branch.then), (many, loop, branch.otherwise)):
            with enter():
                if part.parallel or not parallel:
                    _call_part(fn, part, of, many)
                    continue
                with fn.if_(fn.compare("eq", "i64", "%tid", 0)):
                    _call_part(fn, part, of, many, alone=True)
    scratch = max(many.scratch_bytes, made.scratch_bytes)
    return EmittedKernel(name, many.buffers, scratch, parallel, 0, many.work)


def _calling(module: Module, name: str, loop: Loop, kernel: EmittedKernel) -> FunctionBuilder:
    pointers = [f"ptr %p{place}" for place in range(len(kernel.buffers))]
    size = [f"i64 {SIZE}"] if loop.sized else []
    return module.function(name, [*pointers, "ptr %scratch", "i64 %tid", "i64 %nt", *size])


def _call_part(
    fn: FunctionBuilder, part: EmittedKernel, loop: Loop, kernel: EmittedKernel, alone: bool = False
) -> None:
    """Call `part`, which is a kernel for `loop`, with the arguments of `kernel`. alone: as the only thread."""
    places = [("ptr", f"%p{kernel.buffers.index(buffer)}") for buffer in part.buffers]
    size = [("i64", SIZE)] if loop.sized else []
    share = ("0", "1") if alone else ("%tid", "%nt")
    fn.call("void", part.name, [*places, ("ptr", "%scratch"), *(("i64", one) for one in share), *size])


def _emit_driver(
    module: Module,
    program: Program,
    memory: MemoryPlan,
    kernels: tuple[EmittedKernel, ...],
    stretches: Sequence[Stretch],
    guards: list[str],
    workspace: int,
    data_field: int | None,
    clock: str | None,
    stand_ins: dict[StandIn, int],
) -> int:
    fn = module.function("step", ["ptr noalias %table", "ptr %ctl", "i64 %tid", "i64 %nt"], linkage="")
    arena = fn.load("ptr", fn.gep("%table", TABLE_ARENA, "ptr"))
    space = fn.load("ptr", fn.gep("%table", TABLE_WORKSPACE, "ptr"))
    mine = fn.gep(space, fn.op(f"mul i64 %tid, {workspace}"), "i8")
    address = {
        name: fn.load("ptr", fn.gep("%table", TABLE_FIRST + slot, "ptr")) for slot, name in enumerate(memory.externals)
    }
    if data_field is not None:
        address = {name: fn.load("ptr", fn.gep(entry, data_field, "i8")) for name, entry in address.items()}
    address |= {name: fn.gep(arena, offset, "i8") for name, offset in memory.arena.items()}
    address |= {name: fn.gep(mine, offset, "i8") for name, offset in memory.locals.items()}
    scratch = fn.gep(mine, memory.local_bytes, "i8")
    if program.rows:
        size = fn.gep("%table", TABLE_SIZE, "i64")
        fn.emit(f"{SIZE} = load i64, ptr {size}, align 8")
        address |= {buffer.name: size for buffer in program.buffers.values() if buffer.role == "size"}
    for number, (guard, name) in enumerate(zip(program.guards, guards, strict=True)):
        _call_guard(fn, name, address[guard.buffer], number, guard.buffer in program.rows)
    stamps = None
    if clock is not None:
        stamps = StepClock(fn, clock, TABLE_FIRST + len(memory.externals), len(kernels))
    copies = StandIns(fn, program, stand_ins) if stand_ins else None
    if copies is not None:
        copies.enter(address, arena)
    few = [few_rows_alone(kernel, loop) for kernel, loop in zip(kernels, program.loops, strict=True)]
    if few == list(kernels):
        barriers = call_kernels(fn, program, memory, kernels, stretches, address, scratch, stamps)
    else:
        with fn.if_else(fn.compare("sle", "i64", SIZE, FEW)) as branch:
            with branch.then():
                call_kernels(fn, program, memory, few, stretches, address, scratch, stamps)
            with branch.otherwise():
                barriers = call_kernels(fn, program, memory, kernels, stretches, address, scratch, stamps)
    if copies is not None:
        copies.leave()
    fn.ret()
    return barriers


def _call_guard(fn: FunctionBuilder, name: str, pointer: str, number: int, sized: bool) -> None:
    bad = fn.op(f"call i1 @{name}(ptr {pointer}{f', i64 {SIZE}' if sized else ''})")
    with fn.if_(bad):
        fn.store("i64", number + 1, fn.gep("%table", TABLE_ERROR, "i64"))
        fn.ret()
        fn.label(fn.fresh_label("unreachable"))


_LLVM_INTEGER = {"int64": "i64", "int32": "i32", "uint32": "i32", "uint8": "i8"}


def _emit_guard(module: Module, guard: Guard, number: int, program: Program) -> str:
    """A function that says whether an element of an index input is out of range: a few lanes at a time, without branches."""
    buffer = program.buffers[guard.buffer]
    kind = _LLVM_INTEGER[buffer.dtype.name]
    signed = buffer.dtype.kind == "i"
    rows = program.rows.get(guard.buffer, 0)
    params = ["ptr noalias readonly %p", *([f"i64 {SIZE}"] if rows else [])]
    fn = FunctionBuilder(f"guard{number}", params, returns="i1")
    lanes = 8
    vector = f"<{lanes} x {kind}>"
    count = product(fn, (rows * math.prod(buffer.shape[1:]), SIZE)) if rows else buffer.size
    whole = whole_part(fn, count, lanes)
    with fn.loop(0, whole, lanes, carried=[(f"<{lanes} x i1>", "zeroinitializer")]) as loop:
        value = fn.load(vector, fn.gep("%p", loop.index, kind), buffer.dtype.itemsize)
        outside = _outside(fn, guard, vector, value, signed, f"splat ({kind} ", ")")
        loop.next(fn.op(f"or <{lanes} x i1> {loop.phis[0]}, {outside}"))
    found = fn.op(f"call i1 @llvm.vector.reduce.or.v{lanes}i1(<{lanes} x i1> {loop.results[0]})")
    fn.declare(f"llvm.vector.reduce.or.v{lanes}i1", f"declare i1 @llvm.vector.reduce.or.v{lanes}i1(<{lanes} x i1>)")

    def one(element: int | str, found: str) -> str:
        value = fn.load(kind, fn.gep("%p", element, kind), buffer.dtype.itemsize)
        return fn.op(f"or i1 {found}, {_outside(fn, guard, kind, value, signed, '', '')}")

    if isinstance(whole, int) and isinstance(count, int):
        for element in range(whole, count):
            found = one(element, found)
    else:
        with fn.loop(whole, count, carried=[("i1", found)]) as last:
            last.next(one(last.index, last.phis[0]))
        (found,) = last.results
    fn.ret("i1", found)
    module.add(fn)
    return fn.name


def _outside(fn: FunctionBuilder, guard: Guard, type_: str, value: str, signed: bool, before: str, after: str) -> str:
    """Whether `value` is outside of the guard's range (and is not the allowed exception)."""

    def constant(number: int) -> str:
        return f"{before}{number}{after}"

    below = fn.op(f"icmp {'slt' if signed else 'ult'} {type_} {value}, {constant(guard.low)}")
    above = fn.op(f"icmp {'sge' if signed else 'uge'} {type_} {value}, {constant(guard.high)}")
    truth = "i1" if not type_.startswith("<") else f"{type_.split(' x ')[0]} x i1>"
    bad = fn.op(f"or {truth} {below}, {above}")
    if guard.allow is None:
        return bad
    other = fn.op(f"icmp ne {type_} {value}, {constant(guard.allow)}")
    return fn.op(f"and {truth} {bad}, {other}")
