"""Choices that can be switched off by name, and `autotune="on"`, which finds out on the first calls what to switch off."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import autotune, nn, optim
from fusegraph.errors import IndexRangeError, OptionError
from fusegraph.ir.loops_text import print_program
from fusegraph.passes.choices import CHOICES
from fusegraph.runtime import threads
from tests.compile_tools import training_step

CALLS = 320  # enough for every trial here


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FUSEGRAPH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(threads.ThreadSetting, "count", 2)
    yield
    threads.ThreadSetting.version += 1


def _fastest(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """From now on variants take so long (the others 1 s)."""
    times = {name.replace("_", " "): time for name, time in seconds.items()}
    monkeypatch.setattr(autotune._Candidate, "seconds", property(lambda self: times.get(self.name, 1.0)))


def _training(**options: Any) -> tuple[Callable[..., Any], Callable[[], list[np.ndarray]]]:
    """A step with dropout, running statistics and momentum, and what tells its state."""
    fg.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    step = fg.compile(training_step(model, optimizer), **options)
    return step, lambda: [np.array(value.detach()) for value in model.state_dict().values()]


def _batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((32, 12)).astype(np.float32), rng.integers(0, 4, 32)


def _artifact(step: Any) -> Any:
    return step.compiled_for().artifact


# -- choices by name --------------------------------------------------------------------------------------------------------


def _conv_gradients(x: Any, w1: Any, w2: Any) -> Any:
    learned = [part.detach().requires_grad_() for part in (x, w1, w2)]
    hidden = F.relu(F.conv2d(learned[0], learned[1], padding=1))
    pooled = F.max_pool2d(F.relu(F.conv2d(hidden, learned[2])), 2)
    return fg.autograd.grad((pooled * pooled).sum(), learned)


def _small_convs(x: Any, w1: Any, w2: Any) -> Any:
    learned = [part.detach().requires_grad_() for part in (x, w1, w2)]
    hidden = F.max_pool2d(F.relu(F.conv2d(learned[0], learned[1], padding=1)), 2)
    made = F.relu(F.conv2d(hidden, learned[2]))
    return fg.autograd.grad((made * made).sum(), learned)


def _norm_gradients(x: Any, scale: Any, shift: Any, cotangent: Any) -> Any:
    learned = [part.detach().requires_grad_() for part in (x, scale, shift)]
    made = F.layer_norm(learned[0], (learned[1].shape[0],), learned[1], learned[2])
    return made.detach(), *fg.autograd.grad(made, learned, cotangent)


def _relu_of_norm(x: Any, scale: Any, shift: Any, cotangent: Any) -> Any:
    learned = [part.detach().requires_grad_() for part in (x, scale, shift)]
    made = F.relu(F.batch_norm(learned[0], None, None, learned[1], learned[2], training=True))
    return made.detach(), *fg.autograd.grad(made, learned, cotangent)


_IMAGES = ((9, 3, 12, 12), (32, 3, 3, 3), (6, 32, 5, 5))
WHERE: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "epilogues": (_conv_gradients, _IMAGES),
    "siblings": (_norm_gradients, ((64, 48), (48,), (48,), (64, 48))),
    "rereads": (_relu_of_norm, ((64, 8, 32, 36), (8,), (8,), (64, 8, 32, 36))),
    "winners": (_conv_gradients, _IMAGES),
    "blocks": (_small_convs, ((16, 2, 7, 7), (3, 2, 3, 3), (5, 3, 3, 3))),
    "stretches": (_norm_gradients, ((8192, 256), (256,), (256,), (8192, 256))),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_can_be_switched_off(name: str) -> None:
    function, shapes = WHERE[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    made = {}
    for key, options in {"with": {}, "without": {"disable": [name]}, "right": {"backend": "reference"}}.items():
        given = [array.astype(np.float64) for array in arrays] if key == "right" else arrays
        step = fg.compile(function, **options)
        made[key] = [np.asarray(part.detach()) for part in step(*map(fg.tensor, given))], _artifact(step)
    programs = {key: made[key][1] for key in ("with", "without")}
    assert programs["with"].code_hash != programs["without"].code_hash
    if name in ("blocks", "stretches"):
        assert programs["with"].report["memory"] != programs["without"].report["memory"] or programs["with"].stretches
        assert not programs["without"].stretches
    else:
        texts = {print_program(program.fused[0]) for program in programs.values()}
        assert len(texts) == 2
    for key in programs:
        for mine, right in zip(made[key][0], made["right"][0], strict=True):
            np.testing.assert_allclose(mine, right, rtol=0, atol=1e-5 * np.abs(right).max())


def test_a_fusion_that_was_switched_off_is_a_refusal_in_the_report() -> None:
    x, w, b = (fg.tensor(np.ones(shape, np.float32)) for shape in ((8, 8), (8, 8), (8,)))
    step = fg.compile(lambda x, w, b: F.relu(x @ w + b), disable=["epilogues"])
    (program,) = step.explain(x, w, b).programs
    assert program["totals"]["kernels"] == 2
    assert "disable=['epilogues']" in program["refusals"][0]["rule"]


# -- autotune ---------------------------------------------------------------------------------------------------------------


def test_state_advances_once_a_call_whichever_program_runs() -> None:
    x, y = _batch()
    plain, right = _training()
    losses = [float(plain(x, y)) for _ in range(CALLS)]
    tuned, state = _training(autotune="on")
    names = set()
    for loss in losses:  # the same masks of dropout, call by call
        assert float(tuned(x, y)) == pytest.approx(loss, rel=2e-3)
        names.add(type(_artifact(tuned).executable).__name__)
    assert names == {"Tuner", "NativeStep"}
    for mine, other in zip(state(), right(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-3 * max(1.0, np.abs(other).max()))
    record = _artifact(tuned).tuned
    assert record.chosen in record.seconds and record.threads == 2
    assert {"default", "unfused"} <= record.seconds.keys() and min(record.seconds.values()) > 0


@pytest.mark.parametrize("winner", ["unfused", "without_siblings"])
def test_the_fastest_is_kept_and_remembered(monkeypatch: pytest.MonkeyPatch, winner: str) -> None:
    name = winner.replace("_", " ")
    _fastest(monkeypatch, **{winner: 0.5})
    first, _ = _training(autotune="on")
    assert "being tried" in str(first.explain(*_batch()))
    for _ in range(CALLS):
        first(*_batch())
    artifact = _artifact(first)
    assert artifact.tuned.chosen == name and artifact.tuned.seconds["default"] == 1.0
    text = str(first.explain(*_batch()))
    assert f"autotune: {name} was the fastest on 2 thread(s) ({name} 500000.0 us, default 1000000.0 us" in text
    assert (artifact.options.fuse is False) == (name == "unfused") and artifact.options.autotune == "off"
    assert type(first._repeats[0]).__name__ == "Repeat"

    built: list[Any] = []
    import fusegraph.build

    native = fusegraph.build.build_native
    monkeypatch.setattr(fusegraph.build, "build_native", lambda a, *rest: built.append(a.options) or native(a, *rest))
    second, _ = _training(autotune="on")
    second(*_batch())
    assert len(built) == 1 and _artifact(second).from_cache
    assert _artifact(second).code_hash == artifact.code_hash and "as stored" in str(second.explain(*_batch()))
    threads.set_num_threads(1)
    other, _ = _training(autotune="on")
    other(*_batch())
    assert len(built) > 2 and not _artifact(other).tuned.chosen, "it was for two threads"


def test_the_default_is_kept_where_another_is_hardly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    _fastest(monkeypatch, unfused=0.98)
    step, _ = _training(autotune="on")
    for _ in range(CALLS):
        step(*_batch())
    assert _artifact(step).tuned.chosen == "default" and _artifact(step).options.fuse is True


def test_a_function_with_nothing_to_choose_is_not_tried() -> None:
    step = fg.compile(lambda x: x + 1, autotune="on")
    x = np.ones(8, np.float32)
    step(x)
    step(x)
    assert type(_artifact(step).executable).__name__ == "NativeStep"
    assert "autotune: nothing to choose" in str(step.explain(x)) and _artifact(step).tuned.chosen == "default"


def test_a_call_that_raises_is_no_turn() -> None:
    x, y = _batch()
    plain, _ = _training()
    losses = [float(plain(x, y)) for _ in range(CALLS)]
    tuned, state = _training(autotune="on")
    for call, loss in enumerate(losses):
        if call % 7 == 3:
            before = state()
            with pytest.raises(IndexRangeError):
                tuned(x, np.full_like(y, 99))
            for old, new in zip(before, state(), strict=True):
                np.testing.assert_array_equal(old, new)
        assert float(tuned(x, y)) == pytest.approx(loss, rel=2e-3)
    assert _artifact(tuned).tuned.chosen


def test_another_number_of_threads_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    step, _ = _training(autotune="on")
    for _ in range(30):
        step(*_batch())
    tuner = _artifact(step).executable
    assert any(candidate.times for candidate in tuner._candidates)
    threads.set_num_threads(3)
    step(*_batch())
    assert not any(candidate.times for candidate in tuner._candidates)
    for _ in range(CALLS):
        step(*_batch())
    assert _artifact(step).tuned.threads == 3


def test_several_python_threads_share_the_trial() -> None:
    counter = nn.Parameter(np.zeros(4, np.float32))

    @fg.compile(autotune="on")
    def count(x: Any) -> Any:
        with fg.no_grad():
            counter.add_(fg.ones(4))
        return F.softmax(x @ x, 1) * 2 + F.relu(x)

    x = np.eye(8, dtype=np.float32)
    count(x)
    workers = [threading.Thread(target=lambda: [count(x) for _ in range(60)]) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert np.asarray(counter.detach()).tolist() == [241.0] * 4
    assert _artifact(count).tuned.chosen


def test_forward_and_backward_programs_of_a_model_are_tried_each() -> None:
    def make(**options: Any) -> Any:
        fg.manual_seed(1)
        return fg.compile(nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)), **options)

    tuned, plain = make(autotune="on"), make()
    x, y = _batch()
    for _ in range(CALLS):
        for model in (tuned, plain):
            for parameter in model.parameters():
                parameter.grad = None
            F.cross_entropy(model(x), y).backward()
        for mine, other in zip(tuned.parameters(), plain.parameters(), strict=True):
            np.testing.assert_allclose(np.asarray(mine.grad), np.asarray(other.grad), rtol=0, atol=1e-5)
    version = tuned.compiled_for()
    assert version.artifact.tuned.chosen and version.backward.tuned.chosen


def test_variants_of_a_function_that_requires_fusion_leave_its_kernels_as_they_are() -> None:
    from fusegraph.build import Options

    names = autotune.variants(Options(fuse="require"))
    assert set(names) == {"default", "without rereads", "without blocks", "without stretches"}
    assert set(autotune.variants(Options(fuse=False))) == {"default"}
    assert "without blocks" not in autotune.variants(Options(disable=("blocks",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autotune": "max"}, "autotune is 'off' or 'on', not 'max'"),
        ({"autotune": True}, "autotune is 'off' or 'on', not True"),
        ({"autotune": "on", "backend": "numba"}, "option of backend='cpu'.*backend='numba'"),
        ({"autotune": "on", "memory_budget": "1MB"}, "option of backend='cpu'.*memory_budget"),
        ({"autotune": "on", "dynamic": True}, "programs of a fixed size"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fg.compile(lambda x: x, **options)


def test_a_damaged_choice_is_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    _fastest(monkeypatch, unfused=0.5)
    step, _ = _training(autotune="on")
    for _ in range(CALLS):
        step(*_batch())
    from fusegraph.runtime.cache import DiskCache

    plain, _ = _training()
    plain(*_batch())
    cache, key = autotune._place(_artifact(plain))
    assert cache.get(key) is not None
    for text in (b"{}", b"no JSON", b'{"threads": 2, "seconds": {}, "chosen": "without anything"}'):
        DiskCache().put(key, {"choice.json": text})
        again, _ = _training(autotune="on")
        again(*_batch())
        assert type(_artifact(again).executable).__name__ == "Tuner"
