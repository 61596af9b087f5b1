"""Repeated calls go a short way: it must notice whatever the long way notices, from any thread, in any process."""

import os
import threading

import numpy as np
import pytest

import fusegraph as fg
from fusegraph import nn, optim
from fusegraph.errors import IndexRangeError, UnsupportedError
from fusegraph.repeat import MISS

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


def took_the_short_way(compiled, *args, **kwargs):
    """Whether these arguments run the short way now (they are run)."""
    return any(repeat.run(args, kwargs) is not MISS for repeat in compiled._repeats)


def test_a_repeated_call_goes_the_short_way():
    f = fg.compile(lambda x, y: x * 2 + y)
    for y in (X, X + 1):
        assert np.array_equal(f(X, y).numpy(), X * 2 + y)
    assert took_the_short_way(f, X, X) and took_the_short_way(f, fg.as_tensor(X), X)
    assert len(f.reasons) == 1


OTHERS = [
    X[:2], X[:0], X.T, X[::-1], np.asfortranarray(X), np.ascontiguousarray(X.T), X.reshape(3, 4, 1), np.array(3, np.float32),
    X.astype(np.float64), X.astype(np.float16), X.astype(np.int64), X.astype(">f4"),
    fg.tensor(X), fg.tensor(X, requires_grad=True), nn.Parameter(X.copy()),
]  # fmt: skip


@pytest.mark.parametrize("other", OTHERS, ids=lambda value: f"{type(value).__name__} {value.dtype} {list(value.shape)}")
def test_other_arguments_are_noticed(other):
    f = fg.compile(lambda x: x * 2 + 1)
    f(X), f(X)
    expected = np.asarray(other.detach() if isinstance(other, fg.Tensor) else other)
    for _ in range(3):
        np.testing.assert_allclose(f(other).detach().numpy(), expected * 2 + 1, rtol=1e-3)
        assert np.array_equal(f(X).numpy(), X * 2 + 1)


def test_an_array_that_is_converted_never_goes_the_short_way():
    f = fg.compile(lambda x: x + 1)
    for array in (X.astype(np.float16), X.astype(">f4")):
        for _ in range(2):
            np.testing.assert_allclose(f(array).numpy(), array.astype(np.float32) + 1)
        assert not took_the_short_way(f, array)


def test_plain_arguments_are_compared():
    f = fg.compile(lambda x, mode, factor=2.0: x * factor if mode == "times" else x / factor)
    assert np.array_equal(f(X, "times").numpy(), X * 2)
    assert np.array_equal(f(X, "times").numpy(), X * 2)
    assert np.array_equal(f(X, "over").numpy(), X / 2)
    assert np.array_equal(f(X, "times", 3.0).numpy(), X * 3)
    assert np.array_equal(f(X, "times", factor=4.0).numpy(), X * 4)
    assert np.array_equal(f(X, mode="times", factor=5.0).numpy(), X * 5)
    assert f(X, "times", 3).dtype == fg.float32
    assert np.signbit(f(X[:1, :1] * 0, "times", 0.0).item()) != np.signbit(f(X[:1, :1] * 0, "times", -0.0).item())
    with pytest.raises(TypeError):
        f(X)
    with pytest.raises(TypeError):
        f(X, "times", 2.0, 3.0)


def test_true_is_not_one():
    f = fg.compile(lambda x, flag: x if flag is True else x + 1)
    assert np.array_equal(f(X, True).numpy(), X) and np.array_equal(f(X, True).numpy(), X)
    assert np.array_equal(f(X, 1).numpy(), X + 1) and np.array_equal(f(X, True).numpy(), X)


def test_settings_are_noticed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    f = fg.compile(lambda x: model(x).sum())
    training = [f(X).item() for _ in range(4)]
    model.eval()
    quiet = [f(X).item() for _ in range(3)]
    model.train()
    assert len(set(training)) == 4 and len(set(quiet)) == 1 and f(X).item() not in quiet
    with fg.no_grad():
        assert not f(X).requires_grad
    assert f(X).requires_grad and len(f.reasons) == 3


def test_replaced_parameters_are_noticed():
    layer = nn.Linear(4, 2)
    f = fg.compile(lambda x: layer(x))
    f(X), f(X)
    layer.load_state_dict({"weight": np.ones((2, 4), np.float32), "bias": np.zeros(2, np.float32)})
    assert np.allclose(f(X).detach().numpy(), X.sum(1, keepdims=True).repeat(2, 1), atol=1e-6)
    layer.weight = nn.Parameter(np.full((2, 4), 2, np.float32))
    assert np.allclose(f(X).detach().numpy(), 2 * X.sum(1, keepdims=True).repeat(2, 1), atol=1e-6)


def test_a_compiled_model_keeps_its_backward():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    fast = fg.compile(model)
    for _ in range(3):
        x = fg.tensor(X, requires_grad=True)
        fast(x).sum().backward()
        got = [x.grad.numpy(), *(p.grad.numpy() for p in model.parameters())]
        model.zero_grad()
        y = fg.tensor(X, requires_grad=True)
        model(y).sum().backward()
        for a, b in zip(got, [y.grad, *(p.grad for p in model.parameters())], strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)
        model.zero_grad()
    assert took_the_short_way(fast, fg.tensor(X, requires_grad=True))


