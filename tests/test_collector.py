"""The cycle collector rests while something is compiled, and then is as it was before."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest

import fusegraph as fg
from fusegraph import build
from fusegraph.runtime import collector


@pytest.fixture(autouse=True)
def _collector_is_on():
    gc.enable()
    yield
    gc.enable()


def test_it_rests_until_the_last_one_is_done():
    """Also one inside of the other, in threads, and where an error ends it."""
    inside, leave = threading.Event(), threading.Event()

    def other():
        with collector.resting():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with pytest.raises(KeyError), collector.resting(), collector.resting():
        thread.start()
        assert inside.wait(10) and not gc.isenabled()
        raise KeyError
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_what_was_off_stays_off():
    """Whoever works without a collector gets none."""
    gc.disable()
    with collector.resting():
        assert not gc.isenabled()
    assert not gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_that_is_forked_meanwhile_has_its_collector():
    """The thread that would wake it is not there."""
    with collector.resting():
        child = os.fork()
        if child == 0:
            os._exit(0 if gc.isenabled() else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert gc.isenabled()


def test_compiling_rests_it(monkeypatch):
    """And it is on again when the compiled function is called."""
    seen = []
    step_code = build.step_code
    monkeypatch.setattr(build, "step_code", lambda *a, **k: (seen.append(gc.isenabled()), step_code(*a, **k))[1])
    compiled = fg.compile(lambda x: (x * 3.0 + 0.4321).sum())
    np.testing.assert_allclose(compiled(fg.ones(7)).numpy(), 7 * 3.4321, rtol=1e-6)
    assert seen == [False] and gc.isenabled()
