"""What goes wrong on a GPU, injected into the emulated one: the error says what to do, and nothing is half changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph.errors import DeviceError, IndexRangeError, OptionError, UnsupportedError
from fusegraph.runtime.cuda import current_device, device, using_driver
from fusegraph.runtime.cuda.residency import is_watched
from tests.cuda_runtime_tools import Training, agree, batches, emulated, needs_wheels
from tests.emulated_driver import EmulatedDriver

X = np.ones((4, 3), np.float32)


def expected(steps: int) -> dict[str, Any]:
    """What the parameters are after so many steps on the CPU."""
    training = Training("mlp", "cpu")
    for x, y in batches("mlp", steps):
        training.step(x, y)
    return training.state()


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda", "target": "sm_61"}, "CUDA target 'sm_61' is not known; use one of sm_75"),
        ({"backend": "cuda", "precision": "half"}, "precision 'half' does not exist; use one of float32, tf32"),
        ({"backend": "cpu", "target": "sm_90"}, "target='sm_90' is an option of backend='cuda', not of backend='cpu'"),
        ({"backend": "numba", "precision": "tf32"}, "precision='tf32' is an option of backend='cuda'"),
        ({"backend": "cpu", "precision": "float16"}, "precision='float16' is an option of backend='cuda'"),
        (
            {"backend": "cuda", "precision": "bfloat16", "exact": True},
            "exact=True computes in float32 throughout, prec",
        ),
        ({"backend": "cuda", "precision": "tf32", "exact": True}, "'tf32' rounds what products read: leave one of the"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fg.compile(lambda x: x, **options)


def test_source_for_a_chosen_target_without_wheels_and_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    compiled = fg.compile(lambda x: x.exp() * 2, backend="cuda", target="sm_80")
    assert "exp" in str(compiled.explain(X))
    texts = {path.name: path.read_text() for path in compiled.dump(tmp_path, X)}
    assert any(name.endswith(".cuda.py") and "exp(" in text for name, text in texts.items())
    code = [text for name, text in texts.items() if name.endswith(".ptx")]
    assert code and all("not compiled: the package numba-cuda is not installed (pip" in text for text in code)


@needs_wheels
@pytest.mark.parametrize("target", ["sm_80", "sm_100"])
def test_code_for_a_chosen_target_without_a_gpu(tmp_path: Path, target: str) -> None:
    compiled = fg.compile(lambda x: x.exp() * 2, backend="cuda", target=target)
    texts = [path.read_text() for path in compiled.dump(tmp_path, X) if path.suffix == ".ptx"]
    assert texts and all(f".target {target}" in text for text in texts)


# -- what is missing --------------------------------------------------------------------------------------------------


def test_a_call_says_which_part_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bindings:
        def __init__(self, status: int, count: int) -> None:
            self.status, self.count = status, count

        def cuInit(self, flags: int) -> tuple[int]:
            return (self.status,)

        def cuDeviceGetCount(self) -> tuple[int, int]:
            return 0, self.count

    bindings = pytest.importorskip("cuda.bindings", reason="the wheels are not installed")
    for api, words in (
        (Bindings(100, 0), r"finds no GPU \(CUDA_VISIBLE_DEVICES is ''\)"),
        (Bindings(0, 0), "finds no GPU"),
        (Bindings(803, 0), "does not start .error 803"),
    ):
        monkeypatch.setattr(bindings, "driver", api, raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(UnsupportedError, match=f"cannot run here: the NVIDIA driver {words}.*backend='cpu' runs"):
            current_device()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert device.unavailable() == (
        "the wheels are not installed (no package cuda-bindings): pip install 'fusegraph[cuda]'"
    )


@needs_wheels
@pytest.mark.parametrize(
    ("capability", "target", "message"),
    [
        ((8, 0), "sm_90", r"this GPU \(emulated GPU\) is sm_80, the step was compiled for sm_90: .*target='sm_80'"),
        ((9, 0), "sm_120", "is sm_90, the step was compiled for sm_120"),
    ],
)
def test_another_target_than_the_gpu(capability: tuple[int, int], target: str, message: str) -> None:
    with emulated(capability=capability), pytest.raises(UnsupportedError, match=message):
        fg.compile(lambda x: x * 2, backend="cuda", target=target)(X)


@needs_wheels
def test_an_older_target_runs_where_the_driver_compiles_ptx_and_not_as_a_cubin() -> None:
    with emulated(capability=(8, 9)) as gpu:
        assert fg.compile(lambda x: x * 2, backend="cuda")(X).tolist() == (X * 2).tolist()
        assert fg.compile(lambda x: x * 3, backend="cuda", target="sm_75")(X).tolist() == (X * 3).tolist()
        gpu.image_kind = "cubin"  # type: ignore[misc]
        with pytest.raises(UnsupportedError, match="sm_89, the step was compiled for sm_75"):
            fg.compile(lambda x: x * 4, backend="cuda", target="sm_75")(X)


def test_a_gpu_that_is_too_old() -> None:
    with pytest.raises(UnsupportedError, match="6.1 is older than sm_75"), using_driver(EmulatedDriver((6, 1))):
        pass


# -- failures ---------------------------------------------------------------------------------------------------------


@needs_wheels
@pytest.mark.parametrize(
    ("call", "graphs"), [("launch", True), ("launch", False), ("load", True), ("alloc_host", True)]
)
def test_a_refused_call_changes_nothing_and_the_next_one_works(call: str, graphs: bool) -> None:
    data = batches("mlp", 2)
    with emulated(graphs=graphs) as gpu:
        training = Training("mlp", "cuda")
        before = training.state()
        for number in (1, 2):
            gpu.refuse = {call: number}
            with pytest.raises(DeviceError, match=f"{call}: refused on purpose"):
                training.step(*data[0])
            agree(training.state(), before)
            assert not gpu.queue and gpu.recording is None
        for x, y in data:
            training.step(x, y)
        agree(training.state(), expected(2))


@needs_wheels
def test_a_refused_launch_after_others_puts_states_back_that_are_on_the_device() -> None:
    data = batches("mlp", 3)
    with emulated(graphs=False) as gpu:
        training = Training("mlp", "cuda")
        for x, y in data[:2]:
            training.step(x, y)
        training.step.compiled_for().artifact.executable._loaded.graphs._proven.clear()
        gpu.refuse = {"launch": 9}  # updates of some parameters have run by then
        with pytest.raises(DeviceError, match="launch: refused"):
            training.step(*data[2])
        agree(training.state(), expected(2))
        training.step(*data[2])
        agree(training.state(), expected(3))


@needs_wheels
@pytest.mark.parametrize("number", range(1, 8))
def test_no_room(number: int) -> None:
    data = batches("mlp", 2)
    with emulated() as gpu:
        training = Training("mlp", "cuda")
        before = training.state()
        capacity, gpu.capacity = gpu.capacity, 512 * number
        with pytest.raises(DeviceError, match=r"the GPU has no room for 0.0 MB more .*smaller batch") as caught:
            training.step(*data[0])
        assert caught.value.out_of_memory and not caught.value.lost
        agree(training.state(), before)
        gpu.capacity = capacity
        for x, y in data:
            training.step(x, y)
        agree(training.state(), expected(2))


@needs_wheels
def test_the_pool_is_given_up_before_there_is_no_room() -> None:
    with emulated() as gpu:
        double = fg.compile(lambda x: x * 2, backend="cuda")
        large = np.ones((200, 200), np.float32)
        for _ in range(3):
            double(large)
        gpu.capacity = gpu.capacity - gpu.memory()[0] + 100_000
        halves = fg.compile(lambda x: x / 2, backend="cuda")
        assert halves(large[:100]).numpy()[0, 0] == 0.5


@needs_wheels
def test_a_lost_device_says_that_its_values_are_lost() -> None:
    data = batches("mlp", 2)
    with emulated(clean=False) as gpu:
        training = Training("mlp", "cuda")
        for x, y in data:
            training.step(x, y)
        seen = training.model[2].bias.detach().numpy().copy()
        gpu.fault = 3
        with pytest.raises(DeviceError, match="illegal memory access") as caught:
            training.step(*data[0])
        assert caught.value.lost
        np.testing.assert_array_equal(training.model[2].bias.detach().numpy(), seen)  # the host had these
        with pytest.raises(
            DeviceError, match=r"values of 1 tensor\(s\) \(float32\[8, 12\]\) were on the GPU.*checkpoint"
        ):
            training.model[0].weight.detach().numpy()
        with pytest.raises(DeviceError, match="cannot be used any more in this process"):
            training.step(*data[0])


@needs_wheels
def test_an_index_out_of_range_is_found_before_anything_runs() -> None:
    x, y = batches("mlp", 1)[0]
    with emulated() as gpu:
        training = Training("mlp", "cuda")
        training.step(x, y)
        before = gpu.counts.copy()
        with pytest.raises(IndexRangeError, match="Nothing was changed"):
            training.step(x, np.where(y == y[0], 3, y))
        assert gpu.counts["kernels"] == before["kernels"]
        agree(training.state(), expected(1))


@needs_wheels
def test_an_index_that_only_the_device_has_is_checked_too() -> None:
    with emulated():
        shift = fg.compile(lambda i: i + 1, backend="cuda")
        pick = fg.compile(lambda t, i: F.embedding(i, t), backend="cuda")
        table = np.arange(20_000, dtype=np.float32).reshape(-1, 2)
        inside = shift(np.arange(9_000))
        assert is_watched(inside)
        assert pick(table, inside).numpy()[0, 0] == 2
        outside = shift(np.arange(1_000, 10_000))
        with pytest.raises(IndexRangeError):
            pick(table, outside)


@needs_wheels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_refused() -> None:
    data = batches("mlp", 1)
    with emulated():
        training = Training("mlp", "cuda")
        training.step(*data[0])
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            words = []
            for action in (lambda: training.step(*data[0]), lambda: training.model[0].weight.tolist()):
                try:
                    action()
                    words.append("no error")
                except UnsupportedError as error:
                    words.append(str(error))
                except BaseException as error:
                    words.append(repr(error))
            os.write(writable, "|".join(words).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writable)
        with os.fdopen(readable) as pipe:
            words = pipe.read().split("|")
        assert len(words) == 2 and all("multiprocessing.get_context('spawn')" in text for text in words), words
        training.step(*data[0])
