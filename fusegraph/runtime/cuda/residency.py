"""Tensors whose values live on the GPU, and are copied back when somebody looks.

After a step on the GPU the tensors that it captured are *watched*: their class is replaced by a subclass of the same layout, whose
`_value` copies the values back, if those on the device are newer, and hands out the array. From then on the host may change the
array, so that it is sent to the device again before the next step that uses it. A step between two looks moves no parameter at all.

Watching works for an array that only the tensor refers to (its reference count tells). Where somebody else holds it (a NumPy view
that was taken with `.numpy()`, a detached tensor, a compiled CPU function), it is copied to the device before every step and back
after it: so every array shows the present values at all times, and changes of it are always seen.
"""

from __future__ import annotations

import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph.repeat import MISS
from fusegraph.runtime.cuda.device import Device, current_device
from fusegraph.runtime.cuda.mirrors import Mirror, fetch, find, looks
from fusegraph.tensor import Tensor

if TYPE_CHECKING:
    from fusegraph.compiler import Version

Array = np.ndarray[Any, Any]
_slot = Tensor.__dict__["_value"]


class Session(threading.local):
    """What a thread's call of a compiled function knows while it runs: `captured` tensors by array; `outputs` may stay away."""

    active = False
    lazy = False
    captured: dict[int, Tensor]


session = Session()


def raw(tensor: Tensor) -> Array:
    """A tensor's array as it is; the values on the device may be newer."""
    return _slot.__get__(tensor)  # type: ignore[no-any-return]


def _look(tensor: Tensor) -> Array:
    """`tensor._value` of a watched tensor."""
    array = raw(tensor)
    if session.active:
        return array
    mirror = find(array)
    if mirror is not None:
        fetch([mirror])
        mirror.current = False  # the caller may change it
    if mirror is None or mirror.fixed:
        looks.count += 1
    unwatch(tensor)
    return array


def _replace(tensor: Tensor, value: Any) -> None:
    """`tensor._value = value` of a watched tensor: what the device has is of no more use."""
    looks.count += 1
    unwatch(tensor)
    _slot.__set__(tensor, value)


def _cuda_interface(tensor: Tensor) -> dict[str, Any]:
    from fusegraph.runtime.cuda.interop import cuda_array_interface

    return cuda_array_interface(tensor)


def _dlpack(tensor: Tensor, **options: Any) -> Any:
    wanted = options.get("dl_device")
    if wanted is not None and int(wanted[0]) == 2:  # kDLCUDA
        from fusegraph.runtime.cuda.interop import device_capsule

        return device_capsule(tensor)
    return Tensor.__dlpack__(tensor, **options)


_classes: dict[type[Tensor], type[Tensor]] = {}


def _watched(kind: type[Tensor]) -> type[Tensor]:
    """The class of watched tensors of class `kind`: shape and dtype are known without a look."""
    if kind not in _classes:
        _classes[kind] = _make_class(kind)
    return _classes[kind]


def _make_class(kind: type[Tensor]) -> type[Tensor]:
    return type(
        kind.__name__,
        (kind,),
        {
            "__slots__": (),
            "__module__": kind.__module__,
            "__doc__": kind.__doc__,
            "_host_class": kind,
            "_value": property(_look, _replace),
            "shape": property(lambda tensor: raw(tensor).shape),
            "dtype": property(lambda tensor: raw(tensor).dtype),
            "__cuda_array_interface__": property(_cuda_interface),
            "__dlpack__": _dlpack,
        },
    )


def is_watched(tensor: Tensor) -> bool:
    """Whether the tensor's values are on the device, and the host's may be old."""
    return hasattr(type(tensor), "_host_class")


def watch(tensor: Tensor, mirror: Mirror) -> None:
    """From now on a look at the tensor's array is noticed."""
    if not is_watched(tensor):
        tensor.__class__ = _watched(type(tensor))
    mirror.watcher = weakref.ref(tensor)


def unwatch(tensor: Tensor) -> None:
    """The tensor is an ordinary one again."""
    if is_watched(tensor):
        tensor.__class__ = type(tensor)._host_class  # type: ignore[attr-defined]


def _references(tensor: Tensor) -> int:
    """How many hold the tensor's array, or an array that it shows: the most of them."""
    array: Array | None = raw(tensor)
    most = 0
    while isinstance(array, np.ndarray):
        most, array = max(most, sys.getrefcount(array)), array.base
    return most if array is None else 1 << 30


def _probe() -> int:
    if not hasattr(sys, "getrefcount") or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return 0  # no counts that mean something: everything is taken for shared
    return _references(Tensor._make(np.zeros(2)))


_ALONE = _probe()


def resident(array: Array) -> Tensor:
    """A tensor of a step's output: watched, where the output has stayed on the device."""
    tensor = Tensor._make(array)
    mirror = find(array)
    if mirror is not None and mirror.newer:
        watch(tensor, mirror)
    return tensor


def run_on_device(version: Version, leaves: list[Any]) -> Any:
    """A call (see `fusegraph.calls.run`) with captured tensors resident on the GPU.

    Raises UnsupportedError that says what is missing, where there is none.
    """
    device = current_device()
    if version.artifact.options.verify:  # compares arrays before and after
        from fusegraph.calls import run

        return run(version, leaves)
    steady = version.steady
    if steady is not None:
        result = steady.run(version, leaves, device)
        if result is not MISS:
            return result
        version.steady = None
    looked = looks.count
    result = _run_long(version, leaves, device)
    if version.calls > 1:  # a step that is called once is not worth it
        from fusegraph.runtime.cuda.steady import steady_of

        with device.using():
            version.steady = steady_of(version, device, looked)
    return result


def _run_long(version: Version, leaves: list[Any], device: Device) -> Any:
    from fusegraph.calls import run

    first = len(version.artifact.source.inputs) - len(version.captured)
    moving = {position - first for position, _ in version.owners}  # a gradient is another array at each call
    captured = [tensor for number, tensor in enumerate(version.captured) if number not in moving]
    if version.joint is not None:
        for position in version.joint.overwritten:
            version.captured[position - first]._value  # noqa: B018  (what it held is kept for the backward pass)
    with device.using():
        before = (session.active, session.lazy)
        session.captured = {id(raw(tensor)): tensor for tensor in captured}
        session.active = True
        session.lazy = all(type(owner) is not int for owner, _ in version.grads)  # those are added to by NumPy
        try:
            return run(version, leaves, resident)
        finally:
            session.active, session.lazy = before
            session.captured = {}
            _settle(device, captured)


def _settle(device: Device, captured: list[Tensor]) -> None:
    """Watch the captured tensors whose arrays nobody else holds; bring the others up to date on the host."""
    if device.lost:
        return  # what is watched stays so: a look at it says that its values are lost
    shared: list[Mirror] = []
    for tensor in captured:
        mirror = find(raw(tensor))
        if mirror is None or mirror.device is not device or not mirror.current:
            continue
        if is_watched(tensor):
            continue  # nobody has looked: nobody holds the array
        watch(tensor, mirror)  # first: who looks from now on is noticed
        if _references(tensor) > _ALONE:
            unwatch(tensor)
            shared.append(mirror)
    for mirror in shared:
        mirror.current = False
        looks.count += 1
    fetch(shared)
