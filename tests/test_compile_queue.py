"""Modules in parts, compiled beside the code generator: the parts fit together, and threads change nothing."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.build import step_code
from fusegraph.codegen.cpu import irparts, step
from fusegraph.codegen.cpu.irparts import ModuleParts
from fusegraph.codegen.cpu.irtext import Module
from fusegraph.errors import CompilerError
from fusegraph.runtime import llvm
from fusegraph.runtime.compile_queue import CompileQueue

SQUARE = "define double @square{0}(double %x) {{\n  %r = fmul double %x, {0}.0\n  ret double %r\n}}\n"


def training_step():
    fg.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 5))
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    @fg.compile
    def train(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    rng = np.random.default_rng(0)
    return train, (rng.standard_normal((8, 20)).astype(np.float32), rng.integers(0, 5, 8))


def losses():
    train, arguments = training_step()
    return [train(*arguments).item() for _ in range(5)], train.compiled_for().artifact


def test_a_step_in_many_parts_gives_the_same_bits(monkeypatch):
    whole, artifact = losses()
    monkeypatch.setattr(step, "ModuleParts", lambda module, take: ModuleParts(module, take, least=1))
    monkeypatch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")
    assert losses()[0] == whole
    taken: list[str] = []
    code = step_code(artifact, take=taken.append)
    assert len(taken) > 3 and code.text == step_code(artifact).text
    defined = [name for text in taken for name in irparts.re.findall(r"define void @([\w.]+)\(", text)]
    assert len(defined) == len(set(defined)) and {kernel.name for kernel in code.kernels} < set(defined)
    again: list[str] = []
    step_code(artifact, take=again.append)
    assert taken == again


def test_parts_share_functions_and_repeat_what_is_inlined_and_tables():
    module, taken = Module(128), []
    parts = ModuleParts(module, taken.append, least=1)
    module.add_global("table", "internal constant [2 x i64] [i64 5, i64 6]")
    module.add_global("unused", "internal constant [1 x i64] [i64 5]")
    inner = module.function("inner", ["i64 %x"], attrs="alwaysinline", returns="i64")
    inner.ret("i64", inner.op("add i64 %x, 1"))
    helper = module.function("helper", ["i64 %x"], attrs="alwaysinline", returns="i64")
    helper.ret("i64", helper.call("i64", "inner", [("i64", "%x")]))

    def kernel(name, place):
        fn = module.function(name, ["ptr noalias %p"])
        value = fn.call("i64", "helper", [("i64", fn.load("i64", fn.gep("@table", place, "i64")))])
        fn.store("i64", value, fn.gep("%p", place, "i64"))
        parts.cut()

    kernel("first", 0)
    kernel("second", 1)
    kernel("again", 0)  # as first, which has left
    main = module.function("main", ["ptr %p"], linkage="")
    for name in ("first", "second", "again"):
        main.call("void", name, [("ptr", "%p")])
    parts.finish("define internal void @runtime() {\n  ret void\n}\n")
    assert [text.count("@table =") for text in taken] == [1, 1, 0, 0]
    assert [text.count("define internal i64 @helper") for text in taken] == [1, 1, 0, 0]
    assert [text.count("define void @first") for text in taken] == [1, 0, 0, 0]
    assert "declare void @first(ptr noalias)" in taken[-1] and "@again" not in taken[-1] and "@runtime" in taken[-1]
    assert not any("@unused" in text for text in taken)
    code = llvm.load([llvm.compile_ir(text) for text in taken], ["main"])
    memory = (ctypes.c_int64 * 2)()
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address("main"))(ctypes.addressof(memory))
    assert list(memory) == [6, 7]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_objects_come_in_order_and_are_the_same_for_any_number_of_threads(threads):
    interval = sys.getswitchinterval()
    texts = [SQUARE.format(n) for n in range(12)]
    with CompileQueue(threads) as queue:
        for text in texts:
            queue.add(text)
        objects = queue.finish()
    assert list(objects) == [llvm.compile_ir(text) for text in texts]
    assert sys.getswitchinterval() == interval
    code = llvm.load(objects, [f"square{n}" for n in range(12)])
    assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(code.address("square7"))(2.0) == 14.0


@pytest.mark.parametrize("threads", [0, 2])
def test_the_error_of_a_module_reaches_whoever_waits(threads):
    with CompileQueue(threads) as queue, pytest.raises(CompilerError, match="LLVM refuses generated IR"):
        queue.add(SQUARE.format(1))
        queue.add("define void @f() {\n  call void @nobody()\n  ret void\n}\n")
        queue.finish()


def test_an_error_of_the_writer_ends_the_threads():
    with pytest.raises(ZeroDivisionError), CompileQueue(2) as queue:
        queue.add(SQUARE.format(1))
        threads = list(queue._threads)
        raise ZeroDivisionError
    assert not any(thread.is_alive() for thread in threads)


FORK = """
import os, sys, threading
from fusegraph.runtime import llvm
from fusegraph.runtime.compile_queue import CompileQueue
body = "".join(f"  %v{n} = fmul double %x, {n}.5\\n  store double %v{n}, ptr %p\\n" for n in range(400))
text = "define void @f(ptr %p, double %x) {\\n" + body + "  ret void\\n}\\n"
with CompileQueue(2) as queue:
    for turn in range(12):
        queue.add(text)
    for turn in range(6):
        child = os.fork()
        if child == 0:
            llvm.load(llvm.compile_ir(text), ["f"])
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(set(queue.finish())) == 1
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_forks_while_others_compile():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n", done.stderr
