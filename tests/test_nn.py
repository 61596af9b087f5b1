"""Modules: registration, state, modes, names; and every layer beside torch's, eager and traced."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn
from fusegraph.errors import OptionError, ShapeError, StateError, TraceError, UnsupportedError
from fusegraph.trace import tracing
from tests.oracles import Array, Traced, assert_close, check_gradients


class Net(nn.Module):
    """A parameter, a buffer, children, a list."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(fg.ones(2))
        self.register_buffer("offset", fg.zeros(2))
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Sequential(nn.Linear(4, 2), nn.ReLU())])

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        x = self.first(x).relu()
        for block in self.blocks:
            x = block(x)
        return x * self.scale + self.offset


NAMES = ["scale", "first.weight", "first.bias", "blocks.0.weight", "blocks.1.0.weight", "blocks.1.0.bias"]


# -- registration ---


def test_names_of_parameters_buffers_and_modules() -> None:
    net = Net()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [name for name, _ in net.named_buffers()] == ["offset"]
    assert [name for name, _ in net.named_modules()] == [
        "",
        "first",
        "blocks",
        "blocks.0",
        "blocks.1",
        "blocks.1.0",
        "blocks.1.1",
    ]
    assert [name for name, _ in net.named_children()] == ["first", "blocks"]
    assert [p.name for p in net.parameters()] == NAMES
    assert net.get_parameter("blocks.1.0.bias") is net.blocks[1][0].bias
    assert list(net.state_dict()) == ["scale", "offset", *NAMES[1:]]


def test_names_are_the_longest_path() -> None:
    net = Net()
    list(net.parameters())
    assert net.first.weight.name == "first.weight"
    list(net.first.parameters())
    assert net.first.weight.name == "first.weight"
    whole = nn.Sequential(net)
    list(whole.parameters())
    assert net.first.weight.name == "0.first.weight"


def test_attributes() -> None:
    net = Net()
    with pytest.raises(TypeError, match="assign a Parameter or None, not Tensor"):
        net.scale = fg.ones(2)
    with pytest.raises(TypeError, match="assign a tensor or None"):
        net.offset = 3
    with pytest.raises(AttributeError, match="Net has no attribute 'missing'"):
        _ = net.missing
    net.offset = fg.ones(2)
    assert net.offset.tolist() == [1, 1] and "offset" in dict(net.named_buffers())
    net.scale = nn.Parameter(fg.zeros(3))
    assert net.scale.shape == (3,)
    net.first = nn.Linear(3, 5)
    assert net.first.out_features == 5
    del net.first
    assert "first" not in dict(net.named_modules())
    net.scale = None
    assert "scale" not in dict(net.named_parameters()) and net.scale is None
    net.plain = 5
    assert net.plain == 5 and "plain" in dir(net)
    with pytest.raises(KeyError, match="without dots"):
        net.add_module("a.b", nn.ReLU())
    with pytest.raises(KeyError, match="taken by a method"):
        net.register_parameter("forward", nn.Parameter(fg.ones(1)))


def test_init_must_be_called() -> None:
    class Hasty(nn.Module):
        def __init__(self) -> None:
            self.fc = nn.Linear(2, 2)

    class Silent(nn.Module):
        def __init__(self) -> None:
            pass

    with pytest.raises(AttributeError, match="Hasty: call super\\(\\).__init__\\(\\) before assigning 'fc'"):
        Hasty()
    with pytest.raises(AttributeError, match="call super"):
        Silent()(fg.ones(2))


def test_module_without_forward() -> None:
    class Empty(nn.Module):
        pass

    with pytest.raises(UnsupportedError, match="Empty has no forward"):
        Empty()(1)
    with pytest.raises(UnsupportedError, match="ModuleList has no forward"):
        nn.ModuleList([nn.ReLU()])(fg.ones(2))


def test_shared_parameters_are_counted_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert len(list(net.parameters())) == 3
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    x = fg.randn(2, 3)
    net(x).sum().backward()
    alone = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    alone.load_state_dict(net.state_dict())
    alone(x).sum().backward()
    assert_close(
        net[0].weight.grad.detach().numpy(), (alone[0].weight.grad + alone[1].weight.grad).detach().numpy(), 1e-6
    )


