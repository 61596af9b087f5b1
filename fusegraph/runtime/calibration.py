"""What this machine can do at most, measured once and kept in the cache folder: the roofline that profiles refer to.

Peak: independent chains of float32 multiply-adds in registers. Bandwidth: the better of a = b + 3c and of a sum, over as many bytes
as lie in each level of the memory hierarchy (a kernel that finds 1 MB in a cache is faster than memory). Both with one thread
and with all. The best of several runs counts, so that a busy neighbour does little harm.
"""

from __future__ import annotations

import ctypes
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fusegraph.records import dataclass
from fusegraph.runtime import llvm
from fusegraph.runtime.cache import DiskCache
from fusegraph.runtime.memory import aligned_empty
from fusegraph.runtime.pool import default_pool
from fusegraph.runtime.threads import available_cores

VERSION = "1"
SIZES = tuple(1 << power for power in (15, 18, 21, 24, 27))  # bytes that all threads touch: 32 KiB to 128 MiB
CHAINS = {512: 20, 256: 12, 128: 12}  # by register width: enough to hide the latency, with registers to spare
REPEATS = 4
_PEAK_STEPS = 400_000  # of the multiply-add loop: about 2 ms
_TRAFFIC = 100 << 20  # bytes that a run of the bandwidth loops moves at least: a few milliseconds
_UNROLLED = 4  # vectors in one step of a loop
_GAP = 1 << 14  # bytes between the parts of two threads


@dataclass(frozen=True)
class Roofline:
    """One thread count's limits. peak: GFLOP/s. bandwidth: (bytes in use, GB/s), in the order of SIZES."""

    threads: int
    peak: float
    bandwidth: tuple[tuple[int, float], ...]

    def gb_s(self, nbytes: float) -> float:
        """Bandwidth where so many bytes are in use: between the sizes measured, on a logarithmic scale."""
        sizes = [math.log2(size) for size, _ in self.bandwidth]
        return float(np.interp(math.log2(max(nbytes, 1)), sizes, [speed for _, speed in self.bandwidth]))

    def best(self, other: Roofline) -> Roofline:
        """The better figure of each, for this one's thread count. Both were measured over the same sizes."""
        pairs = zip(self.bandwidth, other.bandwidth, strict=True)
        return Roofline(
            self.threads, max(self.peak, other.peak), tuple((size, max(a, b)) for (size, a), (_, b) in pairs)
        )

    def floor_ns(self, nbytes: float, flops: float) -> float:
        """The least time that moving `nbytes` and computing `flops` can take, one beside the other."""
        return max(nbytes / self.gb_s(nbytes) if nbytes else 0.0, flops / self.peak)


@dataclass(frozen=True)
class Calibration:
    """Limits of this machine: with one thread, and with all that a step may use."""

    one: Roofline
    every: Roofline

    def roofline(self, threads: int | str) -> Roofline:
        """That for `threads`: 1, or any other number or "all"."""
        return self.one if threads == 1 else self.every

    def best(self, other: Calibration) -> Calibration:
        """The better figure of each."""
        return Calibration(self.one.best(other.one), self.every.best(other.every))

    def sentence(self) -> str:
        """In words."""
        parts = [
            f"{r.threads} thread(s): {r.peak:.0f} GFLOP/s, {r.bandwidth[0][1]:.0f} GB/s in the nearest cache, "
            f"{r.bandwidth[-1][1]:.0f} GB/s from memory"
            for r in dict.fromkeys((self.one, self.every))
        ]
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {name: {**vars(roofline)} for name, roofline in (("one", self.one), ("every", self.every))}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Calibration:
        """From JSON data. Raises KeyError, TypeError or ValueError when it is not a calibration."""
        one, every = (
            Roofline(
                int(part["threads"]),
                float(part["peak"]),
                tuple((int(size), float(speed)) for size, speed in part["bandwidth"]),
            )
            for part in (data["one"], data["every"])
        )
        if not (one.bandwidth and every.bandwidth and min(one.peak, every.peak) > 0):
            raise ValueError("a calibration without figures")
        return Calibration(one, every)


_measured: dict[str, Calibration] = {}  # by the key in the cache: what this process has measured or read


def stored() -> Calibration | None:
    """This machine's limits, if they have been measured before; measures nothing."""
    cache = DiskCache()
    key = cache.key("calibration", VERSION, str(available_cores()))
    if key not in _measured and (entry := cache.get(key)) is not None:
        try:
            _measured[key] = Calibration.from_json(json.loads(entry["calibration.json"]))
        except (KeyError, TypeError, ValueError):
            return None
    return _measured.get(key)


def calibration() -> Calibration:
    """This machine's limits; measured (for about a second) where they are not known, and stored."""
    known = stored()
    return known if known is not None else _keep(measure())


def measure_again() -> Calibration:
    """Measure now; of each figure the better of this and what was known is kept."""
    known, made = stored(), measure()
    return _keep(made if known is None else known.best(made))


def _keep(made: Calibration) -> Calibration:
    cache = DiskCache()
    key = cache.key("calibration", VERSION, str(available_cores()))
    _measured[key] = made
    cache.put(key, {"calibration.json": json.dumps(made.to_json()).encode()})
    return made


def measure(sizes: Sequence[int] = SIZES, repeats: int = REPEATS) -> Calibration:
    """Measure now."""
    one = _roofline(1, sizes, repeats)
    cores = available_cores()
    if cores == 1:
        return Calibration(one, one)
    # what one thread has reached, several can: where they did not, a neighbour had the other cores
    return Calibration(one, _roofline(cores, sizes, repeats).best(one))


