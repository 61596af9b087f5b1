"""Memory of results: it serves again once nobody holds the result, and never before."""

from __future__ import annotations

import numpy as np
import pytest

import fusegraph as fg
from fusegraph.runtime import outputs
from fusegraph.runtime.outputs import KEPT, OutputMemory, output_memory

LARGE = (300, 200)  # float32: 240 kB
F32 = np.dtype(np.float32)


def _address(array) -> int:
    return np.asarray(array).ctypes.data


@pytest.fixture
def memory() -> OutputMemory:
    made = output_memory(LARGE, F32)
    assert made is not None
    return made


def test_an_array_as_asked_for_at_the_start_of_a_cache_line(memory):
    array = memory.make()
    assert (array.shape, array.dtype, array.flags.c_contiguous, array.flags.writeable) == (LARGE, F32, True, True)
    assert array.ctypes.data % 64 == 0


def test_what_was_dropped_serves_again(memory):
    addresses = set()
    for _ in range(10):
        held = memory.make()  # the one before is alive until here
        addresses.add(held.ctypes.data)
    assert len(addresses) == KEPT


HOLDERS = {
    "the array": lambda array: array,
    "a slice": lambda array: array[5:, ::3],
    "a view of another type": lambda array: array.view(np.int32).reshape(-1),
    "a memoryview": lambda array: memoryview(array),
    "a DLPack capsule": lambda array: array.__dlpack__(),
    "an array made from a memoryview": lambda array: np.asarray(memoryview(array)),
    "a bound method": lambda array: array.tobytes,
    "ctypes": lambda array: array.ctypes,
}


@pytest.mark.parametrize("what", HOLDERS)
def test_what_somebody_holds_stays_as_it_was(memory, what):
    first = memory.make()
    address = first.ctypes.data
    holder = HOLDERS[what](first)
    del first
    others = [memory.make() for _ in range(2)]
    others += [memory.make() for _ in range(2)]
    assert address not in {array.ctypes.data for array in others}
    del holder


def test_a_shape_changed_in_place_is_the_holders_business(memory):
    first = memory.make()
    address = first.ctypes.data
    first.shape = (LARGE[0] * LARGE[1],)
    first.flags.writeable = False
    del first
    again = memory.make()
    assert (again.ctypes.data, again.shape, again.flags.writeable) == (address, LARGE, True)


def test_all_held_makes_more(memory):
    held = [memory.make() for _ in range(3 * KEPT)]
    assert len({array.ctypes.data for array in held}) == 3 * KEPT


def test_small_outputs_are_left_to_numpy():
    assert output_memory((10,), F32) is None


def test_nothing_serves_again_where_counts_cannot_be_trusted(monkeypatch):
    monkeypatch.setattr(outputs.sys, "_is_gil_enabled", lambda: False, raising=False)
    memory = OutputMemory(LARGE, F32)
    assert memory.make().ctypes.data % 64 == 0
    assert not memory._blocks


# -- through the face --------------------------------------------------------------------------------------------------


def test_results_of_calls_that_are_kept_do_not_change():
    @fg.compile
    def double(x):
        return x * 2.0

    inputs = [np.full(LARGE, number, np.float32) for number in range(8)]
    kept = [double(x) for x in inputs]
    for number, result in enumerate(kept):
        assert np.array_equal(result.numpy(), 2 * inputs[number])


def test_a_loop_goes_round_few_places():
    @fg.compile
    def double(x):
        return x * 2.0

    x, result, places = fg.ones(*LARGE), None, []
    for _ in range(9):
        result = double(x)
        places.append(_address(result))
    assert len(set(places)) == KEPT
    assert places[-1] != places[-2]


def test_a_result_fed_back_is_not_written_over_while_it_is_read():
    @fg.compile
    def forward(x):
        return x + x.flip(0)

    start = np.random.default_rng(0).standard_normal(LARGE).astype(np.float32)
    value, expected = fg.tensor(start), start
    for _ in range(6):
        value = forward(value)
        expected = expected + expected[::-1]
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6)


def test_what_backward_needs_is_kept_over_other_calls():
    @fg.compile
    def square(x):
        return (x * x).exp()

    rng = np.random.default_rng(1)
    leaves = [fg.tensor(rng.uniform(-1, 1, LARGE).astype(np.float32), requires_grad=True) for _ in range(4)]
    results = [square(x) for x in leaves]
    for result in results:
        result.sum().backward()
    for x in leaves:
        value = x.detach().numpy().astype(np.float64)
        np.testing.assert_allclose(x.grad.numpy(), 2 * value * np.exp(value * value), rtol=2e-5, atol=1e-6)


def test_gradients_left_by_a_step_stay():
    weight = fg.nn.Parameter(np.ones(LARGE, np.float32))

    @fg.compile
    def step(x):
        weight.grad = None
        loss = (weight * x).sum()
        loss.backward()
        return loss

    first = fg.full(LARGE, 3.0)
    step(first)
    kept = weight.grad
    for number in range(5):
        step(fg.full(LARGE, float(number)))
    assert np.array_equal(kept.numpy(), np.full(LARGE, 3.0, np.float32))
    assert np.array_equal(weight.grad.numpy(), np.full(LARGE, 4.0, np.float32))
