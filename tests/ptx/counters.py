"""What a launch cost: warp instructions by class, 32-byte sectors, shared-memory waves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .ir import DTYPES, Instr
from .lanes import WARP, Lanes, Sel

SECTOR = 32
BANKS = 32
SPECIAL_FUNCTIONS = {"ex2", "lg2", "sin", "cos", "tanh", "rcp", "rsqrt", "sqrt"}
WARP_OPS = {"shfl", "vote", "match", "redux", "activemask"}
CONTROL = {"bra", "ret", "exit", "trap", "brkpt"}
BIT_OPS = {"and", "or", "xor", "not", "shl", "shr", "shf", "bfe", "bfi", "lop3", "prmt", "popc", "clz", "brev", "bfind"}


@dataclass
class GlobalTraffic:
    """Requests (warp instructions), 32-byte sectors that they touch, the fewest that could hold the distinct bytes of
    each request (ideal), and the distinct sectors of the whole kernel (compulsory)."""

    requests: int = 0
    sectors: int = 0
    ideal: int = 0
    compulsory: int = 0


@dataclass
class SharedTraffic:
    """Requests (warp instructions), waves that the banks need, and waves without any conflict (ideal)."""

    requests: int = 0
    waves: int = 0
    ideal: int = 0

    @property
    def extra_waves(self) -> int:
        """Waves lost to bank conflicts."""
        return self.waves - self.ideal


@dataclass
class Counters:
    """Result of a launch. `instructions` counts warp instructions by class (see `classify`), `threads` the same by
    lanes that took part; `issues` is the count of each instruction of the code, in order, beside `code`."""

    load: GlobalTraffic = field(default_factory=GlobalTraffic)
    store: GlobalTraffic = field(default_factory=GlobalTraffic)
    atomic: GlobalTraffic = field(default_factory=GlobalTraffic)
    shared_load: SharedTraffic = field(default_factory=SharedTraffic)
    shared_store: SharedTraffic = field(default_factory=SharedTraffic)
    shared_atomic: SharedTraffic = field(default_factory=SharedTraffic)
    instructions: Counter[str] = field(default_factory=Counter)
    threads: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    barriers: int = 0
    shared_bytes: int = 0
    local_bytes: int = 0
    code: list[Instr] = field(default_factory=list, repr=False)
    issues: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    @property
    def sectors(self) -> int:
        """Sectors of all loads and stores."""
        return self.load.sectors + self.store.sectors

    @property
    def ideal_sectors(self) -> int:
        """Sectors of all loads and stores had every request touched as few as its bytes need."""
        return self.load.ideal + self.store.ideal

    @property
    def compulsory_sectors(self) -> int:
        """Distinct sectors loaded plus distinct sectors stored: what one pass over the data moves."""
        return self.load.compulsory + self.store.compulsory

    @property
    def bank_conflicts(self) -> int:
        """Extra waves of all shared loads and stores."""
        return self.shared_load.extra_waves + self.shared_store.extra_waves

    def hottest(self, count: int = 10) -> list[tuple[int, str]]:
        """The most issued instructions as (warp instructions, 'line: text')."""
        order = np.argsort(-self.issues, kind="stable")[:count]
        return [(int(self.issues[k]), f"{self.code[k].line}: {self.code[k].text}") for k in order]

    # ---------------------------------------------------------------- collection
    def begin(self, lanes: Lanes, traffic: bool) -> None:
        """Start counting for a launch."""
        self._lanes, self._traffic = lanes, traffic
        self.code = lanes.entry.code
        self.issues = np.zeros(len(self.code) + 1, np.int64)
        self._lane_issues = np.zeros(len(self.code) + 1, np.int64)
        self._touched: dict[str, np.ndarray] = {}

    def watch(self, nbytes: int) -> None:
        """Size of the global buffer, for the compulsory sectors."""
        self._touched = {kind: np.zeros(nbytes // SECTOR + 2, bool) for kind in ("load", "store", "atomic")}

    def segment(self, start: int, stop: int, warps: int, lanes: int) -> None:
        """Instructions start..stop-1 were executed by so many warps and lanes (kept as differences)."""
        self.issues[start] += warps
        self.issues[stop] -= warps
        self._lane_issues[start] += lanes
        self._lane_issues[stop] -= lanes

    def finish(self) -> None:
        """Sum up by class."""
        self.issues = np.cumsum(self.issues)[:-1]
        lane_issues = np.cumsum(self._lane_issues)[:-1]
        for instr, issues, lanes in zip(self.code, self.issues.tolist(), lane_issues.tolist()):
            if issues:
                kind = classify(instr)
                self.instructions[kind] += issues
                self.threads[kind] += lanes
        for kind, touched in self._touched.items():
            getattr(self, kind).compulsory = int(touched.sum())

    def _by_warp(self, values: np.ndarray, sel: Sel, group: int) -> np.ndarray:
        """Values as rows of `group` neighbouring lanes of one warp, -1 where a lane is missing, sorted in each row."""
        lanes = self._lanes
        ids = lanes.ids(sel)
        per_warp = WARP // group
        row = lanes.warp_of[ids] * per_warp + lanes.lane_of[ids] // group
        first = np.concatenate([[True], row[1:] != row[:-1]])
        rows = np.full((int(first.sum()), group), -1, np.int64)
        rows[np.cumsum(first) - 1, lanes.lane_of[ids] % group] = values
        return rows

    @staticmethod
    def _distinct(rows: np.ndarray) -> np.ndarray:
        """True at the first of equal values in each sorted row, never at -1."""
        rows.sort(axis=1)
        new = np.ones(rows.shape, bool)
        new[:, 1:] = rows[:, 1:] != rows[:, :-1]
        return new & (rows >= 0)

    def count_global(self, kind: str, offset: np.ndarray, nbytes: int, sel: Sel) -> None:
        """Count one request by each warp of `sel`."""
        if not self._traffic or not len(offset):
            return
        traffic: GlobalTraffic = getattr(self, kind)
        sector = offset // SECTOR
        self._touched[kind][sector] = True
        rows = self._by_warp(offset, sel, WARP)
        distinct = self._distinct(rows).sum(axis=1)
        traffic.requests += len(rows)
        traffic.ideal += int((-(-distinct * nbytes // SECTOR)).sum())
        rows[rows >= 0] //= SECTOR
        traffic.sectors += int(self._distinct(rows).sum())

    def count_shared(self, kind: str, address: np.ndarray, nbytes: int, sel: Sel) -> None:
        """Count one request by each warp of `sel`: 8-byte accesses are served by half warps, 16-byte by quarters."""
        if not self._traffic or not len(address):
            return
        traffic: SharedTraffic = getattr(self, f"shared_{kind}")
        words = max(1, nbytes // 4)
        rows = self._by_warp(address // 4, sel, WARP // words)
        if words > 1:
            rows = np.where(rows[:, :, None] >= 0, rows[:, :, None] + np.arange(words), -1).reshape(len(rows), -1)
        new = self._distinct(rows)
        cell = np.arange(len(rows))[:, None] * BANKS + rows % BANKS
        deep = np.bincount(cell[new], minlength=len(rows) * BANKS).reshape(-1, BANKS).max(axis=1)
        traffic.waves += int(deep.sum())
        traffic.ideal += len(rows)
        lanes = self._lanes
        warp = lanes.warp_of[sel]
        traffic.requests += 1 + int(np.count_nonzero(warp[1:] != warp[:-1]))


def classify(instr: Instr) -> str:
    """The class of an instruction: fma, f32, f64, f16, mufu, int, bit, cvt, pred, mov, control, barrier, warp, mma,
    load.SPACE, store.SPACE, atomic.SPACE, async."""
    op, kind = instr.opcode, instr.type
    space = next((m for m in instr.mods if m in ("global", "shared", "local", "param", "const")), "generic")
    for names, name in ((CONTROL, "control"), (WARP_OPS, "warp"), ({"bar", "barrier", "membar", "fence"}, "barrier")):
        if op in names:
            return name
    if op in ("ld", "ldu", "st", "atom", "red"):
        return {"ld": "load", "ldu": "load", "st": "store"}.get(op, "atomic") + f".{space}"
    if op in ("mma", "wmma", "ldmatrix"):
        return "mma"
    if op == "cp":
        return "async"
    if op in ("mov", "cvta", "selp"):
        return "mov"
    if op == "cvt":
        return "f64" if "f64" in instr.mods else "cvt"
    if op == "setp":
        return "f64" if kind == "f64" else "pred"
    if kind == "f64":
        return "f64"
    if op in SPECIAL_FUNCTIONS or (op == "div" and kind == "f32"):
        return "mufu"
    if op == "fma" and kind == "f32":
        return "fma"
    if DTYPES[kind].kind == "f" or kind in ("f16x2", "bf16", "bf16x2"):
        return "f32" if kind == "f32" else "f16"
    return "pred" if kind == "pred" else "bit" if op in BIT_OPS else "int"