def _roofline(threads: int, sizes: Sequence[int], repeats: int) -> Roofline:
    host, code = llvm.target(), _code()
    lanes, chains = host.float_lanes, CHAINS[host.vector_bits]
    numbers = np.full(64 * threads, 0.5, np.float32)
    seconds = _best(code, "peak", (numbers.ctypes.data, _PEAK_STEPS, 0), threads, repeats)
    peak = 2e-9 * chains * lanes * _PEAK_STEPS * threads / seconds
    memory = aligned_empty(max(sizes) // 4 + threads * (_GAP // 4 + 3 * _UNROLLED * lanes), np.float32, 64)
    memory[:] = 1.0
    return Roofline(threads, peak, tuple((size, _gb_s(code, memory, size, threads, repeats)) for size in sizes))


def _gb_s(code: llvm.LoadedCode, memory: np.ndarray[Any, Any], size: int, threads: int, repeats: int) -> float:
    """The best bandwidth over `size` bytes, shared evenly."""
    step = _UNROLLED * llvm.target().float_lanes
    speeds = []
    for symbol, arrays in (("triad", 3), ("read", 1)):
        count = max(size // (4 * arrays * threads) // step, 1) * step
        moved = 4 * arrays * count * threads
        passes = max(_TRAFFIC // moved, 1)
        seconds = _best(code, symbol, (memory.ctypes.data, passes, count), threads, repeats)
        speeds.append(1e-9 * moved * passes / seconds)
    return max(speeds)


def _best(code: llvm.LoadedCode, symbol: str, arguments: tuple[int, int, int], threads: int, repeats: int) -> float:
    """Seconds of the fastest of several runs of `symbol` on all threads (one more is not counted)."""
    table = (ctypes.c_int64 * 3)(*arguments)
    call: Callable[[int, int], None] = default_pool().bind(code.address(symbol), owner=code)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call(ctypes.addressof(table), threads)
        times.append(time.perf_counter() - start)
    return min(times[1:])


@lru_cache(maxsize=1)
def _code() -> llvm.LoadedCode:
    """The loops. Each is a step of the pool, of table = (memory, passes, numbers in one array of one thread)."""
    from fusegraph.codegen.cpu.irtext import Module

    host = llvm.target()
    module = Module(vector_bits=host.vector_bits)
    _emit_peak(module, host.float_lanes, CHAINS[host.vector_bits])
    _emit_pass(module, "triad", host.float_lanes, 3)
    _emit_pass(module, "read", host.float_lanes, 1)
    return llvm.load(llvm.compile_ir(module.text()), ("peak", "triad", "read"))


def _function(module: Any, name: str) -> tuple[Any, str, str]:
    fn = module.function(name, ["ptr noalias %table", "ptr %ctl", "i64 %tid", "i64 %nt"], linkage="")
    return fn, fn.load("ptr", "%table"), fn.load("i64", fn.gep("%table", 1, "i64"))


def _emit_peak(module: Any, lanes: int, chains: int) -> None:
    """`chains` independent multiply-adds a step; their sum is stored, so that nothing can be left out."""
    fn, memory, passes = _function(module, "peak")
    vector = f"<{lanes} x float>"
    mine = fn.gep(memory, fn.op("mul i64 %tid, 64"), "float")
    factor, added = fn.load(vector, mine, 4), fn.load(vector, fn.gep(mine, lanes, "float"), 4)
    name = f"llvm.fma.v{lanes}f32"
    fn.declare(name, f"declare {vector} @{name}({vector}, {vector}, {vector})")
    with fn.loop(0, passes, 1, carried=[(vector, factor)] * chains) as loop:
        loop.next(
            *[fn.op(f"call {vector} @{name}({vector} {c}, {vector} {factor}, {vector} {added})") for c in loop.phis]
        )
    total = loop.results[0]
    for result in loop.results[1:]:
        total = fn.op(f"fadd {vector} {total}, {result}")
    fn.store(vector, total, mine, 4)
    fn.ret()


def _emit_pass(module: Any, name: str, lanes: int, arrays: int) -> None:
    """triad: a = b + 3c over this thread's part of three arrays. read: the sum of its part of one."""
    fn, memory, passes = _function(module, name)
    vector = f"<{lanes} x float>"
    count = fn.load("i64", fn.gep("%table", 2, "i64"))
    own = fn.op(f"add i64 {fn.op(f'mul i64 {count}, {arrays}')}, {_GAP // 4}")
    mine = fn.gep(memory, fn.op(f"mul i64 %tid, {own}"), "float")
    starts = [mine, *(fn.gep(mine, fn.op(f"mul i64 {count}, {k}"), "float") for k in range(1, arrays))]
    zeros = [(vector, "zeroinitializer")] * (_UNROLLED if arrays == 1 else 0)
    with fn.loop(0, passes, 1, carried=zeros) as outer:
        with fn.loop(0, count, _UNROLLED * lanes, carried=[(t, p) for (t, _), p in zip(zeros, outer.phis)]) as inner:
            sums = []
            for k in range(_UNROLLED):
                place = fn.op(f"add i64 {inner.index}, {k * lanes}")
                a, *others = (fn.gep(start, place, "float") for start in starts)
                if others:
                    b, c = (fn.load(vector, pointer, 4) for pointer in others)
                    tripled = fn.op(f"fmul {vector} {c}, splat (float 3.0)")
                    fn.store(vector, fn.op(f"fadd {vector} {b}, {tripled}"), a, 4)
                else:
                    sums.append(fn.op(f"fadd {vector} {inner.phis[k]}, {fn.load(vector, a, 4)}"))
            inner.next(*sums)
        outer.next(*inner.results)
    if zeros:
        total = outer.results[0]
        for result in outer.results[1:]:
            total = fn.op(f"fadd {vector} {total}, {result}")
        fn.store(vector, total, mine, 4)
    fn.ret()