def test_gradients_and_versions_follow_a_step():
    model = nn.Linear(4, 2)
    opt = optim.SGD(model.parameters(), lr=0.1)

    @fg.compile
    def step(x):
        opt.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        opt.step()
        return loss

    losses = [step(X).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and took_the_short_way(step, X)
    before = model.weight._version
    loss = (model(fg.as_tensor(X)) ** 2).mean()
    step(X)
    assert model.weight._version > before
    with pytest.raises(fg.errors.GradientError, match="changed in place"):
        loss.backward()


def test_inside_of_a_trace_the_function_is_inlined():
    inner = fg.compile(lambda x: x * 3)
    inner(X), inner(X)
    constant = fg.as_tensor(X)
    outer = fg.compile(lambda y: inner(constant) + y)
    assert np.array_equal(outer(X).numpy(), X * 4)
    constant.copy_(np.zeros_like(X))
    assert np.array_equal(outer(X).numpy(), X)


def test_a_call_that_raises_leaves_everything_usable():
    table, state = nn.Embedding(5, 3), fg.zeros((3,))

    @fg.compile
    def f(ids):
        state.copy_(state + 1)
        return table(ids).sum()

    good, bad = np.array([0, 4]), np.array([0, 5])
    with fg.no_grad():
        f(good), f(good)
        for _ in range(3):
            with pytest.raises(IndexRangeError, match=r"5 at \[1\]"):
                f(bad)
            assert f(good).item() == pytest.approx(table.weight.detach().numpy()[[0, 4]].sum(), rel=1e-5)
        assert state.tolist() == [5.0] * 3
        assert took_the_short_way(f, good) and state.tolist() == [6.0] * 3


def test_results_alias_nothing():
    shared = fg.as_tensor(X.copy())
    f = fg.compile(lambda x: (x, x, x + 1, x + 1, shared, x.reshape(4, 3)))
    x = X.copy()
    for _ in range(3):
        first, second = f(x), f(x)
        arrays = [t.numpy() for t in (*first, *second)] + [x, shared.numpy()]
        for i, a in enumerate(arrays):
            assert not any(np.shares_memory(a, b) for b in arrays[:i])
        assert (
            np.array_equal(arrays[0], X)
            and np.array_equal(arrays[3], X + 1)
            and np.array_equal(arrays[5].ravel(), X.ravel())
        )


def test_an_argument_in_memory_that_is_overwritten_is_refused_at_every_call():
    state = fg.tensor(np.ones(4, np.float32))

    @fg.compile
    def f(x):
        state.add_(1.0)
        return x + state

    apart = np.ones(4, np.float32)
    f(apart), f(apart)
    memory = state.numpy()
    foreign = np.frombuffer(memoryview(memory), np.float32)
    for alias in (memory, memory[:], memory.reshape(2, 2).ravel(), foreign, state, state.detach()):
        before = state.tolist()
        with pytest.raises(UnsupportedError, match="shares memory"):
            f(alias)
        assert state.tolist() == before
    assert took_the_short_way(f, apart) and took_the_short_way(f, np.ones(8, np.float32)[2:6])


def test_the_versions_used_last_are_kept():
    f = fg.compile(lambda x: x + 1, versions=2)
    for n in (1, 2, 1, 1, 3):  # 2 goes
        f(X[:n])
    made = len(f.reasons)
    f(X[:1]), f(X[:3])
    assert len(f.reasons) == made == 3
    f(X[:2])
    assert len(f.reasons) == 4
    assert len(f._versions) == 2 and all(repeat.version in f._versions.values() for repeat in f._repeats)


def test_explain_is_about_the_call_before():
    f = fg.compile(lambda x: x + 1)
    f(X), f(X[:2]), f(X), f(X)
    assert f.compiled_for().artifact.source.inputs[0].shape == X.shape


@pytest.mark.parametrize("threads", [1, 2])
def test_many_python_threads_call_one_function(threads):
    count, rounds = 6, 40
    f = fg.compile(lambda x, y: ((x @ y).tanh() + x.sum(), x * y.sum()))
    rng = np.random.default_rng(0)
    pairs = [tuple(rng.standard_normal((2, 8 + i % 2, 8 + i % 2)).astype(np.float32)) for i in range(count)]
    expected = [[t.numpy() for t in f._function(*map(fg.as_tensor, pair))] for pair in pairs]
    errors = []

    def work(i):
        try:
            for _ in range(rounds):
                for got, want in zip(f(*pairs[i]), expected[i], strict=True):
                    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-4)
        except BaseException as error:
            errors.append(error)

    fg.set_num_threads(threads)
    try:
        workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        fg.runtime.threads.ThreadSetting.count = None
        fg.runtime.threads.ThreadSetting.version += 1
    assert not errors, errors[0]
    assert len(f.reasons) == 2


def test_threads_that_change_the_thread_count_meanwhile():
    f = fg.compile(lambda x: (x * 2).sum(0))
    x = np.ones((4096, 64), np.float32)
    f(x)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            for count in (1, 3, 2):
                fg.set_num_threads(count)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        assert all(np.array_equal(f(x).numpy(), np.full(64, 8192, np.float32)) for _ in range(200))
    finally:
        stop.set()
        changer.join()
        fg.runtime.threads.ThreadSetting.count = None
        fg.runtime.threads.ThreadSetting.version += 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_process_can_call_what_the_parent_was_calling():
    f = fg.compile(lambda x: x * 2 + 1)
    f(X), f(X)
    stop = threading.Event()
    caller = threading.Thread(target=lambda: [f(X) for _ in iter(stop.is_set, True)])
    caller.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                fine = np.array_equal(f(X).numpy(), X * 2 + 1) and np.array_equal(f(X[:2]).numpy(), X[:2] * 2 + 1)
                os._exit(0 if fine else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        caller.join()
