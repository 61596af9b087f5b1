"""What a compiled function depends on, what it changes, and what an error leaves as it was."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from compile_tools import BACKENDS, Wrap, X, Y, agree, mlp, training_step, wrap

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.errors import (
    DTypeError,
    GradientError,
    IndexRangeError,
    OptionError,
    ShapeError,
    TraceError,
    UnsupportedError,
)

backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def equal(value: Any, wanted: Any) -> None:
    np.testing.assert_allclose(
        value.detach().numpy() if isinstance(value, fg.Tensor) else value, wanted, rtol=1e-6, atol=1e-6
    )


class Pair(NamedTuple):
    """Two values."""

    first: Any
    second: Any


# -- arguments -------------------------------------------------------------------------------------------------------------------


@backends
def test_nests_of_arguments_and_results(backend: str) -> None:
    @wrap(backend)
    def f(pair: Any, *, options: Any, name: str = "a", nothing: None = None) -> Any:
        total = pair.first + options["more"][0] * (2.0 if name == "a" else 3.0)
        return {"total": total, "pair": Pair(pair.second, [total, name, None, 7]), "constant": fg.ones(2)}

    for name, factor in (("a", 2.0), ("b", 3.0)):
        out = f(Pair(X, Y), options={"more": [X]}, name=name)
        equal(out["total"], X + factor * X)
        assert isinstance(out["pair"], Pair) and out["pair"].second[1:] == [name, None, 7]
        equal(out["pair"].first, Y)
        equal(out["constant"], np.ones(2))
    assert f.reasons == ["first call", "argument `name` was 'a', now 'b'"]


@backends
def test_arrays_and_tensors_share_a_version(backend: str) -> None:
    f = wrap(backend)(lambda x: x * 2.0)
    for value in (X, fg.tensor(X), np.asfortranarray(X), X[::-1][::-1], np.broadcast_to(X[0], X.shape)):
        equal(f(value), np.asarray(value) * 2.0)
    assert len(f.reasons) == 1


@backends
def test_arguments_that_are_not_contiguous(backend: str) -> None:
    f = wrap(backend)(lambda x, y: x @ y)
    equal(f(X.T, fg.tensor(X)), X.T @ X)
    equal(f(X[:, ::2].T, fg.tensor(X)[:, 1:3]), X[:, ::2].T @ X[:, 1:3])


@backends
def test_other_element_types_enter_as_they_do_eagerly(backend: str) -> None:
    f = wrap(backend)(lambda x: x + 1)
    for dtype in ("float16", "int8", "int16", ">f4", "bool", "float64", "uint8"):
        values = np.arange(3).astype(dtype)
        out, wanted = f(values), fg.as_tensor(values) + 1
        assert out.dtype == wanted.dtype
        equal(out, wanted.numpy())


def test_reasons_name_what_changed() -> None:
    f = wrap("python")(lambda x, k=1: x * k)
    f(X)
    f(X[:3])
    f(X[0])
    f(X.astype(np.float64))
    f(X, 2)
    f(X, 2.0)
    f(X, k=2)
    f(fg.tensor(X, requires_grad=True))
    texts = [
        "first call",
        "argument `x` axis 0 was 6, now 3",
        "argument `x` had 2 axes, now 1",
        "another dtype",
        "nesting",
        "argument `k` was 2, now 2.0",
        "nesting",
        "nesting",
    ]
    assert len(f.reasons) == len(texts)
    for reason, text in zip(f.reasons, texts, strict=True):
        assert text in reason, (reason, text)
    f(X)
    f(X, 2)
    assert len(f.reasons) == len(texts), "versions that are known are used again"


def test_the_sign_of_zero_and_the_type_of_a_number_are_part_of_the_signature() -> None:
    f = wrap("python")(lambda x, a: x / a)
    one = np.ones(2, np.float32)
    equal(f(one, 0.0), [np.inf, np.inf])
    equal(f(one, -0.0), [-np.inf, -np.inf])
    g = wrap("python")(lambda x, a: x + 1 if a is True else x + a)
    equal(g(one, 2), [3, 3])
    equal(g(one, True), [2, 2])
    equal(g(one, 1), [2, 2])


def test_an_object_in_the_signature_is_never_taken_for_another_one() -> None:
    class Setting:
        def __init__(self, factor: float) -> None:
            self.factor = factor

    f = wrap("python")(lambda x, setting: x * setting.factor)
    for i in range(12):
        setting = Setting(float(i))
        equal(f(X, setting), X * i)
        del setting
        gc.collect()


def test_the_version_used_longest_ago_goes_first() -> None:
    f = wrap("python", versions=2)(lambda x: x + 1.0)
    for size in (1, 2, 1, 3, 1, 2):
        equal(f(np.zeros(size, np.float32)), np.ones(size))
    assert [reason.rpartition(" ")[2] for reason in f.reasons] == ["call", "2", "3", "2"]
    assert "2 version(s)" in repr(f)


def test_wrong_options() -> None:
    for options in ({"backend": "gpu"}, {"versions": 0}, {"disable": ("no such pass",)}):
        with pytest.raises(OptionError):
            fg.compile(lambda x: x + 1.0, **{"backend": "python", **options})(X)
    with pytest.raises(OptionError, match="module or a function"):
        fg.compile(3)
    with pytest.raises(DTypeError, match="numpy scalar"):
        wrap("python")(lambda x, k: x * k)(X, np.float32(2))


@backends
def test_functions_without_tensors_and_without_results(backend: str) -> None:
    equal(wrap(backend)(lambda k: fg.ones(3) * k)(2.0), [2, 2, 2])
    assert wrap(backend)(lambda x: None)(X) is None
    assert wrap(backend)(lambda: (1, "a", [None]))() == (1, "a", [None])


@backends
def test_results_that_are_inputs_constants_or_each_other(backend: str) -> None:
    weight = fg.tensor([1.0, 2.0])

    @wrap(backend)
    def f(x: Any) -> Any:
        y = x * 2.0
        return x, y, y, y.reshape(-1), x.T, weight, fg.zeros(2, 0), x[0:0]

    x = fg.tensor(X)
    out = f(x)
    for value, wanted in zip(out, (X, X * 2, X * 2, X.ravel() * 2, X.T, [1, 2], np.zeros((2, 0)), X[0:0]), strict=True):
        equal(value, wanted)
    x.mul_(0.0)
    weight.mul_(0.0)
    equal(out[0], X)
    equal(out[5], [1, 2])


# -- state -----------------------------------------------------------------------------------------------------------------------


@backends
def test_state_is_overwritten_in_the_same_memory(backend: str) -> None:
    state = fg.tensor(np.arange(4, dtype=np.float32))
    array = state.numpy()

    @wrap(backend)
    def f(x: Any) -> Any:
        old = state * 1.0
        state.add_(x)
        middle = state * 2.0
        state.copy_(state.flip(0))
        return old, middle, state

    wanted = array.copy()
    for _ in range(3):
        old, middle, new = f(np.ones(4, np.float32))
        equal(old, wanted)
        equal(middle, (wanted + 1) * 2)
        wanted = (wanted + 1)[::-1]
        equal(new, wanted)
        equal(array, wanted)
        assert state.numpy() is array or np.shares_memory(state.numpy(), array)


@backends
def test_two_states_swap(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        a, b = fg.tensor(X), fg.tensor(X * 2)

        @wrap
        def swap() -> None:
            kept = a * 1.0
            a.copy_(b)
            b.copy_(kept)

        for _ in range(3):
            swap()
        return [a, b]

    agree(run, backend, 0.0)


@backends
def test_arguments_are_overwritten_too(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        @wrap
        def f(x: Any) -> Any:
            x.add_(1.0)
            return x * 2.0

        x = fg.tensor(X)
        strided = fg.from_numpy(np.array(X.T.copy().T))
        return [f(x), f(x), x, f(strided), strided]

    agree(run, backend, 0.0)


@backends
def test_read_only_arguments_are_not_overwritten(backend: str) -> None:
    f = wrap(backend)(lambda x: x.add_(1.0))
    f(fg.tensor(X))
    fixed = X.copy()
    fixed.flags.writeable = False
    with pytest.raises(UnsupportedError, match="read-only"):
        f(fg.from_numpy(fixed))
    equal(fixed, X)


@backends
def test_captured_tensors_may_be_strided_or_replaced(backend: str) -> None:
    weight = fg.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3).T)
    f = wrap(backend)(lambda x: x + weight)
    equal(f(np.zeros((3, 2), np.float32)), weight.numpy())
    model = mlp()
    fast = wrap(backend)(model)
    fast(X)
    model.double()
    double = X.astype(np.float64)
    np.testing.assert_allclose(fast(double).detach().numpy(), model(double).detach().numpy(), rtol=1e-9)
    model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()})
    np.testing.assert_allclose(fast(double).detach().numpy(), model(double).detach().numpy(), rtol=1e-9)
    assert len(fast.reasons) == 2


@backends
def test_changed_layers_and_attributes_are_noticed(backend: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.factor, self.calls = nn.Linear(4, 2), 2.0, 0

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return self.inner(x) * self.factor

    model = Scaled()
    fast = wrap(backend)(model)

    def check(versions: int) -> None:
        equal(
            fast(X),
            (fg.as_tensor(X) @ model.inner.weight.detach().T + model.inner.bias.detach()).numpy() * model.factor,
        )
        assert len(fast.reasons) == versions

    check(1)
    check(1)
    model.factor = 3.0
    check(2)
    assert "factor" in fast.reasons[1]
    model.inner = nn.Linear(4, 2)
    check(3)
    model.inner.weight = nn.Parameter(np.ones((2, 4), np.float32))
    check(4)
    model.inner.bias.requires_grad_(False)
    check(5)


@backends
def test_a_value_that_python_has_read_is_watched(backend: str) -> None:
    factor = fg.tensor(2.0)
    f = wrap(backend)(lambda x: x * factor.item())
    equal(f(X), X * 2)
    equal(f(X), X * 2)
    factor.copy_(5.0)
    equal(f(X), X * 5)
    assert len(f.reasons) == 2 and "was read by Python" in f.reasons[1]


@backends
def test_seeding_inside_seeds_at_each_call(backend: str) -> None:
    @wrap(backend)
    def f(x: Any) -> Any:
        fg.manual_seed(3)
        return x + fg.rand(4)

    equal(f(X), f(X).numpy())


@backends
def test_one_tensor_is_not_two_inputs_where_it_is_overwritten(backend: str) -> None:
    state = fg.tensor(np.ones(3, np.float32))

    @wrap(backend)
    def f(x: Any) -> Any:
        state.add_(1.0)
        return x + state

    equal(f(np.ones(3, np.float32)), [3, 3, 3])
    for alias in (state, state.detach(), state.numpy()[::-1], state.numpy()):
        with pytest.raises(UnsupportedError, match="shares memory"):
            f(alias)
    equal(state, [2, 2, 2])
    equal(wrap(backend)(lambda x, y: x * y)(state, state), [4, 4, 4])
    g = wrap(backend)(lambda x, y: x.add_(1.0) + y)
    with pytest.raises(UnsupportedError, match="shares memory"):
        g(state, state)
    equal(g(state, state.clone()), [5, 5, 5])
    view = state.detach()

    @wrap(backend)
    def both(x: Any) -> Any:
        state.mul_(x)
        return view + 1.0

    with pytest.raises(UnsupportedError, match="shares memory"):
        both(np.float32(2) * np.ones(3, np.float32))


@backends
def test_calls_that_repeat_each_other(backend: str) -> None:
    """The second and third call of a kind go another way than the first."""
    f = wrap(backend)(lambda x: (x * 2.0, (x * 2.0).reshape(-1), (x * 2.0).T, x.reshape(4, 1) + 1.0))
    for _ in range(4):
        first, flat, turned, other = f(np.arange(4, dtype=np.float32).reshape(2, 2))
        assert (flat.shape, turned.shape, other.shape) == ((4,), (2, 2), (4, 1))
        equal(first, [[0, 2], [4, 6]])
        equal(flat, [0, 2, 4, 6])
        equal(turned, [[0, 4], [2, 6]])
        first.mul_(0.0)
        equal(flat, [0, 2, 4, 6])
    g = wrap(backend)(lambda x: x + 1)
    for dtype in ("float16", "int8", ">f4", "float64", "bool"):
        values = np.arange(3).astype(dtype)
        for _ in range(3):
            equal(g(values), (fg.as_tensor(values) + 1).numpy())
    model = mlp()
    fast = wrap(backend)(model)
    for _ in range(3):
        with fg.no_grad():
            assert not fast(X).requires_grad
        assert fast(X).requires_grad
        x = fg.tensor(X, requires_grad=True)
        fast(x).sum().backward()
        assert x.grad is not None


# -- errors ----------------------------------------------------------------------------------------------------------------------


def snapshot(model: nn.Module, opt: optim.Optimizer) -> list[Any]:
    """Everything that a step may change."""
    values = [np.array(p.detach().numpy()) for p in model.parameters()]
    values += [np.array(v.numpy()) for state in opt.state.values() for v in state.values()]
    return values + [p.grad for p in model.parameters()]


def unchanged(before: list[Any], after: list[Any]) -> None:
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        else:
            assert a is b


@backends
def test_a_label_out_of_range_changes_nothing_and_the_call_can_be_repeated(backend: str) -> None:
    model = mlp()
    opt = optim.Adam(model.parameters(), lr=0.1)
    step = wrap(backend)(training_step(model, opt))

    step(X, Y)
    before = snapshot(model, opt)
    for bad in (3, -1, 99):
        wrong = Y.copy()
        wrong[4] = bad
        with pytest.raises(IndexRangeError, match=rf"{bad} at \[4\]"):
            step(X, wrong)
        unchanged(before, snapshot(model, opt))
    first = step(X, Y)
    assert np.isfinite(first.item())
    assert len(step.reasons) == 1


@backends
def test_a_token_out_of_range(backend: str) -> None:
    table = nn.Embedding(5, 3)
    f = wrap(backend)(table)
    f(np.array([[0, 4]]))
    with pytest.raises(IndexRangeError, match="5"):
        f(np.array([[0, 5]]))
    equal(f(np.array([[0, 4]])), table.weight.detach().numpy()[[[0, 4]]])


@backends
def test_only_the_indices_that_are_used_are_checked(backend: str) -> None:
    f = wrap(backend)(lambda table, ids: F.embedding(ids[:, 1:], table))
    equal(f(X, np.array([[99, 1], [-7, 2]])), X[[[1], [2]]])
    with pytest.raises(IndexRangeError):
        f(X, np.array([[0, 1], [0, 6]]))


@backends
def test_an_index_that_is_computed_from_arguments_is_checked(backend: str) -> None:
    f = wrap(backend)(lambda table, ids: F.embedding(ids * 2 + 1, table))
    equal(f(X, np.array([0, 2])), X[[1, 5]])
    with pytest.raises(IndexRangeError):
        f(X, np.array([0, 3]))


@backends
def test_an_index_that_was_a_float(backend: str) -> None:
    f = wrap(backend)(lambda table, ids: F.embedding(ids.long(), table))
    equal(f(X, np.array([0.0, 5.0], np.float32)), X[[0, 5]])
    with pytest.raises(IndexRangeError):
        f(X, np.array([0.0, 6.0], np.float32))


def test_an_exception_while_tracing_leaves_everything_as_it_was() -> None:
    model = mlp()
    opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(X), Y).backward()
    opt.step()
    before = snapshot(model, opt)
    fail = [True]

    @wrap("python")
    def step(x: Any, y: Any) -> Any:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        if fail[0]:
            raise RuntimeError("on purpose")
        return loss

    with pytest.raises(RuntimeError, match="on purpose"):
        step(X, Y)
    unchanged(before, snapshot(model, opt))
    fail[0] = False
    other = mlp()
    assert np.isfinite(step(X, Y).item())
    assert np.isfinite(F.cross_entropy(other(X), Y).item()), "no trace is left active"


def test_control_flow_on_values_names_the_line() -> None:
    def by_if(x: Any) -> Any:
        return x if x.sum() > 0 else -x

    def by_while(x: Any) -> Any:
        while x.max() > 1.0:
            x = x / 2.0
        return x

    def by_float(x: Any) -> Any:
        return x * float(x.mean())

    for function in (by_if, by_while, by_float, lambda x: np.sin(x), lambda x: [1, 2][x.sum().long()]):
        with pytest.raises(TraceError, match=r"test_compile_state\.py:\d+"):
            wrap("python")(function)(X)
    assert wrap("python")(lambda x: x if x.shape[0] > 3 else -x)(X) is not None


def test_a_symbol_that_leaks_out_of_its_trace() -> None:
    box: list[Any] = []

    def f(x: Any) -> Any:
        box.append(x * 2.0)
        return x * 1.0

    wrap("python")(f)(X)
    for use in (lambda: box[0] + 1.0, lambda: box[0].numpy(), lambda: wrap("python")(lambda x: x + box[0])(X)):
        with pytest.raises(TraceError):
            use()
    assert "traced" in repr(box[0])


def test_wrong_shapes_name_line_and_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, x: Any) -> Any:
            return self.head(x)

    with pytest.raises(ShapeError) as caught:
        wrap("python")(Net())(X)
    text = str(caught.value)
    assert "test_compile_state.py" in text and "head" in text and "[6, 4]" in text


@backends
def test_optimizer_without_gradients(backend: str) -> None:
    model = mlp()
    opt = optim.SGD(model.parameters(), lr=0.1)
    update = wrap(backend)(lambda: opt.step())
    with pytest.raises(GradientError, match="no parameter has a gradient"):
        update()
    F.cross_entropy(model(X), Y).backward()
    wanted = [p.detach().numpy() - 0.1 * p.grad.numpy() for p in model.parameters()]
    update()
    for p, value in zip(model.parameters(), wanted, strict=True):
        equal(p, value)


# -- threads ---------------------------------------------------------------------------------------------------------------------


@backends
def test_threads_call_one_function_at_once(backend: str) -> None:
    model = mlp()
    fast = wrap(backend)(model)
    total = fg.tensor(np.zeros((), np.float64))

    @wrap(backend)
    def count(x: Any) -> Any:
        total.add_(x)
        return (x * 2.0).exp().sum()

    wanted = {size: model(X[:size]).detach().numpy() for size in (1, 3, 6)}
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(10):
                size = (1, 3, 6)[(seed + turn) % 3]
                equal(fast(X[:size]), wanted[size])
                equal(count(np.full((), 0.5)), np.exp(1.0))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert total.item() == 30.0
    assert len(fast.reasons) == 3
