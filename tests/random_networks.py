"""Random networks (images, series, tokens, rows) with their data, for tests that training them gives right results.

    network = RandomNetwork(seed=7)        print(network)        data = network.batches(3)

The same seed gives the same network, initial values and data. Sizes are small and odd: batches around a block of 16 images,
single channels, strides that leave pixels over. With `coarse` all numbers are multiples of 1/4 and layers are exact up to the
loss, so that maxima have ties and relus zeros, the same ones in float32 and float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.errors import FusegraphError

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

BATCHES = (1, 2, 3, 5, 8, 15, 16, 17, 24, 32, 33)
SMOOTH = ("relu", "relu", "relu", "tanh", "gelu", "sigmoid", "silu", "elu", "softplus")
EPS = 1e-2  # of norms: a feature that happens to be constant does not multiply rounding errors by more than 10


class RandomNetwork(nn.Module):
    """Up to five random layers and a linear head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.coarse = bool(self.rng.random() < 0.35)
        self.kind = self.choice(["image", "image", "image", "tokens", "tokens", "rows", "series"])
        self.texts: list[str] = []
        self.calls: list[Callable[[Any], Any]] = []
        self.parts = nn.ModuleList()
        self.shape: Shape = ()
        self.input = self._input()
        for _ in range(int(self.rng.integers(1, 6))):
            self._grow()
        self._head()
        self._set_values()

    def choice(self, items: Sequence[Any]) -> Any:
        """One of `items`."""
        return items[int(self.rng.integers(len(items)))]

    def forward(self, x: Any) -> Any:
        """Scores [N, classes]."""
        for call in self.calls:
            x = call(x)
        return x

    def __repr__(self) -> str:
        return f"seed {self.seed}: {self.kind} {self.input} coarse={self.coarse}: " + " | ".join(self.texts)

    # -- construction -------------------------------------------------------------------------------------------------

    def _input(self) -> Shape:
        n = self.choice(BATCHES)
        if self.kind == "rows":
            self.shape = (n, self.choice([1, 3, 8, 17, 33]))
        elif self.kind == "series":
            self.shape = (n, self.choice([1, 3, 5]), self.choice([6, 9, 16, 17, 31]))
        elif self.kind == "image":
            self.shape = (n, self.choice([1, 2, 3, 5]), self.choice([4, 5, 7, 9, 12]), self.choice([4, 5, 7, 8, 11]))
        if self.kind != "tokens":
            return self.shape
        tokens, dim, self.words = (
            self.choice([1, 3, 8, 19, 40]),
            self.choice([1, 3, 8, 16, 17]),
            self.choice([2, 5, 30]),
        )
        table = nn.Embedding(self.words, dim, padding_idx=self.choice([None, None, 0, self.words - 1]))
        self._add(f"embedding {self.words}x{dim}", lambda x: table(x).permute(0, 2, 1), (n, dim, tokens), table)
        return (n, tokens)

    def _add(self, text: str, call: Callable[[Any], Any], shape: Shape | None = None, *parts: nn.Module) -> None:
        for part in parts:
            self.parts.append(part)
        self.texts.append(text)
        self.calls.append(call)
        self.shape = self.shape if shape is None else shape

    def _grow(self) -> None:
        ways = [self._activation, self._residual, self._shared]
        ways += [] if self.coarse else [self._norm, self._softmax]
        if len(self.shape) == 2:
            ways += [self._linear] * 3
        else:
            ways += [self._conv] * 5 + [self._pool] * 4 + [self._pad, self._concat, self._adaptive, self._flip]
        self.choice(ways)()

    def _linear(self) -> None:
        width = self.choice([1, 3, 8, 17])
        layer = nn.Linear(self.shape[-1], width, bias=self.choice([False, True]))
        self._add(f"linear {width}", layer, (*self.shape[:-1], width), layer)

    def _activation(self) -> None:
        name = self.choice(("relu",) if self.coarse else SMOOTH)
        self._add(name, getattr(F, name))

    def _norm(self) -> None:
        n, channels, *rest = self.shape
        kinds: list[nn.Module] = []
        if n * math.prod(rest) > 3:
            kinds.append((nn.BatchNorm2d if len(rest) == 2 else nn.BatchNorm1d)(channels, eps=EPS))
        if self.shape[-1] > 3:
            kinds.append(nn.LayerNorm(self.shape[-1], eps=EPS))
        if kinds:
            layer = self.choice(kinds)
            self._add(type(layer).__name__, layer, None, layer)

    def _softmax(self) -> None:
        axis = self.choice([1, len(self.shape) - 1])
        self._add(f"softmax {axis}", lambda x: F.softmax(x, axis))

    def _same(self) -> nn.Module:
        """A layer that keeps the shape."""
        channels = self.shape[1]
        if len(self.shape) == 2:
            return nn.Linear(channels, channels)
        return (nn.Conv2d if len(self.shape) == 4 else nn.Conv1d)(channels, channels, 3, padding=1)

    def _residual(self) -> None:
        layer = self._same()
        self._add("residual", lambda x: x + layer(x).relu(), None, layer)

    def _shared(self) -> None:
        layer = self._same()
        self._add("shared by two", lambda x: layer(layer(x).relu()), None, layer)

    def _conv(self) -> None:
        n, channels, *sizes = self.shape
        outputs = self.choice([1, 3, 4, 5, 8, 16, 17])
        groups = self.choice([1, 1, 1, channels])
        outputs = outputs if groups == 1 else channels * self.choice([1, 2])
        kernel, stride, padding, dilation = (
            tuple(self.choice(values) for _ in sizes)
            for values in ((1, 2, 3, 3, 5), (1, 1, 1, 2, 3), (0, 0, 1, 2), (1, 1, 1, 2))
        )
        options = list(zip(sizes, kernel, stride, padding, dilation, strict=True))
        made = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in options]
        if min(made) < 1:
            return
        layer = (nn.Conv2d if len(sizes) == 2 else nn.Conv1d)(
            channels, outputs, kernel, stride, padding, dilation, groups, bias=self.choice([False, True, True])
        )
        text = f"conv {channels}->{outputs} kernel{kernel} stride{stride} padding{padding} dilation{dilation} groups{groups}"
        self._add(text, layer, (n, outputs, *made), layer)
        if self.choice([0, 1, 1]):
            self._activation()

    def _pool(self) -> None:
        axes = len(self.shape) - 2
        kernel = tuple(min(self.choice([1, 2, 2, 3, 4]), size) for size in self.shape[2:])
        stride = self.choice([kernel, tuple(self.choice([1, 2, 2, 3]) for _ in kernel)])
        padding = tuple(self.choice([0, 0, 1]) if k > 1 else 0 for k in kernel)
        name, ceil = f"{self._pooling()}_pool{axes}d", self.choice([False, False, True])
        self._try(f"{name} kernel{kernel} stride{stride} padding{padding} ceil={ceil}",
                  lambda x: getattr(F, name)(x, kernel, stride, padding, ceil_mode=ceil))  # fmt: skip

    def _pooling(self) -> str:
        return "max" if self.coarse else str(self.choice(["max", "max", "max", "avg"]))

    def _adaptive(self) -> None:
        size, axes = self.choice([1, 2, 3]), len(self.shape) - 2
        name = f"adaptive_{self._pooling()}_pool{axes}d"
        self._try(f"{name} {size}", lambda x: getattr(F, name)(x, size))

    def _pad(self) -> None:
        widths = tuple(self.choice([0, 1, 2]) for _ in range(2 * (len(self.shape) - 2)))
        self._try(f"pad {widths}", lambda x: F.pad(x, widths))

    def _concat(self) -> None:
        self._try("concat", lambda x: fg.cat([x, x * 0.5], 1))

    def _flip(self) -> None:
        self._try("flip", lambda x: x.flip(-1))

    def _try(self, text: str, call: Callable[[Any], Any]) -> None:
        """Add it if it takes the shape."""
        try:
            shape = call(fg.zeros(self.shape)).shape
        except FusegraphError:
            return
        if math.prod(shape):
            self._add(text, call, tuple(shape))

    def _head(self) -> None:
        axes = tuple(range(2, len(self.shape)))
        ways: dict[str, Callable[[Any], Any]] = {
            "flatten": lambda x: x.flatten(1),
            "maximum over positions": lambda x: x.amax(axes),
            "maximum at a position": lambda x: x.flatten(2).max(2)[0],
            "maximum over channels": lambda x: x.amax(1).flatten(1),
            "sum": lambda x: x.sum(axes),
        }
        if axes:
            text = self.choice(list(ways))
            self._try(text, ways[text])
        self._linear()
        self._activation()
        self.classes = self.choice([2, 3, 7, 10])
        layer = nn.Linear(self.shape[1], self.classes)
        self._add(f"linear {self.classes}", layer, (self.shape[0], self.classes), layer)

    def numbers(self, rng: np.random.Generator, shape: Shape, scale: float = 1.0) -> Array:
        """Numbers of float32 in [-scale, scale]; multiples of 1/4 with `coarse`."""
        if self.coarse:
            return (rng.integers(-3, 4, shape) / 4).astype(np.float32)
        return (rng.uniform(-1, 1, shape) * scale).astype(np.float32)

    def _set_values(self) -> None:
        for _, parameter in self.named_parameters():
            fan = max(1, math.prod(parameter.shape[1:]))
            with fg.no_grad():
                parameter.copy_(fg.as_tensor(self.numbers(self.rng, tuple(parameter.shape), 1.5 / math.sqrt(fan))))

    # -- data ---------------------------------------------------------------------------------------------------------

    def batches(self, count: int) -> list[tuple[Array, Array]]:
        """Inputs (float32, or int64 tokens) and labels."""
        rng = np.random.default_rng((self.seed, 1))
        found = []
        for _ in range(count):
            x = rng.integers(0, self.words, self.input) if self.kind == "tokens" else self.numbers(rng, self.input)
            found.append((x, rng.integers(0, self.classes, self.input[0])))
        return found

    def optimizer(self) -> Any:
        """One of several; Adam with an eps that keeps the sign of a gradient of nearly 0 from counting."""
        return (
            lambda p: optim.SGD(p, lr=0.05),
            lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
            lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
            lambda p: optim.Adam(p, lr=0.01, eps=1e-2, weight_decay=0.1),
            lambda p: optim.AdamW(p, lr=0.01, eps=1e-2),
        )[self.seed % 5](self.parameters())
