"""Groups of roots that run as one kernel, and the rule that says when two groups may become one.

A group has a space: parallel axes that all its roots share. For a point of the space the roots run one after the other, so a
value may go from one root to the next without leaving the point. Merging producer A into consumer B therefore asks: which of
A's space axes are, at every read, exactly one of B's axes? Those that are space axes of B too stay; the others become inner
axes, which only roots without accumulators can bear.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from fusegraph.ir.graph import Node
from fusegraph.ir.index import Axis, Div, Index, Mod, flatten_index, unflatten_index
from fusegraph.ir.scalar import Expr, Load, walk
from fusegraph.passes.roots import MAX_DEPTH, Root
from fusegraph.records import dataclass, field, replace

SMALL_WORK = 1 << 15  # points that one thread does while two threads would meet at a barrier (a few microseconds)
LARGE_MAP, LONG_RUN = 1 << 19, 1 << 14  # elements of a map, and of a run of memory that it walks through
FEW_VALUES = 64  # elements of a map for each one of the producer
MIN_PARALLEL = 16  # points of space below which threads would idle
MAX_ROOTS = 24
MAX_BUFFERS = 40
NEW = "@new"  # marks, during fusion, the new value of a state that is written in place: the state's name, and this


@dataclass(frozen=True)
class Group:
    """Roots that run as one kernel. kind: nest | contract | scatter."""

    roots: tuple[Root, ...]
    space: tuple[Axis, ...]
    kind: str

    @property
    def writes(self) -> frozenset[str]:
        """Buffers that its roots make."""
        return frozenset(root.buffer for root in self.roots)

    @property
    def points(self) -> int:
        """Points of its space."""
        return math.prod(axis.extent for axis in self.space)

    @property
    def work(self) -> int:
        """Points of all its loops."""
        return sum(root.work for root in self.roots)

    @cached_property
    def depth(self) -> int:
        """Operations on the longest way through its roots, where values go from one to the next in registers."""
        found: dict[str, int] = {}
        for root in self.roots:
            inputs = max((found[load.buffer] for load in loads(root) if load.buffer in found), default=0)
            found[root.buffer] = root.value.depth + inputs if root.kind == "map" else 0
        return max(found.values(), default=0)

    def reads(self) -> frozenset[str]:
        """Buffers that its roots load from."""
        return frozenset(load.buffer for root in self.roots for load in loads(root))


@dataclass(frozen=True)
class Refusal:
    """Why two kernels were not merged. The nodes are those between which the value would have gone."""

    rule: str
    producer: str
    consumer: str
    nbytes: int = 0
    producer_node: Node | None = field(default=None, compare=False)
    consumer_node: Node | None = field(default=None, compare=False)


class Refused(Exception):
    """Raised inside of a merge attempt, with the rule that failed."""


def loads(root: Root) -> tuple[Load, ...]:
    """Everything that a root loads, also for its addresses."""
    return root.loads


def single(root: Root) -> Group:
    """A group of one root."""
    space = () if root.kind == "scatter" else root.axes
    return Group((root,), space, {"contract": "contract", "scatter": "scatter"}.get(root.kind, "nest"))


def renamed(root: Root, mapping: dict[Axis, Index]) -> Root:
    """`root` with axes replaced; an axis that becomes an expression of several axes gives way to those."""

    def axes(old: tuple[Axis, ...]) -> tuple[Axis, ...]:
        out: dict[Axis, None] = {}
        for axis in old:
            if axis in mapping and axis.extent != 1:
                out.update(dict.fromkeys(sorted(mapping[axis].axes, key=lambda a: a.name)))
            else:
                out[axis] = None
        return tuple(out)

    return replace(
        root,
        axes=axes(root.axes),
        reduce_axes=axes(root.reduce_axes),
        value=root.value.substitute(mapping),
        index=tuple(part.substitute(mapping) for part in root.index),
    )


def _cross_loads(a: Group, b: Group) -> list[tuple[Root, Load]]:
    made = {root.buffer: root for root in a.roots}
    return [(made[load.buffer], load) for root in b.roots for load in loads(root) if load.buffer in made]


def joint_nodes(a: Group, b: Group) -> tuple[Node, Node]:
    """The operations between which a value goes from A to B: the first pair (without one, the last and the first root)."""
    made = {root.buffer: root for root in a.roots}
    for root in b.roots:
        for load in loads(root):
            if load.buffer in made:
                return made[load.buffer].node, root.node
    return a.roots[-1].node, b.roots[0].node


def merge_vertical(a: Group, b: Group) -> Group:
    """B reads what A makes: one group that does both. Raises Refused with the rule that forbids it."""
    _check_kinds(a, b)
    reads = _cross_loads(a, b)
    if b.kind == "nest" and (rebased := _rebase(a, b, reads)) is not None:
        b = rebased
        reads = _cross_loads(a, b)
    return _joined(a, b, _match(a, b, reads))


def merge_siblings(a: Group, b: Group) -> Group:
    """A and B run over spaces of equal extents, neither needs the other: side by side in one kernel. Raises Refused."""
    if a.kind != "nest" or b.kind != "nest":
        raise Refused("only map and reduce kernels are merged side by side")
    mine, theirs = ([axis for axis in group.space if axis.extent != 1] for group in (a, b))
    if [axis.extent for axis in mine] != [axis.extent for axis in theirs]:
        raise Refused("they run over different spaces")
    if len(a.roots) + len(b.roots) > MAX_ROOTS or len(a.reads() | b.reads() | a.writes | b.writes) > MAX_BUFFERS:
        raise Refused(f"more than {MAX_ROOTS} values or {MAX_BUFFERS} buffers in one kernel")
    return _joined(a, b, dict(zip(theirs, mine, strict=True)))


def _check_kinds(a: Group, b: Group) -> None:
    if "scatter" in (a.kind, b.kind):
        raise Refused("a scatter writes elements that other points read")
    if a.kind == "contract" and b.kind == "contract":
        raise Refused("two contractions do not share a register tile")
    if len(a.roots) + len(b.roots) > MAX_ROOTS:
        raise Refused(f"more than {MAX_ROOTS} values in one kernel")
    if len(a.reads() | b.reads() | a.writes | b.writes) > MAX_BUFFERS:
        raise Refused(f"more than {MAX_BUFFERS} buffers in one kernel")


def _match(a: Group, b: Group, reads: Sequence[tuple[Root, Load]]) -> dict[Axis, Axis]:
    """Which axis of B is which axis of A. Every space axis of A must be exactly one axis of B at every read."""
    rename: dict[Axis, Axis] = {}
    for space_turn in (True, False):
        for root, load in reads:
            for mine, its in zip(root.index, load.index, strict=True):
                x, y = mine.axis, its.axis
                if x is None or x.extent == 1 or (x in a.space) != space_turn:
                    continue
                fits = (
                    y is not None
                    and y.extent == x.extent
                    and rename.get(y, x) == x
                    and all(other == y for other, target in rename.items() if target == x)
                )
                if fits and y is not None:
                    rename[y] = x
                elif space_turn:
                    raise Refused("the consumer reads other points than the producer's own")
    mapping = {y: Index.of(x) for y, x in rename.items()}
    for root, load in reads:
        reshaped = any(part.axis is None and not part.is_constant for part in root.index)
        if reshaped and tuple(part.substitute(mapping) for part in load.index) != root.index:
            raise Refused("the consumer reads other points than the producer's own, which a reshape has renumbered")
    return rename


def _joined(a: Group, b: Group, rename: dict[Axis, Axis]) -> Group:
    mapping = {y: Index.of(x) for y, x in rename.items()}
    b_space = {rename.get(axis, axis) for axis in b.space}
    space = tuple(axis for axis in a.space if axis in b_space or axis.extent == 1)
    _check_axes("producer", a.roots, set(a.space) - set(space))
    moved = tuple(renamed(root, mapping) for root in b.roots)  # after what refuses most pairs: it takes long
    _check_axes("consumer", moved, b_space - set(space))
    kind = "contract" if "contract" in (a.kind, b.kind) else "nest"
    joined = Group(_in_order((*a.roots, *moved)), space, kind)
    if kind == "contract":
        _check_contract(joined, a, b)
    if joined.depth > MAX_DEPTH and len(joined.roots) > 1:
        raise Refused(f"more than {MAX_DEPTH} operations one after the other in one kernel")
    _check_order(a, moved, space)
    if joined.points < min(MIN_PARALLEL, max(a.points, b.points)) and joined.work > SMALL_WORK:
        raise Refused("too few points would be left to share among threads")
    return joined


def old_name(buffer: str) -> str | None:
    """The state buffer whose new value `buffer` is, if it is one."""
    return buffer[: -len(NEW)] if buffer.endswith(NEW) else None


def _in_order(roots: Iterable[Root]) -> tuple[Root, ...]:
    """Each root after those that it reads; what overwrites a state after those that read its old value."""
    left = list(roots)
    made = {root.buffer: root for root in left}
    before = {root.buffer: {load.buffer for load in loads(root)} & made.keys() - {root.buffer} for root in left}
    for root in left:
        old = old_name(root.buffer)
        if old is not None:
            before[root.buffer] |= {
                other.buffer for other in left if other is not root and old in {load.buffer for load in loads(other)}
            }
    done: dict[str, Root] = {}
    while left:
        ready = [root for root in left if before[root.buffer] <= done.keys()]
        if not ready:
            raise Refused("each needs the other's result, or overwrites what the other reads")
        for root in ready:
            done[root.buffer] = root
            left.remove(root)
    return tuple(done.values())


def _check_axes(who: str, roots: Sequence[Root], lost: set[Axis]) -> None:
    wide = {axis for axis in lost if axis.extent != 1}
    for root in roots:
        if wide & set(root.axes) and root.kind != "map":
            raise Refused(
                f"the {who}'s {root.node.op} has an accumulator for each {'/'.join(sorted(a.name for a in wide))}"
            )


def _check_order(a: Group, consumers: Sequence[Root], space: tuple[Axis, ...]) -> None:
    """A large map that would jump through memory for each of a few values that it reads keeps a kernel of its own."""
    small = sum(root.node.size for root in a.roots) * FEW_VALUES
    for root in consumers:
        wide = [axis for axis in root.axes if axis.extent != 1]
        last = max((place for place, axis in enumerate(wide) if axis in space), default=-1)
        run = math.prod(axis.extent for axis in wide[last + 1 :])
        jumps = run < LONG_RUN and not set(wide[:last]) <= set(space)
        if root.kind == "map" and jumps and root.work > max(LARGE_MAP, small):
            raise Refused("the consumer would walk through memory in short runs, for a few values of the producer")


def _check_contract(joined: Group, a: Group, b: Group) -> None:
    lost = {axis for axis in (*a.space, *b.space) if axis.extent != 1} - set(joined.space)
    anchor = next(root for root in joined.roots if root.kind == "contract")
    if any(axis in set(anchor.axes) for axis in lost):
        raise Refused("a contraction's tile needs all of its axes in parallel")
    for root in joined.roots:
        if root.kind != "contract":
            if root.kind != "map" or {x for x in root.axes if x.extent != 1} != {
                x for x in joined.space if x.extent != 1
            }:
                raise Refused(f"{root.node.op} does not have exactly the contraction's output points")
    if {load.buffer for load in loads(anchor)} & joined.writes:
        raise Refused("a contraction reads its operands across the tile that would make them")


# -- the same elements under another shape: bring B onto A's axes ----------------------------------------------------------


def _rebase(a: Group, b: Group, reads: Sequence[tuple[Root, Load]]) -> Group | None:
    """B over A's axes, when B is all maps over one full space that a reshape (or a permute) makes of A's points."""
    if any(root.kind != "map" or set(root.axes) != set(b.space) for root in b.roots) or not reads:
        return None
    if not any(
        _is_renumbered(mine, part) for root, load in reads for mine, part in zip(root.index, load.index, strict=True)
    ):
        return None
    root, load = reads[0]
    if root.kind not in ("map", "contract", "reduce") or set(root.axes) != set(a.space):
        return None
    inverse = invert(load.index, root.node.shape, b.space, tuple(root.index))
    if inverse is None:
        return None
    return Group(
        tuple(renamed(other, inverse) for other in b.roots),
        tuple(axis for axis in root.axes if axis.extent != 1),
        "nest",
    )


def _is_renumbered(written: Index, read: Index) -> bool:
    """Whether one of the two is an axis, of more than one point, and the other is made of axes."""
    if written.axis is None:
        return not written.is_constant and read.axis is not None and read.axis.extent != 1
    return read.axis is None and written.axis.extent != 1


def invert(
    index: Sequence[Index], shape: tuple[int, ...], axes: tuple[Axis, ...], target: tuple[Index, ...]
) -> dict[Axis, Index] | None:
    """Axes as expressions of `target`, if `index` (coordinates in `shape`, over `axes`) runs over each element exactly once.

    Works for C-order reshapes and for coordinates that are mixed-radix numbers of the axes.
    """
    wide = tuple(axis for axis in axes if axis.extent != 1)
    extents = tuple(axis.extent for axis in wide)
    if math.prod(extents) != math.prod(shape) or math.prod(shape) == 0:
        return None
    if flatten_index(index, shape) == flatten_index(tuple(map(Index.of, wide)), extents):
        return dict(zip(wide, unflatten_index(flatten_index(target, shape), extents), strict=True))
    return _invert_radix(index, shape, wide, target)


def _invert_radix(
    index: Sequence[Index], shape: tuple[int, ...], axes: tuple[Axis, ...], target: tuple[Index, ...]
) -> dict[Axis, Index] | None:
    """Where every coordinate is a number whose digits are whole axes."""
    found: dict[Axis, Index] = {}
    for part, extent, place in zip(index, shape, target, strict=True):
        if not part.is_affine or part.constant:
            return _invert_digits(index, shape, axes, target)
        step = 1
        for atom, coefficient in reversed(part.terms):
            if not isinstance(atom, Axis) or coefficient != step or atom in found:
                return None
            found[atom] = (place // step) % atom.extent if step * atom.extent != extent else place // step
            step *= atom.extent
        if step != extent:
            return None
    return found if set(found) == set(axes) else None


def _invert_digits(
    index: Sequence[Index], shape: tuple[int, ...], axes: tuple[Axis, ...], target: tuple[Index, ...]
) -> dict[Axis, Index] | None:
    """Where every axis is a number whose digits are whole coordinates: i // 64 and i % 64 give i = 64 * a + b."""
    digits: dict[Axis, list[tuple[int, int, Index]]] = {axis: [] for axis in axes}
    for part, extent, place in zip(index, shape, target, strict=True):
        if extent == 1:
            continue
        axis, step = _digit(part)
        if axis not in digits:
            return None
        digits[axis].append((step, extent, place))
    found = {}
    for axis, parts in digits.items():
        whole, reached = Index(), 1
        for step, extent, place in sorted(parts, key=lambda digit: digit[0]):
            if step != reached:
                return None
            whole, reached = whole + place * step, step * extent
        if reached != axis.extent:
            return None
        found[axis] = whole
    return found


def _digit(part: Index) -> tuple[Axis | None, int]:
    """(i, s) where `part` is i // s, or that modulo something; (None, 1) for anything else."""
    step = 1
    while part.constant == 0 and len(part.terms) == 1 and part.terms[0][1] == 1:
        atom = part.terms[0][0]
        if isinstance(atom, Axis):
            return atom, step
        if isinstance(atom, Div):
            step *= atom.divisor
        elif not isinstance(atom, Mod) or step != 1:
            return None, 1
        part = atom.index
    return None, 1


def walk_values(group: Group) -> Iterator[Expr]:
    """Every scalar expression of a group."""
    yield from walk([root.value for root in group.roots])
