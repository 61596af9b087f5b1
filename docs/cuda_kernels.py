"""Fill the blocks of docs/cuda.md: one short kernel of each kind, as it is emitted, and the launches of a step.

python docs/cuda_kernels.py            rewrite the blocks
python docs/cuda_kernels.py --check    exit with 1 if a block is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "cuda.md"
BLOCK = re.compile(r"(<!-- kernel (\w+) -->\n)(.*?)(<!-- end kernel -->)", re.DOTALL)

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.codegen.cuda.step import CudaStep, emit_step


def step_of(function: Callable[..., Any], *arrays: Any, exact: bool = False) -> CudaStep:
    """The CUDA step of a function of these arrays."""
    artifact = fg.compile(function, backend="cuda").compiled_for(*arrays).artifact
    return emit_step(artifact.fused[0], exact)


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    """Float32 zeros."""
    return np.zeros(shape, np.float32)


def gradient_of_table(table: Any, words: Any, weight: Any) -> Any:
    """The gradient of an embedding."""
    table.requires_grad_()
    (F.embedding(words, table) * weight).sum().backward()
    return table.grad


def kernels(step: CudaStep) -> str:
    """The texts of a step's kernels, without the user's lines."""
    text = "\n\n\n".join(kernel.source for kernel in step.kernels)
    return re.sub(r"\n +\w+\.py:\d+(?=\n)", "", text)


BLOCKS: dict[str, Callable[[], str]] = {
    "map": lambda: kernels(step_of(lambda x, y: (x * y).relu(), zeros(64, 256), zeros(64, 256))),
    "row": lambda: kernels(step_of(lambda x: F.softmax(x, -1), zeros(64, 512))),
    "tile": lambda: kernels(step_of(lambda x: x.sum(1), zeros(4096, 6))),
    "column": lambda: kernels(step_of(lambda x: x.sum(0), zeros(400, 64))),
    "two_steps": lambda: kernels(step_of(lambda x: x.sum(), zeros(1 << 20))),
    "scatter": lambda: (
        step_of(gradient_of_table, zeros(50, 8), np.zeros(300, np.int64), zeros(300, 8)).kernels[-1].source
    ),
    "scatter_exact": lambda: (
        step_of(gradient_of_table, zeros(50, 8), np.zeros(300, np.int64), zeros(300, 8), exact=True).kernels[-1].source
    ),
    "batch": lambda: kernels(step_of(lambda x, y: (x * 2, y.exp()), zeros(33, 5), zeros(77))),
    "describe": lambda: step_of(lambda x: F.layer_norm(x, (4000,)).sum(0), zeros(64, 4000)).describe(),
}


def filled(text: str) -> str:
    """The page with all its blocks made anew."""

    def block(match: re.Match[str]) -> str:
        made = re.sub(r"\n +\w+\.py:\d+(?=\n)", "", BLOCKS[match[2]]())
        language = "text" if match[2] == "describe" else "python"
        return f"{match[1]}```{language}\n{made.rstrip()}\n```\n{match[4]}"

    return BLOCK.sub(block, text)


def main() -> int:
    """Rewrite the page, or compare."""
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
