"""The driver class for real GPUs, over emulated bindings; and the emulated driver finds what it is there to find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from fusegraph.errors import DeviceError
from fusegraph.runtime.cuda import using_driver
from fusegraph.runtime.cuda.bindings import NvidiaDriver
from tests.cuda_runtime_tools import StoredModule, Training, agree, batches, needs_wheels
from tests.emulated_driver import EmulatedDriver, Misuse

pytestmark = needs_wheels


@contextmanager
def bound(**options: Any) -> Iterator[tuple[NvidiaDriver, EmulatedDriver, Any]]:
    """The real driver class on emulated bindings, as the process's GPU."""
    from tests.emulated_bindings import EmulatedBindings

    emulated = EmulatedDriver(**options)
    api = EmulatedBindings(emulated)
    driver = NvidiaDriver(api)
    driver.image_kind = "ptx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusegraph.runtime.cuda.plan.CudaModule", StoredModule)
        patch.setenv("FUSEGRAPH_CACHE_SIZE_MB", "0")
        with using_driver(driver):
            yield driver, emulated, api
            gc.collect()
        emulated.check_clean()


@pytest.mark.parametrize("graphs", [True, False])
def test_training(graphs: bool) -> None:
    data = batches("mlp", 3)
    expected = Training("mlp", "cpu")
    with bound(graphs=graphs) as (_, emulated, api):
        training = Training("mlp", "cuda")
        for x, y in data:
            assert training.step(x, y).item() == pytest.approx(expected.step(x, y).item(), rel=1e-5)
        agree(training.state(), expected.state())
        assert emulated.counts["graphs"] == (3 if graphs else 0)
        assert ("cuGraphLaunch" in api.used) == graphs


def test_everything_that_the_driver_offers() -> None:
    with bound(capability=(8, 0)) as (driver, _, api):
        assert (driver.name(), driver.capability()) == ("emulated GPU", (8, 0))
        here = driver.alloc(512)
        there = driver.alloc(512)
        pinned = driver.alloc_host(512)
        driver.memset(here, 7, 512)
        driver.copy(there, here, 512)
        driver.copy_out(pinned, there, 512)
        driver.wait_for(2)
        driver.synchronise()
        import ctypes

        assert ctypes.string_at(pinned, 512) == b"\7" * 512
        assert driver.elapsed_ms(lambda: driver.memset(here, 1, 16)) == 0.25
        for address in (here, there):
            driver.free(address)
        driver.free_host(pinned)
        assert {"cuMemsetD8Async", "cuMemcpyDtoDAsync", "cuStreamWaitEvent", "cuEventElapsedTime"} <= api.used


@pytest.mark.parametrize(
    ("refuse", "words", "flags"),
    [
        ("alloc", r"cuMemAlloc: out of memory \(error 2\)|has no room", (True, False)),
        ("launch", r"cuLaunchKernel: launch out of resources \(error 701\)", (False, False)),
    ],
)
def test_errors(refuse: str, words: str, flags: tuple[bool, bool]) -> None:
    x, y = batches("mlp", 1)[0]
    with bound() as (driver, emulated, _):
        training = Training("mlp", "cuda")
        if refuse == "alloc":
            emulated.refuse = {"alloc": 1}
            with pytest.raises(DeviceError, match=words) as caught:
                driver.alloc(512)
        else:
            emulated.refuse = {refuse: 2}
            with pytest.raises(DeviceError, match=words) as caught:
                training.step(x, y)
        assert (caught.value.out_of_memory, caught.value.lost) == flags
        training.step(x, y)


@pytest.mark.parametrize("version", [12080, 13000])
def test_a_driver_that_is_too_old_is_named(version: int) -> None:
    with bound() as (_, emulated, api):
        api.version = version
        training = Training("mlp", "cuda")
        emulated.refuse = {"load": 1}
        with pytest.raises(DeviceError, match="unsupported ptx version .error 222.") as caught:
            training.step(*batches("mlp", 1)[0])
        assert ("is for CUDA 12.8, and" in str(caught.value)) == (version < 13000)


