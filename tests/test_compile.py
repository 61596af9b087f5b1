"""Training compiled steps gives the numbers of the eager run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compile_tools import BACKENDS, IMAGES, RNG, Wrap, X, Y, agree, mlp, training_step, wrap

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.optim import lr_scheduler


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FUSEGRAPH_CACHE_DIR", str(folder))
        yield folder


backends = pytest.mark.parametrize("backend", BACKENDS)

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "dampening": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3),
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "amsgrad": lambda p: optim.Adam(p, lr=0.02, weight_decay=0.02, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
    "rmsprop_centered": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.01),
}


def train(make: Callable[[Any], optim.Optimizer], wrap: Wrap, steps: int = 6) -> list[Any]:
    """Losses, then the parameters."""
    model = mlp()
    opt = make(model.parameters())
    step = wrap(training_step(model, opt))

    losses = [step(X * (1 + 0.1 * i), Y) for i in range(steps)]
    return [*losses, *model.parameters()]


@backends
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str, backend: str) -> None:
    agree(lambda wrap: train(OPTIMIZERS[name], wrap), backend)


@pytest.mark.parametrize(
    "options", [{"fuse": False}, {"exact": True}, {"verify": True}, {"disable": ("cse", "simplify")}]
)
def test_options_of_compile(options: dict[str, Any]) -> None:
    agree(lambda wrap: train(OPTIMIZERS["adam"], wrap), "python", **options)


@backends
@pytest.mark.parametrize("clip", ["norm", "value"])
def test_clipping(clip: str, backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        opt = optim.SGD(model.parameters(), lr=0.5)

        @wrap
        def step(x: Any, y: Any) -> Any:
            opt.zero_grad()
            loss = F.cross_entropy(model(x) * 10.0, y)
            loss.backward()
            total = None
            if clip == "norm":
                total = nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            else:
                nn.utils.clip_grad_value_(model.parameters(), 0.05)
            opt.step()
            return loss, total

        return [step(X, Y) for _ in range(4)] + list(model.parameters())

    agree(run, backend)


@backends
def test_a_changed_rate_needs_no_new_version(backend: str) -> None:
    compiled = []

    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        opt = optim.Adam(model.parameters(), lr=0.05)
        schedule = lr_scheduler.CosineAnnealingLR(opt, 5)
        step = training_step(model, opt)

        fast = wrap(step)
        compiled.append(fast)
        out = []
        for i in range(6):
            out.append(fast(X, Y))
            schedule.step()
            if i == 3:
                opt.param_groups[0]["lr"] = 0.3
        return out

    agree(run, backend)
    assert compiled[1].reasons == ["first call"]


@backends
def test_dropout_draws_the_same_numbers(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        fg.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))
        opt = optim.SGD(model.parameters(), lr=0.1)
        step = wrap(training_step(model, opt))

        return [step(X, Y) for _ in range(5)] + [fg.rand(3)]

    agree(run, backend)


@backends
def test_batch_norm_keeps_running_statistics_and_train_eval_switch(backend: str) -> None:
    compiled = []

    def run(wrap: Wrap) -> list[Any]:
        fg.manual_seed(4)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
        opt = optim.SGD(model.parameters(), lr=0.05)
        step = wrap(training_step(model, opt))

        predict = wrap(model)
        compiled.append(predict)
        out = [step(IMAGES + i, Y[:4]) for i in range(3)]
        out += list(model.buffers())
        model.eval()
        out.append(predict(IMAGES))
        model.train()
        out.append(predict(IMAGES))
        model.eval()
        out.append(predict(IMAGES))
        return out + list(model.buffers())

    agree(run, backend, 2e-5)
    reasons = compiled[1].reasons
    assert len(reasons) == 2, "the third call is the first version again"
    assert "training mode" in reasons[1] and "was False, now True" in reasons[1]


@backends
def test_gradients_accumulate_over_micro_batches(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        opt = optim.Adam(model.parameters(), lr=0.05)

        @wrap
        def micro(x: Any, y: Any) -> Any:
            loss = F.cross_entropy(model(x), y)
            (loss / 3).backward()
            return loss

        @wrap
        def update() -> None:
            opt.step()

        out: list[Any] = []
        for _ in range(3):
            opt.zero_grad()
            for part in range(3):
                out.append(micro(X[part * 2 : part * 2 + 2], Y[part * 2 : part * 2 + 2]))
                out += [np.array(p.grad.numpy()) for p in model.parameters()]
            update()
        return out + list(model.parameters())

    agree(run, backend)


@backends
def test_gradients_that_are_kept_as_zeros(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.5)

        @wrap
        def step(x: Any, y: Any) -> Any:
            opt.zero_grad(set_to_none=False)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            return loss

        return [step(X, Y) for _ in range(4)]

    agree(run, backend)


@backends
def test_gradients_left_behind_are_seen(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()

        @wrap
        def gradients(x: Any, y: Any) -> Any:
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            return [p.grad * 2.0 for p in model.parameters()]

        out: list[Any] = []
        for i in range(3):
            out.append(gradients(X + i, Y))
            out.append([np.array(p.grad.numpy()) for p in model.parameters()])
        return out

    agree(run, backend)


@backends
def test_an_argument_collects_a_gradient(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()

        @wrap
        def attack(x: Any, y: Any) -> Any:
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        x = fg.tensor(X, requires_grad=True)
        out: list[Any] = []
        for _ in range(2):
            out += [attack(x, Y), np.array(x.grad.numpy())]
        return out

    agree(run, backend)


@backends
def test_functional_gradients_inside(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        weights = {"w": fg.tensor(RNG_W), "b": fg.tensor(np.zeros(3, np.float32))}

        def loss(params: Any, x: Any, y: Any) -> Any:
            return F.cross_entropy(x @ params["w"] + params["b"], y)

        @wrap
        def step(params: Any, x: Any, y: Any) -> Any:
            value, grads = fg.value_and_grad(loss)(params, x, y)
            return value, {name: params[name] - 0.1 * grads[name] for name in params}

        @wrap
        def curvature(x: Any) -> Any:
            return fg.grad(lambda v: (fg.grad(lambda u: (u * u * u).sum())(v) * v).sum())(x)

        out: list[Any] = []
        for _ in range(3):
            value, weights = step(weights, X, Y)
            out.append(value)
        return [*out, weights, curvature(X)]

    agree(run, backend)


RNG_W = RNG.normal(size=(4, 3)).astype(np.float32)


@backends
@pytest.mark.parametrize("when", ["first", "last", "never"])
def test_gradients_are_cleared_first_last_or_never(when: str, backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        opt = optim.SGD(model.parameters(), lr=0.1)

        @wrap
        def step(x: Any, y: Any) -> Any:
            if when == "first":
                opt.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            if when == "last":
                opt.zero_grad()
            return loss

        return [step(X, Y) for _ in range(5)]

    agree(run, backend)


@backends
def test_loaded_state_and_added_groups_are_used(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        opt = optim.Adam(model[0].parameters(), lr=0.1)
        step = wrap(training_step(model, opt))

        out = [step(X, Y) for _ in range(2)]
        saved = opt.state_dict()
        saved["state"] = {
            k: {n: np.array(v.numpy()) for n, v in entries.items()} for k, entries in saved["state"].items()
        }
        out += [step(X, Y) for _ in range(2)]
        opt.load_state_dict(saved)
        out += [step(X, Y) for _ in range(2)]
        opt.add_param_group({"params": list(model[2].parameters()), "lr": 0.3})
        out += [step(X, Y) for _ in range(2)]
        opt.param_groups[1]["weight_decay"] = 0.2
        opt.param_groups[0]["betas"] = (0.5, 0.9)
        return out + [step(X, Y) for _ in range(3)]

    agree(run, backend)


@backends
def test_two_models_are_trained_against_each_other(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        fg.manual_seed(2)
        maker, judge = nn.Linear(4, 4), nn.Linear(4, 1)
        mean = nn.Linear(4, 4)
        first, second = optim.Adam(maker.parameters(), lr=0.05), optim.RMSprop(judge.parameters(), lr=0.05)

        @wrap
        def step(x: Any) -> Any:
            second.zero_grad()
            judged = (F.softplus(-judge(x)) + F.softplus(judge(maker(x).detach()))).mean()
            judged.backward()
            second.step()
            first.zero_grad()
            made = F.softplus(-judge(maker(x))).mean()
            made.backward()
            first.step()
            with fg.no_grad():
                for slow, fast in zip(mean.parameters(), maker.parameters(), strict=True):
                    slow.mul_(0.9).add_(fast * 0.1)
            return judged, made

        return [step(X) for _ in range(4)] + list(mean.parameters())

    agree(run, backend)


@backends
def test_a_buffer_that_is_assigned(backend: str) -> None:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("held", fg.zeros(4))

        def forward(self, x: Any) -> Any:
            self.held = self.held * 0.5 + x.sum(0)
            return self.held * 2.0

    def run(wrap: Wrap) -> list[Any]:
        model = Memory()
        fast = wrap(model)
        return [fast(X) for _ in range(3)] + [model.held]

    agree(run, backend)


# -- a compiled model under .backward() -----------------------------------------------------------------------------------------


class Twin(nn.Module):
    """Two outputs, one parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.unused = nn.Parameter(np.ones(2, np.float32))

    def forward(self, x: Any, scale: float = 1.0) -> Any:
        hidden = self.a(x).tanh()
        return {"logits": self.b(hidden) * scale, "hidden": [hidden, None, "text"]}