def test_containers() -> None:
    seq = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert len(seq) == 3 and isinstance(seq[1], nn.ReLU) and len(seq[:2]) == 2 and seq[-1].in_features == 3
    seq.append(nn.Tanh()).insert(0, nn.Identity())
    assert [type(m).__name__ for m in seq] == ["Identity", "Linear", "ReLU", "Linear", "Tanh"]
    del seq[0]
    assert list(dict(seq.named_children())) == ["0", "1", "2", "3"]
    named = nn.Sequential({"a": nn.Linear(2, 2), "b": nn.ReLU()})
    assert list(named.state_dict()) == ["a.weight", "a.bias"] and named(fg.ones(1, 2)).shape == (1, 2)
    several = nn.ModuleDict({"x": nn.ReLU()})
    several["y"] = nn.Linear(1, 1)
    assert list(several) == ["x", "y"] and "x" in several and len(several) == 2 and several["y"].in_features == 1
    params = nn.ParameterList([fg.ones(2), nn.Parameter(fg.zeros(1))])
    params.append(fg.ones(3))
    assert (
        len(params) == 3
        and [p.shape for p in params] == [(2,), (1,), (3,)]
        and all(isinstance(p, nn.Parameter) for p in params)
    )
    assert list(nn.ParameterDict({"w": fg.ones(2)}).state_dict()) == ["w"]
    assert "ReLU" in repr(seq) and "in_features=2" in repr(seq)


def test_modes_and_conversions() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    assert net.eval() is net and not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    net.requires_grad_()
    net(fg.ones(3, 2)).sum().backward()
    net.double()
    assert {p.dtype.name for p in net.parameters()} == {"float64"} and net[2].num_batches_tracked.dtype == fg.int64
    assert all(p.grad.dtype == fg.float64 for p in net.parameters())
    assert net(fg.ones(3, 2, dtype="float64")).dtype == fg.float64
    net.float().zero_grad()
    assert all(p.grad is None and p.dtype == fg.float32 for p in net.parameters())
    seen: list[str] = []
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "Dropout", "BatchNorm1d", "Sequential"]


def test_deepcopy_shares_nothing() -> None:
    net = Net()
    twin = copy.deepcopy(net)
    assert twin.first.weight is not net.first.weight and twin.first.weight.name == net.first.weight.name
    with fg.no_grad():
        twin.first.weight.fill_(0.0)
    assert net.first.weight.abs().sum().item() > 0
    assert isinstance(twin.first.weight, nn.Parameter) and twin.first.weight.requires_grad


# -- state ---


def test_state_round_trip() -> None:
    net, other = Net(), Net()
    state = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    result = other.load_state_dict(state)
    assert result == ([], [])
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name])
    memory = other.first.weight._value
    other.load_state_dict(net.state_dict())
    assert other.first.weight._value is memory, "values are copied into the same memory"


def test_state_shares_memory() -> None:
    net = Net()
    net.state_dict()["scale"].fill_(7)
    assert net.scale.tolist() == [7, 7]


def test_state_errors_change_nothing() -> None:
    net = Net()
    good = {name: value.numpy() + 1 for name, value in net.state_dict().items()}
    before = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    wrong: list[tuple[dict[str, Any], list[str]]] = [
        ({k: v for k, v in good.items() if k != "first.bias"}, ["missing: first.bias"]),
        ({**good, "extra": np.zeros(1), "more": np.zeros(1)}, ["unexpected: extra, more"]),
        ({**good, "scale": np.zeros(3)}, [r"scale: shape \[3\], should be \[2\]"]),
        ({**good, "scale": np.array(["a", "b"])}, ["scale: <U1 values"]),
        ({**good, "scale": np.array([1j, 2j])}, ["scale: complex128 values"]),
        (
            {"first.weight": np.zeros((1, 1))},
            ["missing: scale, offset", r"first.weight: shape \[1, 1\], should be \[4, 3\]"],
        ),
    ]
    for state, texts in wrong:
        with pytest.raises(StateError, match="the state does not fit Net \\(nothing was loaded\\)") as caught:
            net.load_state_dict(state)
        for text in texts:
            assert re.search(text, str(caught.value)), str(caught.value)
        for name, value in net.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), before[name])
    with pytest.raises(StateError, match="takes a mapping"):
        net.load_state_dict([1, 2])  # type: ignore[arg-type]
    result = net.load_state_dict({"scale": np.zeros(2), "extra": 1}, strict=False)
    assert result.unexpected_keys == ["extra"] and "first.bias" in result.missing_keys
    assert net.scale.tolist() == [0, 0]


