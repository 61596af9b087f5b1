"""From a group of roots to a Loop: which stage each root runs in, and how a value gets from one root to another.

A root's stage comes after the stages of the accumulators that it reads. A value that another root of the group needs at the
same point stays in a register (the expression is inlined; equal expressions are computed once). What a later stage needs
again is computed again when that is cheap, else kept in a buffer of one point of the space ("local").
"""

from __future__ import annotations

from fusegraph.ir import scalar
from fusegraph.ir.index import Axis, Index
from fusegraph.ir.loops import Buffer, Loop, Reduce, Stage, Store
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.ir.scalar import Expr, Load, indirect_values, walk
from fusegraph.passes.groups import Group, Refused, loads, old_name, renamed
from fusegraph.passes.roots import Root
from fusegraph.records import dataclass, field, replace

_DEAR = 12  # cost above which a value is kept rather than computed again in a later stage
_COST = {"div": 4, "transcendental": 16}


@dataclass
class _Plan:
    """What is known about the roots of a group while its stages are made."""

    group: Group
    exported: frozenset[str]
    roots: dict[str, Root] = field(default_factory=dict)
    depth: dict[str, int] = field(default_factory=dict)
    key: dict[str, tuple[object, ...]] = field(default_factory=dict)
    locals: dict[str, Buffer] = field(default_factory=dict)
    resolved: dict[tuple[str, tuple[object, ...]], Expr] = field(default_factory=dict)


