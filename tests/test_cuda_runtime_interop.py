"""Arrays of other libraries on the emulated GPU, by both protocols; and the DLPack capsules against NumPy and torch."""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.errors import DTypeError, UnsupportedError
from fusegraph.runtime.cuda import DeviceArray, dlpack
from fusegraph.runtime.cuda.residency import is_watched
from tests.cuda_runtime_tools import Training, batches, emulated, needs_wheels
from tests.emulated_driver import EmulatedDriver

X = np.arange(24, dtype=np.float32).reshape(4, 6) / 8


class Foreign:
    """An array of another library: memory on the device, `__cuda_array_interface__`."""

    def __init__(self, gpu: EmulatedDriver, values: Any, stream: int | None = 7) -> None:
        gpu.make_current()
        self.gpu, self.shape, self.dtype = gpu, values.shape, values.dtype
        self.address = gpu.alloc(values.nbytes)
        self.stream, self.strides, self.typestr = stream, None, values.dtype.str
        gpu.copy_in(self.address, values.ctypes.data, values.nbytes)
        gpu.synchronise()
        self._freed = weakref.finalize(self, gpu.free, self.address)
        self._freed.atexit = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.typestr,
            "data": (self.address, False),
            "strides": self.strides,
            "stream": self.stream,
            "version": 3,
        }


class ForeignDLPack(Foreign):
    """The same by DLPack, as PyTorch does."""

    __cuda_array_interface__ = property()  # type: ignore[assignment]
    number = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.number

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.stream = stream
        return dlpack.capsule(self.address, self.shape, self.dtype, (dlpack.CUDA, 0), self)


def read(gpu: EmulatedDriver, address: int, like: Any) -> Any:
    """What a consumer sees on the device."""
    out = np.empty(like.shape, like.dtype)
    gpu.copy_out(out.ctypes.data, address, out.nbytes)
    gpu.synchronise()
    return out


@needs_wheels
@pytest.mark.parametrize("kind", [Foreign, ForeignDLPack])
def test_an_argument_is_read_where_it_is(kind: type[Foreign]) -> None:
    with emulated() as gpu:
        double = fg.compile(lambda x: x * 2, backend="cuda")
        foreign = kind(gpu, X)
        before = gpu.counts.copy()
        for _ in range(2):
            np.testing.assert_array_equal(double(foreign).numpy(), X * 2)
        assert gpu.counts["bytes_in"] == before["bytes_in"] and gpu.counts["waits"] == 2
        np.testing.assert_array_equal(double(X).numpy(), X * 2)
        assert len(double.reasons) == 1
        if kind is ForeignDLPack:
            assert foreign.stream == 1
        gone = weakref.ref(foreign)
        del foreign
        gc.collect()
        assert gone() is None


@needs_wheels
def test_from_dlpack_shares_memory_and_can_be_looked_at() -> None:
    with emulated() as gpu:
        foreign = ForeignDLPack(gpu, X)
        tensor = fg.from_dlpack(foreign)
        assert is_watched(tensor) and (tensor.shape, tensor.dtype) == (X.shape, X.dtype)
        np.testing.assert_array_equal((tensor + 1).numpy(), X + 1)  # on the host
        with fg.no_grad():
            tensor.copy_(tensor * 3)
        np.testing.assert_array_equal(fg.compile(lambda x: x * 2, backend="cuda")(tensor).numpy(), X * 6)
        np.testing.assert_array_equal(read(gpu, foreign.address, X), X)  # not written to
        captured = fg.compile(lambda x: x + tensor, backend="cuda")
        np.testing.assert_array_equal(captured(X).numpy(), X * 4)
        np.testing.assert_array_equal(read(gpu, foreign.address, X), X)
        del captured, foreign


@needs_wheels
def test_training_on_batches_that_are_on_the_gpu() -> None:
    data = batches("mlp", 3)
    expected = Training("mlp", "cpu")
    with emulated() as gpu:
        training = Training("mlp", "cuda")
        for x, y in data:
            got = training.step(ForeignDLPack(gpu, x), Foreign(gpu, y)).item()
            assert got == pytest.approx(expected.step(x, y).item(), rel=1e-5)


@needs_wheels
@pytest.mark.parametrize("rows", [4, 8000])
def test_results_are_given_without_a_copy(rows: int) -> None:
    x = np.arange(rows * 6, dtype=np.float32).reshape(rows, 6)
    with emulated() as gpu:
        result = fg.compile(lambda x: x * 2, backend="cuda")(x)
        large = rows > 100
        assert is_watched(result) == large == hasattr(result, "__cuda_array_interface__")
        before = gpu.counts.copy()
        view = DeviceArray(result)
        assert (gpu.counts["bytes_in"] > before["bytes_in"]) == (not large)
        for array in (view, *([result] if large else [])):
            interface = array.__cuda_array_interface__
            assert interface["shape"] == x.shape and interface["typestr"] == "<f4"
            np.testing.assert_array_equal(read(gpu, interface["data"][0], x), x * 2)
        taken = dlpack.Taken(view.__dlpack__(stream=5, max_version=(1, 0)))
        assert view.__dlpack_device__() == (2, 0) == taken.view().device
        if large:
            again = dlpack.Taken(result.__dlpack__(dl_device=(2, 0)))
            assert again.view().address == taken.view().address
            del again
        del view, result, array
        gc.collect()
        np.testing.assert_array_equal(read(gpu, taken.view().address, x), x * 2)  # what was taken keeps it
        del taken


