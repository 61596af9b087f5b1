"""Loading objects without LLVM: what resolves, what is refused, what protects the memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusegraph.errors import CompilerError
from fusegraph.runtime import cache, code_memory, elf, host, llvm, object_loader
from fusegraph.runtime.code_memory import CodeMemory

pytestmark = pytest.mark.skipif(not object_loader.supported(), reason="objects here are not ELF for x86-64")

UNARY = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)
COUNTER = ctypes.CFUNCTYPE(ctypes.c_int64)

# Constants, a table of constants, variables (two kinds), an address in data, a call inside, one outside, one of libm.
RICH = """
@scale = internal constant [4 x double] [double 1.0, double 2.0, double 4.0, double 8.0]
@aligned = internal constant <8 x float> <float 1.0, float 2.0, float 3.0, float 4.0, float 5.0, float 6.0, float 7.0, float 8.0>
@count = internal global i64 40
@zeros = internal global [1000 x i64] zeroinitializer
@pointer = internal global ptr @inner
@shared = global double 3.0
@imported = external global double
declare double @outer(double)
declare double @tgamma(double)
declare i32 @getpagesize()
define internal double @inner(double %x) noinline {
  %r = fmul double %x, 1.25
  ret double %r
}
define double @calls(double %x) {
  %a = call double @inner(double %x)
  %b = call double @outer(double %a)
  %c = call double @tgamma(double %b)
  ret double %c
}
define double @through_pointer(double %x) {
  %f = load volatile ptr, ptr @pointer
  %r = call double %f(double %x)
  ret double %r
}
define double @looked_up(double %x) {
  %i = fptosi double %x to i64
  %p = getelementptr [4 x double], ptr @scale, i64 0, i64 %i
  %v = load double, ptr %p
  %q = getelementptr <8 x float>, ptr @aligned, i64 0, i64 %i
  %w = load float, ptr %q
  %e = fpext float %w to double
  %s = fmul double %v, %e
  ret double %s
}
define i64 @next() {
  %v = load i64, ptr @count
  %n = add i64 %v, 1
  store i64 %n, ptr @count
  %p = getelementptr [1000 x i64], ptr @zeros, i64 0, i64 999
  %z = load i64, ptr %p
  store i64 1, ptr %p
  %s = add i64 %n, %z
  ret i64 %s
}
define i64 @page() {
  %n = call i32 @getpagesize()
  %r = zext i32 %n to i64
  ret i64 %r
}
define double @from_elsewhere() {
  %v = load double, ptr @imported
  %w = load double, ptr @shared
  %r = fadd double %v, %w
  ret double %r
}
"""
OTHER = """
@imported = global double 4.5
@shared = external global double
define double @outer(double %x) {
  %s = load double, ptr @shared
  %r = fadd double %x, %s
  ret double %r
}
"""
SYMBOLS = ("calls", "through_pointer", "looked_up", "next", "page", "from_elsewhere", "shared", "outer")


@pytest.fixture(scope="module")
def objects() -> list[bytes]:
    return [llvm.compile_ir(RICH), llvm.compile_ir(OTHER)]


def permissions_at(*addresses: int) -> list[str]:
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        found |= {address: line.split()[1] for address in addresses if start <= address < end}
    return [found[address] for address in addresses]


def test_objects_are_linked_with_each_other_and_with_the_c_library(objects):
    code = object_loader.load_objects(objects, SYMBOLS)
    assert code.symbols == SYMBOLS
    assert UNARY(code.address("calls"))(1.6) == 24.0  # 1.6 * 1.25 + 3 = 5; tgamma(5) = 4!
    assert UNARY(code.address("through_pointer"))(4.0) == 5.0
    assert [UNARY(code.address("looked_up"))(float(i)) for i in range(4)] == [1.0, 4.0, 12.0, 32.0]
    assert [COUNTER(code.address("next"))() for _ in range(2)] == [41, 43]
    assert COUNTER(code.address("page"))() == mmap.PAGESIZE
    assert ctypes.CFUNCTYPE(ctypes.c_double)(code.address("from_elsewhere"))() == 7.5
    ctypes.c_double.from_address(code.address("shared")).value = 0.0
    assert UNARY(code.address("outer"))(1.5) == 1.5


def test_each_load_has_variables_of_its_own(objects):
    one, two = (object_loader.load_objects(objects, ["next"]) for _ in range(2))
    assert COUNTER(one.address("next"))() == COUNTER(two.address("next"))() == 41


def test_objects_give_the_same_as_through_llvms_linker(objects):
    ours, theirs = object_loader.load_objects(objects, SYMBOLS), llvm.linked(objects, SYMBOLS)
    for name in ("calls", "through_pointer"):
        for x in (0.1, 0.7, 1.6, 3.2):
            assert UNARY(ours.address(name))(x) == UNARY(theirs.address(name))(x)


@pytest.mark.parametrize("place", [1 << 36, 5 << 40])
def test_calls_reach_functions_that_are_farther_away_than_32_bits(objects, place, monkeypatch):
    library = code_memory._c_library()
    where = SimpleNamespace(
        mmap=lambda _, *rest: library.mmap(place, *rest), mprotect=library.mprotect, munmap=library.munmap
    )
    monkeypatch.setattr(code_memory, "_c_library", lambda: where)
    code = object_loader.load_objects(objects, SYMBOLS)
    assert code._memory.address == place
    assert abs(object_loader.process_symbol("tgamma") - place) > 1 << 32
    assert UNARY(code.address("calls"))(1.6) == 24.0
    assert COUNTER(code.address("page"))() == mmap.PAGESIZE


def test_no_memory_is_writable_and_executable(objects):
    code = object_loader.load_objects(objects, SYMBOLS)
    image = object_loader._Image([elf.read(one) for one in objects])
    constants = code.address("calls") - image.offset_of("calls") + image.ends[0]
    where = permissions_at(code.address("calls"), code.address("outer"), constants, code.address("shared"))
    assert [text[:3] for text in where] == ["r-x", "r-x", "r--", "rw-"]


def test_memory_is_given_back(objects):
    loaded = object_loader.load_objects(objects, ["calls"])
    start = loaded._memory.address
    line = f"{start:x}-"
    assert any(text.startswith(line) for text in Path("/proc/self/maps").read_text().splitlines())
    address = loaded.address("calls")
    del loaded
    with pytest.raises(KeyError):
        permissions_at(address)


def test_a_weak_definition_gives_way_and_two_others_do_not():
    text = "define {} i64 @f() {{\n  ret i64 {}\n}}\ndefine i64 @{}() {{\n  %r = call i64 @f()\n  ret i64 %r\n}}"
    weak, strong = llvm.compile_ir(text.format("weak", 1, "g")), llvm.compile_ir(text.format("", 2, "h"))
    for order in ([weak, strong], [strong, weak]):
        code = object_loader.load_objects(order, ["f", "g", "h"])
        assert [COUNTER(code.address(name))() for name in "fgh"] == [2, 2, 2]
    with pytest.raises(CompilerError, match="two objects define 'f'"):
        object_loader.load_objects([strong, strong], ["f"])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("@x = thread_local global i64 1\ndefine i64 @f() {\n  %v = load i64, ptr @x\n  ret i64 %v\n}", "thread-local"),
        ('@f = global i64 1, section ".init_array"', "a section of type 0xe"),
        ("@f = global i64 1, align 65536", "aligned to 65536"),
        ("@f = extern_weak global i64\n@g = global ptr @f", "'f' is neither defined nor imported"),
        ("@f = common global i64 0", "'f' is neither defined nor imported"),
    ],
)
def test_what_is_not_loaded_here_is_refused_with_the_reason(text, match):
    with pytest.raises(elf.UnknownObject, match=match):
        object_loader.load_objects([llvm.compile_ir(text)], ["f"])


def test_what_is_not_loaded_here_goes_to_llvms_linker():
    """A common symbol: memory that several objects may ask for, and get once."""
    text = "define i64 @f() {\n  %v = load i64, ptr @c\n  %r = add i64 %v, 6\n  ret i64 %r\n}"
    code = llvm.compile_ir("@c = common global i64 0\n" + text)
    with pytest.raises(elf.UnknownObject):
        object_loader.load_objects([code], ["f"])
    assert COUNTER(llvm.load(code, ["f"]).address("f"))() == 6


def relocation_kinds(code: bytes) -> list[tuple[int, int]]:
    """(place of its type in the file, type) of every relocation."""
    whole = memoryview(code)
    return [
        (header.offset + start + 8, struct.unpack_from("<I", code, header.offset + start + 8)[0])
        for header in elf._section_headers(whole)
        if header.kind == elf._RELA and elf._is_loaded(elf._section_headers(whole)[header.info])
        for start in range(0, header.size, 24)
    ]


def test_relocations_are_of_the_known_types_and_others_are_refused(objects):
    kinds = {kind for code in objects for _, kind in relocation_kinds(code)}
    assert {object_loader._RELATIVE32, object_loader._CALL32, object_loader._ABSOLUTE64} < kinds
    assert kinds & set(object_loader._TABLE)
    for place, _ in relocation_kinds(objects[0]):
        changed = bytearray(objects[0])
        struct.pack_into("<I", changed, place, 23)  # R_X86_64_TPOFF32
        with pytest.raises(elf.UnknownObject):
            object_loader.load_objects([bytes(changed), objects[1]], ["calls"])


def test_a_distance_that_does_not_fit_is_an_error(objects):
    for place, kind in relocation_kinds(objects[0]):
        if kind == object_loader._RELATIVE32:
            changed = bytearray(objects[0])
            struct.pack_into("<q", changed, place + 8, 1 << 33)  # its addend
            with pytest.raises(elf.DamagedObject, match="does not reach"):
                object_loader.load_objects([bytes(changed), objects[1]], ["calls"])
            return
    raise AssertionError("there was no such relocation")


def test_every_truncated_object_is_refused(objects):
    for code in objects:
        for length in range(len(code)):
            with pytest.raises(CompilerError):
                object_loader.load_objects([code[:length]], ["calls"])


FLIPS = """
import random, sys
from pathlib import Path
from fusegraph.errors import CompilerError
from fusegraph.runtime import object_loader
objects = [Path(name).read_bytes() for name in sys.argv[1:]]
dice = random.Random(3)
loaded = refused = 0
for _ in range(4000):
    which = dice.randrange(len(objects))
    changed = bytearray(objects[which])
    for _ in range(dice.choice((1, 1, 1, 2, 8))):
        place = dice.randrange(len(changed))
        changed[place] = dice.choice((0, 255, dice.randrange(256), changed[place] ^ (1 << dice.randrange(8))))
    try:
        object_loader.load_objects([bytes(changed), objects[1 - which]], ["calls"])
        loaded += 1
    except CompilerError:
        refused += 1
