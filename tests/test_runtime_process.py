"""Worker threads and the life of processes: fork, and the end with steps running."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, os, sys, threading, time, atexit
import numpy as np
from fusegraph.runtime import llvm, pool
IR = pool.barrier_ir() + '''
define void @mark(ptr %table, ptr %ctl, i64 %tid, i64 %nt) nounwind {
  call void @fg_barrier(ptr %ctl, i64 %nt)
  %slot = getelementptr i64, ptr %table, i64 %tid
  %old = load i64, ptr %slot
  %new = add i64 %old, %nt
  store i64 %new, ptr %slot
  call void @fg_barrier(ptr %ctl, i64 %nt)
  ret void
}
'''
code = llvm.load(llvm.compile_ir(IR), ["mark"])
step = pool.default_pool().bind(code.address("mark"), code)
def marks(nt):
    table = np.zeros(64, np.int64)
    step(table.ctypes.data, nt)
    return table[table != 0].tolist()
"""


def run_script(body: str, cache: str) -> str:
    environment = {**os.environ, "FUSEGRAPH_CACHE_DIR": cache}
    command = [sys.executable, "-W", "error", "-c", SCRIPT + body]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@needs_fork
def test_a_forked_child_makes_workers_of_its_own(tmp_path):
    body = """
assert marks(3) == [3, 3, 3]
for turn in range(5):
    child = os.fork()
    if child == 0:
        assert pool.default_pool().workers == 0
        assert marks(1) == [1] and marks(2) == [2, 2] and marks(4) == [4] * 4
        grandchild = os.fork()
        if grandchild == 0:
            assert marks(3) == [3] * 3
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 7
        sys.exit(5)
    assert marks(3) == [3, 3, 3]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
print("parent", marks(2))
"""
    assert run_script(body, str(tmp_path)) == "parent [2, 2]\n"


@needs_fork
def test_fork_while_another_python_thread_is_in_a_step(tmp_path):
    body = """
go = True
def busy():
    while go:
        marks(3)
thread = threading.Thread(target=busy)
thread.start()
for turn in range(20):
    child = os.fork()
    if child == 0:
        ok = marks(3) == [3, 3, 3]
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
go = False
thread.join()
print("done")
"""
    body = body if sys.version_info < (3, 12) else "import warnings; warnings.simplefilter('ignore')\n" + body
    assert run_script(body, str(tmp_path)) == "done\n"


@needs_fork
def test_multiprocessing_by_fork(tmp_path):
    body = """
import multiprocessing
assert marks(2) == [2, 2]
with multiprocessing.get_context("fork").Pool(3) as processes:
    print(processes.map(marks, [1, 2, 3, 2]))
"""
    assert run_script(body, str(tmp_path)) == "[[1], [2, 2], [3, 3, 3], [2, 2]]\n"


@pytest.mark.parametrize(
    "end",
    ["", "sys.exit(0)", "os._exit(0)", "time.sleep(0.1)", "del step, code", "del pool, llvm"],
)
def test_the_process_ends_without_hanging_or_crashing(tmp_path, end):
    body = f"assert marks(8) == [8] * 8\nprint('end', flush=True)\n{end}\n"
    assert run_script(body, str(tmp_path)) == "end\n"


def test_the_process_ends_while_daemon_threads_run_steps(tmp_path):
    body = """
def busy():
    while True:
        marks(3)
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
time.sleep(0.2)
print("end", flush=True)
"""
    assert run_script(body, str(tmp_path)) == "end\n"


def test_a_step_in_an_exit_handler(tmp_path):
    """Handlers run in reverse: `late` after the workers were stopped, `early` before."""
    body = "print(marks(2))\natexit.register(lambda: print('early', marks(2)))\n"
    early = "import atexit\natexit.register(lambda: print('late', marks(2)))\n"
    environment = {**os.environ, "FUSEGRAPH_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", early + SCRIPT + body]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[2, 2]\nearly [2, 2]\nlate [1]\n"