def test_transient_buffers_are_not_saved() -> None:
    net = nn.Module()
    net.register_buffer("table", fg.ones(2), persistent=False)
    assert not net.state_dict() and [n for n, _ in net.named_buffers()] == ["table"]


# -- tracing ---


def test_nodes_know_their_module_and_parameters_their_names() -> None:
    net = Net()
    traced = Traced(net, [fg.ones(2, 3)])
    modules = {node.location.module for node in traced.graph if node.op == "matmul"}
    assert modules == {"Net.first", "Net.blocks.0", "Net.blocks.1.0"}
    assert {node.location.module for node in traced.graph if node.op == "relu"} == {"Net", "Net.blocks.1.1"}
    assert {n.name for n in traced.graph.inputs} == {"argument0", "offset", *NAMES}
    guarded = {guard.what for guard in traced.trace.guards}
    assert {"training mode of Net", "training mode of Net.first", "training mode of Net.blocks.1.0"} <= guarded


def test_a_parameter_cannot_be_made_of_a_symbol() -> None:
    with tracing() as trace, pytest.raises(TraceError, match="made of values"):
        nn.Parameter(trace.argument("x", fg.ones(2)))


def test_a_module_can_be_built_while_tracing() -> None:
    with tracing():
        layer = nn.Linear(2, 3)
        nn.BatchNorm1d(3)
    assert isinstance(layer.weight._value, np.ndarray) and layer.weight.abs().max().item() > 0


# -- initial values ---


@pytest.mark.torch
@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.Linear(40, 300),
        lambda m: m.Conv2d(8, 64, 5),
        lambda m: m.Conv1d(16, 64, 7, groups=2),
        lambda m: m.Embedding(500, 60),
        lambda m: m.Bilinear(30, 20, 40),
        lambda m: m.MultiheadAttention(64, 4),
        lambda m: m.LayerNorm(10),
        lambda m: m.BatchNorm2d(5),
    ],
)
def test_initial_values_are_distributed_as_torchs(make: Callable[[Any], Any], torch: Any) -> None:
    ours, theirs = make(nn), make(torch.nn)
    mine, others = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert list(mine) == list(others)
    for name, other in others.items():
        a, b = mine[name].detach().numpy(), other.detach().numpy()
        assert a.shape == b.shape
        n = a.size
        assert abs(a.mean() - b.mean()) <= 6 * b.std() / math.sqrt(n) + 1e-7, name
        assert abs(a.std() - b.std()) <= 6 * b.std() / math.sqrt(n) + 1e-7, name
        if "Embedding" not in str(theirs):
            np.testing.assert_allclose(
                np.abs(a).max(initial=0), np.abs(b).max(initial=0), rtol=0.1 if n > 100 else 0.6, err_msg=name
            )


def test_init_functions() -> None:
    w = nn.Parameter(fg.zeros(64, 32))
    assert nn.init.kaiming_uniform_(w) is w
    assert abs(w.std().item() - math.sqrt(2 / 32)) < 0.02 and w.abs().max().item() <= math.sqrt(3) * math.sqrt(2 / 32)
    nn.init.xavier_normal_(w, gain=2.0)
    assert abs(w.std().item() - 2 * math.sqrt(2 / 96)) < 0.02
    nn.init.trunc_normal_(w, std=1.0, a=-0.5, b=0.5)
    assert w.abs().max().item() <= 0.5
    nn.init.orthogonal_(w)
    assert_close((w.T @ w).detach().numpy(), np.eye(32), 1e-5)
    nn.init.eye_(w)
    assert w.sum().item() == 32
    nn.init.constant_(w, 3.0)
    assert w.mean().item() == 3
    with pytest.raises(ShapeError, match="at least 2 axes"):
        nn.init.kaiming_normal_(nn.Parameter(fg.zeros(3)))
    with pytest.raises(OptionError, match="nonlinearity must be one of"):
        nn.init.kaiming_normal_(w, nonlinearity="softsign")


# -- layers ---