print(loaded, refused)
"""


def test_objects_with_random_bytes_load_or_are_refused_but_never_crash(objects, tmp_path):
    names = [str(tmp_path / f"{n}.o") for n in range(2)]
    for name, code in zip(names, objects, strict=True):
        Path(name).write_bytes(code)
    done = subprocess.run([sys.executable, "-c", FLIPS, *names], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    loaded, refused = map(int, done.stdout.split())
    assert loaded > 100 and refused > 100  # of code and constants no byte can be wrong, of headers most can


def test_numbers_of_headers_at_their_limits_are_refused(objects):
    """Every word of the file's header and of its section headers with the largest values."""
    code = objects[0]
    (start,) = struct.unpack_from("<Q", code, 40)
    for place in [*range(16, 64, 2), *range(start, len(code), 4)]:
        for value in (0, 0x7FFFFFFF, 0xFFFFFFFF):
            changed = bytearray(code)
            struct.pack_into("<I", changed, min(place, len(code) - 4), value)
            try:
                object_loader.load_objects([bytes(changed), objects[1]], ["calls"])
            except CompilerError:
                continue


def test_memory_that_the_system_does_not_give_is_an_error():
    with pytest.raises(CompilerError, match="no memory for"):
        CodeMemory(1 << 60)


def test_the_host_is_described_by_what_stays_the_same_on_all_cores():
    assert host.identity() == host.identity() and host.arch() == llvm.target().arch
    seen = set()
    before = os.sched_getaffinity(0)
    try:
        for core in before:
            os.sched_setaffinity(0, {core})
            seen.add(host._cpu())
    finally:
        os.sched_setaffinity(0, before)
    assert len(seen) == 1


