"""Which values a program lets go of, and when it computes them again, so that no more than so many bytes are alive at once.

The kernels are gone through in their order, with the memory that they may use. Where the next one does not fit, values that are
not needed yet are evicted: those first that are cheap to compute again, large, and not needed for long (cost / (bytes * time)).
When a kernel reads an evicted value, that is computed again, and what it is made of before it, if that is gone as well. This is
dynamic tensor rematerialisation (Kirisame et al., ICLR 2021), done ahead of time, where the time of each value's next use is known;
on a chain of n layers it keeps about sqrt(n) values and computes each of the others once more, as the checkpoints of Chen et al.
(2016) do, and it goes below that by computing some of them several times.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from fusegraph.records import dataclass

NEVER = 1 << 60
_SMALL = 1 << 10  # values that are so much smaller than the memory are not worth an eviction


@dataclass(frozen=True)
class Step:
    """A kernel: names of the values in the arena that it reads, and of those that it makes."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """A value in the arena.

    first      the kernel that makes it; uses: the later ones that need it, in order
    sources    the values that it is computed from; None: it cannot be computed again. cost: of doing so, in operations
    takes_over  the value whose bytes it uses, if that is not needed any more by then
    """

    name: str
    nbytes: int
    first: int
    uses: tuple[int, ...]
    sources: tuple[str, ...] | None
    cost: float
    takes_over: str | None = None


@dataclass(frozen=True)
class Event:
    """What happens next: kernel number `step` runs, or (`again`) the value of that name is computed again, for `step`."""

    step: int
    again: str | None = None


class Shortage(Exception):
    """The bytes do not suffice for one kernel. needed: how many would, there."""

    def __init__(self, step: int, needed: int) -> None:
        super().__init__(f"kernel {step} needs {needed} bytes")
        self.step, self.needed = step, needed


def schedule(steps: Sequence[Step], values: Iterable[Value], limit: int) -> tuple[list[Event], int]:
    """(what happens, in order; the most bytes that were alive at once), with at most `limit` bytes. Raises Shortage."""
    run = _Run(steps, {value.name: value for value in values}, limit)
    for number in range(len(steps)):
        run.step(number)
    return run.events, run.peak


def _ages(values: dict[str, Value]) -> dict[str, int]:
    """The place of each value in an order in which it comes after its sources; those of earlier kernels come first."""
    ages: dict[str, int] = {}
    for value in sorted(values.values(), key=lambda value: (value.first, value.name)):
        stack = [value.name]
        while stack:
            waiting = [name for name in values[stack[-1]].sources or () if name not in ages]
            if not waiting:
                ages.setdefault(stack.pop(), len(ages))
            stack += waiting
    return ages


class _Run:
    """One run over the kernels. `alive`: values that may be needed again, each after its sources."""

    def __init__(self, steps: Sequence[Step], values: dict[str, Value], limit: int) -> None:
        self.steps, self.values, self.limit = steps, values, limit
        self.events: list[Event] = []
        self.age = _ages(values)
        self.alive: list[str] = []
        self.resident: set[str] = set()
        self.used = self.peak = 0

    def step(self, number: int) -> None:
        """Run kernel `number`: first what it reads is made present, then there is room for what it makes."""
        step = self.steps[number]
        for name in self._missing(step.reads):
            self._again(name, number)
        pinned = set(step.reads) | set(step.writes)
        made = [name for name in step.writes if self.values[name].first == number]
        needed = self._needed(number + 1)
        taken = {t for name in made if (t := self.values[name].takes_over) and needed.get(t, NEVER) == NEVER}
        self._allocate(made, taken & self.resident, pinned, number)
        self.events.append(Event(number))
        self.alive = sorted({*self.alive, *made}, key=self.age.__getitem__)
        self._drop(number + 1)

    def _missing(self, names: Iterable[str]) -> list[str]:
        """Evicted values among `names` and what they are made of, each after its sources."""
        found: set[str] = set()
        stack = [name for name in names if name not in self.resident]
        while stack:
            name = stack.pop()
            if name not in found:
                found.add(name)
                stack += [source for source in self._sources(name) if source not in self.resident]
        return sorted(found, key=self.age.__getitem__)

    def _sources(self, name: str) -> tuple[str, ...]:
        return self.values[name].sources or ()

    def _again(self, name: str, number: int) -> None:
        """Compute `name` again for kernel `number`; what it and the values after it are made of stays where it is."""
        if name in self.resident:
            return
        missing = self._missing(self.steps[number].reads)
        pinned = {source for other in missing for source in self._sources(other)} | set(self.steps[number].reads)
        self._allocate([name], set(), pinned, number)
        self.events.append(Event(number, name))
        self._drop(number)

    def _allocate(self, names: Sequence[str], taken: set[str], pinned: set[str], number: int) -> None:
        """Room for `names`; those of `taken` give theirs."""
        size = sum(self.values[name].nbytes for name in names) - sum(self.values[name].nbytes for name in taken)
        while self.used + size > self.limit:
            victim = self._victim(pinned, number)
            if victim is None:
                raise Shortage(number, self.used + size)
            self._evict(victim)
        self.resident -= taken
        self.resident.update(names)
        self.used += size
        self.peak = max(self.peak, self.used)

    def _evict(self, name: str) -> None:
        """Let go of `name`. What it will be made of may have been forgotten."""
        self.resident.discard(name)
        self.used -= self.values[name].nbytes
        self.alive = sorted({*self.alive, *self._missing([name])}, key=self.age.__getitem__)

    def _drop(self, number: int) -> None:
        """Forget what kernels from `number` on do not need, also not to make something else again."""
        needed = self._needed(number)
        for name in [name for name in self.alive if needed[name] == NEVER]:
            if name in self.resident:
                self.resident.discard(name)
                self.used -= self.values[name].nbytes
        self.alive = [name for name in self.alive if needed[name] != NEVER]

    def _needed(self, number: int) -> dict[str, int]:
        """For each value that is alive, the next kernel from `number` on that needs it, or something evicted that is made of it."""
        needed: dict[str, int] = {}
        for name in reversed(self.alive):
            uses = self.values[name].uses
            at = bisect_left(uses, number)
            needed[name] = min(needed.get(name, NEVER), uses[at] if at < len(uses) else NEVER)
            if name not in self.resident and needed[name] != NEVER:
                for source in self._sources(name):
                    needed[source] = min(needed.get(source, NEVER), needed[name])
        return needed

    def _victim(self, pinned: set[str], number: int) -> str | None:
        """The value that is to be evicted next."""
        needed = self._needed(number)
        best: tuple[float, str] | None = None
        for name in self.alive:
            value = self.values[name]
            if (
                name in pinned
                or name not in self.resident
                or value.sources is None
                or value.nbytes < self.limit // _SMALL
            ):
                continue
            gain = value.nbytes - sum(
                self.values[source].nbytes
                for source in value.sources
                if source in self.resident and needed.get(source, NEVER) < needed[name]
            )
            if gain <= 0:
                continue
            cost = sum(self.values[other].cost for other in self._missing_without(name))
            score = (cost / (gain * (needed[name] - number + 1)), name)
            best = score if best is None else min(best, score)
        return None if best is None else best[1]

    def _missing_without(self, name: str) -> list[str]:
        """What would have to be computed again to have `name` again."""
        return [name, *self._missing(self._sources(name))]
