"""Tables of functions and layers with inputs, for tests beside torch: one lambda serves both libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Inputs = Callable[[np.random.Generator], list[list[Array]]]


@dataclass(frozen=True)
class FunctionCase:
    """`function(m, *tensors)` with m either library's `functional`. inputs: the arrays of one or several calls."""

    group: str
    name: str
    function: Callable[..., Any]
    inputs: Inputs

    @property
    def covers(self) -> tuple[str, ...]:
        """The functions that are called."""
        return self.function.__code__.co_names + tuple(
            name for part in self.function.__code__.co_consts if hasattr(part, "co_names") for name in part.co_names
        )


@dataclass(frozen=True)
class LayerCase:
    """`make(nn)` gives the layer, `call(layer, *tensors)` its results."""

    group: str
    name: str
    make: Callable[[Any], Any]
    inputs: Inputs
    call: Callable[..., Any] = lambda layer, *xs: layer(*xs)
    train: bool = True


def floats(*calls: Shape | tuple[Shape, ...], low: float = -2.0, high: float = 2.0) -> Inputs:
    """Each call one array of a shape, or several of a tuple of shapes."""

    def inputs(rng: np.random.Generator) -> list[list[Array]]:
        shapes = [call if call and isinstance(call[0], tuple) else (call,) for call in calls]
        return [[rng.uniform(low, high, shape).astype(np.float32) for shape in call] for call in shapes]

    return inputs


def with_labels(*calls: tuple[Shape, int], ignored: int | None = None, soft: bool = False) -> Inputs:
    """Each call scores of a shape, and labels below a number of classes for its axes without axis 1."""

    def inputs(rng: np.random.Generator) -> list[list[Array]]:
        found = []
        for shape, classes in calls:
            labels = rng.integers(0, classes, (shape[0], *shape[2:]))
            if ignored is not None:
                labels = np.where(rng.random(labels.shape) < 0.3, ignored, labels)
            target = rng.dirichlet(np.ones(classes), labels.shape).astype(np.float32) if soft else labels
            found.append([rng.uniform(-3, 3, shape).astype(np.float32), target])
        return found

    return inputs


def ids_and(table: Shape, *id_shapes: Shape) -> Inputs:
    """Each call ids of a shape, and a table."""
    return lambda rng: [
        [rng.integers(0, table[0], shape), rng.uniform(-1, 1, table).astype(np.float32)] for shape in id_shapes
    ]


def ids(count: int, *shapes: Shape) -> Inputs:
    """Each call ids of a shape."""
    return lambda rng: [[rng.integers(0, count, shape)] for shape in shapes]


FUNCTIONS: list[FunctionCase] = []
LAYERS: list[LayerCase] = []

_ANY = floats((3, 5), (7,), (2, 3, 9), (1, 1), (0, 4), low=-8, high=8)
for _name, _function in {
    "relu": lambda m, x: m.relu(x),
    "gelu": lambda m, x: m.gelu(x),
    "gelu tanh": lambda m, x: m.gelu(x, approximate="tanh"),
    "silu": lambda m, x: m.silu(x),
    "mish": lambda m, x: m.mish(x),
    "tanh": lambda m, x: m.tanh(x),
    "sigmoid": lambda m, x: m.sigmoid(x),
    "logsigmoid": lambda m, x: m.logsigmoid(x),
    "softplus": lambda m, x: m.softplus(x),
    "softplus beta": lambda m, x: m.softplus(x, 2.0, 3.0),
    "elu": lambda m, x: m.elu(x, 0.5),
    "celu": lambda m, x: m.celu(x, 1.5),
    "leaky_relu": lambda m, x: m.leaky_relu(x, 0.1),
    "hardtanh": lambda m, x: m.hardtanh(x),
    "relu6": lambda m, x: m.relu6(x),
    "hardsigmoid": lambda m, x: m.hardsigmoid(x),
    "hardswish": lambda m, x: m.hardswish(x),
    "softsign": lambda m, x: m.softsign(x),
    "softmax": lambda m, x: m.softmax(x, dim=-1),
    "softmax 0": lambda m, x: m.softmax(x, dim=0),
    "softmin": lambda m, x: m.softmin(x, dim=-1),
    "log_softmax": lambda m, x: m.log_softmax(x, dim=-1),
    "log_softmax 0": lambda m, x: m.log_softmax(x, dim=0),
    "dropout off": lambda m, x: m.dropout(x, 0.5, training=False) * 1,
}.items():
    FUNCTIONS.append(FunctionCase("activation", _name, _function, _ANY))

