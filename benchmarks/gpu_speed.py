"""How fast is it on the GPU? Products, bandwidth and fused rows beside torch, and training steps.

Times of kernels are taken by the GPU between two events around many repetitions, for both sides; inputs and outputs stay on the
device. Times of steps are the host's: a call with its batch in host memory, until the loss is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fusegraph as fg
import fusegraph.functional as F
from benchmarks.gpu_report import Section
from benchmarks.models import MODELS, make_step
from fusegraph.runtime.cuda import current_device

Shape = tuple[int, ...]


class Torch:
    """torch on the GPU, or why it takes no part. `stand_in`: on the CPU, so that this script can be tested without a GPU."""

    def __init__(self, stand_in: bool = False) -> None:
        self.missing, self.module = "", None
        try:
            import torch
        except ImportError:
            self.missing = "torch is not installed"
            return
        self.device = "cpu" if stand_in else "cuda"
        if not stand_in and not torch.cuda.is_available():
            self.missing = "the torch that is installed has no CUDA"
            return
        self.module, self.compiles = torch, not stand_in

    def tensor(self, array: Any) -> Any:
        """An array on its device."""
        return self.module.from_numpy(array).to(self.device)  # type: ignore[attr-defined]

    def ms(self, function: Callable[[], Any], repeats: int) -> float | None:
        """Milliseconds a call, by the GPU's clock; None where torch takes no part."""
        torch: Any = self.module
        if torch is None:
            return None
        with torch.no_grad():
            for _ in range(3):
                function()
            if self.device == "cpu":
                start = time.perf_counter()
                for _ in range(repeats):
                    function()
                return 1e3 * (time.perf_counter() - start) / repeats
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(repeats):
                function()
            last.record()
            torch.cuda.synchronize()
            return float(first.elapsed_time(last)) / repeats

    def compiled_ms(self, function: Callable[[], Any], repeats: int) -> float | None:
        """The same through torch.compile."""
        if self.module is None or not self.compiles:
            return None
        return self.ms(self.module.compile(function, fullgraph=True), repeats)


def ours_ms(function: Callable[[], Any], repeats: int, **options: Any) -> tuple[float, Any]:
    """(milliseconds a call by the GPU's clock, the result) of a function of tensors that it captures."""
    compiled = fg.compile(function, backend="cuda", **options)
    with fg.no_grad():
        result = compiled()
    device = current_device()
    with device.using():
        graphs = compiled.compiled_for().artifact.executable.on(device).graphs
        graphs.replay_ms(3)
        return graphs.replay_ms(repeats), result


def products(sizes: Sequence[tuple[int, int, int]], torch: Torch, repeats: int) -> Section:
    """Products of matrices beside cuBLAS (through torch), in float32 and on tensor cores."""
    columns = ("M x N x K", "precision", "TFLOP/s", "cuBLAS, TFLOP/s", "share of cuBLAS")
    section = Section("Products of matrices", columns)
    rng = np.random.default_rng(0)
    for m, n, k in sizes:
        a, b = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
        x, y = fg.tensor(a), fg.tensor(b)
        wanted = a[:64].astype(np.float64) @ b
        for precision, tolerance in (("float32", 1e-5), ("tf32", 3e-3)):
            ms, result = ours_ms(lambda x=x, y=y: x @ y, repeats, precision=precision)
            error = np.abs(result.numpy()[:64] - wanted).max() / np.abs(wanted).max()
            if not error <= tolerance:
                section.failures.append(f"{m} x {n} x {k} {precision}: wrong by {error:.3g} of the largest value")
            rival = _cublas_ms(torch, a, b, precision, repeats)
            rate = 2e-9 * m * n * k / ms
            theirs = None if rival is None else 2e-9 * m * n * k / rival
            section.rows.append((f"{m} x {n} x {k}", precision, rate, theirs, theirs and rate / theirs))
    return _with_note(section, torch)


def _cublas_ms(torch: Torch, a: Any, b: Any, precision: str, repeats: int) -> float | None:
    if torch.module is None:
        return None
    torch.module.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    x, y = torch.tensor(a), torch.tensor(b)
    return torch.ms(lambda: x @ y, repeats)


