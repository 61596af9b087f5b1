"""LLVM IR text of the SPMD runtime: waiting, barrier, worker loop and launch. No C compiler takes part.

A control block (`ctl`) holds the shared words; words that different threads write stand 128 bytes apart, because the
prefetcher of current CPUs moves cache lines in pairs. A thread waits until a word changes: some hundred pause
instructions, then `sched_yield`, then it parks. A spin that is much longer is a trap: a woken worker is placed on
the spinner's own core and waits for it (0.5-0.9 ms against 20 us).

What differs between platforms stands in `platform_ir`.
"""

from __future__ import annotations

import re

from fusegraph.runtime.platform_ir import Parker, float_mode_ir, pause_ir

# Byte offsets into the control block.
SPIN = 0  # i32, pauses before a waiting thread yields
STOPPED = 4  # i32, not 0 once the pool is closed
LOCK = 128  # i32 word + i32 sleepers: one launch at a time
BARRIER_COUNT = 256  # i32, threads that have arrived
BARRIER = 384  # i32 word (generation) + i32 sleepers
PENDING = 512  # i32, workers that have not finished the step
DONE = 640  # i32 word (generation) + i32 sleepers
# MUTEX, CONDITION (768, 896): see platform_ir
MAILBOX = 1024  # one a thread: i32 word + i32 sleepers, then what the launch says (BOX_*)
MAILBOX_STRIDE = 128
MAX_THREADS = 256
CONTROL_BYTES = MAILBOX + MAILBOX_STRIDE * MAX_THREADS

BOX_FUNCTION, BOX_TABLE, BOX_THREADS, BOX_FLOAT_MODE = 8, 16, 24, 32  # byte offsets into a mailbox

# Byte offsets into a job record, which a bound step owns; the function stands first.
JOB_CONTROL, JOB_THREADS, JOB_SPIN = 8, 16, 24

YIELDS = 50  # sched_yield calls between spinning and parking: covers the gap between two calls in a training loop

_BARRIER = """\
; ---- SPMD runtime: threads that wait for one another ----
$declarations

; Returns once the i32 at %word differs from %old. The number of threads that are parked stands 4 bytes behind it.
define internal void @fg_wait(ptr %ctl, ptr %word, i32 %old) noinline nounwind {
entry:
  %spin = load i32, ptr %ctl, align 4
  br label %spin.loop
spin.loop:
  %i = phi i32 [ 0, %entry ], [ %i.next, %spin.again ]
  %v0 = load atomic i32, ptr %word acquire, align 4
  %changed0 = icmp ne i32 %v0, %old
  br i1 %changed0, label %out, label %spin.again
spin.again:
  $pause
  %i.next = add i32 %i, 1
  %more = icmp ult i32 %i.next, %spin
  br i1 %more, label %spin.loop, label %yield.loop
yield.loop:
  %y = phi i32 [ 0, %spin.again ], [ %y.next, %yield.again ]
  $yielding
  %v1 = load atomic i32, ptr %word acquire, align 4
  %changed1 = icmp ne i32 %v1, %old
  br i1 %changed1, label %out, label %yield.again
yield.again:
  %y.next = add i32 %y, 1
  %more.yields = icmp ult i32 %y.next, $yields
  br i1 %more.yields, label %yield.loop, label %park
park:
  %sleepers = getelementptr i8, ptr %word, i64 4
  %s0 = atomicrmw add ptr %sleepers, i32 1 seq_cst
  br label %check
check:
  %v2 = load atomic i32, ptr %word seq_cst, align 4
  %changed2 = icmp ne i32 %v2, %old
  br i1 %changed2, label %leave, label %sleep
sleep:
$sleep
leave:
  %s1 = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %out
out:
  ret void
}

; Stores %new and wakes whoever is parked on the word. Both accesses are seq_cst: either the waiter's check sees the new
; value or this load sees the waiter.
define internal void @fg_post(ptr %ctl, ptr %word, i32 %new) nounwind {
entry:
  store atomic i32 %new, ptr %word seq_cst, align 4
  %sleepers = getelementptr i8, ptr %word, i64 4
  %parked = load atomic i32, ptr %sleepers seq_cst, align 4
  %none = icmp eq i32 %parked, 0
  br i1 %none, label %out, label %wake
wake:
$wake
out:
  ret void
}

; Every thread of a step calls this: what any thread wrote before is seen by all after.
define internal void @fg_barrier(ptr %ctl, i64 %nt) noinline nounwind {
entry:
  %alone = icmp ule i64 %nt, 1
  br i1 %alone, label %out, label %arrive
arrive:
  %generation = getelementptr i8, ptr %ctl, i64 $barrier
  %count = getelementptr i8, ptr %ctl, i64 $barrier_count
  %g = load atomic i32, ptr %generation acquire, align 4
  %before = atomicrmw add ptr %count, i32 1 acq_rel
  %arrived = add i32 %before, 1
  %all = trunc i64 %nt to i32
  %last = icmp eq i32 %arrived, %all
  br i1 %last, label %release, label %wait
release:
  store atomic i32 0, ptr %count monotonic, align 4
  %g.next = add i32 %g, 1
  call void @fg_post(ptr %ctl, ptr %generation, i32 %g.next)
  br label %out
wait:
  call void @fg_wait(ptr %ctl, ptr %generation, i32 %g)
  br label %out
out:
  ret void
}
"""