for _name, _function, _inputs in (
    (
        "linear",
        lambda m, x, w, b: m.linear(x, w, b),
        floats(((3, 4), (5, 4), (5,)), ((2, 3, 4), (1, 4), (1,)), ((4,), (17, 4), (17,)), ((0, 4), (5, 4), (5,))),
    ),
    ("linear no bias", lambda m, x, w: m.linear(x, w), floats(((33, 19), (9, 19)), ((1, 1), (1, 1)))),
    ("bilinear", lambda m, x, y, w, b: m.bilinear(x, y, w, b), floats(((3, 4), (3, 5), (2, 4, 5), (2,)))),
    ("embedding", lambda m, i, w: m.embedding(i, w), ids_and((9, 4), (2, 7), (), (0,), (65,))),
    ("embedding padding", lambda m, i, w: m.embedding(i, w, padding_idx=-4), ids_and((9, 4), (2, 7), (33,))),
    (
        "one hot",
        lambda m, i, w: (m.embedding if m.__name__.startswith("torch") else m.embedding_one_hot)(i, w),
        ids_and((9, 4), (2, 7)),
    ),
    (
        "attention",
        lambda m, q, k, v: m.scaled_dot_product_attention(q, k, v),
        floats(((2, 3, 5, 4),) * 3, ((7, 4), (3, 4), (3, 6))),
    ),
    (
        "attention causal",
        lambda m, q, k, v: m.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
        floats(((2, 3, 5, 4),) * 3, ((1, 4),) * 3),
    ),
    (
        "attention bias",
        lambda m, q, k, v, a: m.scaled_dot_product_attention(q, k, v, attn_mask=a),
        floats(((2, 5, 4), (2, 5, 4), (2, 5, 4), (5, 5))),
    ),
    (
        "attention mask",
        lambda m, q, k, v, a: m.scaled_dot_product_attention(q, k, v, attn_mask=a > 0.5),
        floats(((2, 5, 4), (2, 5, 4), (2, 5, 4), (5, 5))),
    ),
):
    FUNCTIONS.append(FunctionCase("linear", _name, _function, _inputs))

for _name, _function, _inputs in (
    (
        "conv2d",
        lambda m, x, w, b: m.conv2d(x, w, b),
        floats(
            ((3, 3, 7, 8), (4, 3, 3, 3), (4,)), ((1, 1, 28, 28), (5, 1, 5, 5), (5,)), ((0, 3, 5, 5), (4, 3, 3, 3), (4,))
        ),
    ),
    (
        "conv2d stride",
        lambda m, x, w: m.conv2d(x, w, padding=1, stride=2),
        floats(((3, 3, 7, 8), (4, 3, 3, 3)), ((1, 2, 9, 9), (17, 2, 3, 3))),
    ),
    (
        "conv2d groups",
        lambda m, x, w, b: m.conv2d(x, w, b, groups=2, padding=(2, 1)),
        floats(((1, 4, 8, 6), (6, 2, 3, 2), (6,))),
    ),
    (
        "conv2d depthwise",
        lambda m, x, w: m.conv2d(x, w, groups=4, padding="same"),
        floats(((3, 4, 6, 5), (4, 1, 3, 3))),
    ),
    ("conv2d same", lambda m, x, w: m.conv2d(x, w, padding="same"), floats(((1, 2, 9, 9), (3, 2, 2, 4)))),
    ("conv2d dilation", lambda m, x, w: m.conv2d(x, w, dilation=(2, 3)), floats(((3, 2, 9, 9), (3, 2, 3, 3)))),
    (
        "conv2d 1x1",
        lambda m, x, w, b: m.conv2d(x, w, b),
        floats(((3, 5, 4, 4), (7, 5, 1, 1), (7,)), ((3, 1, 1, 1), (2, 1, 1, 1), (2,))),
    ),
    ("conv2d no batch", lambda m, x, w: m.conv2d(x, w, padding="valid"), floats(((2, 5, 5), (3, 2, 3, 3)))),
    ("conv1d", lambda m, x, w, b: m.conv1d(x, w, b), floats(((3, 4, 17), (6, 4, 3), (6,)), ((4, 9), (6, 4, 5), (6,)))),
    ("conv1d stride", lambda m, x, w: m.conv1d(x, w, stride=2, padding=3), floats(((3, 4, 17), (6, 4, 3)))),
    ("conv1d dilation", lambda m, x, w: m.conv1d(x, w, dilation=3, groups=2), floats(((1, 4, 17), (6, 2, 3)))),
    ("conv1d same", lambda m, x, w: m.conv1d(x, w, padding="same"), floats(((3, 4, 9), (6, 4, 4)))),
):
    FUNCTIONS.append(FunctionCase("conv", _name, _function, _inputs))