def fake_cpu(leaves: dict[tuple[int, int], tuple[int, int, int, int]]):
    def cpuid(leaf: int, subleaf: int, out: int) -> None:
        (ctypes.c_uint32 * 4).from_address(out)[:] = leaves.get((leaf, subleaf), (0, 0, 0, 0))

    return cpuid


PLAIN = {(0, 0): (7, 1, 2, 3), (1, 0): (0x10, 0x0100_0000, 1 << 27, 5), (1 << 31, 0): (0, 0, 0, 0)}


@pytest.mark.parametrize("change", [{(7, 0): (0, 32, 0, 0)}, {(0, 0): (7, 1, 2, 4)}, {(1, 0): (0x11, 0, 1 << 27, 5)}])
def test_another_cpu_has_another_description(change):
    assert host.describe(fake_cpu(PLAIN), lambda: 7) != host.describe(fake_cpu(PLAIN | change), lambda: 7)


def test_what_the_system_saves_counts_and_which_core_it_is_does_not():
    plain = host.describe(fake_cpu(PLAIN), lambda: 7)
    assert plain != host.describe(fake_cpu(PLAIN), lambda: 3)
    assert plain == host.describe(fake_cpu(PLAIN | {(1, 0): (0x10, 0x0900_0000, 1 << 27, 5)}), lambda: 7)
    without = PLAIN | {(1, 0): (0x10, 0, 0, 5)}  # no xgetbv: it would be an illegal instruction
    assert host.describe(fake_cpu(without), lambda: pytest.fail("not to be called")).endswith(" -")


