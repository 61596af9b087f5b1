"""An emulated GPU as the process's device, and the small models that the runtime's tests train on it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim
from fusegraph.codegen.cuda.step import CudaStep
from fusegraph.runtime import cuda_compile
from fusegraph.runtime.cuda import using_driver
from tests.cuda_ptx import StepPtx
from tests.emulated_driver import EmulatedDriver

Array = np.ndarray[Any, Any]
Batch = tuple[Array, Array]
needs_wheels = pytest.mark.skipif(
    bool(cuda_compile.missing()), reason=f"no kernels can be compiled: {cuda_compile.missing()}"
)


class StoredModule:
    """In place of CudaModule: kernels that any test has compiled before are not compiled again."""

    def __init__(self, step: CudaStep, target: str) -> None:
        self.step, self._texts = step, StepPtx(step, target)

    def ptx(self, name: str) -> str:
        """The PTX of a kernel."""
        return self._texts.ptx(self.step.kernel(name))


@contextmanager
def emulated(cache: Any = None, clean: bool = True, **options: Any) -> Iterator[EmulatedDriver]:
    """The process has an emulated GPU. cache: folder of the disk cache (None: no cache). At the end nothing may be left on it."""
    driver = EmulatedDriver(**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusegraph.runtime.cuda.plan.CudaModule", StoredModule)
        patch.setenv("FUSEGRAPH_CACHE_DIR" if cache else "FUSEGRAPH_CACHE_SIZE_MB", str(cache or 0))
        with using_driver(driver):
            yield driver
            gc.collect()
        if clean:
            driver.check_clean()


class Net(nn.Module):
    """Convolution, batch norm, pooling, dropout: running statistics and random numbers change as the step goes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4 * 3 * 3, 3)

    def forward(self, x: Any) -> Any:
        """Scores of 8x8 images."""
        y = F.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.fc(self.drop(y.flatten(1)))


class Words(nn.Module):
    """Embedding (its gradient is scattered), layer norm, a mean over words."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, words: Any) -> Any:
        """Scores of rows of word numbers."""
        return self.fc(self.norm(self.table(words)).mean(1))


def mlp() -> nn.Module:
    """A small classifier of vectors of 12."""
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "net": Net, "words": Words}
OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda parameters: optim.Adam(parameters, lr=0.01),
}


def batches(model: str, count: int, rows: int = 5) -> list[Batch]:
    """`count` different batches for a model."""
    rng = np.random.default_rng(1)
    made = []
    for _ in range(count):
        if model == "words":
            x = rng.integers(0, 11, (rows, 7))
        else:
            shape = (rows, 12) if model == "mlp" else (rows, 1, 8, 8)
            x = rng.standard_normal(shape).astype(np.float32)
        made.append((x, rng.integers(0, 3, rows)))
    return made


class Training:
    """A model, its optimizer and its compiled step."""

    def __init__(self, model: str, backend: str, optimizer: str = "sgd", **options: Any) -> None:
        fg.manual_seed(7)
        self.model = MODELS[model]()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())

        def step(x: fg.Tensor, y: fg.Tensor) -> fg.Tensor:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            return loss

        self.step = fg.compile(step, backend=backend, **options)
        self.scores = fg.compile(lambda x: self.model(x), backend=backend, **options)

    def state(self) -> dict[str, Array]:
        """All parameters and buffers, copied."""
        return {name: np.array(value.detach().numpy()) for name, value in self.model.state_dict().items()}


def agree(got: dict[str, Array], wanted: dict[str, Array]) -> None:
    """To 1e-5 of the largest value of each array."""
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = max(float(np.abs(value).max()), 1e-3) if value.dtype.kind == "f" else 1.0
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)