_IMAGE, _LINE = floats((3, 3, 8, 9), (1, 1, 7, 7)), floats((3, 3, 11), (1, 12))
for _name, _function, _inputs in (
    ("max_pool2d", lambda m, x: m.max_pool2d(x, 2), _IMAGE),
    ("max_pool2d overlap", lambda m, x: m.max_pool2d(x, 3, stride=2, padding=1), _IMAGE),
    ("max_pool2d dilation", lambda m, x: m.max_pool2d(x, (2, 3), stride=(1, 2), dilation=2), _IMAGE),
    ("max_pool2d ceil", lambda m, x: m.max_pool2d(x, 3, 2, 1, ceil_mode=True), _IMAGE),
    ("max_pool2d ties", lambda m, x: m.max_pool2d(x.round() if hasattr(x, "round") else x, 2) * x.sum(), _IMAGE),
    ("max_pool1d", lambda m, x: m.max_pool1d(x, 3, 2, 1), _LINE),
    ("avg_pool2d", lambda m, x: m.avg_pool2d(x, 2), _IMAGE),
    ("avg_pool2d pad", lambda m, x: m.avg_pool2d(x, 3, 2, 1, count_include_pad=False), _IMAGE),
    ("avg_pool2d ceil", lambda m, x: m.avg_pool2d(x, 3, 2, 1, ceil_mode=True), _IMAGE),
    ("avg_pool1d", lambda m, x: m.avg_pool1d(x, 3, 2, 1), _LINE),
    ("adaptive_avg_pool2d", lambda m, x: m.adaptive_avg_pool2d(x, (3, 5)), _IMAGE),
    ("adaptive_avg_pool2d one", lambda m, x: m.adaptive_avg_pool2d(x, 1), _IMAGE),
    ("adaptive_avg_pool1d", lambda m, x: m.adaptive_avg_pool1d(x, 4), _LINE),
    ("adaptive_max_pool2d", lambda m, x: m.adaptive_max_pool2d(x, (3, 5)), _IMAGE),
    ("adaptive_max_pool1d", lambda m, x: m.adaptive_max_pool1d(x, 4), _LINE),
):
    FUNCTIONS.append(FunctionCase("pooling", _name, _function, _inputs))

_SCORES = (((5, 7), 7), ((3, 4, 6), 4), ((1, 1), 1))
_PAIRS = floats(((3, 5), (3, 5)), ((1, 1), (1, 1)), low=-1, high=1)
for _name, _function, _inputs in (
    ("nll_loss", lambda m, x, y: m.nll_loss(m.log_softmax(x, 1), y), with_labels(*_SCORES)),
    ("nll_loss ignored", lambda m, x, y: m.nll_loss(x, y, reduction="sum"), with_labels(*_SCORES[:2], ignored=-100)),
    ("cross_entropy", lambda m, x, y: m.cross_entropy(x, y), with_labels(*_SCORES)),
    ("cross_entropy ignored", lambda m, x, y: m.cross_entropy(x, y), with_labels(*_SCORES[:2], ignored=-100)),
    (
        "cross_entropy smooth",
        lambda m, x, y: m.cross_entropy(x, y, label_smoothing=0.2, reduction="none"),
        with_labels(*_SCORES),
    ),
    ("cross_entropy soft", lambda m, x, y: m.cross_entropy(x, y.detach()), with_labels(_SCORES[0], soft=True)),
    ("bce", lambda m, x, y: m.binary_cross_entropy(x.sigmoid(), y.detach().sigmoid()), _PAIRS),
    ("bce logits", lambda m, x, y: m.binary_cross_entropy_with_logits(x * 5, y.detach().sigmoid()), _PAIRS),
    ("mse", lambda m, x, y: m.mse_loss(x, y), _PAIRS),
    ("l1", lambda m, x, y: m.l1_loss(x, y), _PAIRS),
    ("huber", lambda m, x, y: m.huber_loss(x, y, delta=0.7), _PAIRS),
    ("smooth_l1", lambda m, x, y: m.smooth_l1_loss(x, y, beta=0.4), _PAIRS),
    ("kl", lambda m, x, y: m.kl_div(m.log_softmax(x, -1), y.detach().softmax(-1), reduction="batchmean"), _PAIRS),
    (
        "kl log",
        lambda m, x, y: m.kl_div(m.log_softmax(x, -1), m.log_softmax(y, -1), log_target=True, reduction="sum"),
        _PAIRS,
    ),
):
    FUNCTIONS.append(FunctionCase("loss", _name, _function, _inputs))