_LAUNCH = """\

; ---- workers and launch: once a process ----
$float_mode
define void @fg_init(ptr %ctl) nounwind {
$init
  ret void
}

; Wakes every worker so that it sees the stop flag. Waits for a running step first.
define void @fg_stop(ptr %ctl, i64 %threads) nounwind {
entry:
  call void @fg_lock(ptr %ctl)
  %stopped = getelementptr i8, ptr %ctl, i64 $stopped
  store atomic i32 1, ptr %stopped seq_cst, align 4
  br label %loop
loop:
  %tid = phi i64 [ 1, %entry ], [ %tid.next, %body ]
  %more = icmp ult i64 %tid, %threads
  br i1 %more, label %body, label %out
body:
  %box = call ptr @fg_mailbox(ptr %ctl, i64 %tid)
  %g = load i32, ptr %box, align 4
  %g.next = add i32 %g, 1
  call void @fg_post(ptr %ctl, ptr %box, i32 %g.next)
  %tid.next = add i64 %tid, 1
  br label %loop
out:
  call void @fg_unlock(ptr %ctl)
  ret void
}

define internal ptr @fg_mailbox(ptr %ctl, i64 %tid) alwaysinline nounwind {
  %scaled = mul i64 %tid, $mailbox_stride
  %offset = add i64 %scaled, $mailbox
  %box = getelementptr i8, ptr %ctl, i64 %offset
  ret ptr %box
}

define internal void @fg_lock(ptr %ctl) nounwind {
entry:
  %lock = getelementptr i8, ptr %ctl, i64 $lock
  br label %try
try:
  %pair = cmpxchg ptr %lock, i32 0, i32 1 acq_rel acquire
  %taken = extractvalue { i32, i1 } %pair, 1
  br i1 %taken, label %out, label %busy
busy:
  call void @fg_wait(ptr %ctl, ptr %lock, i32 1)
  br label %try
out:
  ret void
}

define internal void @fg_unlock(ptr %ctl) nounwind {
  %lock = getelementptr i8, ptr %ctl, i64 $lock
  call void @fg_post(ptr %ctl, ptr %lock, i32 0)
  ret void
}

; Body of a worker thread: waits at its mailbox, runs its share of the step, reports, until the pool is stopped.
define void @fg_worker(ptr %ctl, i64 %tid) nounwind {
entry:
  %box = call ptr @fg_mailbox(ptr %ctl, i64 %tid)
  %p.function = getelementptr i8, ptr %box, i64 $box_function
  %p.table = getelementptr i8, ptr %box, i64 $box_table
  %p.nt = getelementptr i8, ptr %box, i64 $box_threads
  %p.mode = getelementptr i8, ptr %box, i64 $box_float_mode
  %p.stopped = getelementptr i8, ptr %ctl, i64 $stopped
  %pending = getelementptr i8, ptr %ctl, i64 $pending
  %done = getelementptr i8, ptr %ctl, i64 $done
  br label %loop
loop:
  %seen = phi i32 [ 0, %entry ], [ %g, %run ], [ %g, %report ]
  call void @fg_wait(ptr %ctl, ptr %box, i32 %seen)
  %g = load atomic i32, ptr %box acquire, align 4
  %stopped = load atomic i32, ptr %p.stopped acquire, align 4
  %go = icmp eq i32 %stopped, 0
  br i1 %go, label %run, label %out
run:
  %function = load ptr, ptr %p.function, align 8
  %table = load ptr, ptr %p.table, align 8
  %nt = load i64, ptr %p.nt, align 8
  %mode = load i64, ptr %p.mode, align 8
  call void @fg_set_float_mode(i64 %mode)
  call void %function(ptr %table, ptr %ctl, i64 %tid, i64 %nt)
  %left = atomicrmw sub ptr %pending, i32 1 acq_rel
  %last = icmp eq i32 %left, 1
  br i1 %last, label %report, label %loop
report:
  %d = load i32, ptr %done, align 4
  %d.next = add i32 %d, 1
  call void @fg_post(ptr %ctl, ptr %done, i32 %d.next)
  br label %loop
out:
  ret void
}

; Runs the job's function on its threads; the caller is thread 0. Two pointers, because each argument of a foreign call
; costs. One thread, or a pool that is stopped: a plain call. Workers take over the caller's floating-point mode, so
; that denormals are treated alike on all threads (a library may have set flush-to-zero on one of them).
define void @fg_launch(ptr %job, ptr %table) nounwind {
entry:
  %function = load ptr, ptr %job, align 8
  %p.ctl = getelementptr i8, ptr %job, i64 $job_control
  %ctl = load ptr, ptr %p.ctl, align 8
  %p.nt = getelementptr i8, ptr %job, i64 $job_threads
  %nt = load i64, ptr %p.nt, align 8
  %many = icmp ugt i64 %nt, 1
  br i1 %many, label %lock, label %alone
alone:
  call void %function(ptr %table, ptr %ctl, i64 0, i64 1)
  ret void
lock:
  call void @fg_lock(ptr %ctl)
  %p.stopped = getelementptr i8, ptr %ctl, i64 $stopped
  %stopped = load atomic i32, ptr %p.stopped acquire, align 4
  %go = icmp eq i32 %stopped, 0
  br i1 %go, label %spin.check, label %closed
closed:
  call void @fg_unlock(ptr %ctl)
  br label %alone
spin.check:
  %p.job.spin = getelementptr i8, ptr %job, i64 $job_spin
  %spin = load i32, ptr %p.job.spin, align 4
  %old.spin = load i32, ptr %ctl, align 4
  %keep = icmp eq i32 %spin, %old.spin
  br i1 %keep, label %start, label %spin.set
spin.set:
  store i32 %spin, ptr %ctl, align 4
  br label %start
start:
  %pending = getelementptr i8, ptr %ctl, i64 $pending
  %done = getelementptr i8, ptr %ctl, i64 $done
  %d = load atomic i32, ptr %done acquire, align 4
  %nt32 = trunc i64 %nt to i32
  %workers = sub i32 %nt32, 1
  %mode = call i64 @fg_get_float_mode()
  store atomic i32 %workers, ptr %pending release, align 4
  br label %send
send:
  %tid = phi i64 [ 1, %start ], [ %tid.next, %send ]
  %box = call ptr @fg_mailbox(ptr %ctl, i64 %tid)
  %b.function = getelementptr i8, ptr %box, i64 $box_function
  %b.table = getelementptr i8, ptr %box, i64 $box_table
  %b.nt = getelementptr i8, ptr %box, i64 $box_threads
  %b.mode = getelementptr i8, ptr %box, i64 $box_float_mode
  store ptr %function, ptr %b.function, align 8
  store ptr %table, ptr %b.table, align 8
  store i64 %nt, ptr %b.nt, align 8
  store i64 %mode, ptr %b.mode, align 8
  %g = load i32, ptr %box, align 4
  %g.next = add i32 %g, 1
  call void @fg_post(ptr %ctl, ptr %box, i32 %g.next)
  %tid.next = add i64 %tid, 1
  %more = icmp ult i64 %tid.next, %nt
  br i1 %more, label %send, label %share
share:
  call void %function(ptr %table, ptr %ctl, i64 0, i64 %nt)
  call void @fg_wait(ptr %ctl, ptr %done, i32 %d)
  call void @fg_unlock(ptr %ctl)
  ret void
}
"""

