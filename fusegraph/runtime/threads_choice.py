"""Choice between one thread and all of them, by timing a step's own calls.

With a busy neighbour, or a step too small to share, one thread beats two. The code of a step takes the thread count as
an argument, so that the choice costs no compilation. It changes results only where generated code splits a sum by
thread (sums of per-thread partial results round differently); who needs the same bits in every run sets the count with
`set_num_threads`, which switches the choice off.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fusegraph import events
from fusegraph.runtime.pool import BoundStep
from fusegraph.runtime.threads import ThreadSetting, asked_threads, get_num_threads

WARM_UP = 2  # calls before the first trial: page faults, cold caches
BLOCK = 3  # calls in a row with one count; the first is not counted, because it may have to wake parked workers
ROUNDS = 3  # blocks of each count in a trial
SAMPLE_EVERY = 16  # after the trial one call of so many is timed
FIRST_RECHECK, LAST_RECHECK = 4, 64  # sampled calls until the next trial: 64 calls after a change, at last a thousand
SLOW_SAMPLES = 3  # sampled calls in a row at twice the kept time that bring the next trial forward
CLEAR_LEAD = 2.0  # lead that ends a trial after its first round: trials of long steps are expensive
MARGIN = 0.95  # the count in use is left only for one that takes less than this share of its time


class ThreadChoice:
    """A bound step that picks its thread count: `choice.call(table_ptr)` (or `choice(table_ptr)`, 0.1 us slower).

    Blocks of calls with all threads and with one are timed alternately, then the better count is kept. It is tried again
    when calls take twice the time, and after 64 calls, after 128, and so on up to 1000 while trials agree: the first one is
    often wrong, since new workers may share a core with the caller until the system spreads them. `max_threads` limits the
    count (little parallel work). `prepare(count)` is called before a call may use up to so many threads, if that may be more
    or fewer than before.
    """

    def __init__(
        self, step: BoundStep, max_threads: int | None = None, prepare: Callable[[int], None] | None = None
    ) -> None:
        self._step = step
        self._max_threads = max_threads
        self._prepare = prepare
        self._untimed = 0  # calls left until the next timed one
        self._restart()

    @property
    def threads(self) -> int:
        """The count that is kept at present (during a trial: the one kept before, at first the largest)."""
        return self._kept

    @property
    def fixed(self) -> bool:
        """Whether the count was asked for by the user, or only one is possible: nothing is timed then."""
        return self._fixed

    def call(self, table_ptr: int) -> None:
        """Run the step once."""
        if self._untimed and self._version == ThreadSetting.version:
            self._untimed -= 1
            self._step(table_ptr, self._kept)
            return
        if self._version != ThreadSetting.version:
            self._restart()
        if self._fixed:
            self._untimed = 1 << 30
            self._step(table_ptr, self._kept)
        else:
            self._timed_call(table_ptr)

    __call__ = call

    def _restart(self) -> None:
        self._version = ThreadSetting.version
        limit = get_num_threads()
        self._most = self._kept = limit if self._max_threads is None else min(limit, self._max_threads)
        if self._prepare is not None:
            self._prepare(self._most)
        self._fixed = asked_threads() is not None or self._most == 1
        self._recheck = FIRST_RECHECK // 2
        self._begin_trial()
        self._untimed = WARM_UP

    def _begin_trial(self) -> None:
        self._times: dict[int, list[float]] = {self._most: [], 1: []}
        self._trial_call = 0
        self._in_trial = True
        self._untimed = 0

    def _timed_call(self, table_ptr: int) -> None:
        count = self._kept
        if self._in_trial:
            count = 1 if self._trial_call // BLOCK % 2 else self._most
        start = time.perf_counter()
        self._step(table_ptr, count)
        seconds = time.perf_counter() - start
        if self._in_trial:
            self._add_to_trial(count, seconds)
        else:
            self._add_sample(seconds)

    def _add_to_trial(self, count: int, seconds: float) -> None:
        times = self._times.get(count)
        if times is None:  # another Python thread has begun a new trial with another limit
            return
        if self._trial_call % BLOCK:
            times.append(seconds)
        self._trial_call += 1
        winner = self._winner() if self._trial_call % (2 * BLOCK) == 0 else 0
        if winner:
            self._recheck = min(2 * self._recheck, LAST_RECHECK) if winner == self._kept else FIRST_RECHECK
            self._kept = winner
            self._kept_seconds = _median(self._times[winner])
            self._in_trial = False
            if events.wanted("threads"):
                tried = ", ".join(f"{n}: {1e6 * min(t):.1f} us" for n, t in self._times.items())
                events.event("threads", f"a step settles on {winner} thread(s) (fastest calls by count: {tried})")
            self._samples_left = self._recheck
            self._slow = 0
            self._untimed = SAMPLE_EVERY - 1

    def _winner(self) -> int:
        """The count to keep after a round, 0 if the trial must go on."""
        every, one = self._times[self._most], self._times[1]
        if min(every) * CLEAR_LEAD < min(one):
            return self._most
        if min(one) * CLEAR_LEAD < min(every):
            return 1
        if self._trial_call < 2 * BLOCK * ROUNDS:
            return 0
        other = 1 if self._kept == self._most else self._most
        better = _median(self._times[other]) < MARGIN * _median(self._times[self._kept])
        return other if better else self._kept

    def _add_sample(self, seconds: float) -> None:
        self._untimed = SAMPLE_EVERY - 1
        self._samples_left -= 1
        self._slow = self._slow + 1 if seconds > 2 * self._kept_seconds else 0
        if self._slow >= SLOW_SAMPLES or self._samples_left <= 0:
            self._begin_trial()


def _median(times: list[float]) -> float:
    """As statistics.median, whose import takes as long as that of this package's tensors."""
    ordered, half = sorted(times), len(times) // 2
    return ordered[half] if len(times) % 2 else (ordered[half - 1] + ordered[half]) / 2
