"""What this machine can do at most: multiply-adds a second, and bytes a second from memory, by LLVM IR of our own.

    python -m benchmarks.roofline [--threads N]

Peak: independent chains of fused multiply-adds in registers. Bandwidth: a = b + 3c over arrays that no cache holds, with
ordinary stores (the processor reads a line before it writes one; that read is not counted) and with non-temporal ones, and
the sum of one array. Each thread has its own chains and its own part of the arrays. The figure is the best of several runs.
"""

from __future__ import annotations

import argparse
import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fusegraph.runtime import llvm
from fusegraph.runtime.threads import available_cores

CHAINS = {512: 20, 256: 12, 128: 12}  # chains by register width: enough to hide the latency, with registers to spare
STEPS = 2_000_000  # of the multiply-add loop: some 10 ms
LENGTH = 1 << 24  # float32 numbers in an array: 64 MiB
REPEATS = 5


@dataclass(frozen=True)
class Roofline:
    """GFLOP/s of float32 multiply-adds; GB/s of memory traffic that the program asks for."""

    threads: int
    cpu: str
    vector_bits: int
    gflops: float
    triad: float
    triad_streaming: float
    read: float

    @property
    def bandwidth(self) -> float:
        """The best of the measured bandwidths, in GB/s."""
        return max(self.triad, self.triad_streaming, self.read)

    def sentence(self) -> str:
        """In words."""
        return (
            f"{self.threads} thread(s) of {self.cpu}, {self.vector_bits}-bit registers: {self.gflops:.0f} GFLOP/s (float32 "
            f"multiply-adds), memory {self.triad:.1f} GB/s (a = b + 3c), {self.triad_streaming:.1f} with non-temporal "
            f"stores, {self.read:.1f} read only."
        )


def multiply_add_ir(lanes: int, chains: int) -> str:
    """@peak(steps, p): `chains` independent multiply-adds a step; the sum goes to p, so that nothing can be left out."""
    vector = f"<{lanes} x float>"
    phis = "\n".join(f"  %a{k} = phi {vector} [%b, %entry], [%n{k}, %loop]" for k in range(chains))
    steps = "\n".join(
        f"  %n{k} = call {vector} @llvm.fma.v{lanes}f32({vector} %a{k}, {vector} %b, {vector} %c)"
        for k in range(chains)
    )
    sums = "\n".join(f"  %s{k} = fadd {vector} {'%n0' if k == 1 else f'%s{k - 1}'}, %n{k}" for k in range(1, chains))
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define void @peak(i64 %steps, ptr %p) nounwind {{
entry:
  %b = load {vector}, ptr %p, align 4
  %q = getelementptr float, ptr %p, i64 {lanes}
  %c = load {vector}, ptr %q, align 4
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i.next, %loop]
{phis}
{steps}
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %steps
  br i1 %more, label %loop, label %done
done:
{sums}
  store {vector} %s{chains - 1}, ptr %p, align 4
  ret void
}}"""


def triad_ir(name: str, lanes: int, store_suffix: str) -> str:
    """@name(a, b, c, n): a = b + 3c, four vectors at a time; n is a multiple of that, the arrays are aligned."""
    vector, parts = f"<{lanes} x float>", []
    for k in range(4):
        parts.append(f"""
  %i{k} = add i64 %i, {k * lanes}
  %pa{k} = getelementptr float, ptr %a, i64 %i{k}
  %pb{k} = getelementptr float, ptr %b, i64 %i{k}
  %pc{k} = getelementptr float, ptr %c, i64 %i{k}
  %b{k} = load {vector}, ptr %pb{k}, align {4 * lanes}
  %c{k} = load {vector}, ptr %pc{k}, align {4 * lanes}
  %t{k} = fmul {vector} %c{k}, splat (float 3.0)
  %s{k} = fadd {vector} %b{k}, %t{k}
  store {vector} %s{k}, ptr %pa{k}, align {4 * lanes}{store_suffix}""")
    return _loop(f"define void @{name}(ptr noalias %a, ptr noalias %b, ptr noalias %c, i64 %n) nounwind", parts, lanes)


def read_ir(lanes: int) -> str:
    """@read(a, n): sums in four registers, which are stored over the beginning of a at the end."""
    vector, parts = f"<{lanes} x float>", []
    for k in range(4):
        parts.append(f"""
  %i{k} = add i64 %i, {k * lanes}
  %pa{k} = getelementptr float, ptr %a, i64 %i{k}
  %v{k} = load {vector}, ptr %pa{k}, align {4 * lanes}
  %s{k} = fadd {vector} %r{k}, %v{k}""")
    phis = "".join(f"\n  %r{k} = phi {vector} [zeroinitializer, %entry], [%s{k}, %loop]" for k in range(4))
    end = f"""
  %u = fadd {vector} %s0, %s1
  %w = fadd {vector} %s2, %s3
  %x = fadd {vector} %u, %w
  store {vector} %x, ptr %a, align {4 * lanes}"""
    return _loop("define void @read(ptr %a, i64 %n) nounwind", parts, lanes, phis, end)


def _loop(head: str, parts: list[str], lanes: int, phis: str = "", end: str = "") -> str:
    return f"""
{head} {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i.next, %loop]{phis}{"".join(parts)}
  %i.next = add nuw i64 %i, {4 * lanes}
  %more = icmp ult i64 %i.next, %n
  br i1 %more, label %loop, label %done
