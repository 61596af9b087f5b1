"""The race detector of the PTX interpreter against a slow one that remembers every access, on random traces."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from ptx import GlobalRace, PtxError, SharedRace
from ptx.ir import Entry
from ptx.lanes import Lanes
from ptx.ordering import Clock, RaceDetector

CELLS = 6


@dataclass
class EveryAccess:
    """Happens-before by its definition: two accesses of one cell race unless something stands between them."""

    lanes: Lanes
    past: list[tuple[int, int, str, int]] = field(default_factory=list)  # cell, thread, kind, time
    barriers: list[tuple[int, int]] = field(default_factory=list)  # block, time
    syncs: list[tuple[int, int]] = field(default_factory=list)  # warp, time
    time: int = 0

    def ordered(self, one: int, when: int, two: int) -> bool:
        """Whether thread `two` now comes after what thread `one` did."""
        block, warp = self.lanes.block_of, self.lanes.warp_of
        if one == two:
            return True
        met = any(b == block[one] == block[two] and t > when for b, t in self.barriers)
        return met or any(w == warp[one] == warp[two] and t > when for w, t in self.syncs)

    def access(self, kind: str, cells: np.ndarray, threads: np.ndarray) -> bool:
        """Whether this instruction races with an earlier access, or with itself."""
        self.time += 1
        race = kind == "write" and len(set(cells.tolist())) < len(cells)
        for cell, thread in zip(cells.tolist(), threads.tolist()):
            for where, who, what, when in self.past:
                harmless = (kind == what and kind != "write") or self.ordered(who, when, thread)
                race = race or (where == cell and not harmless)
        self.past += [(c, t, kind, self.time) for c, t in zip(cells.tolist(), threads.tolist())]
        return race


def some_threads(lanes: Lanes, rng: np.random.Generator, block: int | None) -> np.ndarray:
    """A few threads, of one block or of any."""
    choice = lanes.all if block is None else lanes.all[lanes.block_of == block]
    return np.sort(rng.choice(choice, rng.integers(1, 4), replace=False))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("atomics", [False, True])
def test_the_first_race_of_random_traces(shared: bool, atomics: bool, rng: np.random.Generator) -> None:
    """Both find the same first race, or none; atomics race with plain accesses, not with each other."""
    lanes = Lanes(Entry("trace", ()), 1 if atomics else 2, 64)
    kinds = ["read", "read", "write"] + ["atomic"] * atomics
    races = 0
    for _ in range(250):
        clock = Clock(lanes)
        error: type[PtxError] = SharedRace if shared else GlobalRace
        detector, slow = RaceDetector(lanes, clock, 2 * CELLS, error, shared), EveryAccess(lanes)
        for _ in range(14):
            block = int(rng.integers(lanes.blocks))
            event = rng.random()
            if event < 0.25:
                clock.barrier[block] = clock.tick()
                slow.time += 1
                slow.barriers.append((block, slow.time))
                continue
            if event < 0.4:
                warp = int(rng.integers(lanes.warps))
                clock.warp_sync[warp] = clock.tick()
                slow.time += 1
                slow.syncs.append((warp, slow.time))
                continue
            threads, kind = some_threads(lanes, rng, block if shared else None), str(rng.choice(kinds))
            cells = rng.integers(0, CELLS, len(threads)) + (CELLS * block if shared else 0)
            expected = slow.access(kind, cells, threads)
            found = False
            try:
                detector.access(kind, cells, threads)
            except error:
                found = True
            assert found == expected, (kind, cells, threads, slow.past)
            if found:
                races += 1
                break
    assert 20 < races < 250
