"""What stands for the module cuda.bindings.driver, over the emulated driver: the real driver class runs without a GPU.

Every call must have as many arguments as the signature of the real function says; handles, enumerations and error codes are the
real module's own. A kernel's arguments are read as the driver reads them: an array of addresses of 64-bit values.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from cuda.bindings import driver as real

from fusegraph.errors import DeviceError
from tests.emulated_driver import EmulatedDriver, Misuse

_STREAM, _CONTEXT = 0x77, 0x55
_converted: set[tuple[Any, ...]] = set()


@cache
def _no_library() -> bool:
    """Whether this machine has no NVIDIA driver: then the real functions can be called, and do nothing."""
    try:
        real.cuInit(0)
    except Exception as error:
        return "NotFound" in type(error).__name__
    return False


class EmulatedBindings:
    """Functions as cuda.bindings.driver has them; `used` are the names of those that were called."""

    def __init__(self, emulated: EmulatedDriver) -> None:
        self.emulated = emulated
        self.used: set[str] = set()
        self._things: dict[int, Any] = {}
        self._recorded = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(real, name)
        if not name.startswith("cu"):
            return found
        arguments = (found.__doc__ or "").splitlines()[0].partition("(")[2].rpartition(")")[0]
        count = _count(arguments)

        def call(*given: Any) -> tuple[Any, ...]:
            if len(given) != count:
                raise Misuse(f"{name} takes {count} arguments ({arguments}), {len(given)} were given")
            self._convert(found, name, given)
            handler: Callable[..., Any] = getattr(self, f"on_{name}")
            try:
                result = handler(*given)
            except DeviceError as error:
                return (_status(name, error), *[None] * _RESULTS.get(name, 0))
            values = result if isinstance(result, tuple) else () if result is None else (result,)
            return (real.CUresult.CUDA_SUCCESS, *values)

        call.__name__ = name
        return call

    def _convert(self, function: Callable[..., Any], name: str, given: tuple[Any, ...]) -> None:
        """The real function takes arguments of these types: it fails for want of the driver's library, not before."""
        self.used.add(name)
        kinds = (name, *map(type, given))
        if kinds in _converted or not _no_library():
            return
        _converted.add(kinds)
        try:
            function(*given)
        except Exception as error:
            if "NotFound" not in type(error).__name__:
                raise Misuse(f"{name} does not take {given}: {error!r}") from error

    def _keep(self, handle: type, thing: Any) -> Any:
        number = 16 * (len(self._things) + 1)
        self._things[number] = thing
        return handle(number)

    def _thing(self, handle: Any, kind: type) -> Any:
        if not isinstance(handle, kind):
            raise Misuse(f"a {kind.__name__} is needed, not {handle!r}")
        return self._things[int(handle)]

    def _own(self, stream: Any) -> None:
        if not isinstance(stream, real.CUstream) or int(stream) != _STREAM:
            raise Misuse(f"not the stream of this driver: {stream!r}")

    def on_cuInit(self, flags: int) -> None:
        assert flags == 0

    version = 13000

    def on_cuDriverGetVersion(self) -> int:
        return self.version

    def on_cuDeviceGet(self, ordinal: int) -> Any:
        assert ordinal == 0
        return real.CUdevice(0)

    def on_cuDeviceGetName(self, length: int, device: Any) -> Any:
        return b"emulated GPU".ljust(length, b"\0")

    def on_cuDeviceGetAttribute(self, attribute: Any, device: Any) -> int:
        kinds = real.CUdevice_attribute
        both = (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
        return self.emulated.capability()[both.index(attribute)]

    def on_cuDevicePrimaryCtxRetain(self, device: Any) -> Any:
        return real.CUcontext(_CONTEXT)

    def on_cuCtxSetCurrent(self, context: Any) -> None:
        assert int(context) == _CONTEXT
        self.emulated.make_current()

    def on_cuStreamCreate(self, flags: int) -> Any:
        assert flags == 1
        return real.CUstream(_STREAM)

    def on_cuMemGetInfo(self) -> tuple[int, int]:
        return self.emulated.memory()

    def on_cuModuleLoadData(self, image: bytes) -> Any:
        assert image.endswith(b"\0")
        return self._keep(real.CUmodule, [image[:-1], None])

    def on_cuModuleGetFunction(self, module: Any, name: bytes) -> Any:
        held = self._thing(module, real.CUmodule)
        held[1] = self.emulated.load(held[0], name.decode())
        return self._keep(real.CUfunction, held[1])

    def on_cuModuleUnload(self, module: Any) -> None:
        self.emulated.unload(self._thing(module, real.CUmodule)[1])

    def on_cuMemAlloc(self, nbytes: int) -> Any:
        return real.CUdeviceptr(self.emulated.alloc(nbytes))

    def on_cuMemFree(self, address: int) -> None:
        self.emulated.free(int(address))

    def on_cuMemHostAlloc(self, nbytes: int, flags: int) -> int:
        return self.emulated.alloc_host(nbytes)

    def on_cuMemFreeHost(self, address: int) -> None:
        self.emulated.free_host(int(address))

    def on_cuMemsetD8Async(self, address: int, value: int, nbytes: int, stream: Any) -> None:
        self._own(stream)
        self.emulated.memset(address, value, nbytes)

    def on_cuMemcpyHtoDAsync(self, device: int, host: int, nbytes: int, stream: Any) -> None:
        self._own(stream)
        self.emulated.copy_in(device, host, nbytes)

    def on_cuMemcpyDtoHAsync(self, host: int, device: int, nbytes: int, stream: Any) -> None:
        self._own(stream)
        self.emulated.copy_out(host, device, nbytes)

    def on_cuMemcpyDtoDAsync(self, to: int, source: int, nbytes: int, stream: Any) -> None:
        self._own(stream)
        self.emulated.copy(to, source, nbytes)

    def on_cuLaunchKernel(self, function: Any, *rest: Any) -> None:
        *extents, shared, stream, parameters, extra = rest
        self._own(stream)
        assert shared == 0 and extra == 0
        kernel = self._thing(function, real.CUfunction)
        count = len(kernel.code.entry.params)
        pointers = (ctypes.c_void_p * count).from_address(parameters)
        values = [ctypes.c_uint64.from_address(pointer).value for pointer in pointers]  # type: ignore[arg-type]
        self.emulated.launch(kernel, tuple(extents[:3]), tuple(extents[3:]), tuple(values))

    def on_cuStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        self._own(stream)
        assert mode == real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        if not self.emulated.begin_capture():
            raise DeviceError("not supported", out_of_memory=False)

    def on_cuStreamEndCapture(self, stream: Any) -> Any:
        self._own(stream)
        return self._keep(real.CUgraph, self.emulated.end_capture())

    def on_cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return self._keep(real.CUgraphExec, self._thing(graph, real.CUgraph))

    def on_cuGraphDestroy(self, graph: Any) -> None:
        recorded = self._thing(graph, real.CUgraph)
        if not any(thing is recorded for key, thing in self._things.items() if key != int(graph)):
            self.emulated.free_graph(recorded)  # never instantiated

    def on_cuGraphExecDestroy(self, graph: Any) -> None:
        self.emulated.free_graph(self._thing(graph, real.CUgraphExec))

    def on_cuGraphLaunch(self, graph: Any, stream: Any) -> None:
        self._own(stream)
        self.emulated.launch_graph(self._thing(graph, real.CUgraphExec))

    def on_cuStreamSynchronize(self, stream: Any) -> None:
        self._own(stream)
        self.emulated.synchronise()

    def on_cuEventCreate(self, flags: int) -> Any:
        assert flags == 0
        return self._keep(real.CUevent, "event")

    def on_cuEventRecord(self, event: Any, stream: Any) -> None:
        self._thing(event, real.CUevent)
        assert isinstance(stream, real.CUstream)

    def on_cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        self._own(stream)
        self._thing(event, real.CUevent)
        self.emulated.wait_for(0)

    def on_cuEventSynchronize(self, event: Any) -> None:
        self._thing(event, real.CUevent)
        self.emulated.synchronise()

    def on_cuEventElapsedTime(self, start: Any, end: Any) -> float:
        return 0.25

    def on_cuEventDestroy(self, event: Any) -> None:
        self._thing(event, real.CUevent)

    def on_cuGetErrorString(self, status: Any) -> bytes:
        assert isinstance(status, real.CUresult)
        return status.name.removeprefix("CUDA_ERROR_").replace("_", " ").lower().encode()


_RESULTS = dict.fromkeys(
    ("cuMemAlloc", "cuMemHostAlloc", "cuModuleLoadData", "cuModuleGetFunction", "cuStreamEndCapture"), 1
)


def _count(arguments: str) -> int:
    """How many arguments a signature has: commas outside of brackets."""
    depth = count = 0
    for letter in arguments:
        depth += (letter in "[(") - (letter in "])")
        count += letter == "," and not depth
    return count + 1 if arguments.strip() else 0


def _status(name: str, error: DeviceError) -> Any:
    if error.out_of_memory:
        return real.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    if error.lost:
        return real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    if "not supported" in str(error):
        return real.CUresult.CUDA_ERROR_NOT_SUPPORTED
    codes = {
        "cuLaunchKernel": real.CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
        "cuModuleGetFunction": real.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
    }
    return codes.get(name, real.CUresult.CUDA_ERROR_INVALID_VALUE)