def test_arguments_that_the_real_functions_do_not_take_are_found() -> None:
    from tests.emulated_bindings import EmulatedBindings, _no_library

    if not _no_library():
        pytest.skip("this machine has an NVIDIA driver: its functions are not called here")
    driver = NvidiaDriver(EmulatedBindings(EmulatedDriver()))
    with pytest.raises(Misuse, match="cuMemAlloc does not take"):
        driver.alloc("512")  # type: ignore[arg-type]
    with pytest.raises(Misuse, match="cuMemcpyDtoDAsync does not take"):
        driver.copy(None, "here", 1)  # type: ignore[arg-type]


def test_an_illegal_access_loses_the_device() -> None:
    from tests.emulated_bindings import EmulatedBindings

    emulated = EmulatedDriver()
    driver = NvidiaDriver(EmulatedBindings(emulated))
    emulated.lost = "gone"
    with pytest.raises(DeviceError, match=r"cuStreamSynchronize: illegal address \(error 700\)") as caught:
        driver.synchronise()
    assert caught.value.lost


def test_cubins_are_made_where_ptxas_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.emulated_bindings import EmulatedBindings

    monkeypatch.setattr("fusegraph.runtime.cuda.bindings.tool_folder", lambda: None)
    driver = NvidiaDriver(EmulatedBindings(EmulatedDriver()))
    assert (driver.image_kind, driver.image("text", "sm_90")) == ("ptx", b"text")
    monkeypatch.setattr("fusegraph.runtime.cuda.bindings.tool_folder", lambda: "there")
    monkeypatch.setattr("fusegraph.runtime.cuda.bindings.assemble", lambda ptx, target: (f"{ptx} {target}".encode(), 0))
    driver = NvidiaDriver(EmulatedBindings(EmulatedDriver()))
    assert (driver.image_kind, driver.image("text", "sm_90")) == ("cubin", b"text sm_90")


# -- the emulated driver ----------------------------------------------------------------------------------------------


def started() -> EmulatedDriver:
    """An emulated driver with a current context."""
    driver = EmulatedDriver()
    driver.make_current()
    return driver


def test_a_host_buffer_that_is_used_again_too_early_is_found() -> None:
    driver, values = started(), np.ones(8, np.float32)
    address = driver.alloc(32)
    driver.copy_in(address, values.ctypes.data, 32)
    values[0] = 2
    with pytest.raises(Misuse, match="host memory was changed"):
        driver.synchronise()


def test_a_result_that_is_read_too_early_is_rubbish() -> None:
    driver, values, result = started(), np.ones(8, np.float32), np.ones(8, np.float32)
    address = driver.alloc(32)
    driver.copy_in(address, values.ctypes.data, 32)
    driver.copy_out(result.ctypes.data, address, 32)
    assert (result != 1).all()
    driver.synchronise()
    assert (result == 1).all()


def test_memory_that_was_freed_is_found() -> None:
    driver = started()
    address = driver.alloc(32)
    driver.free(address)
    with pytest.raises(Misuse, match="freed twice"):
        driver.free(address)
    driver.memset(address, 0, 4)
    with pytest.raises(Misuse, match="device memory that was freed"):
        driver.synchronise()


def test_other_misuse_is_found() -> None:
    driver = started()
    address = driver.alloc(32)
    with pytest.raises(Misuse, match="1 of device memory"):
        driver.check_clean()
    driver.memset(address, 0, 33)
    with pytest.raises(Misuse, match="33 bytes at 0 of an allocation of 32"):
        driver.synchronise()
    driver.memset(address, 0, 4)
    with pytest.raises(Misuse, match="freed while work is queued"):
        driver.free(address)
    driver.synchronise()
    driver.begin_capture()
    with pytest.raises(Misuse, match="alloc while a graph is recorded"):
        driver.alloc(8)
    with pytest.raises(Misuse, match="synchronise while"):
        driver.synchronise()
    graph = driver.end_capture()
    driver.free_graph(graph)
    with pytest.raises(Misuse, match="after it was freed"):
        driver.launch_graph(graph)
    with pytest.raises(Misuse, match="context current"):
        EmulatedDriver().alloc(8)