LAYERS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "Linear": (lambda m: m.Linear(6, 4), (3, 6)),
    "Linear_no_bias": (lambda m: m.Linear(6, 4, bias=False), (2, 3, 6)),
    "Conv2d": (lambda m: m.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 6)),
    "Conv2d_same": (lambda m: m.Conv2d(4, 2, (2, 3), padding="same", bias=False), (2, 4, 5, 5)),
    "Conv2d_dilated": (lambda m: m.Conv2d(1, 3, 3, dilation=2), (2, 1, 8, 7)),
    "Conv1d": (lambda m: m.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "MaxPool1d": (lambda m: m.MaxPool1d(3, 2), (2, 3, 9)),
    "MaxPool2d": (lambda m: m.MaxPool2d(2, padding=1), (2, 3, 6, 6)),
    "AvgPool1d": (lambda m: m.AvgPool1d(3), (2, 3, 9)),
    "AvgPool2d": (lambda m: m.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 3, 6, 6)),
    "AdaptiveAvgPool1d": (lambda m: m.AdaptiveAvgPool1d(4), (2, 3, 9)),
    "AdaptiveAvgPool2d": (lambda m: m.AdaptiveAvgPool2d((2, 3)), (2, 3, 7, 6)),
    "AdaptiveMaxPool2d": (lambda m: m.AdaptiveMaxPool2d((2, 3)), (2, 3, 7, 6)),
    "AdaptiveMaxPool1d": (lambda m: m.AdaptiveMaxPool1d(4), (2, 3, 9)),
    "BatchNorm1d": (lambda m: m.BatchNorm1d(4), (6, 4)),
    "BatchNorm1d_sequence": (lambda m: m.BatchNorm1d(4, momentum=0.3), (6, 4, 5)),
    "BatchNorm2d": (lambda m: m.BatchNorm2d(3), (4, 3, 5, 2)),
    "BatchNorm2d_plain": (lambda m: m.BatchNorm2d(3, affine=False, track_running_stats=False), (4, 3, 5, 2)),
    "BatchNorm2d_cumulative": (lambda m: m.BatchNorm2d(3, momentum=None), (4, 3, 5, 2)),
    "LayerNorm": (lambda m: m.LayerNorm(6), (3, 6)),
    "LayerNorm_2": (lambda m: m.LayerNorm((3, 6), bias=False), (2, 3, 6)),
    "RMSNorm": (lambda m: m.RMSNorm(6), (3, 6)),
    "GroupNorm": (lambda m: m.GroupNorm(2, 6), (3, 6, 5)),
    "Flatten": (lambda m: m.Flatten(), (2, 3, 4)),
    "Unflatten": (lambda m: m.Unflatten(1, (2, 3)), (4, 6)),
    "Identity": (lambda m: m.Identity(3, x=4), (2, 3)),
    "Sequential": (lambda m: m.Sequential(m.Linear(3, 4), m.Tanh(), m.Linear(4, 2)), (5, 3)),
    "TransformerEncoderLayer": (lambda m: m.TransformerEncoderLayer(8, 2, 16, dropout=0.0), (5, 3, 8)),
    "TransformerEncoderLayer_first": (
        lambda m: m.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ),
        (3, 5, 8),
    ),
    **{
        name: (lambda m, name=name: getattr(m, name)(), (3, 5))
        for name in (
            "ReLU",
            "ReLU6",
            "GELU",
            "SiLU",
            "Mish",
            "Tanh",
            "Sigmoid",
            "LogSigmoid",
            "Softplus",
            "Softsign",
            "ELU",
            "CELU",
            "LeakyReLU",
            "Hardtanh",
            "Hardsigmoid",
            "Hardswish",
        )
    },
    **{name: (lambda m, name=name: getattr(m, name)(dim=1), (3, 5)) for name in ("Softmax", "Softmin", "LogSoftmax")},
}