def bandwidth(rows: int, columns: int, torch: Torch, repeats: int) -> Section:
    """Kernels that only move data, beside torch's own."""
    section = Section("Bandwidth", ("kernel", "MB", "GB/s", "torch, GB/s"))
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, columns), np.float32) for _ in range(2))
    x, y = fg.tensor(a), fg.tensor(b)
    s, t = (torch.tensor(v) if torch.module is not None else None for v in (a, b))
    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any], int]] = {
        "x * 2": (lambda: x * 2, lambda: s * 2, 2 * a.nbytes),
        "x + y": (lambda: x + y, lambda: s + t, 3 * a.nbytes),
        "sum of all": (lambda: x.sum(), lambda: s.sum(), a.nbytes),
        "sums of rows": (lambda: x.sum(1), lambda: s.sum(1), a.nbytes),
        "sums of columns": (lambda: x.sum(0), lambda: s.sum(0), a.nbytes),
    }
    for name, (ours, theirs, nbytes) in cases.items():
        ms, _ = ours_ms(ours, repeats)
        rival = torch.ms(theirs, repeats)
        section.rows.append((name, nbytes / 1e6, 1e-6 * nbytes / ms, rival and 1e-6 * nbytes / rival))
    return _with_note(section, torch)


def fused_rows(shape: tuple[int, int], torch: Torch, repeats: int) -> Section:
    """Softmax, layer norm, GELU with a bias: one kernel each."""
    section = Section("Fused kernels", ("kernel", "us", "torch, us", "torch.compile, us", "kernels"))
    rng = np.random.default_rng(0)
    a, bias = rng.standard_normal(shape, np.float32), rng.standard_normal(shape[1:], np.float32)
    x, w = fg.tensor(a), fg.tensor(bias)
    s, v = (torch.tensor(value) if torch.module is not None else None for value in (a, bias))
    f: Any = torch.module.nn.functional if torch.module is not None else None
    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "softmax": (lambda: F.softmax(x, 1), lambda: f.softmax(s, 1)),
        "layer norm": (lambda: F.layer_norm(x, shape[1:], w, w), lambda: f.layer_norm(s, shape[1:], v, v)),
        "GELU of x + bias": (lambda: F.gelu(x + w), lambda: f.gelu(s + v)),
    }
    for name, (ours, theirs) in cases.items():
        ms, result = ours_ms(ours, repeats)
        rivals = [torch.ms(theirs, repeats), torch.compiled_ms(theirs, repeats)]
        if rivals[0] is not None and not np.allclose(result.numpy(), theirs().cpu().numpy(), rtol=1e-4, atol=1e-5):
            section.failures.append(f"{name}: differs from torch")
        compiled = fg.compile(ours, backend="cuda")
        kernels = len(compiled.compiled_for().artifact.executable.step.launches)
        section.rows.append((name, 1e3 * ms, *(r and 1e3 * r for r in rivals), kernels))
    section.notes.append(f"On float32{list(shape)}.")
    return _with_note(section, torch)


def _with_note(section: Section, torch: Torch) -> Section:
    if torch.missing:
        section.notes.append(f"Nothing beside it: {torch.missing}.")
    return section


def steps(names: Sequence[str], batch: int | None, rounds: int) -> Section:
    """Training steps with their batches in host memory: as one CUDA graph, and kernel by kernel."""
    columns = ("model", "batch", "kernels", "launches a step", "ms", "kernel by kernel, ms", "GPU's own, ms")
    section = Section("Training steps", columns)
    for name in names:
        training = make_step(name, batch)
        step = fg.compile(training.step, backend="cuda")
        arrays = list(training.batches(4))
        step(*arrays[0])
        device = current_device()
        with device.using():
            graphs = step.compiled_for().artifact.executable.on(device).graphs
        before = dict(graphs.launches)
        as_graph = _median_ms(step, arrays, rounds)
        launches = (sum(graphs.launches.values()) - sum(before.values())) / rounds
        graphs.enabled = False
        one_by_one = _median_ms(step, arrays, rounds)
        graphs.enabled = True
        step(*arrays[0])
        with device.using():
            own = graphs.replay_ms(rounds)
        row = (name, training.batch or MODELS[name].batch, len(graphs.plan.launches), launches, as_graph, one_by_one)
        section.rows.append((*row, own))
    section.notes.append("A step is the forward pass, the backward pass and the update by Adam; median of the calls.")
    return section


def _median_ms(step: Callable[..., Any], arrays: Sequence[Any], rounds: int) -> float:
    times = []
    for number in range(rounds):
        start = time.perf_counter()
        step(*arrays[number % len(arrays)]).item()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))