done:{end}
  ret void
}}"""


def measure(threads: int | None = None, length: int = LENGTH, steps: int = STEPS, repeats: int = REPEATS) -> Roofline:
    """Measure with `threads` threads (all cores if None); about a second."""
    threads = available_cores() if threads is None else threads
    host = llvm.target()
    lanes = host.float_lanes
    chains = CHAINS[host.vector_bits]
    text = multiply_add_ir(lanes, chains) + triad_ir("triad", lanes, "") + read_ir(lanes)
    text += triad_ir("streaming", lanes, ", !nontemporal !0") + "\n!0 = !{i32 1}\n"
    code = llvm.load(llvm.compile_ir(text), ("peak", "triad", "streaming", "read"))
    gflops = 2e-9 * chains * lanes * steps * threads / _peak_seconds(code, threads, steps, repeats)
    part = length // threads // 64 * 64
    arrays = [_aligned(part * threads) for _ in range(3)]
    pointers = [[array.ctypes.data + 4 * part * t for array in arrays] for t in range(threads)]

    def gigabytes(symbol: str, count: int) -> float:
        call = _function(code, symbol, count)
        seconds = _best([lambda p=p: call(*p[:count], part) for p in pointers], repeats)  # type: ignore[misc]
        return 4e-9 * count * part * threads / seconds

    return Roofline(threads, host.cpu, host.vector_bits, gflops, gigabytes("triad", 3), gigabytes("streaming", 3),
                    gigabytes("read", 1))  # fmt: skip


def _peak_seconds(code: llvm.LoadedCode, threads: int, steps: int, repeats: int) -> float:
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(code.address("peak"))
    buffers = [np.full(64, 0.5, np.float32) for _ in range(threads)]
    return _best([lambda b=b: call(steps, b.ctypes.data) for b in buffers], repeats)  # type: ignore[misc]


def _function(code: llvm.LoadedCode, symbol: str, pointers: int) -> Any:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * pointers, ctypes.c_int64)(code.address(symbol))


def _aligned(length: int) -> np.ndarray[Any, Any]:
    memory = np.ones(length + 16, np.float32)
    skipped = -memory.ctypes.data % 64 // 4
    return memory[skipped : skipped + length]


def _best(calls: list[Callable[[], None]], repeats: int) -> float:
    """Seconds from the moment that all threads are ready until the last is done; the best of several."""
    times = []
    for _ in range(repeats + 1):
        ready = threading.Barrier(len(calls) + 1)
        workers = [threading.Thread(target=_after, args=(ready, call)) for call in calls]
        for worker in workers:
            worker.start()
        ready.wait()
        start = time.perf_counter()
        for worker in workers:
            worker.join()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _after(ready: threading.Barrier, call: Callable[[], None]) -> None:
    ready.wait()
    call()


def as_json(roofline: Roofline) -> dict[str, Any]:
    """All figures, and the bandwidth that fractions refer to."""
    return asdict(roofline) | {"bandwidth": roofline.bandwidth}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="how many threads (all cores)")
    print(measure(parser.parse_args().threads).sentence())


if __name__ == "__main__":
    main()
