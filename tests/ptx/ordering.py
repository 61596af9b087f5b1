"""Races: which threads touched each element last, and whether something orders those accesses before a new one.

Time is a serial number that every memory instruction advances. Two accesses of different threads are ordered when
  - both are of one block, and the block passed a barrier after the first;
  - both are of one warp, and the warp passed bar.warp.sync after the first (shuffles and votes order no memory);
  - they are of different blocks, the first one's block executed a fence after it and then an atomic (a ticket), and the
    second one's block executed an atomic since that fence (it drew a ticket too).
Accesses by several threads are remembered as "a warp", "a block" or "anyone": owners are lane numbers, then warps, then
blocks, then ANYONE, so that the greater code is always the weaker knowledge.
"""

from __future__ import annotations

import numpy as np

from .errors import PtxError
from .lanes import Lanes, Sel

NOBODY = -1


class Clock:
    """Serial numbers of the last barrier of each block, sync of each warp, fence of each block."""

    def __init__(self, lanes: Lanes) -> None:
        self.now = 1
        self.barrier = np.zeros(lanes.blocks + 1, np.int64)
        self.warp_sync = np.zeros(lanes.warps + 1, np.int64)
        self.fence = np.zeros(lanes.blocks + 1, np.int64)
        self.published = np.zeros(lanes.blocks + 1, np.int64)  # the last fence that an atomic of the block came after
        self.atomic = np.zeros(lanes.blocks + 1, np.int64)

    def ticket(self, blocks: np.ndarray, now: int) -> None:
        """Threads of these blocks execute an atomic on global memory."""
        self.published[blocks] = self.fence[blocks]
        self.atomic[blocks] = now

    def tick(self) -> int:
        """The next serial number."""
        self.now += 1
        return self.now