LAUNCH_SYMBOLS = ("fg_init", "fg_stop", "fg_worker", "fg_launch")


def barrier_text(arch: str, parker: Parker) -> str:
    """IR of `@fg_barrier(ptr %ctl, i64 %nt)` and what it needs, all of internal linkage."""
    return _filled(
        _BARRIER,
        declarations=parker.declarations,
        pause=pause_ir(arch),
        yielding=parker.yielding,
        yields=YIELDS,
        sleep=parker.sleep,
        wake=parker.wake,
        barrier=BARRIER,
        barrier_count=BARRIER_COUNT,
    )


def launch_text(arch: str, parker: Parker) -> str:
    """IR of the module that a process loads once: LAUNCH_SYMBOLS."""
    return barrier_text(arch, parker) + _filled(
        _LAUNCH,
        float_mode=float_mode_ir(arch),
        init=parker.init,
        box_function=BOX_FUNCTION,
        box_table=BOX_TABLE,
        box_threads=BOX_THREADS,
        box_float_mode=BOX_FLOAT_MODE,
        stopped=STOPPED,
        lock=LOCK,
        mailbox=MAILBOX,
        mailbox_stride=MAILBOX_STRIDE,
        pending=PENDING,
        done=DONE,
        job_control=JOB_CONTROL,
        job_threads=JOB_THREADS,
        job_spin=JOB_SPIN,
    )


def _filled(text: str, **values: object) -> str:
    """`text` with a value for each $name."""
    return re.sub(r"\$(\w+)", lambda found: str(values[found[1]]), text)