_ROWS = floats((5, 6), (3, 6, 5), (1, 6, 3, 4))
for _name, _function, _inputs in (
    (
        "layer_norm",
        lambda m, x, w, b: m.layer_norm(x, (6,), w, b),
        floats(((5, 6), (6,), (6,)), ((3, 7, 6), (6,), (6,))),
    ),
    ("layer_norm axes", lambda m, x, w: m.layer_norm(x, (3, 4), w), floats(((5, 3, 4), (3, 4)))),
    ("rms_norm", lambda m, x, w: m.rms_norm(x, (6,), w), floats(((5, 6), (6,)), ((1, 65, 6), (6,)))),
    ("group_norm", lambda m, x: m.group_norm(x, 2), floats((3, 6, 5), (1, 4, 3, 3))),
    ("instance_norm", lambda m, x: m.instance_norm(x), floats((3, 6, 5), (1, 2, 4, 4))),
    (
        "batch_norm",
        lambda m, x, w, b: m.batch_norm(x, None, None, w, b, training=True),
        floats(((5, 6), (6,), (6,)), ((3, 6, 4, 5), (6,), (6,))),
    ),
    ("normalize", lambda m, x: m.normalize(x, dim=-1), _ROWS),
    ("cosine_similarity", lambda m, x, y: m.cosine_similarity(x, y, dim=-1), floats(((5, 6), (5, 6)))),
    ("pairwise_distance", lambda m, x, y: m.pairwise_distance(x, y), floats(((5, 6), (5, 6)))),
):
    FUNCTIONS.append(FunctionCase("norm", _name, _function, _inputs))


# -- layers ------------------------------------------------------------------------------------------------------------

for _name, _make, _inputs in (
    ("Identity", lambda nn: nn.Identity(), _ROWS),
    ("Linear", lambda nn: nn.Linear(6, 9), floats((5, 6), (1, 6), (2, 3, 6))),
    ("Linear without bias", lambda nn: nn.Linear(6, 9, bias=False), floats((5, 6))),
    ("Bilinear", lambda nn: nn.Bilinear(4, 5, 3), floats(((7, 4), (7, 5)))),
    ("Flatten", lambda nn: nn.Flatten(), floats((3, 4, 5))),
    ("Unflatten", lambda nn: nn.Unflatten(1, (2, 3)), floats((5, 6))),
    ("Embedding", lambda nn: nn.Embedding(11, 5), ids(11, (3, 7), (1,))),
    ("Embedding with padding", lambda nn: nn.Embedding(11, 5, padding_idx=2), ids(11, (3, 17))),
    ("Conv1d", lambda nn: nn.Conv1d(4, 6, 3, stride=2, padding=1), floats((3, 4, 17))),
    ("Conv2d", lambda nn: nn.Conv2d(3, 8, 3, padding=1), floats((3, 3, 7, 9), (1, 3, 5, 5))),
    (
        "Conv2d with options",
        lambda nn: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        floats((5, 4, 9, 8)),
    ),
    ("Sequential", lambda nn: nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3)), floats((7, 6))),
):
    LAYERS.append(LayerCase("linear and conv", _name, _make, _inputs))

