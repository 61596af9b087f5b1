"""A small builder of LLVM IR text: functions, structured control flow, modules.

The CPU code generator writes explicit-vector LLVM IR. This file holds what every kernel needs: SSA names, counted
loops with carried values, conditionals with merged values, addresses, casts and constants. The vector side
(contiguous, masked and gathered access, reductions, transposes) is
:class:`fusegraph.codegen.cpu.irvector.VectorOps`; exp, tanh and the like are
:class:`fusegraph.codegen.cpu.vecmath.VectorMath`.

Conventions: a *value* is the text of an operand (``"%x"``, ``"7"``, ``"splat (float 0x...)"``), a *type* is the text
of a type (``"float"``, ``"<8 x float>"``, ``"ptr"``). Indices and offsets are ``i64``.

>>> module = Module(vector_bits=256)
>>> fn = module.function("add", ["ptr noalias %x", "ptr noalias %y", "i64 %n"], linkage="")
>>> with fn.loop(0, "%n") as loop:
...     x = fn.load("float", fn.gep("%x", loop.index, "float"))
...     y = fn.load("float", fn.gep("%y", loop.index, "float"))
...     fn.store("float", fn.op(f"fadd float {x}, {y}"), fn.gep("%y", loop.index, "float"))
>>> print(module.text())  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence

from fusegraph.codegen.cpu.ircontrol import Branch, Loop
from fusegraph.codegen.cpu.irtypes import (
    FAST_MATH,
    element_bytes,
    float_const,
    function_attributes,
    int_const,
    module_text,
    natural_alignment,
)

__all__ = [
    "FAST_MATH",
    "Branch",
    "FunctionBuilder",
    "Loop",
    "Module",
    "element_bytes",
    "float_const",
    "function_attributes",
    "int_const",
]

Operand = str | int

_CALLEE = re.compile(r"call [^@]*@([\w.]+)\(")

_UNLIKELY = ', !prof !{!"branch_weights", i32 1, i32 2000}'


class FunctionBuilder:
    """Writes one LLVM function, instruction by instruction.

    ``params`` are texts with type, attributes and name (``"ptr noalias %x"``). ``attrs`` are function attributes in
    LLVM syntax. Declarations of called functions are collected in ``declarations`` and reach the module that owns it.
    """

    def __init__(
        self, name: str, params: Sequence[str], *, attrs: str = "", linkage: str = "internal", returns: str = "void"
    ) -> None:
        self.name = name
        self.params = list(params)
        self.attrs = attrs
        self.linkage = linkage
        self.returns = returns
        self.declarations: dict[str, str] = {}
        self.block = "entry"
        self._lines: list[str] = []
        self._counter = 0
        self._taken = frozenset(param.split()[-1] for param in params)
        self._returned = False

    # names, lines, blocks

    def fresh(self, prefix: str = "v") -> str:
        """A new SSA name, ``%prefixN``; N counts through the whole function."""
        self._counter += 1
        while f"%{prefix}{self._counter}" in self._taken:
            self._counter += 1
        return f"%{prefix}{self._counter}"

    def fresh_label(self, prefix: str) -> str:
        """A new block name (without the per cent sign)."""
        return self.fresh(prefix)[1:]

    def emit(self, line: str) -> None:
        """Append one instruction that gives no value."""
        self._lines.append("  " + line)

    def op(self, text: str, name: str = "v") -> str:
        """Append the instruction ``text`` and return the fresh SSA name of its value."""
        result = self.fresh(name)
        self.emit(f"{result} = {text}")
        return result

    def label(self, name: str) -> None:
        """Open the block ``name``; the block before must have ended with a terminator."""
        self._lines.append(f"{name}:")
        self.block = name

    def comment(self, text: str) -> None:
        """Append a comment, one ``;`` line for each line of ``text``."""
        for line in text.splitlines():
            self.emit(f"; {line}")

    def ret(self, type_: str = "void", value: Operand = "") -> None:
        """Return from the function. A void function that never calls this returns at its end."""
        self.emit(f"ret {type_} {value}".rstrip())
        self._returned = True

    @property
    def size(self) -> int:
        """Lines of its body."""
        return len(self._lines)

    @property
    def inlined(self) -> bool:
        """Whether it becomes part of whoever calls it."""
        return "alwaysinline" in self.attrs

    def declaration(self) -> str:
        """What a module says that calls this function of another one."""
        types = ", ".join(param.rpartition(" ")[0] for param in self.params)
        return f"declare {self.returns} @{self.name}({types})"

    def text(self, exported: bool = False) -> str:
        """The whole function definition. `exported`: for other modules to call, too."""
        linkage = f"{self.linkage} " if self.linkage and not exported else ""
        attrs = f" {self.attrs}" if self.attrs else ""
        body = self._lines if self._returned else [*self._lines, "  ret void"]
        head = f"define {linkage}{self.returns} @{self.name}({', '.join(self.params)}){attrs} {{"
        return "\n".join([head, "entry:", *body, "}", ""])

    def form(self) -> tuple[str, str]:
        """Its head and instructions, without its name and comments: equal for functions that do the same."""
        body = "\n".join([line for line in self._lines if not line.startswith("  ;")])
        return f"{self.returns} {self.params} {self.attrs} {self._returned}", body

    def rename_calls(self, names: Mapping[str, str]) -> None:
        """Call functions by other names; those that are not mentioned keep theirs."""
        for number, line in enumerate(self._lines):
            if "call " in line and (found := _CALLEE.search(line)) and found[1] in names:
                self._lines[number] = line[: found.start(1)] + names[found[1]] + line[found.end(1) :]

    # calls

    def declare(self, name: str, declaration: str) -> None:
        """Record the declaration of a function that is called here, keyed by its name (without @)."""
        known = self.declarations.setdefault(name, declaration)
        if known != declaration:
            raise ValueError(f"@{name} is declared twice: {known!r} and {declaration!r}")

    def call(
        self, returns: str, name: str, args: Sequence[tuple[str, Operand]], *, flags: str = "", attrs: str = "",
        external: bool = False,
    ) -> str:  # fmt: skip
        """Call ``@name`` with (type, value) arguments; gives the result's name, or "" for a void function.

        ``external=True`` declares the function as well (an intrinsic, or a symbol given when the object is loaded); for
        functions defined in the same module leave it out.
        """
        if external:
            self.declare(name, f"declare {returns} @{name}({', '.join(type_ for type_, _ in args)})")
        operands = ", ".join(f"{type_} {value}" for type_, value in args)
        text = " ".join(part for part in ("call", flags, returns, f"@{name}({operands})", attrs) if part)
        if returns == "void":
            self.emit(text)
            return ""
        return self.op(text)

    def intrinsic(self, returns: str, name: str, args: Sequence[tuple[str, Operand]], *, flags: str = "") -> str:
        """Call and declare the intrinsic ``llvm.name`` (its type suffix spelled out in ``name``)."""
        return self.call(returns, f"llvm.{name}", args, flags=flags, external=True)

    # control flow

    @contextlib.contextmanager
    def loop(
        self,
        lo: Operand,
        hi: Operand,
        step: Operand = 1,
        carried: Sequence[tuple[str, Operand]] = (),
        *,
        metadata: str = "",
    ) -> Iterator[Loop]:
        """``for index in range(lo, hi, step)`` over i64, with ``carried`` (type, initial value) pairs.

        Bounds and step are integers or SSA names; the step is positive. The loop is bottom-tested; a guard is emitted
        unless both bounds are integers with lo < hi. ``metadata`` is appended to the back edge (``!llvm.loop !0``).
        """
        if isinstance(step, int) and step <= 0:
            raise ValueError(f"loop step must be positive, got {step}")
        head, done = self.fresh_label("loop"), self.fresh_label("done")
        entry = self.block
        guarded = not (isinstance(lo, int) and isinstance(hi, int) and lo < hi)
        if guarded:
            self.emit(f"br i1 {self.op(f'icmp slt i64 {lo}, {hi}')}, label %{head}, label %{done}")
        else:
            self.emit(f"br label %{head}")
        self.label(head)
        loop = Loop(self.fresh("i"), [self.fresh("c") for _ in carried])
        phis_at = len(self._lines)
        yield loop
        values = loop.next_values()
        latch, following = self.block, self.op(f"add nsw i64 {loop.index}, {step}", "i")
        again = self.op(f"icmp slt i64 {following}, {hi}")
        self.emit(f"br i1 {again}, label %{head}, label %{done}" + (f", {metadata}" if metadata else ""))
        merges = [("i64", loop.index, lo, following)]
        merges += [(t, phi, init, v) for (t, init), phi, v in zip(carried, loop.phis, values, strict=True)]
        self._lines[phis_at:phis_at] = [
            f"  {phi} = phi {type_} [ {first}, %{entry} ], [ {then}, %{latch} ]" for type_, phi, first, then in merges
        ]
        self.label(done)
        loop.results = [
            self.op(f"phi {type_} [ {init}, %{entry} ], [ {value}, %{latch} ]") if guarded else value
            for (type_, init), value in zip(carried, values, strict=True)
        ]

    @contextlib.contextmanager
    def if_(
        self, condition: Operand, merged: Sequence[tuple[str, Operand]] = (), *, unlikely: bool = False
    ) -> Iterator[Branch]:
        """Run the body when the i1 ``condition`` holds; ``unlikely`` keeps its spills out of the straight path.

        ``merged`` are (type, value if not taken) pairs; the body calls ``branch.give(...)`` with the values if taken,
        and ``branch.results`` names the merged ones afterwards.
        """
        then, end = self.fresh_label("then"), self.fresh_label("end")
        before = self.block
        self.emit(f"br i1 {condition}, label %{then}, label %{end}" + (_UNLIKELY if unlikely else ""))
        branch = Branch(self, [type_ for type_, _ in merged], (then, end, end))
        with branch.then():
            yield branch
        branch.finish([(before, [str(value) for _, value in merged])])

    @contextlib.contextmanager
    def if_else(self, condition: Operand, types: Sequence[str] = ()) -> Iterator[Branch]:
        """A two-armed conditional: ``with branch.then(): ...`` and ``with branch.otherwise(): ...`` inside it.

        Each arm calls ``branch.give(...)`` with one value for each of ``types``.
        """
        then, other, end = self.fresh_label("then"), self.fresh_label("else"), self.fresh_label("end")
        self.emit(f"br i1 {condition}, label %{then}, label %{other}")
        branch = Branch(self, types, (then, other, end))
        yield branch
        if len(branch.arms) != 2:
            raise ValueError(f"if_else needs exactly one then() and one otherwise(), got {len(branch.arms)} arms")
        branch.finish()

    # memory and addresses

    def gep(self, ptr: str, index: Operand, type_: str) -> str:
        """The address of element ``index`` (i64) of the ``type_`` elements at ``ptr``."""
        if index in (0, "0"):
            return ptr
        return self.op(f"getelementptr inbounds {type_}, ptr {ptr}, i64 {index}", "p")

    def load(self, type_: str, ptr: str, align: int | None = None) -> str:
        """Load a value; ``align`` in bytes, the element type's own alignment if left out."""
        return self.op(f"load {type_}, ptr {ptr}, align {align or natural_alignment(type_)}")

    def store(
        self, type_: str, value: Operand, ptr: str, align: int | None = None, *, past_caches: bool = False
    ) -> None:
        """Store a value; ``align`` in bytes, the element type's own alignment if left out."""
        hint = ", !nontemporal !{i32 1}" if past_caches else ""
        self.emit(f"store {type_} {value}, ptr {ptr}, align {align or natural_alignment(type_)}{hint}")

    def affine(self, terms: Sequence[tuple[int, Operand]], const: int = 0) -> str:
        """The i64 value ``sum(coef * name) + const``; integer operands are folded. May be a constant's text."""
        total: str | None = None
        for coef, name in terms:
            if isinstance(name, int) or name.lstrip("-").isdigit():
                const += coef * int(name)
            elif coef != 0:
                scaled = name if coef == 1 else self.op(f"mul nsw i64 {name}, {coef}")
                total = scaled if total is None else self.op(f"add nsw i64 {total}, {scaled}")
        if total is None:
            return str(const)
        return total if const == 0 else self.op(f"add nsw i64 {total}, {const}")

    # scalars

    def cast(self, operation: str, from_type: str, value: Operand, to_type: str) -> str:
        """A conversion instruction: sext, zext, trunc, sitofp, fptosi, fpext, fptrunc, bitcast, ptrtoint, inttoptr."""
        return self.op(f"{operation} {from_type} {value} to {to_type}")

    def binary(self, operation: str, type_: str, a: Operand, b: Operand, flags: str = "") -> str:
        """A two-operand instruction (``fadd``, ``mul``, ``and``, ``shl`` ...) with optional flags."""
        return self.op(f"{operation}{' ' + flags if flags else ''} {type_} {a}, {b}")

    def compare(self, predicate: str, type_: str, a: Operand, b: Operand) -> str:
        """``icmp`` or ``fcmp``, by the type; gives an i1."""
        floating = "float" in type_ or "double" in type_
        return self.op(f"{'fcmp' if floating else 'icmp'} {predicate} {type_} {a}, {b}")

    def select(self, condition: Operand, type_: str, a: Operand, b: Operand) -> str:
        """``a`` where the i1 condition holds, else ``b``."""
        return self.op(f"select i1 {condition}, {type_} {a}, {type_} {b}")

    def min_i64(self, a: Operand, b: Operand) -> str:
        """The smaller of two signed i64 values (folded when both are integers)."""
        if isinstance(a, int) and isinstance(b, int):
            return str(min(a, b))
        return self.select(self.compare("slt", "i64", a, b), "i64", a, b)

    def max_i64(self, a: Operand, b: Operand) -> str:
        """The larger of two signed i64 values (folded when both are integers)."""
        if isinstance(a, int) and isinstance(b, int):
            return str(max(a, b))
        return self.select(self.compare("sgt", "i64", a, b), "i64", a, b)