@backends
def test_a_compiled_model_trains(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        fast = wrap(model)
        opt = optim.Adam(model.parameters(), lr=0.05)
        out: list[Any] = []
        for i in range(4):
            opt.zero_grad()
            x = fg.tensor(X + i, requires_grad=True)
            loss = F.cross_entropy(fast(x), Y)
            loss.backward()
            out += [loss, x.grad, *[p.grad for p in model.parameters()]]
            opt.step()
        return out

    agree(run, backend)


@backends
def test_several_outputs_and_an_unused_parameter(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        fg.manual_seed(5)
        model = Twin()
        out = wrap(model)(X, scale=2.0)
        assert out["hidden"][1:] == [None, "text"]
        (out["logits"].sum() + (out["hidden"][0] ** 2).sum()).backward()
        assert model.unused.grad is None
        both = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        again = wrap(model)(X, scale=2.0)
        again["hidden"][0].sum().backward()  # only one of the outputs
        return [
            out["logits"],
            both,
            model.a.weight.grad,
            model.b.weight.grad if model.b.weight.grad is not None else np.zeros((3, 5), np.float32),
        ]

    agree(run, backend)


@backends
def test_two_calls_before_backward(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        fast = wrap(model)
        first, second = fast(X), fast(X * 2)
        (first.sum() * second.sum()).backward()
        return [p.grad for p in model.parameters()]

    agree(run, backend)


@backends
def test_backward_twice_adds_up(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        loss = wrap(model)(X).sum()
        loss.backward()
        loss.backward()
        return [p.grad for p in model.parameters()]

    agree(run, backend)


@backends
def test_double_backward(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        x = fg.tensor(X, requires_grad=True)
        out = wrap(model)(x)
        (gradient,) = fg.autograd.grad(out.sum(), x, create_graph=True)
        penalty = ((gradient**2).sum(1) - 1.0) ** 2
        penalty.sum().backward()
        return [gradient, *[p.grad for p in model.parameters() if p.grad is not None]]

    agree(run, backend)


@backends
def test_double_backward_sees_the_random_numbers_of_its_forward_pass(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        fg.manual_seed(5)
        drop = nn.Dropout(0.5)
        x = fg.tensor(X, requires_grad=True)
        out = wrap(lambda v: drop(v * v * v))(x).sum()
        (first,) = fg.autograd.grad(out, x, create_graph=True)
        (second,) = fg.autograd.grad(first.sum(), x)
        return [first, second]

    agree(run, backend)


@backends
def test_compiled_inside_of_compiled(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        model = mlp()
        fast = wrap(model)
        opt = optim.SGD(model.parameters(), lr=0.1)
        step = wrap(training_step(fast, opt))

        return [fast(X), *[step(X, Y) for _ in range(3)], fast(X)]

    agree(run, backend)


@backends
def test_a_parameter_is_overwritten_between_forward_and_backward(backend: str) -> None:
    model = mlp()
    out = wrap(backend)(model)(X).sum()
    with fg.no_grad():
        model[0].weight.mul_(0.5)
    with pytest.raises(fg.errors.GradientError, match="changed in place"):
        out.backward()


@backends
def test_an_input_is_overwritten_between_forward_and_backward(backend: str) -> None:
    model = nn.Linear(4, 3)
    x = fg.tensor(X)
    out = wrap(backend)(model)(x).sum()
    x.mul_(0.0)
    with pytest.raises(fg.errors.GradientError, match="changed in place"):
        out.backward()


@backends
def test_no_gradient_where_none_is_recorded(backend: str) -> None:
    model = mlp()
    fast = wrap(backend)(model)
    with fg.no_grad():
        out = fast(X)
    assert not out.requires_grad
    assert fast(X).requires_grad
    assert "gradients" in fast.reasons[1]


# -- weights that change shape of use ---------------------------------------------------------------------------


@backends
def test_tied_weights_and_frozen_parameters(backend: str) -> None:
    def run(wrap: Wrap) -> list[Any]:
        fg.manual_seed(6)
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        model = nn.Sequential(first, nn.Tanh(), second)
        opt = optim.SGD(model.parameters(), lr=0.1)

        @wrap
        def step(x: Any) -> Any:
            opt.zero_grad()
            loss = (model(x) ** 2).mean()
            loss.backward()
            opt.step()
            return loss

        out = [step(X) for _ in range(2)]
        first.bias.requires_grad_(False)
        out += [step(X) for _ in range(2)]
        first.bias.requires_grad_(True)
        return out + [step(X), *model.parameters()]

    agree(run, backend)


@backends
def test_embedding_and_sequences_train(backend: str) -> None:
    ids = np.array([[1, 2, 3, 3], [0, 5, 1, 2]])

    def run(wrap: Wrap) -> list[Any]:
        fg.manual_seed(8)
        table, head = nn.Embedding(6, 5), nn.Linear(5, 6)
        opt = optim.Adagrad([*table.parameters(), *head.parameters()], lr=0.1)

        @wrap
        def step(tokens: Any) -> Any:
            opt.zero_grad()
            logits = head(table(tokens[:, :-1]))
            loss = F.cross_entropy(logits.reshape(-1, 6), tokens[:, 1:].reshape(-1))
            loss.backward()
            opt.step()
            return loss

        return [step(ids) for _ in range(4)] + [table.weight]

    agree(run, backend)


# -- determinism --------------------------------------------------------------------------------------------------------------------

_DIGEST = """
import hashlib, numpy as np, fusegraph as fg, fusegraph.functional as F
from fusegraph import nn, optim
def programs():
    fg.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 10))
    opt = optim.AdamW(model.parameters())
    def step(x, y):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        return loss
    x, y = np.zeros((4, 1, 8, 8), np.float32), np.array([0, 1, 2, 3])
    found = []
    for function, arguments in ((step, (x, y)), (model, (x,))):
        version = fg.compile(function, backend="python").compiled_for(*arguments)
        for artifact in filter(None, (version.artifact, version.backward)):
            program, report = artifact.fused
            found.append(str(program) + repr([(r.rule, r.producer, r.consumer, r.nbytes) for r in report.refusals]))
    return "\\n".join(found)
first = programs()
assert first == programs(), "the same process compiles the same model into two programs"
print(hashlib.sha256(first.encode()).hexdigest())
"""


def test_the_same_model_gives_the_same_programs_in_every_process() -> None:
    digests = set()
    for seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1
