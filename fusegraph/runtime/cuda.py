"""Runs a program's CUDA kernels on an NVIDIA GPU through the driver (cuda.bindings).

Not run yet: it was written on machines without a GPU. What is tested there is everything up to the launches (source, PTX, cubins,
arguments); of this file, the errors for what is missing.

Every buffer has device memory of its own, temps share the arena of the memory plan. Inputs are copied in before a step,
outputs and states out after it, so that parameters are ordinary arrays at all times; a state is copied in only where the
host has changed it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph.errors import UnsupportedError
from fusegraph.runtime.cuda_compile import TARGETS, CudaModule, entry_name, missing
from fusegraph.runtime.guards import check_guards

if TYPE_CHECKING:
    from fusegraph.codegen.cuda.step import CudaStep

Array = np.ndarray[Any, Any]


def unavailable() -> str:
    """What is missing before kernels can run here, in words; "" if nothing."""
    if problem := missing():
        return problem
    from cuda.bindings import driver

    try:
        (status,) = driver.cuInit(0)
        if int(status) == 0:
            status, count = driver.cuDeviceGetCount()
            return "" if int(status) == 0 and count else "the NVIDIA driver finds no GPU"
    except Exception as error:  # the bindings raise errors of several kinds where libcuda cannot be loaded
        return f"the NVIDIA driver cannot be loaded ({str(error).strip().splitlines()[0]})"
    return f"the NVIDIA driver does not start (error {int(status)})"


def _checked(result: tuple[Any, ...]) -> Any:
    """The value of a driver call. Raises UnsupportedError with the driver's error code."""
    status, *values = result
    if int(status):
        raise UnsupportedError(f"the NVIDIA driver reports {status!s}")
    return values[0] if len(values) == 1 else values


class CudaExecutable:
    """A step on the GPU. It can be made (and dumped) anywhere; `run` needs a GPU."""

    def __init__(self, step: CudaStep) -> None:
        self.step = step
        self._device: _Device | None = None
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run on arrays in the order of the program's inputs; states change in place.

        Raises UnsupportedError that says what is missing (GPU, driver, wheels), and IndexRangeError for an index argument
        out of range; nothing has been changed then.
        """
        program = self.step.program
        arrays = dict(zip(program.inputs, inputs, strict=True))
        with self._lock:
            if self._device is None:
                if problem := unavailable():
                    raise UnsupportedError(
                        f"backend='cuda' cannot run here: {problem}; dump() works, and backend='cpu' runs"
                    )
                self._device = _Device(self.step)
            check_guards(program, arrays)
            for name in program.outputs:
                if name not in arrays:
                    buffer = program.buffers[name]
                    arrays[name] = np.empty(buffer.shape, buffer.dtype)
            self._device.run(arrays)
        return [arrays[name] for name in program.outputs]


class _Device:
    """Device memory, loaded kernels and one stream."""

    def __init__(self, step: CudaStep) -> None:
        from cuda.bindings import driver

        self.driver, self.step = driver, step
        device = _checked(driver.cuDeviceGet(0))
        self._context = _checked(driver.cuDevicePrimaryCtxRetain(device))
        _checked(driver.cuCtxSetCurrent(self._context))
        self._stream = _checked(driver.cuStreamCreate(0))
        module = CudaModule(step, _target_of(driver, device))
        self._kernels = {kernel.name: self._load(module.ptx(kernel.name)) for kernel in step.kernels}
        sizes = {"arena": step.memory.arena_bytes} | {
            name: step.program.buffers[name].nbytes for name in step.memory.externals
        }
        self._memory = {name: int(_checked(driver.cuMemAlloc(max(size, 16)))) for name, size in sizes.items()}
        self._launches = [self._prepared(launch) for launch in step.launches]
        self._written = {name for loop in step.program.loops for name in loop.writes()}
        self._known: dict[str, Array] = {}  # states as the device has them

    def _load(self, ptx: str) -> Any:
        image = _checked(self.driver.cuModuleLoadData(ptx.encode() + b"\0"))
        return _checked(self.driver.cuModuleGetFunction(image, entry_name(ptx).encode()))

    def _prepared(self, launch: Any) -> tuple[Any, ...]:
        """A launch's driver arguments: an array of pointers to the kernel's arguments, kept alive here."""
        values = np.array([self._memory[base] + offset for base, offset in launch.arguments], np.uint64)
        pointers = np.array([values.ctypes.data + 8 * i for i in range(len(values))], np.uint64)
        return self._kernels[launch.kernel], launch.grid, launch.block, pointers, values

    def run(self, arrays: dict[str, Array]) -> None:
        """Copy in, launch, copy out."""
        driver, buffers = self.driver, self.step.program.buffers
        _checked(driver.cuCtxSetCurrent(self._context))
        for name, array in arrays.items():
            known = self._known.get(name)
            if buffers[name].role == "output" or (known is not None and np.array_equal(known, array, equal_nan=False)):
                continue
            _checked(driver.cuMemcpyHtoDAsync(self._memory[name], array.ctypes.data, array.nbytes, self._stream))
        for kernel, grid, block, pointers, _ in self._launches:
            _checked(driver.cuLaunchKernel(kernel, *grid, *block, 0, self._stream, pointers.ctypes.data, 0))
        written = [name for name in arrays if name in self._written and arrays[name].nbytes]
        for name in written:
            _checked(
                driver.cuMemcpyDtoHAsync(
                    arrays[name].ctypes.data, self._memory[name], arrays[name].nbytes, self._stream
                )
            )
        _checked(driver.cuStreamSynchronize(self._stream))
        self._known.update({name: arrays[name].copy() for name in written if buffers[name].role == "state"})


def _target_of(driver: Any, device: Any) -> str:
    """The newest target that a device can run."""
    attribute = driver.CUdevice_attribute
    major = _checked(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = _checked(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    fitting = [target for target, capability in TARGETS.items() if capability <= (major, minor)]
    if not fitting:
        oldest = next(iter(TARGETS))
        raise UnsupportedError(f"a GPU of compute capability {major}.{minor} is older than {oldest}, the oldest target")
    return fitting[-1]