@needs_wheels
def test_on_the_host_dlpack_works_as_before() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it takes the capsules here")
    x = np.ones((200, 200), np.float32)
    with emulated():
        result = fg.compile(lambda x: x * 2, backend="cuda")(x)
        assert is_watched(result)
        other = torch.from_dlpack(result)
        assert other.device.type == "cpu" and float(other.sum()) == 80_000
        assert float(np.from_dlpack(result).sum()) == 80_000
        assert fg.from_dlpack(torch.ones(3)).tolist() == [1, 1, 1]


@needs_wheels
def test_a_parameter_that_is_given_out_shows_every_step() -> None:
    data = batches("mlp", 3)
    with emulated() as gpu:
        training = Training("mlp", "cuda")
        training.step(*data[0])
        weight = training.model[0].weight
        view = DeviceArray(weight)
        for x, y in data[1:]:
            training.step(x, y)
            seen = read(gpu, view.__cuda_array_interface__["data"][0], np.empty(view.shape, view.dtype))
            np.testing.assert_array_equal(seen, weight.detach().numpy())
        del view


@needs_wheels
def test_indices_on_the_gpu_are_checked() -> None:
    with emulated() as gpu:
        pick = fg.compile(lambda t, i: F.embedding(i, t), backend="cuda")
        np.testing.assert_array_equal(pick(X, Foreign(gpu, np.array([3, 0]))).numpy(), X[[3, 0]])
        with pytest.raises(IndexError, match="4 at"):
            pick(X, Foreign(gpu, np.array([4, 0])))


@needs_wheels
def test_what_is_refused() -> None:
    with emulated() as gpu:
        double = fg.compile(lambda x: x * 2, backend="cuda")
        foreign = Foreign(gpu, X)
        foreign.strides = (4, 16)  # type: ignore[assignment]
        with pytest.raises(UnsupportedError, match=r"not in C order \(strides \(4, 16\) bytes\): make it contiguous"):
            double(foreign)
        foreign.strides, foreign.typestr = None, "<f2"
        with pytest.raises(DTypeError, match="a float16"):
            double(foreign)
        other = ForeignDLPack(gpu, X)
        other.number = 1
        with pytest.raises(UnsupportedError, match="is on GPU 1.*CUDA_VISIBLE_DEVICES"):
            double(other)
        del foreign, other


def test_without_a_gpu_the_error_says_what_is_missing() -> None:
    from fusegraph.runtime.cuda import unavailable

    if not unavailable():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnsupportedError, match="cannot run here"):
        DeviceArray(fg.tensor([1.0]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
def test_capsules_are_what_numpy_takes_and_gives(dtype: str) -> None:
    class Given:
        def __dlpack__(self, **_: Any) -> Any:
            return dlpack.capsule(values.ctypes.data, values.shape, values.dtype, (dlpack.CPU, 0), values)

        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CPU, 0

    values = np.arange(6).reshape(2, 3).astype(dtype)
    got = np.from_dlpack(Given())
    assert got.dtype == values.dtype and got.ctypes.data == values.ctypes.data
    np.testing.assert_array_equal(got, values)
    held = len(dlpack._given)
    del got
    gc.collect()
    assert len(dlpack._given) == held - 1
    taken = dlpack.Taken(values[:, ::2].__dlpack__())
    view = taken.view()
    assert (view.address, view.shape, view.dtype, view.device) == (values.ctypes.data, (2, 2), values.dtype, (1, 0))
    assert view.strides == values[:, ::2].strides


def test_a_capsule_that_nobody_takes_frees_what_it_holds_and_one_is_taken_once() -> None:
    values = np.ones(3)
    before = len(dlpack._given)
    capsule = dlpack.capsule(values.ctypes.data, (3,), values.dtype, (dlpack.CPU, 0), values)
    assert len(dlpack._given) == before + 1
    del capsule
    gc.collect()
    assert len(dlpack._given) == before
    capsule = dlpack.capsule(values.ctypes.data, (3,), values.dtype, (dlpack.CPU, 0), values)
    taken = dlpack.Taken(capsule)
    with pytest.raises(UnsupportedError, match="has been used"):
        dlpack.Taken(capsule)
    assert ctypes.c_double.from_address(taken.view().address).value == 1
    del taken
    gc.collect()
    assert len(dlpack._given) == before
