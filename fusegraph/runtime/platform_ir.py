"""LLVM IR that differs between platforms: how a thread parks, the spin-wait hint, the floating-point mode.

A thread parks on a futex on Linux, on one mutex and condition variable per control block on other POSIX systems, and
polls with short sleeps on Windows.
"""

from __future__ import annotations

import sys

from fusegraph.records import dataclass

# Byte offsets into the control block (see spmd_ir) of what the condition-variable parker needs.
MUTEX = 768  # pthread_mutex_t
CONDITION = 896  # pthread_cond_t


@dataclass(frozen=True)
class Parker:
    """How a thread gives its core away: IR for declarations, yielding, sleeping and waking.

    In `sleep`, label `check` is where the word is read again; in `wake`, `out` is where to go on.
    """

    name: str
    declarations: str
    init: str
    yielding: str
    sleep: str
    wake: str

    @property
    def symbols(self) -> tuple[str, ...]:
        """Functions of the platform that the IR declares; a module that includes it must not declare them again."""
        lines = self.declarations.splitlines()
        return tuple(line.split("@", 1)[1].split("(", 1)[0] for line in lines if line.startswith("declare"))


def _futex(number: int) -> Parker:
    call = f"call i64 (i64, ...) @syscall(i64 {number}"
    return Parker(
        name="futex",
        declarations="declare i64 @syscall(i64, ...)\ndeclare i32 @sched_yield()",
        init="",
        yielding="%ignored = call i32 @sched_yield()",
        # FUTEX_WAIT_PRIVATE: sleeps only if the word still holds the old value
        sleep=f"  %slept = {call}, ptr %word, i32 128, i32 %old, ptr null, ptr null, i32 0)\n  br label %check",
        # FUTEX_WAKE_PRIVATE, everybody
        wake=f"  %woken = {call}, ptr %word, i32 129, i32 2147483647, ptr null, ptr null, i32 0)\n  br label %out",
    )


_PTHREAD = Parker(
    name="pthread",
    declarations="\n".join(
        [
            "declare i32 @sched_yield()",
            "declare i32 @pthread_mutex_init(ptr, ptr)",
            "declare i32 @pthread_cond_init(ptr, ptr)",
            "declare i32 @pthread_mutex_lock(ptr)",
            "declare i32 @pthread_mutex_unlock(ptr)",
            "declare i32 @pthread_cond_wait(ptr, ptr)",
            "declare i32 @pthread_cond_broadcast(ptr)",
        ]
    ),
    init=f"""\
  %mutex = getelementptr i8, ptr %ctl, i64 {MUTEX}
  %condition = getelementptr i8, ptr %ctl, i64 {CONDITION}
  %e1 = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %e2 = call i32 @pthread_cond_init(ptr %condition, ptr null)""",
    yielding="%ignored = call i32 @sched_yield()",
    # the word is read again under the mutex, and the waker broadcasts under it: no wake-up is lost
    sleep=f"""\
  %mutex = getelementptr i8, ptr %ctl, i64 {MUTEX}
  %condition = getelementptr i8, ptr %ctl, i64 {CONDITION}
  %e1 = call i32 @pthread_mutex_lock(ptr %mutex)
  %now = load atomic i32, ptr %word seq_cst, align 4
  %same = icmp eq i32 %now, %old
  br i1 %same, label %block, label %unlock
block:
  %e2 = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %unlock
unlock:
  %e3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %check""",
    wake=f"""\
  %mutex = getelementptr i8, ptr %ctl, i64 {MUTEX}
  %condition = getelementptr i8, ptr %ctl, i64 {CONDITION}
  %e1 = call i32 @pthread_mutex_lock(ptr %mutex)
  %e2 = call i32 @pthread_cond_broadcast(ptr %condition)
  %e3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %out""",
)

_POLLING = Parker(
    name="polling",
    declarations="declare i32 @SwitchToThread()\ndeclare void @Sleep(i32)",
    init="",
    yielding="%ignored = call i32 @SwitchToThread()",
    sleep="  call void @Sleep(i32 1)\n  br label %check",
    wake="  br label %out",
)


def parkers(arch: str, platform: str = sys.platform) -> tuple[Parker, ...]:
    """The parkers that work on a platform, best first. `arch` is the first part of the target triple."""
    if platform == "win32":
        return (_POLLING,)
    number = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(arch)
    if platform.startswith("linux") and number is not None:
        return (_futex(number), _PTHREAD)
    return (_PTHREAD,)


def pause_ir(arch: str) -> str:
    """The spin-wait hint as an inline-assembly statement."""
    hint = {"x86_64": "pause", "i386": "pause", "i686": "pause", "aarch64": "yield", "arm64": "yield"}.get(arch, "")
    return f'call void asm sideeffect "{hint}", "~{{memory}}"()'


_FLOAT_MODE = {
    "x86": """\
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define internal i64 @fg_get_float_mode() nounwind {
  %slot = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %slot)
  %mode32 = load i32, ptr %slot, align 4
  %mode = zext i32 %mode32 to i64
  ret i64 %mode
}
define internal void @fg_set_float_mode(i64 %mode) nounwind {
  %slot = alloca i32, align 4
  %mode32 = trunc i64 %mode to i32
  store i32 %mode32, ptr %slot, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %slot)
  ret void
}
""",
    "arm": """\
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define internal i64 @fg_get_float_mode() nounwind {
  %mode = call i64 @llvm.aarch64.get.fpcr()
  ret i64 %mode
}
define internal void @fg_set_float_mode(i64 %mode) nounwind {
  call void @llvm.aarch64.set.fpcr(i64 %mode)
  ret void
}
""",
    "other": """\
define internal i64 @fg_get_float_mode() nounwind {
  ret i64 0
}
define internal void @fg_set_float_mode(i64 %mode) nounwind {
  ret void
}
""",
}


def float_mode_ir(arch: str) -> str:
    """IR to read and set a thread's floating-point mode (rounding, flush-to-zero)."""
    x86, arm = ("x86_64", "i386", "i686"), ("aarch64", "arm64")
    return _FLOAT_MODE["x86" if arch in x86 else "arm" if arch in arm else "other"]