WARM = """
import sys, numpy as np, fusegraph as fg
fg.manual_seed(0)
net = fg.nn.Sequential(fg.nn.Linear(6, 5), fg.nn.Tanh(), fg.nn.Linear(5, 1))
sgd = fg.optim.SGD(net.parameters(), lr=0.1)
@fg.compile
def step(x):
    loss = (net(x) ** 2).mean()
    sgd.zero_grad(); loss.backward(); sgd.step()
    return loss
losses = [step(fg.tensor(np.arange(24, dtype=np.float32).reshape(4, 6) / 9)).item().hex() for _ in range(3)]
print(*losses, *(name for name in ("llvmlite", "numba", "networkx") if name in sys.modules))
if sys.platform == "linux":
    pages = [line.split() for line in open("/proc/self/maps")]
    assert any(page[1] == "r-xp" and page[4] == "0" for page in pages)  # code that is not from a file
    # with a compiler there are callbacks from C, which ctypes makes such pages for
    assert "llvmlite" in sys.modules or not any("wx" in page[1] for page in pages)
"""


def run_warm(folder: Path, before: str = "") -> list[str]:
    environment = {**os.environ, "FUSEGRAPH_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", before + WARM]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def test_a_second_process_needs_no_compiler_and_gives_the_same_bits(tmp_path):
    first = run_warm(tmp_path)
    assert "llvmlite" in first
    assert run_warm(tmp_path) == first[:3]  # also looks for pages that are writable and executable


def test_on_another_machine_llvm_tells_the_host_and_links(tmp_path):
    losses = run_warm(tmp_path)[:3]
    elsewhere = "import os, types, numpy\nos.uname = lambda: types.SimpleNamespace(machine='another')\n"
    for _ in range(2):  # entries are found there as well, under keys of their own
        assert run_warm(tmp_path, elsewhere) == [*losses, "llvmlite"]
    assert len(list(tmp_path.rglob("*.fgc"))) == 4  # a step and the launch code, twice


def test_an_entry_of_the_cache_that_cannot_be_loaded_is_compiled_again(tmp_path):
    losses = run_warm(tmp_path)[:3]
    files = list(tmp_path.rglob("*.fgc"))
    for file in files:
        entry = cache._decode(file.stem, file.read_bytes())
        damaged = {name: blob[:-1] if name.startswith("object") else blob for name, blob in entry.blobs.items()}
        file.write_bytes(cache._encode(file.stem, damaged))
    again = run_warm(tmp_path)
    assert again[:3] == losses and "llvmlite" in again
    assert run_warm(tmp_path) == losses
