"""Fill the blocks of the documentation that come from a real compile: the MNIST step of `examples/mnist.py`, batch 16, SGD.

    python docs/generate.py            rewrite the blocks in docs/**/*.md
    python docs/generate.py --check    exit with 1 if a block is out of date

A block stands between `<!-- block NAME -->` and `<!-- end -->`; NAME is a function of this file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import fusegraph as fg
import fusegraph.functional as F
from examples.mnist import Net
from fusegraph import optim
from fusegraph.build import Artifact, step_code
from fusegraph.codegen.memory import plan_memory
from fusegraph.codegen.python import print_loop_source
from fusegraph.inspect.explain import bytes_text
from fusegraph.ir.loops import Loop
from fusegraph.ir.loops_text import print_loop

BATCH = 16
BLOCK = re.compile(r"(<!-- block (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@lru_cache(maxsize=1)
def artifact() -> Artifact:
    """The compiled step."""
    fg.manual_seed(0)
    model = Net()
    opt = optim.SGD(model.parameters(), lr=0.05)

    @fg.compile
    def step(x: Any, y: Any) -> Any:
        opt.zero_grad()
        loss = F.nll_loss(model(x), y)
        loss.backward()
        opt.step()
        return loss

    images, labels = np.zeros((BATCH, 1, 28, 28), np.float32), np.zeros(BATCH, np.int64)
    return step.compiled_for(images, labels).artifact


def fenced(text: str, language: str = "text") -> str:
    """`text` as a code block; paths of this checkout made short."""
    short = text.replace(str(ROOT) + "/", "")
    return f"```{language}\n{short.rstrip()}\n```\n"


def _loop(*operations: str) -> Loop:
    """The first kernel in which all of `operations` run."""
    program, report = artifact().fused
    for name, nodes in report.kernels:
        if set(operations) <= {node.op for node in nodes}:
            return next(loop for loop in program.loops if loop.name == name)
    raise LookupError(f"no kernel holds {operations}")


def op_graph() -> str:
    """The beginning of the traced graph."""
    lines = str(artifact().source).splitlines()
    return fenced("\n".join([*lines[:24], f"  ... ({len(lines) - 25} more lines)", "}"]))


def op_graph_end() -> str:
    """The end of the traced graph: what is returned, and what is overwritten."""
    lines = str(artifact().source).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  return"))
    return fenced("\n".join(["  ...", *lines[start:]]))


def conv_gradients() -> str:
    """The gradient nodes of the convolutions."""
    return fenced(
        "\n".join(
            line
            for line in str(artifact().source).splitlines()
            if "conv_weight_grad(" in line or "conv_input_grad(" in line
        )
    )


def passes() -> str:
    """Every pass that changed something, with the number of nodes before and after."""
    rows, before = ["| pass | nodes before | nodes after |", "|---|---|---|"], len(artifact().source.nodes)
    for name, graph in artifact().stages:
        rows.append(f"| {name} | {before} | {len(graph.nodes)} |")
        before = len(graph.nodes)
    return "\n".join(rows) + "\n"


def explanation() -> str:
    """The report, without the times of this machine."""
    from fusegraph.inspect.explain import Explanation

    lines = [line for line in str(Explanation([artifact()])).splitlines() if not line.startswith("  compiled")]
    return fenced("\n".join(lines))


def tour_explanation() -> str:
    """The beginning of the report of the network in docs/tour.md: the forward kernels, the dearest refusals."""
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    script = "\n\n".join(blocks)  # the file that a reader makes of the page
    names: dict[str, Any] = {}
    exec(compile(script[: script.index("rng = ")], "tour.py", "exec"), names)
    images, labels = np.zeros((64, 1, 28, 28), np.float32), np.zeros(64, np.int64)
    lines = str(names["step"].explain(images, labels)).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("    3 "))
    refused = next(i for i, line in enumerate(lines) if line.startswith("  not fused"))
    return fenced("\n".join([*lines[:first], "  ...", *lines[refused : refused + 4], "    ..."]))


def loop_conv() -> str:
    """The first convolution with its bias and relu, as a Loop."""
    return fenced(print_loop(_loop("conv", "relu")))


def loop_softmax() -> str:
    """The row kernel of log-softmax, as a Loop."""
    return fenced(print_loop(_loop("max", "exp", "sum")))


def loop_update() -> str:
    """A weight gradient with the optimizer's update in its epilogue, as a Loop."""
    loops = artifact().fused[0].loops
    found = next(
        loop
        for loop in loops
        if loop.schedule == "contract" and {"conv_weight_grad", "sub"} <= {n.op for n in loop.nodes}
    )
    return fenced(print_loop(found))


def loop_pool() -> str:
    """Max-pooling's backward: the values of the winners, and their places."""
    return fenced(print_loop(_loop("fold")))


def loop_winners() -> str:
    """A weight gradient as a sum over winners, as a Loop."""
    loop = next(
        loop for loop in artifact().fused[0].loops if "weight_grad" in loop.name and loop.name.endswith("_winners")
    )
    return fenced(print_loop(loop))


def source_softmax() -> str:
    """The row kernel as readable Python."""
    return fenced(print_loop_source(_loop("max", "exp", "sum"), artifact().fused[0]), "python")


def llvm_step() -> str:
    """The driver: what one call of the step does."""
    text = step_code(artifact()).text
    start = text.index("define void @step(")
    lines = text[start : text.index("\n}", start) + 2].splitlines()
    calls = [line for line in lines if "call void" in line or "call i1" in line or line.startswith("define")]
    calls[0] = calls[0].split(")")[0] + ") {"  # without attributes: they name the vector width of this machine
    return fenced("\n".join([*calls[:18], f"  ; ... {len(calls) - 18} more calls", "}"]), "llvm")


def memory() -> str:
    """The temps of the step: where they lie in the arena."""
    program, _ = artifact().fused
    plan = plan_memory(program)
    rows = ["| temp | shape | bytes | offset |", "|---|---|---|---|"]
    for name, offset in sorted(plan.arena.items(), key=lambda item: item[1]):
        buffer = program.buffers[name]
        rows.append(f"| {name} | {buffer.dtype.name}{list(buffer.shape)} | {buffer.nbytes:,} | {offset:,} |")
    rows.append("")
    rows.append(f"Together {bytes_text(plan.unshared_bytes)}; the arena is {bytes_text(plan.arena_bytes)}.")
    return "\n".join(rows) + "\n"


def primitives() -> str:
    """The table of primitives by kind."""
    from fusegraph.ir.primitives import PRIMITIVES

    kinds: dict[str, list[str]] = {}
    for primitive in PRIMITIVES.values():
        kinds.setdefault(primitive.kind, []).append(primitive.name)
    return (
        "\n".join(["| kind | primitives |", "|---|---|", *(f"| {k} | {', '.join(v)} |" for k, v in kinds.items())])
        + "\n"
    )


BLOCKS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        op_graph,
        op_graph_end,
        conv_gradients,
        passes,
        explanation,
        tour_explanation,
        loop_conv,
        loop_softmax,
        loop_update,
        loop_pool,
        loop_winners,
        source_softmax,
        llvm_step,
        memory,
        primitives,
    )
}


def filled(text: str) -> str:
    """A page with its blocks made anew. Raises KeyError for a block that does not exist."""
    return BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m[2]]()}{m[4]}", text)


def main() -> int:
    """Rewrite or check every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(new, encoding="utf-8")
    print(
        "\n".join(f"{'out of date' if check else 'rewritten'}: {page}" for page in stale) or "all blocks are up to date"
    )
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