def paired(make: Callable[[Any], Any], torch: Any, dtype: str) -> tuple[Any, Any]:
    """One layer of each library with the same parameters; torch's names are ours."""
    theirs = make(torch.nn).to(getattr(torch, dtype))
    ours = make(nn).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, dtype: str, torch: Any, rng: np.random.Generator) -> None:
    """Outputs, gradients of inputs and parameters, and buffers after two training steps; then evaluation."""
    make, shape = LAYERS[name]
    ours, theirs = paired(make, torch, dtype)
    # torch's hardsigmoid and its fused encoder layer hold to their own roundings
    tolerance = 1e-5 if dtype == "float32" else 1e-7 if name == "Hardsigmoid" else 1e-10
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        x = rng.uniform(-2, 2, shape).astype(dtype)
        a, b = fg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        out, want = ours(a), theirs(b)
        assert_close(out.detach().numpy(), want.detach().numpy(), tolerance, name)
        weight = rng.uniform(0.5, 1.5, out.shape).astype(dtype)
        (out * weight).sum().backward()
        (want * torch.tensor(weight)).sum().backward()
        assert_close(a.grad.detach().numpy(), b.grad.numpy(), tolerance, f"{name}: input gradient")
        others = dict(theirs.named_parameters())
        for key, p in ours.named_parameters():
            assert_close(p.grad.detach().numpy(), others[key].grad.numpy(), tolerance, f"{name}: gradient of {key}")
    for key, buffer in theirs.state_dict().items():
        assert_close(ours.state_dict()[key].numpy(), buffer.numpy(), tolerance, f"{name}: {key}")


@pytest.mark.parametrize("name", LAYERS)
def test_layers_traced(name: str, rng: np.random.Generator) -> None:
    """Traced forward, backward and buffer updates, run by the interpreter, are what eager does."""
    make, shape = LAYERS[name]
    layer = make(nn)
    x = fg.tensor(rng.uniform(-2, 2, shape).astype("float32"))
    weight = fg.tensor(rng.uniform(0.5, 1.5, layer(x).shape).astype("float32"))

    def step(x: fg.Tensor) -> Any:
        x = x.detach().requires_grad_()
        out = layer(x)
        grads = fg.autograd.grad((out * weight).sum(), [x, *layer.parameters()])
        return out, grads

    twin = copy.deepcopy(layer)
    traced = Traced(step, [x])
    for _ in range(2):
        results = traced(x)
        state = [b.numpy().copy() for b in layer.buffers()]
        layer_before, layer = layer, twin  # eager on the copy
        out, grads = step(x)
        for got, want in zip(results, [out, *grads], strict=True):
            assert_close(got, want.detach().numpy(), 1e-6, name)
        for got, want in zip(state, layer.buffers(), strict=True):
            assert_close(got, want.numpy(), 1e-6, name)
        layer = layer_before


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compiled(name: str, rng: np.random.Generator) -> None:
    """A compiled layer: fused forward and backward, running statistics, evaluation; beside the eager layer."""
    make, shape = LAYERS[name]
    layer = make(nn)
    twin = copy.deepcopy(layer)
    fast = fg.compile(twin)
    for training in (True, True, False):
        layer.train(training), twin.train(training)
        x = rng.uniform(-2, 2, shape).astype("float32")
        results = []
        for function, module in ((layer, layer), (fast, twin)):
            module.zero_grad()
            leaf = fg.tensor(x, requires_grad=True)
            out = function(leaf)
            out.square().sum().backward()
            gradients = [leaf.grad, *(p.grad for p in module.parameters())]
            results.append([out.detach(), *(g.detach() for g in gradients), *module.buffers()])
        for got, want in zip(results[1], results[0], strict=True):
            assert_close(got.numpy(), want.numpy(), 1e-5, name)