class Module:
    """Functions, globals and declarations, printed in a deterministic order.

    Functions keep the order in which they were added, declarations are sorted by name. ``vector_bits`` sets the vector
    width attributes of the functions made by :meth:`function`.
    """

    def __init__(self, vector_bits: int = 256) -> None:
        self.vector_bits = vector_bits
        self.functions: dict[str, FunctionBuilder] = {}
        self.globals: dict[str, str] = {}
        self._declarations: dict[str, str] = {}
        self.metadata: list[str] = []
        self._first: dict[tuple[str, str], str] = {}  # of functions that were compared
        self._instead: dict[str, str] = {}  # of functions that went, which is called in their place
        self._new: list[FunctionBuilder] = []  # that were not compared yet

    def function(
        self, name: str, params: Sequence[str], *, attrs: str = "", linkage: str = "internal", returns: str = "void"
    ) -> FunctionBuilder:
        """A new function of this module, with the vector width attributes; its text is taken when the module prints."""
        attrs = " ".join(part for part in (function_attributes(self.vector_bits), attrs) if part)
        fn = FunctionBuilder(name, params, attrs=attrs, linkage=linkage, returns=returns)
        return self.add(fn)

    def add(self, fn: FunctionBuilder) -> FunctionBuilder:
        """Add a function built elsewhere; names are unique."""
        if fn.name in self.functions:
            raise ValueError(f"function @{fn.name} is already in the module")
        self.functions[fn.name] = fn
        self._new.append(fn)
        return fn

    def has_function(self, name: str) -> bool:
        """Whether a function of this name was added."""
        return name in self.functions

    def add_global(self, name: str, definition: str) -> str:
        """Add ``@name = definition`` (once, if identical); gives ``@name``."""
        known = self.globals.setdefault(name, definition)
        if known != definition:
            raise ValueError(f"global @{name} is defined twice: {known!r} and {definition!r}")
        return f"@{name}"

    def add_metadata(self, definition: str) -> str:
        """Add a metadata node; ``{self}`` in the definition stands for its own name. Gives ``!N``."""
        name = f"!{len(self.metadata)}"
        self.metadata.append(f"{name} = {definition.replace('{self}', name)}")
        return name

    def declare(self, name: str, declaration: str) -> None:
        """Declare an external function or intrinsic, keyed by its name (without @)."""
        known = self._declarations.setdefault(name, declaration)
        if known != declaration:
            raise ValueError(f"@{name} is declared twice: {known!r} and {declaration!r}")

    def merge_equal(self) -> int:
        """Keep one of all internal functions that differ only in their names (and comments); gives how many went.

        A second call compares what was added since the first; what was there then stays.
        """
        before = len(self._instead)
        for fn in self._new:
            if fn.linkage == "internal" and (kept := self._first.setdefault(fn.form(), fn.name)) != fn.name:
                self._instead[fn.name] = kept
                del self.functions[fn.name]
        for fn in self._new if self._instead else ():
            fn.rename_calls(self._instead)
        self._new = []
        return len(self._instead) - before

    def text(self) -> str:
        """The module as LLVM assembly."""
        for fn in self.functions.values():
            for name, declaration in fn.declarations.items():
                self.declare(name, declaration)
        functions = [fn.text() for fn in self.functions.values()]
        declarations = [self._declarations[n] for n in sorted(self._declarations) if n not in self.functions]
        return module_text(self.globals, functions, declarations, self.metadata)
