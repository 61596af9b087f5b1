"""Choice between one thread and all of them, by timing a step's own calls.

With a busy neighbour, or a step too small to share, one thread beats two. The code of a step takes the thread count as
an argument, so that the choice costs no compilation. It changes results only where generated code splits a sum by
thread (sums of per-thread partial results round differently); who needs the same bits in every run sets the count with
`set_num_threads`, which switches the choice off.

One count is kept, the other is its rival. A trial is rounds of a block of calls with the rival and a block with the kept
count, one right after the other, so that a slow change of the machine's speed meets both. Their lower quartiles are
compared: what disturbs a few calls does not count. A trial ends after its first round, unless the rival looks better
there; it takes the kept one's place only after several rounds. So most trials are cheap, and they come often: 16 calls
after a count was taken, then after 32, 64, ... calls, until they take one per cent of the time; from then on as often as
that allows. A lasting change of the kept count's own speed brings the next one forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fusegraph import events
from fusegraph.runtime.pool import BoundStep
from fusegraph.runtime.threads import ThreadSetting, asked_threads, get_num_threads

WARM_UP = 2  # calls before the first trial: page faults, cold caches
ROUNDS, LOST_ROUNDS = 8, 1  # of a trial that changes the count; how many of them the rival may lose
CLEAR_ROUNDS, CLEAR_LEAD = 3, 2.0  # so many are enough for such a lead: trials of long steps are expensive
MARGIN = 0.95  # the kept count is left only for one that takes less than this share of its time
SHORT = 2e-3  # seconds: shorter steps are called several times in a row, about as long; the first half does not count,
BLOCK = 3  # because it may have to wake parked workers (50 us), and finds its data in another core's cache
MOST_BLOCK = 12
SHARE = 0.01  # of the time, for trials and samples each
FIRST_GAP, LEAST_GAP = 16, 64  # calls from a change to the first trial; between trials that cost nothing
ROUND_SECONDS = 10e-6  # what a round costs beside the calls: clocks, comparing
SAMPLE_SECONDS = 1e-6  # what it costs to time one call
MOST_UNTIMED = 63  # calls between two samples
DRIFT, DRIFT_SAMPLES = 1.15, 4  # a change of speed: so many samples in a row are all slower than that, or one is faster


class ThreadChoice:
    """A bound step that picks its thread count: `choice.call(table_ptr)` (or `choice(table_ptr)`, 0.1 us slower).

    `max_threads` limits the count (little parallel work). `prepare(count)` is called before a call may use up to so many
    threads, if that may be more or fewer than before.
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

    @property
    def settled(self) -> bool:
        """Whether the count is fixed, or has been tried."""
        return self._version == ThreadSetting.version and (self._fixed or self._tried)

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
        elif self._untimed:
            self._untimed -= 1
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
        self._tried = False
        self._backoff = FIRST_GAP
        self._recent: list[float] = []  # samples since speeds were last compared
        self._until_drift = 0  # calls until a change of speed may bring a trial forward
        self._begin_trial()
        self._untimed = WARM_UP

    @property
    def _rival(self) -> int:
        return 1 if self._kept == self._most else self._most

    def _begin_trial(self) -> None:
        self._in_trial = True
        self._block: list[float] = []  # of the present block: every call's seconds
        self._running = self._rival
        self._times: dict[int, list[float]] = {self._most: [], 1: []}  # of the trial, as far as they count
        self._rounds = self._lost = 0
        self._fastest_of_rival = 0.0  # of its last block
        self._untimed = 0

    def _timed_call(self, table_ptr: int) -> None:
        count = self._running if self._in_trial else self._kept
        start = time.perf_counter()
        self._step(table_ptr, count)
        seconds = time.perf_counter() - start
        if self._in_trial:
            self._add_to_trial(count, seconds)
        else:
            self._add_sample(seconds)

    def _add_to_trial(self, count: int, seconds: float) -> None:
        block = self._block
        block.append(seconds)
        if len(block) < _block(min(block)):
            return
        if count not in self._times:  # another Python thread has begun a trial with another limit
            return
        counted = block[len(block) // 2 :]
        self._times[count] += counted
        self._block = []
        if count == self._kept:
            self._running = self._rival
            self._end_round(lost=self._fastest_of_rival >= min(counted))
        else:
            self._running, self._fastest_of_rival = self._kept, min(counted)

    def _end_round(self, lost: bool) -> None:
        self._rounds += 1
        self._lost += lost
        rival, kept = (_lower_quartile(self._times[n]) for n in (self._rival, self._kept))
        if rival >= MARGIN * kept or self._lost > LOST_ROUNDS:
            self._settle(rival, kept, changed=False)
        elif self._rounds == ROUNDS or (self._rounds >= CLEAR_ROUNDS and rival * CLEAR_LEAD < kept):
            self._settle(kept, rival, changed=True)

    def _settle(self, rival: float, kept: float, changed: bool) -> None:
        """End the trial. rival, kept: seconds of a call with those counts as they are from now on."""
        if events.wanted("threads") and (changed or not self._tried):
            winner = self._rival if changed else self._kept
            tried = ", ".join(f"{n}: {1e6 * min(t):.1f} us" for n, t in self._times.items())
            events.event("threads", f"a step settles on {winner} thread(s) (fastest calls by count: {tried})")
        if changed:
            self._kept, self._backoff = self._rival, FIRST_GAP
        self._tried, self._in_trial = True, False
        calls = _block(kept)
        lost = max(rival - kept, 0.0) * calls + ROUND_SECONDS  # by a trial that changes nothing
        self._affordable = max(int(lost / SHARE / kept), LEAST_GAP)
        self._until_trial = min(self._backoff, self._affordable)
        self._backoff = min(2 * self._backoff, self._affordable)
        self._every = min(int(SAMPLE_SECONDS / SHARE / kept), MOST_UNTIMED) + 1
        self._reference, self._recent = kept, []
        self._wait()

    def _wait(self) -> None:
        """Until the next sample, or the next trial if that comes first."""
        calls = min(self._every, self._until_trial)
        self._untimed = calls - 1
        self._until_trial -= calls
        self._until_drift -= calls

    def _add_sample(self, seconds: float) -> None:
        if self._until_trial <= 0:
            self._begin_trial()
        elif self._drifts(seconds) and self._until_drift <= 0:
            self._until_drift = self._affordable  # a machine that is never calm has twice as many trials, not more
            self._begin_trial()
        else:
            self._wait()

    def _drifts(self, seconds: float) -> bool:
        """Whether the kept count's speed has changed for longer than a few calls."""
        self._recent.append(seconds)
        if len(self._recent) < DRIFT_SAMPLES:
            return False
        fastest = min(self._recent)
        self._recent = []
        return not self._reference / DRIFT <= fastest <= self._reference * DRIFT


def _block(seconds: float) -> int:
    """Calls in a row of a step that takes so long."""
    return 1 if seconds >= SHORT else max(BLOCK, min(int(SHORT / max(seconds, 1e-9)), MOST_BLOCK))


def _lower_quartile(times: list[float]) -> float:
    return sorted(times)[len(times) // 4]
