"""Optimizers and schedules beside torch's, and traced steps beside eager ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.errors import GradientError, OptionError, StateError, TraceError
from fusegraph.trace import configuration_version, tracing
from tests.oracles import Traced, assert_close, restore, snapshot

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "sgd_nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "sgd_dampening": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    "sgd_decay": ("SGD", {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.5}),
    "sgd_maximize": ("SGD", {"lr": 0.01, "maximize": True, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.05}),
    "adam_options": ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "adam_amsgrad": ("Adam", {"lr": 0.1, "amsgrad": True}),
    "adam_maximize": ("Adam", {"lr": 0.02, "maximize": True}),
    "adamw": ("AdamW", {"lr": 0.05}),
    "adamw_none": ("AdamW", {"lr": 0.05, "weight_decay": 0.0}),
    "adamw_amsgrad": ("AdamW", {"lr": 0.05, "weight_decay": 0.2, "amsgrad": True}),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad_options": (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3},
    ),
    "rmsprop": ("RMSprop", {"lr": 0.02}),
    "rmsprop_centered": ("RMSprop", {"lr": 0.02, "centered": True, "alpha": 0.9}),
    "rmsprop_momentum": ("RMSprop", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop_both": ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
}


class Small(nn.Module):
    """A network with a parameter that is used only sometimes."""

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 6, dtype=dtype)
        self.fc2 = nn.Linear(6, 3, dtype=dtype)
        self.rare = nn.Parameter(fg.ones(3, dtype=dtype))

    def forward(self, x: Any, rare: bool = False) -> Any:
        out = self.fc2(F.tanh(self.fc1(x)))
        return out * self.rare if rare else out


def torch_twin(net: Small, torch: Any) -> Callable[..., Any]:
    """The same function and parameters in torch; `.parameters` holds the parameters in the same order."""
    params = {name: torch.nn.Parameter(torch.tensor(p.detach().numpy().copy())) for name, p in net.named_parameters()}

    def forward(x: Any, rare: bool = False) -> Any:
        hidden = torch.tanh(torch.nn.functional.linear(x, params["fc1.weight"], params["fc1.bias"]))
        out = torch.nn.functional.linear(hidden, params["fc2.weight"], params["fc2.bias"])
        return out * params["rare"] if rare else out

    forward.parameters = list(params.values())  # type: ignore[attr-defined]
    return forward


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_against_torch(name: str, dtype: str, torch: Any, rng: np.random.Generator) -> None:
    """Ten steps; one parameter has a gradient only in some of them."""
    kind, options = OPTIMIZERS[name]
    net = Small(dtype)
    twin = torch_twin(net, torch)
    ours, theirs = (
        getattr(optim, kind)(net.parameters(), **options),
        getattr(torch.optim, kind)(twin.parameters, **options),
    )
    for step in range(10):
        x, y = rng.normal(size=(8, 4)).astype(dtype), rng.integers(0, 3, 8)
        ours.zero_grad()
        theirs.zero_grad()
        F.cross_entropy(net(fg.tensor(x), step in (1, 4, 5)), y).backward()
        torch.nn.functional.cross_entropy(twin(torch.tensor(x), step in (1, 4, 5)), torch.tensor(y)).backward()
        ours.step()
        theirs.step()
        for (key, p), q in zip(net.named_parameters(), twin.parameters, strict=True):
            assert_close(
                p.detach().numpy(), q.detach().numpy(), 2e-5 if dtype == "float32" else 1e-10, f"step {step}: {key}"
            )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_traced_step_is_the_eager_step(name: str, rng: np.random.Generator) -> None:
    """Forward, backward and update traced once and run five times; the rate changes without a new trace."""
    kind, options = OPTIMIZERS[name]
    net = Small()
    opt = getattr(optim, kind)(net.parameters(), **options)

    def step(x: fg.Tensor, y: fg.Tensor) -> fg.Tensor:
        opt.zero_grad()
        loss = F.cross_entropy(net(x, True), y)
        loss.backward()
        opt.step()
        return loss

    batches = [
        (fg.tensor(rng.normal(size=(8, 4)).astype("float32")), fg.tensor(rng.integers(0, 3, 8))) for _ in range(5)
    ]
    rates = [options["lr"] * f for f in (1.0, 1.0, 0.5, 2.0, 0.0)]
    start = snapshot(list(net.parameters()))
    traced = Traced(step, batches[0])
    assert {id(p) for p in net.parameters()} == traced.trace.consumed_grads
    found = []
    for batch, rate in zip(batches, rates, strict=True):
        opt.param_groups[0]["lr"] = rate
        found.append((traced(*batch)[0], snapshot(list(net.parameters()))))
    assert all(guard.read() == guard.value for guard in traced.trace.guards)

    restore(list(net.parameters()), start)
    net.zero_grad()
    opt = getattr(optim, kind)(net.parameters(), **options)
    for batch, rate, (loss, params) in zip(batches, rates, found, strict=True):
        opt.param_groups[0]["lr"] = rate
        assert_close(loss, step(*batch).detach().numpy(), 1e-6)
        for p, expected in zip(net.parameters(), params, strict=True):
            assert_close(p.detach().numpy(), expected, 1e-6, p.name)


def test_tracing_leaves_no_mark(rng: np.random.Generator) -> None:
    """Tracing a step changes no parameter, no state and no gradient."""
    net = Small()
    opt = optim.Adam(net.parameters())
    F.mse_loss(net(fg.ones(2, 4)), fg.zeros(2, 3)).backward()
    grads = [p.grad for p in net.parameters()]
    before = snapshot(list(net.parameters()))

    def step(x: fg.Tensor) -> fg.Tensor:
        opt.zero_grad()
        loss = net(x).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        return loss

    Traced(step, [fg.ones(2, 4)])
    assert [p.grad for p in net.parameters()] == grads
    for p, values in zip(net.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), values)
    for state in opt.state.values():
        for value in state.values():
            assert isinstance(value._value, np.ndarray) and not value._value.any()


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_traced_clipping(clip: str, rng: np.random.Generator) -> None:
    net = Small()
    opt = optim.SGD(net.parameters(), lr=1.0)

    def step(x: fg.Tensor) -> Any:
        opt.zero_grad()
        loss = (net(x, True) ** 2).sum()
        loss.backward()
        norm = (
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            if clip == "norm"
            else nn.utils.clip_grad_value_(net.parameters(), 0.01)
        )
        opt.step()
        return loss, norm

    x = fg.tensor(rng.normal(size=(5, 4)).astype("float32"))
    start = snapshot(list(net.parameters()))
    results = (traced := Traced(step, [x]))(x)
    after = snapshot(list(net.parameters()))
    restore(list(net.parameters()), start)
    net.zero_grad()
    expected = [r for r in step(x) if r is not None]
    assert len(results) == len(expected) and traced.assigned
    for got, want in zip(results, expected, strict=True):
        assert_close(got, want.detach().numpy(), 1e-6)
    moved = 0.0
    for p, values, old in zip(net.parameters(), after, start, strict=True):
        assert_close(p.detach().numpy(), values, 1e-6)
        moved += float(((values - old) ** 2).sum())
        if clip == "value":
            assert np.abs(values - old).max() <= 0.01 + 1e-6
    if clip == "norm":
        assert abs(math.sqrt(moved) - 0.5) < 1e-4


def test_two_steps_in_one_trace(rng: np.random.Generator) -> None:
    """State that is assigned twice ends as after two eager steps."""
    net = Small()
    opt = optim.Adam(net.parameters(), lr=0.1)

    def steps(x: fg.Tensor) -> fg.Tensor:
        for _ in range(2):
            opt.zero_grad()
            loss = net(x, True).square().sum()
            loss.backward()
            opt.step()
        return loss

    x = fg.tensor(rng.normal(size=(5, 4)).astype("float32"))
    start = snapshot(list(net.parameters()))
    traced = Traced(steps, [x])
    loss = traced(x)[0]
    after = snapshot(list(net.parameters()))
    count = next(iter(opt.state.values()))["step"].item()
    restore(list(net.parameters()), start)
    net.zero_grad()
    opt = optim.Adam(net.parameters(), lr=0.1)
    assert_close(loss, steps(x).detach().numpy(), 1e-6)
    assert count == 2
    for p, values in zip(net.parameters(), after, strict=True):
        assert_close(p.detach().numpy(), values, 1e-6)


# -- groups and options ---


@pytest.mark.torch
def test_parameter_groups(torch: Any) -> None:
    net = Small("float64")
    twin = torch_twin(net, torch)
    p, q = list(net.parameters()), twin.parameters
    ours = optim.SGD([{"params": p[1:3], "lr": 0.5}, {"params": p[3]}], lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD([{"params": q[1:3], "lr": 0.5}, {"params": q[3]}], lr=0.1, momentum=0.9)
    ours.add_param_group({"params": [p[4]], "weight_decay": 0.3})
    theirs.add_param_group({"params": [q[4]], "weight_decay": 0.3})
    x = np.random.default_rng(0).normal(size=(4, 4))
    for _ in range(3):
        ours.zero_grad()
        theirs.zero_grad()
        net(fg.tensor(x)).square().sum().backward()
        twin(torch.tensor(x)).square().sum().backward()
        ours.step()
        theirs.step()
    for a, b in zip(p, q, strict=True):
        assert_close(a.detach().numpy(), b.detach().numpy(), 1e-10)
    assert [g["lr"] for g in ours.param_groups] == [0.5, 0.1, 0.1]
    assert "weight_decay: 0.3" in repr(ours)


def test_numbers_live_in_tensors() -> None:
    p = nn.Parameter(fg.ones(1))
    opt = optim.SGD([p], lr=0.1, momentum=0.9)
    group = opt.param_groups[0]
    rate = group.tensor("lr")
    version = configuration_version()
    group["lr"] = 0.25
    assert group["lr"] == 0.25 and isinstance(group["lr"], float) and group.tensor("lr") is rate and rate.item() == 0.25
    group["momentum"] = 0.5
    assert configuration_version() == version, "a changed number needs no new trace"
    group["momentum"] = 0.0
    assert configuration_version() > version, "what it switches off does"
    version = configuration_version()
    group["nesterov"] = True
    assert configuration_version() > version
    assert dict(group.items())["lr"] == 0.25 and group.get("lr") == 0.25 and group.get("missing", 3) == 3
    adam = optim.Adam([p])
    adam.param_groups[0]["betas"] = (0.5, 0.6)
    assert adam.param_groups[0]["betas"] == (0.5, 0.6)
    with tracing():
        assert adam.param_groups[0]["lr"] is adam.param_groups[0].tensor("lr")
        with pytest.raises(TraceError, match="'lr' is set inside of a compiled function"):
            adam.param_groups[0]["lr"] = 1.0


def test_parameters_that_step_together_share_a_count() -> None:
    a, b = nn.Parameter(fg.ones(2)), nn.Parameter(fg.ones(3))
    opt = optim.Adam([a, b])

    def step(*params: nn.Parameter) -> None:
        opt.zero_grad()
        sum((p.sum() for p in params), fg.zeros(())).backward()
        opt.step()

    step(a, b)
    assert opt.state[a]["step"] is opt.state[b]["step"]
    version = configuration_version()
    step(a, b)
    assert configuration_version() == version
    step(a)
    assert opt.state[a]["step"] is not opt.state[b]["step"]
    assert (opt.state[a]["step"].item(), opt.state[b]["step"].item()) == (3, 2)
    assert configuration_version() > version
    step(b)
    step(a, b)
    assert opt.state[a]["step"] is opt.state[b]["step"] and opt.state[a]["step"].item() == 4


def test_errors() -> None:
    p = nn.Parameter(fg.ones(2))
    with pytest.raises(GradientError, match="SGD got no parameters"):
        optim.SGD([], lr=0.1)
    with pytest.raises(OptionError, match="an iterable of parameters, got one tensor"):
        optim.SGD(p, lr=0.1)
    with pytest.raises(OptionError, match="takes tensors, got str"):
        optim.SGD(["a"], lr=0.1)
    with pytest.raises(GradientError, match="only leaves"):
        optim.SGD([p * 2], lr=0.1)
    with pytest.raises(OptionError, match="stands in the groups twice"):
        optim.SGD([p, p], lr=0.1)
    for call, text in (
        (lambda: optim.SGD([p], lr=-1), "lr must be at least 0, got -1"),
        (lambda: optim.SGD([p], lr=math.nan), "lr must be"),
        (lambda: optim.SGD([p], nesterov=True), "nesterov needs a momentum"),
        (lambda: optim.Adam([p], betas=(1.0, 0.9)), r"betas must be in \[0, 1\)"),
        (lambda: optim.Adam([p], eps=-1), "eps must be"),
        (lambda: optim.RMSprop([p], alpha=-1), "alpha must be"),
        (lambda: optim.Adagrad([p], lr_decay=-1), "lr_decay must be"),
        (lambda: optim.AdamW([p], weight_decay="a"), "weight_decay must be"),
    ):
        with pytest.raises(OptionError, match=text):
            call()
    opt = optim.Adam([p])
    with pytest.raises(GradientError, match=r"Adam.step\(\): no parameter has a gradient; call backward\(\)"):
        opt.step()
    assert not opt.state and p.tolist() == [1, 1]
    with pytest.raises(OptionError, match="a dict with the entry 'params'"):
        opt.add_param_group({"lr": 1})
    assert len(opt.param_groups) == 1


def test_closure() -> None:
    p = nn.Parameter(fg.tensor([2.0]))
    opt = optim.SGD([p], lr=0.1)

    def closure() -> fg.Tensor:
        opt.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == 4.0
    assert abs(p.item() - 1.6) < 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_goes_on_where_it_was_saved(name: str, rng: np.random.Generator) -> None:
    kind, options = OPTIMIZERS[name]
    net = Small()
    opt = getattr(optim, kind)(net.parameters(), **options)
    xs = [fg.tensor(rng.normal(size=(5, 4)).astype("float32")) for _ in range(4)]

    def step(net: Small, opt: Any, x: fg.Tensor) -> None:
        opt.zero_grad()
        net(x, True).square().sum().backward()
        opt.step()

    for x in xs[:2]:
        step(net, opt, x)
    saved, twin = copy.deepcopy(opt.state_dict()), copy.deepcopy(net)
    for x in xs[2:]:
        step(net, opt, x)
    other = getattr(optim, kind)(twin.parameters(), lr=0.123)
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == options["lr"]
    for x in xs[2:]:
        step(twin, other, x)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def test_state_errors_change_nothing() -> None:
    p, q = nn.Parameter(fg.ones(2)), nn.Parameter(fg.ones(3))
    opt = optim.Adam([p, q])
    (p.sum() + q.sum()).backward()
    opt.step()
    good = opt.state_dict()
    held = {key: value.numpy().copy() for key, value in opt.state[p].items()}
    wrong: list[tuple[Any, str]] = [
        ({"state": {}}, "'state' and 'param_groups'"),
        ({"state": {}, "param_groups": []}, r"saved groups have \[\] parameters, this optimizer's have \[2\]"),
        ({**good, "state": {5: {}}}, "state for parameter 5, but only 2"),
        (
            {**good, "state": {0: {"exp_avg": np.zeros(7)}}},
            r"'exp_avg' of parameter 0 has shape \[7\], the parameter \[2\]",
        ),
    ]
    for state, text in wrong:
        with pytest.raises(StateError, match=text):
            opt.load_state_dict(state)
        for key, value in held.items():
            np.testing.assert_array_equal(opt.state[p][key].numpy(), value)
    bad = copy.deepcopy(good)
    bad["param_groups"][0]["lr"] = -1.0
    with pytest.raises(OptionError, match="lr must be"):
        opt.load_state_dict(bad)
    assert opt.param_groups[0]["lr"] == 1e-3


# -- schedules ---

SCHEDULES: dict[str, Callable[[Any, Any], Any]] = {
    "step": lambda s, o: s.StepLR(o, 3, gamma=0.5),
    "multi": lambda s, o: s.MultiStepLR(o, [2, 5, 5], gamma=0.5),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, T_max=6, eta_min=0.01),
    "linear": lambda s, o: s.LinearLR(o, 0.1, total_iters=4),
    "linear_down": lambda s, o: s.LinearLR(o, 1.0, 0.2, 5),
    "constant": lambda s, o: s.ConstantLR(o, 0.5, 3),
    "lambda": lambda s, o: s.LambdaLR(o, lambda n: 1 / (1 + n)),
    "lambda_groups": lambda s, o: s.LambdaLR(o, [lambda n: 0.9**n, lambda n: 1.0]),
    "sequential": lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.1, total_iters=3), s.ExponentialLR(o, 0.8)], [3]),
    "warm_cosine": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.01, total_iters=4), s.CosineAnnealingLR(o, T_max=8)], [4]
    ),
    "one_cycle": lambda s, o: s.OneCycleLR(o, max_lr=0.5, total_steps=12),
    "one_cycle_linear": lambda s, o: s.OneCycleLR(
        o, max_lr=[0.5, 0.2], epochs=3, steps_per_epoch=4, anneal_strategy="linear"
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler:UserWarning")
def test_schedules(name: str, kind: str, torch: Any) -> None:
    def groups(make: Callable[[], Any]) -> list[dict[str, Any]]:
        return [{"params": [make()], "lr": 0.2}, {"params": [make()]}]

    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9} if kind == "SGD" else {"lr": 0.1}
    ours = getattr(optim, kind)(groups(lambda: nn.Parameter(fg.ones(1))), **options)
    theirs = getattr(torch.optim, kind)(groups(lambda: torch.nn.Parameter(torch.ones(1))), **options)
    mine, other = SCHEDULES[name](optim.lr_scheduler, ours), SCHEDULES[name](torch.optim.lr_scheduler, theirs)
    for step in range(12):
        for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert a["lr"] == pytest.approx(b["lr"], rel=1e-9, abs=1e-12), f"step {step}"
            if "one" in name:
                assert (a["momentum"] if kind == "SGD" else a["betas"][0]) == pytest.approx(
                    b["momentum"] if kind == "SGD" else b["betas"][0], rel=1e-9
                )
        assert mine.get_last_lr() == [g["lr"] for g in ours.param_groups]
        if step < 11:
            mine.step()
            other.step()


@pytest.mark.torch
def test_plateau(torch: Any) -> None:
    ours, theirs = (
        optim.SGD([nn.Parameter(fg.ones(1))], lr=1.0),
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0),
    )
    mine = optim.lr_scheduler.ReduceLROnPlateau(ours, patience=1, cooldown=1, factor=0.5)
    other = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, patience=1, cooldown=1, factor=0.5)
    for loss in (1.0, 0.9, 0.95, 0.91, 0.92, 0.93, 0.94, 0.5, 0.6, 0.7, 0.8):
        mine.step(loss)
        other.step(loss)
        assert mine.get_last_lr() == [theirs.param_groups[0]["lr"]]


def test_schedule_state_and_errors() -> None:
    opt = optim.SGD([nn.Parameter(fg.ones(1))], lr=1.0)
    schedule = optim.lr_scheduler.StepLR(opt, 2)
    for _ in range(3):
        schedule.step()
    saved = schedule.state_dict()
    again = optim.lr_scheduler.StepLR(optim.SGD([nn.Parameter(fg.ones(1))], lr=1.0), 2)
    again.load_state_dict(saved)
    assert again.get_last_lr() == schedule.get_last_lr() == [pytest.approx(0.1)]
    with pytest.raises(StateError, match="for 1 groups"):
        again.load_state_dict({"last_epoch": 1, "base_lrs": [1, 2]})
    with pytest.raises(OptionError, match="takes an optimizer, got int"):
        optim.lr_scheduler.StepLR(3, 2)  # type: ignore[arg-type]
    for call, text in (
        (lambda: optim.lr_scheduler.StepLR(opt, 0), "step_size"),
        (lambda: optim.lr_scheduler.CosineAnnealingLR(opt, 0), "T_max"),
        (lambda: optim.lr_scheduler.LinearLR(opt, 0.0), "start_factor"),
        (lambda: optim.lr_scheduler.OneCycleLR(opt, 1.0), "total_steps"),
        (lambda: optim.lr_scheduler.OneCycleLR(opt, 1.0, 5), "cycle_momentum needs"),
        (lambda: optim.lr_scheduler.LambdaLR(opt, []), "0 functions for 1 groups"),
        (lambda: optim.lr_scheduler.SequentialLR(opt, [], []), "milestones"),
    ):
        with pytest.raises(OptionError, match=text):
            call()


def test_training_learns(rng: np.random.Generator) -> None:
    """Every optimizer brings the loss of a small problem down a lot."""
    x = rng.normal(size=(64, 4)).astype("float32")
    y = (x[:, 0] > x[:, 1]).astype(int) + (x[:, 2] > 1)
    for kind, rate in (("SGD", 0.5), ("Adam", 0.05), ("AdamW", 0.05), ("Adagrad", 0.2), ("RMSprop", 0.02)):
        fg.manual_seed(1)
        net = Small()
        opt = getattr(optim, kind)(net.parameters(), lr=rate)
        losses = []
        for _ in range(60):
            opt.zero_grad()
            loss = F.cross_entropy(net(fg.from_numpy(x)), y)
            loss.backward()
            opt.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0], kind
