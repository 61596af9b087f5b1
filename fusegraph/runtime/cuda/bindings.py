"""The NVIDIA driver through cuda.bindings: device 0 of those that CUDA_VISIBLE_DEVICES leaves, and one stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusegraph.errors import DeviceError
from fusegraph.runtime.cuda.driver import Dim3
from fusegraph.runtime.cuda_compile import assemble, tool_folder

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no waiting for, or by, the default stream of other libraries
_STICKY = {  # "the process must be terminated and relaunched", as the driver's documentation says
    214,  # CUDA_ERROR_ECC_UNCORRECTABLE
    220,  # CUDA_ERROR_NVLINK_UNCORRECTABLE
    700,  # CUDA_ERROR_ILLEGAL_ADDRESS
    702,  # CUDA_ERROR_LAUNCH_TIMEOUT
    709,  # CUDA_ERROR_CONTEXT_IS_DESTROYED
    710,  # CUDA_ERROR_ASSERT
    714,  # CUDA_ERROR_HARDWARE_STACK_ERROR
    715,  # CUDA_ERROR_ILLEGAL_INSTRUCTION
    716,  # CUDA_ERROR_MISALIGNED_ADDRESS
    717,  # CUDA_ERROR_INVALID_ADDRESS_SPACE
    718,  # CUDA_ERROR_INVALID_PC
    719,  # CUDA_ERROR_LAUNCH_FAILED
    999,  # CUDA_ERROR_UNKNOWN
}
_WRONG_IMAGE = {200, 209, 218, 222}  # INVALID_IMAGE, NO_BINARY_FOR_GPU, INVALID_PTX, UNSUPPORTED_PTX_VERSION
_NEEDED = 13000  # what the pinned wheels are made for, as cuDriverGetVersion counts
_OUT_OF_MEMORY = 2
_NOT_SUPPORTED = 801


class NvidiaDriver:
    """See `fusegraph.runtime.cuda.driver.Driver`. `api`: the module cuda.bindings.driver, or what stands for it in tests."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._call(api.cuInit, 0)
        self._device = self._call(api.cuDeviceGet, 0)
        self._context = self._call(api.cuDevicePrimaryCtxRetain, self._device)
        self.make_current()
        self._stream = self._call(api.cuStreamCreate, _NON_BLOCKING)
        self._modules: dict[int, Any] = {}
        self._other_stream: tuple[int, Any] | None = None
        self.image_kind = "cubin" if tool_folder() is not None else "ptx"

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        status, *values = function(*arguments)
        code = int(status)
        if code:
            name = getattr(function, "__name__", "the driver")
            raise DeviceError(
                f"{name}: {self._in_words(status)} (error {code}){self._advice(code)}",
                out_of_memory=code == _OUT_OF_MEMORY,
                lost=code in _STICKY,
            )
        return values[0] if len(values) == 1 else values or None

    def _in_words(self, status: Any) -> str:
        try:
            _, text = self._api.cuGetErrorString(status)
            return text.decode() if isinstance(text, bytes) else str(text)
        except Exception:  # an error code that this driver does not know
            return str(status)

    def _advice(self, code: int) -> str:
        """What to do about an error, where that is known."""
        if code not in _WRONG_IMAGE:
            return ""
        version = self._call(self._api.cuDriverGetVersion)
        if version >= _NEEDED:
            return ""
        return (
            f"; the driver is for CUDA {version // 1000}.{version % 1000 // 10}, and the code is made by CUDA "
            f"{_NEEDED // 1000}.0: install a driver of the 580 series or newer"
        )

    # -- the device ---------------------------------------------------------------------------------------------------

    def name(self) -> str:
        """The card's name."""
        raw: bytes = self._call(self._api.cuDeviceGetName, 128, self._device)
        return raw.split(b"\0")[0].decode()

    def capability(self) -> tuple[int, int]:
        """Compute capability, (9, 0) for sm_90."""
        kinds = self._api.CUdevice_attribute
        major, minor = (
            int(self._call(self._api.cuDeviceGetAttribute, kind, self._device))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        return major, minor

    def memory(self) -> tuple[int, int]:
        """(free, all) bytes of device memory."""
        free, total = self._call(self._api.cuMemGetInfo)
        return int(free), int(total)

    def make_current(self) -> None:
        """Contexts belong to threads: to be called by each before anything else."""
        self._call(self._api.cuCtxSetCurrent, self._context)

    # -- code ---------------------------------------------------------------------------------------------------------

    def image(self, ptx: str, target: str) -> bytes:
        """A cubin by ptxas; without ptxas the PTX itself, which the driver compiles when it loads it."""
        return assemble(ptx, target)[0] if self.image_kind == "cubin" else ptx.encode()

    def load(self, image: bytes, entry: str) -> Any:
        """The kernel `entry` of a cubin or PTX text."""
        module = self._call(self._api.cuModuleLoadData, image + b"\0")
        kernel = self._call(self._api.cuModuleGetFunction, module, entry.encode())
        self._modules[id(kernel)] = module
        return kernel

    def unload(self, kernel: Any) -> None:
        """Give the kernel's module back."""
        self._call(self._api.cuModuleUnload, self._modules.pop(id(kernel)))

    # -- memory -------------------------------------------------------------------------------------------------------

    def alloc(self, nbytes: int) -> int:
        """New device memory."""
        return int(self._call(self._api.cuMemAlloc, nbytes))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call(self._api.cuMemFree, address)

    def alloc_host(self, nbytes: int) -> int:
        """New pinned host memory."""
        return int(self._call(self._api.cuMemHostAlloc, nbytes, 0))

    def free_host(self, address: int) -> None:
        """Give pinned host memory back."""
        self._call(self._api.cuMemFreeHost, address)

    def memset(self, address: int, value: int, nbytes: int) -> None:
        """Queue: fill with a byte."""
        self._call(self._api.cuMemsetD8Async, address, value, nbytes, self._stream)

    def copy_in(self, device: int, host: int, nbytes: int) -> None:
        """Queue: host to device."""
        self._call(self._api.cuMemcpyHtoDAsync, device, host, nbytes, self._stream)

    def copy_out(self, host: int, device: int, nbytes: int) -> None:
        """Queue: device to host."""
        self._call(self._api.cuMemcpyDtoHAsync, host, device, nbytes, self._stream)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Queue: device to device."""
        self._call(self._api.cuMemcpyDtoDAsync, to, source, nbytes, self._stream)

    # -- running ------------------------------------------------------------------------------------------------------

    def arguments(self, addresses: Sequence[int]) -> Any:
        """(pointers to the values, the values): the driver reads an array of addresses of the arguments."""
        values = np.array(addresses, np.uint64)
        return values.ctypes.data + 8 * np.arange(len(values), dtype=np.uint64), values

    def launch(self, kernel: Any, grid: Dim3, block: Dim3, arguments: Any) -> None:
        """Queue a kernel."""
        self._call(self._api.cuLaunchKernel, kernel, *grid, *block, 0, self._stream, arguments[0].ctypes.data, 0)

    def begin_capture(self) -> bool:
        """Record from now on; other threads' allocations (by torch, say) are not disturbed."""
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        try:
            self._call(self._api.cuStreamBeginCapture, self._stream, mode)
        except DeviceError as error:
            if f"error {_NOT_SUPPORTED})" in str(error):
                return False
            raise
        return True

    def end_capture(self) -> Any:
        """The graph, instantiated."""
        graph = self._call(self._api.cuStreamEndCapture, self._stream)
        try:
            return self._call(self._api.cuGraphInstantiate, graph, 0)
        finally:
            self._call(self._api.cuGraphDestroy, graph)

    def abandon_capture(self) -> None:
        """Leave off recording. The driver reports the error again that made it do so, which the caller has seen."""
        _, graph = self._api.cuStreamEndCapture(self._stream)
        if graph is not None and int(graph):
            self._api.cuGraphDestroy(graph)

    def launch_graph(self, graph: Any) -> None:
        """Queue all of a graph."""
        self._call(self._api.cuGraphLaunch, graph, self._stream)

    def free_graph(self, graph: Any) -> None:
        """Give a graph back."""
        self._call(self._api.cuGraphExecDestroy, graph)

    def synchronise(self) -> None:
        """Wait for the stream."""
        self._call(self._api.cuStreamSynchronize, self._stream)

    def wait_for(self, stream: int) -> None:
        """Queue: wait for another library's stream."""
        event = self._call(self._api.cuEventCreate, 0)
        try:
            self._call(self._api.cuEventRecord, event, self._api.CUstream(stream))
            self._call(self._api.cuStreamWaitEvent, self._stream, event, 0)
        finally:
            self._call(self._api.cuEventDestroy, event)

    def elapsed_ms(self, queue: Callable[[], None]) -> float:
        """The GPU's time between two events around what `queue()` queues."""
        start, end = (self._call(self._api.cuEventCreate, 0) for _ in range(2))
        try:
            self._call(self._api.cuEventRecord, start, self._stream)
            queue()
            self._call(self._api.cuEventRecord, end, self._stream)
            self._call(self._api.cuEventSynchronize, end)
            return float(self._call(self._api.cuEventElapsedTime, start, end))
        finally:
            self._call(self._api.cuEventDestroy, start)
            self._call(self._api.cuEventDestroy, end)