for _name, _make, _inputs in (
    ("BatchNorm1d", lambda nn: nn.BatchNorm1d(6), floats((5, 6), (3, 6, 7))),
    ("BatchNorm2d", lambda nn: nn.BatchNorm2d(6), floats((3, 6, 4, 5))),
    ("LayerNorm", lambda nn: nn.LayerNorm(6), floats((5, 6), (2, 3, 6))),
    ("RMSNorm", lambda nn: nn.RMSNorm(6), floats((5, 6))),
    ("GroupNorm", lambda nn: nn.GroupNorm(3, 6), floats((3, 6, 5))),
    ("MaxPool1d", lambda nn: nn.MaxPool1d(3, 2), _LINE),
    ("MaxPool2d", lambda nn: nn.MaxPool2d(2), _IMAGE),
    ("AvgPool1d", lambda nn: nn.AvgPool1d(3, 2), _LINE),
    ("AvgPool2d", lambda nn: nn.AvgPool2d(2), _IMAGE),
    ("AdaptiveAvgPool1d", lambda nn: nn.AdaptiveAvgPool1d(4), _LINE),
    ("AdaptiveAvgPool2d", lambda nn: nn.AdaptiveAvgPool2d((3, 2)), _IMAGE),
    ("AdaptiveMaxPool1d", lambda nn: nn.AdaptiveMaxPool1d(4), _LINE),
    ("AdaptiveMaxPool2d", lambda nn: nn.AdaptiveMaxPool2d((3, 2)), _IMAGE),
):
    LAYERS.append(LayerCase("pooling" if "Pool" in _name else "norm", _name, _make, _inputs))
LAYERS += [
    LayerCase("norm", "BatchNorm1d in evaluation", lambda nn: nn.BatchNorm1d(6), floats((5, 6)), train=False),
    LayerCase(
        "norm",
        "BatchNorm1d without statistics",
        lambda nn: nn.BatchNorm1d(6, affine=False, track_running_stats=False),
        floats((5, 6)),
    ),
]

for _name in (
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
):
    LAYERS.append(
        LayerCase("activation", _name, lambda nn, name=_name: getattr(nn, name)(), floats((3, 5), low=-8, high=8))
    )
for _name in ("Softmax", "Softmin", "LogSoftmax"):
    LAYERS.append(LayerCase("activation", _name, lambda nn, name=_name: getattr(nn, name)(-1), floats((3, 5))))

for _name, _make in (
    ("MSELoss", lambda nn: nn.MSELoss()),
    ("L1Loss", lambda nn: nn.L1Loss()),
    ("SmoothL1Loss", lambda nn: nn.SmoothL1Loss()),
    ("HuberLoss", lambda nn: nn.HuberLoss()),
):
    LAYERS.append(LayerCase("loss", _name, _make, _PAIRS))
LAYERS += [
    LayerCase("loss", "NLLLoss", lambda nn: nn.NLLLoss(), with_labels(*_SCORES)),
    LayerCase("loss", "CrossEntropyLoss", lambda nn: nn.CrossEntropyLoss(label_smoothing=0.1), with_labels(*_SCORES)),
    LayerCase("loss", "BCELoss", lambda nn: nn.BCELoss(), _PAIRS, lambda m, x, y: m(x.sigmoid(), y.detach().sigmoid())),
    LayerCase(
        "loss",
        "BCEWithLogitsLoss",
        lambda nn: nn.BCEWithLogitsLoss(),
        _PAIRS,
        lambda m, x, y: m(x, y.detach().sigmoid()),
    ),
    LayerCase(
        "loss",
        "KLDivLoss",
        lambda nn: nn.KLDivLoss(reduction="batchmean"),
        _PAIRS,
        lambda m, x, y: m(x.log_softmax(-1), y.detach().softmax(-1)),
    ),
]


def _heads(nn: Any) -> Any:
    return nn.MultiheadAttention(8, 2, batch_first=True)


LAYERS += [
    LayerCase("attention", "MultiheadAttention", _heads, floats((3, 5, 8), (1, 1, 8)), lambda m, x: m(x, x, x)),
    LayerCase(
        "attention",
        "MultiheadAttention across",
        _heads,
        floats(((3, 5, 8), (3, 7, 8))),
        lambda m, x, y: m(x, y, y, average_attn_weights=False),
    ),
    LayerCase(
        "attention",
        "MultiheadAttention masked",
        _heads,
        floats(((3, 5, 8), (5, 5), (3, 5))),
        lambda m, x, a, p: m(
            x, x, x, attn_mask=a.detach() > 1.5, key_padding_mask=p.detach() > 1.7, need_weights=False
        )[0],
    ),
    LayerCase(
        "attention",
        "TransformerEncoderLayer",
        lambda nn: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        floats((3, 5, 8)),
    ),
    LayerCase(
        "attention",
        "TransformerEncoder",
        lambda nn: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"), 2
        ),
        floats((3, 5, 8)),
    ),
]