@pytest.mark.torch
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "variant", ["self", "cross", "masks", "float_mask", "per_head", "no_batch", "sizes", "no_average", "no_bias"]
)
def test_multihead_attention(variant: str, batch_first: bool, torch: Any, rng: np.random.Generator) -> None:
    options: dict[str, Any] = {"batch_first": batch_first}
    if variant == "sizes":
        options |= {"kdim": 5, "vdim": 7}
    if variant == "no_bias":
        options["bias"] = False
    ours, theirs = paired(lambda m: m.MultiheadAttention(8, 2, **options), torch, "float64")

    def make(length: int, size: int) -> Array:
        shape = (length, size) if variant == "no_batch" else (3, length, size) if batch_first else (length, 3, size)
        return rng.uniform(-1, 1, shape)

    q = make(4, 8)
    k = q if variant in ("self", "masks", "float_mask", "per_head") else make(6, 5 if variant == "sizes" else 8)
    v = k if variant != "sizes" else make(6, 7)
    keys = 4 if k is q else 6
    padding, attn = np.zeros((3, keys), bool), np.triu(np.ones((4, keys), bool), 1)
    padding[1, -1] = True
    call: dict[str, Any] = {"average_attn_weights": variant != "no_average"}
    if variant == "masks":
        call |= {"key_padding_mask": padding, "attn_mask": attn}
    if variant == "float_mask":
        call |= {"attn_mask": rng.uniform(-1, 1, (4, keys))}
    if variant == "per_head":
        call |= {"attn_mask": rng.uniform(-1, 1, (6, 4, keys))}
    tensors = {id(a): (fg.tensor(a, requires_grad=True), torch.tensor(a, requires_grad=True)) for a in (q, k, v)}
    mine, other = ([tensors[id(a)][side] for a in (q, k, v)] for side in (0, 1))
    converted = {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in call.items()}
    out, weights = ours(*mine, **call)
    want, want_weights = theirs(*other, **converted)
    assert_close(out.detach().numpy(), want.detach().numpy(), 1e-10)
    assert_close(weights.detach().numpy(), want_weights.detach().numpy(), 1e-10)
    (out**2).sum().backward()
    (want**2).sum().backward()
    for a, b in tensors.values():
        assert_close(a.grad.detach().numpy(), b.grad.numpy(), 1e-10)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(a.grad.detach().numpy(), b.grad.numpy(), 1e-10)
    assert ours(*mine, need_weights=False)[1] is None


def test_attention_mask_errors() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = fg.ones(3, 4, 8)
    with pytest.raises(ShapeError, match=r"attn_mask \[4, 5\] should be \[4, 4\] or \[6, 4, 4\]"):
        layer(x, x, x, attn_mask=fg.ones(4, 5))
    with pytest.raises(ShapeError, match="key_padding_mask"):
        layer(x, x, x, key_padding_mask=fg.ones(2, 4))
    with pytest.raises(OptionError, match="does not divide"):
        nn.MultiheadAttention(8, 3)
    causal, _ = layer(x, x, x, is_causal=True)
    masked, _ = layer(x, x, x, attn_mask=np.triu(np.ones((4, 4), bool), 1))
    assert_close(causal.detach().numpy(), masked.detach().numpy(), 1e-7)


@pytest.mark.torch
def test_embedding_layer(torch: Any, rng: np.random.Generator) -> None:
    ours, theirs = paired(lambda m: m.Embedding(7, 3, padding_idx=2), torch, "float64")
    ids = rng.integers(0, 7, (4, 5))
    ids[0, 0] = 2
    ours(ids).sum().backward()
    theirs(torch.tensor(ids)).sum().backward()
    assert_close(ours.weight.grad.detach().numpy(), theirs.weight.grad.numpy(), 1e-12)
    assert (nn.Embedding(7, 3, padding_idx=2).weight[2] == 0).all().item()


def test_pretrained_embedding() -> None:
    table = fg.randn(5, 2)
    frozen, tuned = nn.Embedding.from_pretrained(table), nn.Embedding.from_pretrained(table.clone(), freeze=False)
    assert not frozen.weight.requires_grad and tuned.weight.requires_grad
    assert frozen.weight._value is table._value and frozen.num_embeddings == 5
    np.testing.assert_array_equal(frozen(np.array([4, 0])).numpy(), table.numpy()[[4, 0]])
    with pytest.raises(ShapeError, match="two axes"):
        nn.Embedding.from_pretrained(fg.ones(3))
    assert list(frozen.state_dict()) == ["weight"]


def test_dropout_layer() -> None:
    layer, x = nn.Dropout(0.4), fg.ones(1000)
    assert 0.5 < (layer(x) != 0).float().mean().item() < 0.7
    assert layer.eval()(x) is x
    with pytest.raises(OptionError, match=r"p must be in \[0, 1\], got 1.5"):
        nn.Dropout(1.5)


