"""Random numbers from counters: the same eager and compiled, and on any number of threads.

A generator holds a key (made from its seed) and a counter of calls. Both are ordinary state: a compiled step reads
them and writes the new counter, as it does with parameters. Element i of call c is Philox-2x32-10 of (i, c) under the
key.
"""

from __future__ import annotations

import numpy as np

from fusegraph.autograd import no_grad
from fusegraph.dtypes import uint32
from fusegraph.errors import OptionError
from fusegraph.ir import emit
from fusegraph.tensor import Tensor
from fusegraph.trace import current_trace


def _mix(seed: int) -> int:
    """32 well-mixed bits of a 64-bit seed (the finaliser of splitmix64: Steele, Lea, Flood, OOPSLA 2014)."""
    mask = (1 << 64) - 1
    z = (seed + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) & 0xFFFFFFFF


class Generator:
    """A stream of random bits. `seed`: any integer."""

    def __init__(self, seed: int = 0) -> None:
        self.key = Tensor._make(np.zeros((), np.uint32))
        self.counter = Tensor._make(np.zeros((), np.uint32))
        self.key.name, self.counter.name = "random_key", "random_counter"
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Begin the stream that `seed` names. Raises OptionError when it is not an integer."""
        if not isinstance(seed, (int, np.integer)):
            raise OptionError(f"a seed must be an integer, got {seed!r}")
        for state, value in ((self.key, _mix(int(seed))), (self.counter, 0)):
            if current_trace() is None:
                state._value[...] = value
            else:  # assigned as any state is, so that a compiled function seeds at each call
                state.copy_(emit.constant(value, state))
        return self

    def bits(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform uint32 of the given shape; each call gives new ones."""
        out = emit.bind("random_bits", self.key, self.counter, shape=tuple(shape))
        with no_grad():
            self.counter.copy_(emit.add(self.counter, emit.constant(1, self.counter, uint32)))
        return out  # type: ignore[no-any-return]


_default = Generator(0)


def default_generator() -> Generator:
    """The generator that is used when none is given."""
    return _default


def manual_seed(seed: int) -> Generator:
    """Seed the default generator (also used by dropout and by the initialisers)."""
    return _default.manual_seed(seed)
