"""Runs compiled steps on an NVIDIA GPU. Nothing here needs a GPU to be imported, or to compile and dump for a chosen target."""

from fusegraph.runtime.cuda.device import current_device, unavailable, using_driver
from fusegraph.runtime.cuda.executable import CudaExecutable
from fusegraph.runtime.cuda.interop import DeviceArray

__all__ = ["CudaExecutable", "DeviceArray", "current_device", "unavailable", "using_driver"]