LOSSES: dict[str, Callable[[Any], Any]] = {
    "MSELoss": lambda m: m.MSELoss(),
    "L1Loss": lambda m: m.L1Loss("sum"),
    "SmoothL1Loss": lambda m: m.SmoothL1Loss(beta=0.5),
    "HuberLoss": lambda m: m.HuberLoss(delta=0.5),
    "BCELoss": lambda m: m.BCELoss(),
    "BCEWithLogitsLoss": lambda m: m.BCEWithLogitsLoss(),
    "KLDivLoss": lambda m: m.KLDivLoss("batchmean"),
    "CrossEntropyLoss": lambda m: m.CrossEntropyLoss(label_smoothing=0.1),
    "NLLLoss": lambda m: m.NLLLoss(reduction="sum"),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", LOSSES)
def test_loss_modules(name: str, torch: Any, rng: np.random.Generator) -> None:
    kwargs = {"reduction": "sum"} if name == "L1Loss" else {}
    ours = nn.L1Loss("sum") if kwargs else LOSSES[name](nn)
    theirs = (
        torch.nn.L1Loss(reduction="sum")
        if kwargs
        else LOSSES[name](torch.nn)
        if name != "KLDivLoss"
        else torch.nn.KLDivLoss(reduction="batchmean")
    )
    x = rng.uniform(0.1, 0.9, (4, 5))
    y = rng.integers(0, 5, 4) if name in ("CrossEntropyLoss", "NLLLoss") else rng.uniform(0.1, 0.9, (4, 5))
    assert abs(ours(fg.tensor(x), fg.tensor(y)).item() - theirs(torch.tensor(x), torch.tensor(y)).item()) < 1e-12
    with pytest.raises(OptionError, match="reduction must be"):
        type(ours)(reduction="average")


def test_clipping() -> None:
    def params() -> list[nn.Parameter]:
        made = [nn.Parameter(fg.zeros(2)), nn.Parameter(fg.zeros(3)), nn.Parameter(fg.zeros(1))]
        made[0].grad, made[1].grad = fg.tensor([3.0, 0.0]), fg.tensor([0.0, -4.0, 0.0])
        return made

    a = params()
    assert abs(nn.utils.clip_grad_norm_(a, 2.5).item() - 5.0) < 1e-6
    assert_close(a[0].grad.numpy(), np.array([1.5, 0.0]), 1e-5)
    assert_close(a[1].grad.numpy(), np.array([0.0, -2.0, 0.0]), 1e-5)
    a = params()
    assert nn.utils.clip_grad_norm_(a, 50.0).item() == 5.0 and a[0].grad.tolist() == [3, 0]
    assert abs(nn.utils.clip_grad_norm_(params(), 1.0, norm_type=math.inf).item() - 4.0) < 1e-6
    nn.utils.clip_grad_value_(a, 2.0)
    assert a[0].grad.tolist() == [2, 0] and a[1].grad.tolist() == [0, -2, 0]
    assert nn.utils.clip_grad_norm_([nn.Parameter(fg.zeros(1))], 1.0).item() == 0
    from fusegraph.errors import GradientError

    a[0].grad = fg.tensor([math.nan, 0.0])
    with pytest.raises(GradientError, match="cannot be clipped"):
        nn.utils.clip_grad_norm_(a, 1.0, error_if_nonfinite=True)
    vector = nn.utils.parameters_to_vector(a)
    assert vector.shape == (6,)
    nn.utils.vector_to_parameters(fg.arange(6).float(), a)
    assert a[1].tolist() == [2, 3, 4]


def test_double_backward_through_a_network(rng: np.random.Generator) -> None:
    """A gradient penalty: the gradient of the input's gradient, with respect to everything."""
    x, w1, w2 = rng.uniform(-1, 1, (2, 1, 6, 6)), rng.uniform(-1, 1, (3, 1, 3, 3)), rng.uniform(-1, 1, (2, 12))
    check_gradients(
        lambda x, w1, w2: F.linear(F.avg_pool2d(F.conv2d(x, w1).tanh(), 2).flatten(1), w2).log_softmax(1),
        [x, w1, w2],
        tolerance=2e-6,
    )
    check_gradients(lambda x: F.layer_norm(x, 4).softmax(-1), [rng.uniform(-1, 1, (3, 4))], tolerance=2e-6)
    check_gradients(
        lambda q, k: F.scaled_dot_product_attention(q, k, q, is_causal=True),
        [rng.uniform(-1, 1, (3, 4))] * 2,
        tolerance=2e-6,
    )
