"""Fill the blocks of docs/cuda-matmul.md: kernels as they are emitted, and what the PTX interpreter and ptxas count in them.

    python docs/cuda_matmul.py            rewrite the blocks
    python docs/cuda_matmul.py --check    exit with 1 if a block is out of date

A block stands between `<!-- figures NAME -->` and `<!-- end figures -->`. It takes the CUDA wheels, no GPU.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cuda-matmul.md"
sys.path.insert(0, str(ROOT))

import fusegraph as fg
from benchmarks.models import make_step
from fusegraph.codegen.cuda.contract_plan import Tile
from fusegraph.codegen.cuda.step import CudaStep, emit_step
from fusegraph.ir import GraphBuilder
from fusegraph.ir.graph import Graph
from fusegraph.runtime.cuda_compile import assemble, capability, disassemble, loops
from tests.cuda_ptx import StepPtx
from tests.cuda_tools import step_of
from tests.ptx import Counters, PtxKernel

SIZES = (128, 256, 256)  # rows, sums, columns: whole tiles
ODD = (100, 70, 50)
LARGE, TENSOR = Tile(128, 128, 8, 8, 8), Tile(128, 128, 16, 8, 8)
BLOCK = re.compile(r"(<!-- figures (\w+) -->\n)(.*?)(<!-- end figures -->)", re.DOTALL)


@dataclass(frozen=True)
class Variant:
    """One of the kernels of the page."""

    title: str
    target: str
    tile: Tile | None = None
    precision: str = "float32"

    def step(self, sizes: tuple[int, int, int]) -> CudaStep:
        """relu(a @ b + bias) by this kernel."""
        options: dict[str, Any] = {"readable": True} if self.tile is None else {"precision": self.precision}
        with patch("fusegraph.codegen.cuda.contract_plan.choose_tile", lambda *_: self.tile):
            return step_of(dense(sizes), capability=capability(self.target), **options)


VARIANTS = {
    "readable": Variant("readable", "sm_90"),
    "register": Variant("register tile, through registers", "sm_75", LARGE),
    "async": Variant("register tile, cp.async", "sm_90", LARGE),
    "tf32": Variant("tensor cores, tf32", "sm_90", TENSOR, "tf32"),
}


def dense(sizes: tuple[int, int, int]) -> Graph:
    """relu(a @ b + bias)."""
    rows, sums, columns = sizes
    builder, kind = GraphBuilder(), np.dtype(np.float32)
    a, b = builder.input("a", (rows, sums), kind), builder.input("b", (sums, columns), kind)
    bias = builder.add("expand", (builder.input("bias", (1, columns), kind),), {"shape": (rows, columns)})
    product = builder.add("matmul", (a, b), {})
    return builder.finish([builder.add("relu", (builder.add("add", (product, bias), {}),), {})], name="dense")


@lru_cache
def measured(name: str) -> tuple[Counters, Counter[str]]:
    """What the interpreter counts in a whole launch, and the opcodes of the main loop."""
    variant = VARIANTS[name]
    step = variant.step(SIZES)
    (kernel,) = step.kernels
    ptx = StepPtx(step, variant.target).ptx(kernel)
    arguments = [np.ones(step.program.buffers[buffer].size, np.float32) for buffer in kernel.buffers]
    counters = PtxKernel(ptx).launch(kernel.grid, kernel.block, arguments)
    cubin, _ = assemble(ptx, variant.target)
    return counters, Counter(loops(disassemble(cubin))[-1])


# -- blocks ---------------------------------------------------------------------------------------------------------------


def readable_kernel() -> str:
    """The readable kernel at an odd size."""
    return _fenced(VARIANTS["readable"].step(ODD).kernels[0].source)


def register_loop() -> str:
    """The main loop of the register tile, its products shortened."""
    return _fenced(_loop(VARIANTS["register"].step(SIZES).kernels[0].source))


def async_loop() -> str:
    """The main loop with cp.async."""
    return _fenced(_loop(VARIANTS["async"].step(SIZES).kernels[0].source))


def tensor_loop() -> str:
    """The main loop on tensor cores."""
    return _fenced(_loop(VARIANTS["tf32"].step(SIZES).kernels[0].source))


def traffic() -> str:
    """Sectors and waves of every variant."""
    rows, sums, columns = SIZES
    lines = [
        "| kernel | sectors read | / ideal | sectors written | / ideal | waves of shared memory | / ideal | products a wave |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, variant in VARIANTS.items():
        counters, _ = measured(name)
        waves = counters.shared_load.waves + counters.shared_store.waves
        ideal = counters.shared_load.ideal + counters.shared_store.ideal
        cells = [
            f"{counters.load.sectors}", f"{counters.load.sectors / counters.load.ideal:.2f}",
            f"{counters.store.sectors}", f"{counters.store.sectors / counters.store.ideal:.2f}",
            f"{waves}", f"{waves / ideal:.2f}", f"{rows * sums * columns / waves:.0f}",
        ]  # fmt: skip
        lines.append(f"| {variant.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_CLASSES = {
    "FFMA or HMMA": ("FFMA", "HMMA"),
    "shared memory": ("LDS", "STS"),
    "memory": ("LDG", "STG", "LDGSTS"),
    "integers, conditions": (
        "IADD", "VIADD", "IMAD", "LEA", "LOP", "SHF", "ISETP", "PLOP", "FSETP", "UIADD", "ULEA", "USHF", "UISETP", "ULOP",
    ),
    "barriers and waiting": ("BAR", "DEPBAR", "LDGDEPBAR"),
}  # fmt: skip


def instructions() -> str:
    """Shares of the main loops' instructions."""
    lines = ["| kernel | instructions | " + " | ".join(_CLASSES) + " |", "|---|---|" + "---|" * len(_CLASSES)]
    for name, variant in VARIANTS.items():
        _, opcodes = measured(name)
        shares = [sum(count for opcode, count in opcodes.items() if _is(opcode, kind)) for kind in _CLASSES]
        cells = [f"{100 * share / opcodes.total():.1f} %" for share in shares]
        lines.append(f"| {variant.title} | {opcodes.total()} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _is(opcode: str, kind: str) -> bool:
    name = opcode.partition(".")[0]
    return any(re.fullmatch(rf"{start}\d?", name) for start in _CLASSES[kind])


def storage() -> str:
    """Memory and bytes moved of training steps, with operands of products in 32 and in 16 bits."""
    lines = [
        "| training step | kept in 16 bits | arena, bytes | with float16 | moved, bytes | with float16 |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("mlp", "lenet", "kim", "transformer"):
        training = make_step(name, optimizer="sgd")
        version = fg.compile(training.step, backend="reference").compiled_for(*next(training.batches(1)))
        wide, narrow = (emit_step(version.artifact.fused[0], precision=kind) for kind in ("float32", "float16"))
        moved = (sum(cost.bytes for cost in step.costs) for step in (wide, narrow))
        cells = [len(narrow.narrow), wide.memory.arena_bytes, narrow.memory.arena_bytes, *moved]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _fenced(text: str) -> str:
    return f"```python\n{text.rstrip()}\n```\n"


def _loop(source: str) -> str:
    """The `while` of a kernel; of lines that differ only in numbers, the first and a note how many there are."""
    lines = source.splitlines()
    start = next(n for n, line in enumerate(lines) if line.lstrip().startswith("while "))
    indent = len(lines[start]) - len(lines[start].lstrip())
    end = next(n for n in range(start + 1, len(lines)) if len(lines[n]) - len(lines[n].lstrip()) <= indent)
    kept: list[str] = []
    for line in lines[start:end]:
        line = line[indent:]
        same = [old for old in kept[-2:] if _product(line) and _product(line) == _product(old)]
        if not same:
            kept.append(line)
        elif not kept[-1].lstrip().startswith("..."):
            kept.append(line[: len(line) - len(line.lstrip())] + "...  # and so on")
    return "\n".join(kept)


def _product(line: str) -> str:
    found = re.match(r"\s*((outer|tensor)_product_\w+)\(", line)
    return found.group(1) if found else ""


def filled(text: str) -> str:
    """The page with its blocks made anew."""
    return BLOCK.sub(lambda found: found.group(1) + globals()[found.group(2)]() + found.group(4), text)


def main() -> int:
    """Rewrite or check the page."""
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv[1:]:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