class Owners:
    """Codes for who touched an element, with the warp and block of each code (-1: of none)."""

    def __init__(self, lanes: Lanes, clock: Clock) -> None:
        n, w, b = lanes.count, lanes.warps, lanes.blocks
        self.first_warp, self.first_block, self.anyone = n, n + w, n + w + b
        warps, blocks = np.arange(w), np.arange(b)
        none_w, none_b = np.full(b + 2, -1), np.array([-1, -1])
        self.warp = np.concatenate([lanes.warp_of, warps, none_w])
        self.block = np.concatenate([lanes.block_of, warps // lanes.warps_per_block, blocks, none_b])
        self.clock = clock

    def ordered(self, owner: np.ndarray, stamp: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Whether something stands between what `owner` did at `stamp` and what the lanes `ids` do now."""
        block, warp = self.block[owner], self.warp[owner]
        same_block = block == self.block[ids]
        found = same_block & (stamp < self.clock.barrier[block])
        found |= (warp == self.warp[ids]) & (stamp < self.clock.warp_sync[warp])
        published = self.clock.published[block]
        drawn = published <= self.clock.atomic[self.block[ids]]
        return found | (~same_block & (block >= 0) & (stamp < published) & drawn)

    def merge(self, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """The strongest code that covers both."""
        block = np.where(self.block[one] == self.block[two], self.block[one], -1)
        warp = np.where(self.warp[one] == self.warp[two], self.warp[one], -1)
        wide = np.where(block >= 0, self.first_block + block, self.anyone)
        return np.where(one == two, one, np.where(warp >= 0, self.first_warp + warp, wide))


class History:
    """The last accesses of one kind (reads, writes or atomics) to the cells of one memory."""

    def __init__(self, cells: int, owners: Owners) -> None:
        self.owner = np.full(cells, NOBODY, np.int32)
        self.stamp = np.zeros(cells, np.int64)
        self.owners = owners

    def record(self, cells: np.ndarray, ids: np.ndarray, now: int) -> None:
        """Remember an access, beside those before it that nothing orders."""
        previous = self.owner[cells]
        keep = (previous != NOBODY) & (previous != ids)
        code = ids
        if keep.any():
            keep &= ~self.owners.ordered(previous, self.stamp[cells], ids)
            code = np.where(keep, self.owners.merge(np.where(keep, previous, ids), ids), ids)
        self.owner[cells] = code
        self.stamp[cells] = now
        lost = self.owner[cells] != code  # several lanes touch one cell in this instruction
        if lost.any():
            shared = cells[lost]
            np.maximum.at(self.owner, shared, self.owners.merge(self.owner[shared], code[lost]).astype(np.int32))


class RaceDetector:
    """Checks and records the accesses to one memory, whose cells are numbered from 0.

    `local` says that every cell belongs to one block (shared memory), so that barriers order everything.
    """

    def __init__(self, lanes: Lanes, clock: Clock, cells: int, error: type[PtxError], local: bool) -> None:
        self.lanes, self.clock, self.error, self.local = lanes, clock, error, local
        self.owners = Owners(lanes, clock)
        self.writes = History(cells, self.owners)
        self.reads = History(cells, self.owners)
        self.atomics: History | None = None
        self.cells = cells

    def access(self, kind: str, cells: np.ndarray, sel: Sel, each: int = 1) -> None:
        """An instruction by the lanes `sel`, lane k touching cells[k * each : (k + 1) * each]."""
        ids = self.lanes.ids(sel)
        ids = np.repeat(ids, each) if each > 1 else ids
        now = self.clock.tick()
        since = self.clock.barrier[self.lanes.block_of[ids]]
        self._check(self.writes, "wrote", kind, cells, ids, since)
        if kind != "read":
            self._check(self.reads, "read", kind, cells, ids, since)
        if kind != "atomic" and self.atomics is not None:
            self._check(self.atomics, "updated", kind, cells, ids, since)
        if kind == "write":
            self._write(cells, ids, now)
        elif kind == "read":
            self.reads.record(cells, ids, now)
        else:
            if self.atomics is None:
                self.atomics = History(self.cells, self.owners)
            self.atomics.record(cells, ids, now)
            if not self.local:
                self.clock.ticket(np.unique(self.lanes.block_of[ids]), now)

    def _write(self, cells: np.ndarray, ids: np.ndarray, now: int) -> None:
        self.writes.owner[cells] = ids
        self.writes.stamp[cells] = now
        lost = np.flatnonzero(self.writes.owner[cells] != ids)
        if len(lost):
            k = lost[0]
            self._report("write", int(ids[k]), "writes in the same instruction", int(self.writes.owner[cells[k]]))

    def _check(self, past: History, did: str, kind: str, cells: np.ndarray, ids: np.ndarray, since: np.ndarray) -> None:
        owner = past.owner[cells]
        suspect = (owner != ids) & (owner != NOBODY)
        if self.local:
            suspect &= past.stamp[cells] >= since
        if not suspect.any():
            return
        at = np.flatnonzero(suspect)
        owner, stamp, mine = owner[at], past.stamp[cells[at]], ids[at]
        ordered = self.owners.ordered(owner, stamp, mine)
        if did == "updated":  # atomics of several blocks: whoever passed a barrier since may look at the result
            ordered |= (self.owners.block[owner] < 0) & (stamp < since[at])
        wrong = np.flatnonzero(~ordered)
        if len(wrong):
            k = wrong[0]
            self._report(kind, int(mine[k]), did, int(owner[k]))

    def _report(self, kind: str, lane: int, did: str, owner: int) -> None:
        memory = "shared" if self.local else "global"
        verb = {"read": "reads", "write": "writes", "atomic": "updates atomically"}[kind]
        if owner < self.owners.first_warp:
            other = self.lanes.name(owner)
        elif owner < self.owners.first_block:
            other = f"several threads of warp {owner - self.owners.first_warp}"
        else:
            other = "several threads"
        need = "a barrier" if self.local else "a barrier, a fence or atomics"
        text = f"race in {memory} memory: one thread {verb} what another {did}, without {need} between: {other}"
        raise self.lanes.fault(self.error, text, lane)