def inner_axes(root: Root, space: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes of a root that are not the group's (size 1 left out)."""
    return tuple(axis for axis in root.axes if axis not in space and axis.extent != 1)


def make_loop(
    group: Group, name: str, exported: frozenset[str], nodes: tuple[object, ...]
) -> tuple[Loop, list[Buffer]]:
    """The Loop of `group`, and its local buffers. `exported`: buffers that something outside of the group reads."""
    if group.kind == "scatter":
        (root,) = group.roots
        stage = Stage(axes=root.axes, stores=(Store(root.buffer, root.index, root.value, "add"),))
        return Loop(name, (), _in_memory((stage,)), "scatter", nodes), []  # type: ignore[arg-type]
    plan = _Plan(group, exported)
    waiting = list(group.roots)
    while waiting:
        root = waiting.pop(0)
        mapping = _place(plan, root, waiting)
        if mapping:
            waiting = [renamed(other, mapping) for other in waiting]
    space = group.space if group.kind == "contract" else tuple(axis for axis in group.space if axis.extent != 1)
    return Loop(name, space, _in_memory(_stages(plan)), group.kind, nodes), list(plan.locals.values())  # type: ignore[arg-type]


def _in_memory(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """With the new value of a state at its place in memory: the state itself."""

    def place(load: Expr) -> Expr:
        old = old_name(load.attribute.buffer)
        return load if old is None else scalar.load(old, load.attribute.index, load.dtype, load.attribute.mask)

    def placed(index: Index) -> Index:
        values = indirect_values(index)
        return (
            index.replace_values(dict(zip(values, scalar.replace_loads(values, place), strict=True)))
            if values
            else index
        )

    def moved(stage: Stage) -> Stage:
        values = scalar.replace_loads(stage.expressions(), place)
        reduces = tuple(replace(r, value=v) for r, v in zip(stage.reduces, values, strict=False))
        stores = tuple(
            replace(s, buffer=old_name(s.buffer) or s.buffer, index=tuple(map(placed, s.index)), value=v)
            for s, v in zip(stage.stores, values[len(stage.reduces) :], strict=True)
        )
        return replace(stage, reduces=reduces, stores=stores)

    return tuple(moved(stage) for stage in stages)


def _place(plan: _Plan, root: Root, later: list[Root]) -> dict[Axis, Index]:
    """Give a root its depth and its stage, on that stage's axes. Gives the renaming of axes that the roots after it need."""
    depth = int(plan.group.kind == "contract" and root.kind == "map")
    for load in loads(root):
        producer = plan.roots.get(load.buffer)
        if producer is not None and producer is not root:
            depth = max(depth, plan.depth[load.buffer] + _apart(plan, producer, root, load))
    old = old_name(root.buffer)
    for reader in plan.roots.values():
        if old is not None and old in {load.buffer for load in loads(reader)}:
            depth = max(depth, plan.depth[reader.buffer] + 1)
    key, mapping = _stage_key(plan, root, depth, later)
    while root.kind == "map" and _beside_its_producer(plan, root, depth, key):
        depth += 1
        key, mapping = _stage_key(plan, root, depth, later)
    root = renamed(root, mapping) if mapping else root
    plan.roots[root.buffer], plan.depth[root.buffer], plan.key[root.buffer] = root, depth, key
    return mapping


def _stage_key(plan: _Plan, root: Root, depth: int, later: list[Root]) -> tuple[tuple[object, ...], dict[Axis, Index]]:
    """The stage of `root` at `depth`: a known one with axes of the same extents, and how to rename axes to its; or a new one."""
    space = plan.group.space
    inner, reduced = inner_axes(root, space), root.reduce_axes if root.kind == "contract" else _reduced(root)
    key: tuple[object, ...] = (
        depth,
        root.kind != "map",
        tuple(a.extent for a in inner),
        tuple(a.extent for a in reduced),
    )
    mapping: dict[Axis, Index] = {}
    for other, its in plan.key.items():
        if its == key and root.kind != "contract":
            theirs = (*inner_axes(plan.roots[other], space), *_reduced(plan.roots[other]))
            mapping = {m: Index.of(t) for m, t in zip((*inner, *reduced), theirs, strict=True) if m != t}
            break
    if any(_meet(mapping, other) for other in (root, *later)):
        return (*key, root.buffer), {}
    return key, mapping


def _beside_its_producer(plan: _Plan, root: Root, depth: int, key: tuple[object, ...]) -> bool:
    """Whether something that `root` reads from memory is made at the same depth in another stage: the order would be open."""
    made = {load.buffer for load in loads(root)} & plan.roots.keys()
    return any(
        plan.depth[name] == depth and plan.key[name] != key and inner_axes(plan.roots[name], plan.group.space)
        for name in made
        if plan.roots[name].kind == "map"
    )


def _meet(mapping: dict[Axis, Index], root: Root) -> bool:
    """Whether renaming by `mapping` would make one axis of two axes of `root`."""
    axes = {*root.axes, *root.reduce_axes}
    return any(axis in axes and target.axes & axes for axis, target in mapping.items())


def _apart(plan: _Plan, producer: Root, consumer: Root, load: Load) -> bool:
    """Whether the consumer's stage must come after the producer's (not beside it)."""
    if producer.kind != "map":
        return True
    inner = inner_axes(producer, plan.group.space)
    if not inner:
        return False
    if load.index != producer.index:
        return True
    return consumer.kind == "map" and [a.extent for a in inner_axes(consumer, plan.group.space)] != [
        a.extent for a in inner
    ]


def _reduced(root: Root) -> tuple[Axis, ...]:
    return tuple(axis for axis in root.reduce_axes if axis.extent != 1)


def _stages(plan: _Plan) -> tuple[Stage, ...]:
    _find_locals(plan)
    stages: list[Stage] = []
    for key in sorted(set(plan.key.values()), key=lambda k: (k[0], k[1], str(k[2:]))):
        roots = [root for name, root in plan.roots.items() if plan.key[name] == key]
        if key[1]:
            reduces = tuple(
                Reduce(_acc_name(root), root.reduce_op, _resolve(plan, root), root.node.dtype) for root in roots
            )
            reduced = roots[0].reduce_axes if roots[0].kind == "contract" else _reduced(roots[0])
            stages.append(Stage(reduce_axes=reduced, reduces=reduces))
            stores = tuple(
                Store(root.buffer, root.index, scalar.acc(_acc_name(root), root.node.dtype))
                for root in roots
                if root.buffer in plan.exported
            )
            if stores:
                stages.append(Stage(stores=stores))
        elif stores := tuple(
            _store(plan, root, _resolve(plan, root))
            for root in roots
            if root.buffer in plan.exported or root.buffer in plan.locals
        ):
            stages.append(Stage(axes=inner_axes(roots[0], plan.group.space), stores=stores))
    _check_overwritten(stages)
    return _tidied(stages)


def _find_locals(plan: _Plan) -> None:
    """Resolve every value that the kernel computes; those that another stage needs in memory are in `locals` then."""
    waiting = [root for name, root in plan.roots.items() if root.kind != "map" or name in plan.exported]
    for root in waiting:
        known = len(plan.locals)
        _resolve(plan, root)
        waiting += [plan.roots[name] for name in list(plan.locals)[known:]]


def _check_overwritten(stages: list[Stage]) -> None:
    """Raise Refused if a stage reads the old value of a state that an earlier one has overwritten."""
    gone: set[str] = set()
    for stage in stages:
        read = {load.buffer for load in _loads_of(stage)} & gone
        if read:
            raise Refused(f"{min(read)} would be read again after it is overwritten")
        gone |= {old for store in stage.stores if (old := old_name(store.buffer)) is not None}


def _loads_of(stage: Stage) -> list[Load]:
    return [expr.attribute for expr in walk(stage.expressions()) if expr.op == "load"]


def _tidied(stages: list[Stage]) -> tuple[Stage, ...]:
    """Neighbouring store stages without axes as one, where the second does not read what the first has stored."""
    out: list[Stage] = []
    for stage in stages:
        last = out[-1] if out else stage
        if (
            out
            and not last.reduces
            and not stage.reduces
            and last.axes == stage.axes == ()
            and not {store.buffer for store in last.stores} & {load.buffer for load in _loads_of(stage)}
        ):
            out[-1] = Stage((), (), (), last.stores + stage.stores)
        else:
            out.append(stage)
    return tuple(out)


def _acc_name(root: Root) -> str:
    return f"acc_{(old_name(root.buffer) or root.buffer)}"


def _store(plan: _Plan, root: Root, value: Expr) -> Store:
    if root.buffer in plan.exported:
        return Store(root.buffer, root.index, value)
    return Store(_local(plan, root).name, _local_index(plan, root, root.index), value)


def _local(plan: _Plan, root: Root) -> Buffer:
    if root.buffer not in plan.locals:
        kept = _local_index(plan, root, tuple(map(Index, root.node.shape)))
        plan.locals[root.buffer] = Buffer(
            f"{root.buffer}_row", tuple(extent.constant for extent in kept), root.node.dtype, "local"
        )
    return plan.locals[root.buffer]


def _local_index(plan: _Plan, root: Root, index: tuple[Index, ...]) -> tuple[Index, ...]:
    """The coordinates of `index` that the local copy of a root has: those of inner axes (all, where axes stand in sums)."""
    inner = inner_axes(root, plan.group.space)
    place = {part.axis: i for i, part in enumerate(root.index)}
    return tuple(index[place[axis]] for axis in inner) if all(axis in place for axis in inner) else index


def _same_register(plan: _Plan, producer: Root, consumer: Root, load: Load) -> bool:
    """Whether the consumer can have the producer's value by inlining it."""
    if load.index != producer.index:
        return False
    return plan.key[producer.buffer] == plan.key[consumer.buffer] or _cheap(plan, producer)


def _cheap(plan: _Plan, root: Root) -> bool:
    """Whether computing a value again beats keeping it; never when it reads what the group overwrites."""
    nodes = walk([root.value])
    cost = sum(
        _COST.get(PRIMITIVES[n.op].cost, 1) if n.op in PRIMITIVES else 16 if n.op == "philox" else 0 for n in nodes
    )
    inputs = {n.attribute.buffer for n in nodes if n.op == "load"}
    overwritten = {old for name in plan.group.writes if (old := old_name(name)) is not None}
    return cost <= _DEAR and not overwritten & inputs and len(inputs) <= 3


def _resolve(plan: _Plan, root: Root) -> Expr:
    """`root`'s value with loads of the group's own values replaced: by accumulators, inlined expressions, local loads."""
    key = (root.buffer, plan.key[root.buffer])
    if key not in plan.resolved:
        plan.resolved[key] = _resolve_for(plan, root, root)
    return plan.resolved[key]


def _resolve_for(plan: _Plan, root: Root, consumer: Root) -> Expr:
    """`root`'s value as `consumer`'s stage computes it."""

    def replaced(load: Expr) -> Expr:
        name = load.attribute.buffer
        return _in_group(plan, load, plan.roots[name], consumer) if name in plan.roots and name != root.buffer else load

    return scalar.replace_loads([root.value], replaced)[0]


def _in_group(plan: _Plan, node: Expr, producer: Root, consumer: Root) -> Expr:
    load: Load = node.attribute
    if producer.kind != "map":
        value = scalar.acc(_acc_name(producer), producer.node.dtype)
        return _with_mask(value, load)
    if old_name(producer.buffer) is not None and plan.key[producer.buffer] != plan.key[consumer.buffer]:
        return node  # written by an earlier stage; what it was computed from may be overwritten by now
    if not inner_axes(producer, plan.group.space) or _same_register(plan, producer, consumer, load):
        return _with_mask(_resolve_for(plan, producer, consumer), load)
    if producer.buffer in plan.exported:
        return node
    local = _local(plan, producer)
    return scalar.load(local.name, _local_index(plan, producer, load.index), producer.node.dtype, load.mask)


def _with_mask(value: Expr, load: Load) -> Expr:
    if not load.mask:
        return value
    return scalar.op("where", scalar.inside(load.mask), value, scalar.const(0, value.dtype))
