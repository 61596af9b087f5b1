"""`fusegraph.diff(a, b)`: what changed from one compile to another: kernels, bytes, flops, launches, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from fusegraph.errors import OptionError
from fusegraph.inspect.explain import bytes_text
from fusegraph.inspect.explain_text import operations_text, space_text
from fusegraph.inspect.report import Report
from fusegraph.records import dataclass

_LIKE = 0.5  # share of operations that two kernels must have in common to be the same one, changed


@dataclass(frozen=True)
class Difference:
    """lost, gained: kernels of one side only. changed: pairs (before, after) that do much the same. totals: name -> (a, b)."""

    names: tuple[str, str]
    lost: list[Report]
    gained: list[Report]
    changed: list[tuple[Report, Report]]
    same: int
    totals: dict[str, tuple[int, int]]

    def to_dict(self) -> Report:
        """As plain data."""
        return {
            "names": list(self.names),
            "lost": self.lost,
            "gained": self.gained,
            "changed": [{"before": before, "after": after} for before, after in self.changed],
            "same": self.same,
            "totals": {name: list(pair) for name, pair in self.totals.items()},
        }

    def __bool__(self) -> bool:
        return bool(self.lost or self.gained or self.changed or any(a != b for a, b in self.totals.values()))

    def __str__(self) -> str:
        lines = [f"{self.names[0]}  ->  {self.names[1]}"]
        lines += [f"  {name:<13} {_change(name, *pair)}" for name, pair in self.totals.items()]
        lines += [f"  - {_kernel(kernel)}" for kernel in self.lost]
        lines += [f"  + {_kernel(kernel)}" for kernel in self.gained]
        lines += [line for before, after in self.changed for line in _changed(before, after)]
        return "\n".join([*lines, f"  {self.same} kernels are the same"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from fusegraph.inspect.html_repr import difference_html

        return difference_html(self)


def diff(a: Any, b: Any) -> Difference:
    """Compare two compiles: compiled functions (their last used version), explanations, profiles, or reports (`to_dict()`).

    Kernels are matched by what they compute and over which space; the rest by the operations that they share.
    Raises OptionError for anything else, and for a compiled function that has not been called yet.
    """
    before, after = _report(a), _report(b)
    left, right = _kernels(before), _kernels(after)
    same = _pairs(left, right, _key)
    left, right = _without(left, (x for x, _ in same)), _without(right, (y for _, y in same))
    changed = _likely(left, right)
    return Difference(
        (_title(before), _title(after)),
        _without(left, (x for x, _ in changed)),
        _without(right, (y for _, y in changed)),
        changed,
        len(same),
        {name: (_total(before, name), _total(after, name)) for name in
         ("kernels", "launches", "bytes_read", "bytes_written", "flops", "arena_bytes")},
    )  # fmt: skip


def _report(value: Any) -> Report:
    from fusegraph.compiler import Compiled

    if isinstance(value, Compiled):
        if value._last is None:
            raise OptionError("diff compares what was compiled: call the function first, or give its explain(...)")
        value = value.explain()
    report = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(report, dict) or "programs" not in report:
        raise OptionError(f"diff takes compiled functions, explanations or reports, not {type(value).__name__}")
    return report


def _kernels(report: Report) -> list[Report]:
    return [kernel for program in report["programs"] for kernel in program["kernels"]]


def _title(report: Report) -> str:
    return f"{report['name']} ({report['backend']})"


def _total(report: Report, name: str) -> int:
    if name == "arena_bytes":
        return sum(program["memory"]["arena_bytes"] for program in report["programs"])
    return sum(program["totals"]["kernels" if name == "launches" else name] for program in report["programs"])


def _key(kernel: Report) -> Any:
    return (kernel["schedule"], tuple(kernel["space"]), tuple(kernel["operations"]), kernel["bytes_read"], kernel["bytes_written"])  # fmt: skip


def _pairs(left: Sequence[Report], right: Sequence[Report], key: Any) -> list[tuple[Report, Report]]:
    waiting: dict[Any, list[Report]] = {}
    for kernel in right:
        waiting.setdefault(key(kernel), []).append(kernel)
    return [(kernel, waiting[key(kernel)].pop(0)) for kernel in left if waiting.get(key(kernel))]


def _without(kernels: Sequence[Report], gone: Iterable[Report]) -> list[Report]:
    taken = set(map(id, gone))
    return [kernel for kernel in kernels if id(kernel) not in taken]


def _likely(left: Sequence[Report], right: Sequence[Report]) -> list[tuple[Report, Report]]:
    """Pairs with the most operations in common, each kernel once."""
    scored = [(-_likeness(x, y), i, j) for i, x in enumerate(left) for j, y in enumerate(right)]
    found: list[tuple[Report, Report]] = []
    used: set[tuple[str, int]] = set()
    for score, i, j in sorted(scored):
        if -score >= _LIKE and not {("left", i), ("right", j)} & used:
            used |= {("left", i), ("right", j)}
            found.append((left[i], right[j]))
    return sorted(found, key=lambda pair: (pair[0]["id"], pair[1]["id"]))


def _likeness(x: Report, y: Report) -> float:
    """Share of operations that both have; those at the same line count more."""
    a, b = (Counter[str](kernel["operations"]) for kernel in (x, y))
    most = max(sum(a.values()), sum(b.values()), 1)
    lines = set(x["lines"]) & set(y["lines"])
    return sum((a & b).values()) / most + (0.01 * len(lines) if lines else 0.0)


def _kernel(kernel: Report) -> str:
    moved = bytes_text(kernel["bytes_read"] + kernel["bytes_written"])
    return f"{kernel['schedule']:<8} [{space_text(kernel)}] {operations_text(kernel)}: {moved}"


def _changed(before: Report, after: Report) -> list[str]:
    a, b = (Counter[str](kernel["operations"]) for kernel in (before, after))
    parts = [f"+{name}" for name in (b - a).elements()] + [f"-{name}" for name in (a - b).elements()]
    what = f" ({' '.join(parts)})" if parts else ""
    return [f"  ~ {_kernel(before)}", f"    {_kernel(after)}{what}"]


def _change(name: str, a: int, b: int) -> str:
    shown = bytes_text if "bytes" in name else (lambda n: f"{n:,}")
    if a == b:
        return f"{shown(a)}"
    ratio = f" ({b / a - 1:+.1%})" if a else ""
    return f"{shown(a)} -> {shown(b)}{ratio}"
