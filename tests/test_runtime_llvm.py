"""IR text -> object -> addresses: what LLVM refuses, what resolves, what is optimised away."""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from fusegraph.errors import CompilerError
from fusegraph.runtime import llvm

SQUARE = "define double @square(double %x) {\n  %r = fmul double %x, %x\n  ret double %r\n}\n"
UNARY_DOUBLE = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)
UNARY_FLOAT = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_float)


def test_target_describes_the_host_and_is_cached():
    host = llvm.target()
    assert host is llvm.target()
    assert host.triple.startswith(host.arch)
    assert host.vector_bits in (128, 256, 512)
    assert host.float_lanes * 32 == host.vector_bits


@pytest.mark.parametrize(
    ("features", "bits"),
    [
        ("", 128),
        ("+neon,+fp-armv8", 128),
        ("+avx2,-fma", 128),
        ("+avx2,+fma", 256),
        ("+avx2,+fma,+avx512f,+avx512vl,-avx512dq", 256),
        ("+avx2,+fma,+avx512f,+avx512vl,+avx512dq", 512),
    ],
)
def test_vector_width_needs_every_feature_of_its_class(features, bits):
    assert llvm.vector_bits(features) == bits


def test_compile_and_call():
    code = llvm.load(llvm.compile_ir(SQUARE), ["square"])
    assert code.symbols == ("square",)
    assert UNARY_DOUBLE(code.address("square"))(-3.0) == 9.0
    with pytest.raises(CompilerError, match="cube"):
        code.address("cube")


def test_compile_times_add_up():
    times, total = llvm.CompileTimes(), llvm.CompileTimes()
    llvm.compile_ir(SQUARE, times=times)
    assert min(times.parse, times.opt, times.codegen) > 0
    assert times.total == times.parse + times.opt + times.codegen
    total.add(times)
    total.add(times)
    assert total.total == pytest.approx(2 * times.total)


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "erf", "sin", "pow", "fmod"])
def test_libm_resolves_from_the_process(name):
    binary = name in ("pow", "fmod")
    arguments = "double %x, double 1.5" if binary else "double %x"
    parameters = "double, double" if binary else "double"
    text = f"""
declare double @{name}({parameters})
declare float @{name}f({parameters.replace("double", "float")})
define double @f(double %x) {{
  %r = call double @{name}({arguments})
  ret double %r
}}
define float @g(float %x) {{
  %r = call float @{name}f({arguments.replace("double", "float")})
  ret float %r
}}
"""
    code = llvm.load(llvm.compile_ir(text), ["f", "g"])
    expected = getattr(math, name)(*(0.75, 1.5)[: 2 if binary else 1])
    assert UNARY_DOUBLE(code.address("f"))(0.75) == pytest.approx(expected, rel=1e-15)
    assert UNARY_FLOAT(code.address("g"))(0.75) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("define void @f( {", "expected type"),
        ("define i32 @f() { ret void }", "result type 'i32'"),
        ("define void @f() {\n  call void @g()\n  ret void\n}", "undefined value '@g'"),
        # parses, but the definition of %x does not dominate its use: found by the verifier
        (
            "define i32 @f(i1 %c) {\n  br i1 %c, label %a, label %b\na:\n  %x = add i32 1, 2\n  br label %b\n"
            "b:\n  ret i32 %x\n}",
            "does not dominate",
        ),
    ],
)
def test_refused_ir_is_a_compiler_error_with_the_reason(text, message):
    with pytest.raises(CompilerError, match=message):
        llvm.compile_ir(text)


def test_an_object_that_is_damaged_or_lacks_a_symbol_is_a_compiler_error():
    code = llvm.compile_ir(SQUARE)
    for data, symbols in ((b"", ["square"]), (b"junk", ["square"]), (code[:100], ["square"]), (code, ["cube"])):
        with pytest.raises(CompilerError, match="cannot load object code"):
            llvm.load(data, symbols)
    undefined = "declare void @fg_missing()\ndefine void @f() {\n  call void @fg_missing()\n  ret void\n}"
    with pytest.raises(CompilerError, match="cannot load object code"):
        llvm.load(llvm.compile_ir(undefined), ["f"])


def test_always_inline_functions_are_inlined_and_unused_ones_removed():
    text = """
define internal double @helper(double %x) alwaysinline {
  %r = fadd double %x, 1.0
  ret double %r
}
define internal double @unused(double %x) noinline {
  ret double %x
}
define double @f(double %x) {
  %r = call double @helper(double %x)
  ret double %r
}
"""
    optimized = llvm.optimized_ir(text)
    assert "@helper" not in optimized and "@unused" not in optimized and "fadd double" in optimized
    assembly = llvm.assembly(text)
    assert "unused" not in assembly and "f:" in assembly.replace("_f:", "f:")


def test_the_full_pipeline_vectorises_a_scalar_loop_only_when_asked():
    text = """
define void @f(ptr noalias %a, ptr noalias %b) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %loop ]
  %p = getelementptr float, ptr %a, i64 %i
  %q = getelementptr float, ptr %b, i64 %i
  %x = load float, ptr %p
  %y = fmul float %x, 2.0
  store float %y, ptr %q
  %i.next = add nuw nsw i64 %i, 1
  %more = icmp ult i64 %i.next, 1024
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""
    assert "x float>" not in llvm.optimized_ir(text)
    assert "x float>" in llvm.optimized_ir(text, vectorize=True)


def test_many_modules_with_the_same_symbol_live_side_by_side_and_are_freed():
    objects = [llvm.compile_ir(SQUARE.replace("%x, %x", f"%x, {n}.0")) for n in range(5)]
    loaded = [llvm.load(objects[n % 5], ["square"]) for n in range(100)]
    del loaded[::2]
    for n, code in zip(range(1, 100, 2), loaded, strict=True):
        assert UNARY_DOUBLE(code.address("square"))(2.0) == 2.0 * (n % 5)


def test_compiling_in_many_python_threads():
    def job(n: int) -> float:
        code = llvm.load(llvm.compile_ir(SQUARE.replace("%x, %x", f"%x, {n}.0")), ["square"])
        return UNARY_DOUBLE(code.address("square"))(3.0)

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(job, range(40))) == [3.0 * n for n in range(40)]


def test_importing_the_module_does_not_import_llvm():
    program = (
        "import sys; from fusegraph.runtime import llvm, cache, memory, spmd_ir\n"
        "assert 'llvmlite.binding' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
