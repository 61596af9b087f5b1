"""A few PTX instructions as a whole kernel: one thread an element, operands loaded, the result stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .counters import Counters
from .ir import DTYPES
from .kernel import PtxKernel

HEAD = ".version 9.0\n.target sm_90\n.address_size 64\n"
SCRATCH = """    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<8>;
    .reg .f32 %f<8>;
    .reg .b64 %rd<8>;
    .reg .f64 %fd<8>;
"""


def kernel_text(body: str, params: Sequence[tuple[str, str]], registers: str = SCRATCH, module: str = "") -> str:
    """A PTX module with one kernel `snippet`; params are (type, name)."""
    listed = ",\n".join(f"    .param .{kind} {name}" for kind, name in params)
    return f"{HEAD}{module}\n.visible .entry snippet(\n{listed}\n)\n{{\n{registers}\n{body}\n    ret;\n}}\n"


def elementwise_text(code: str, kinds: Sequence[str], out: str) -> str:
    """A kernel whose thread t loads %a, %b, %c from element t of its inputs, runs `code`, and stores %d."""
    lines, declared = [], []
    width = lambda kind: max(16, 8 * DTYPES[kind].itemsize)  # noqa: E731
    for name, kind in zip("abc", kinds):
        size = DTYPES[kind].itemsize
        declared.append(f"    .reg .b{width(kind)} %{name};\n    .reg .b64 %at_{name};")
        lines += [
            f"ld.param.u64 %at_{name}, [in_{name}];",
            f"mad.wide.u32 %at_{name}, %tidx, {size}, %at_{name};",
            f"ld.global.b{8 * size} %{name}, [%at_{name}];",
        ]
    size = DTYPES[out].itemsize
    declared.append(f"    .reg .b{width(out)} %d;\n    .reg .b64 %at_d;\n    .reg .b32 %tidx;")
    lines = ["mov.u32 %tidx, %tid.x;", *lines, code, "ld.param.u64 %at_d, [out];"]
    lines += [f"mad.wide.u32 %at_d, %tidx, {size}, %at_d;", f"st.global.b{8 * size} [%at_d], %d;"]
    params = [("u64", "out")] + [("u64", f"in_{name}") for name, _ in zip("abc", kinds)]
    return kernel_text("\n".join(f"    {line}" for line in lines), params, SCRATCH + "\n".join(declared))


def evaluate(code: str, kinds: Sequence[str], inputs: Sequence[np.ndarray], out: str) -> np.ndarray:
    """%d of every thread after `code`; inputs become %a, %b, %c of the given PTX types."""
    arrays = [np.ascontiguousarray(x, DTYPES[kind]) for x, kind in zip(inputs, kinds)]
    result = np.zeros(len(arrays[0]), DTYPES[out])
    PtxKernel(elementwise_text(code, kinds, out)).launch(1, len(result), [result, *arrays])
    return result


def run_body(body: str, arrays: Sequence[np.ndarray], grid: int, block: int, module: str = "") -> Counters:
    """Run a hand-written body; the addresses of the arrays are in %rd0, %rd1, ... and the thread's index in %r0."""
    names = [("u64", f"array{k}") for k in range(len(arrays))]
    loads = "\n".join(f"    ld.param.u64 %rd{k}, [array{k}];" for k in range(len(arrays)))
    text = kernel_text(f"{loads}\n    mov.u32 %r0, %tid.x;\n{body}", names, module=module)
    return PtxKernel(text).launch(grid, block, list(arrays))
