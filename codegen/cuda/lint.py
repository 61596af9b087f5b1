"""Level 0 of checking emitted CUDA source: rules that were measured to matter, read off the text.

- A float literal stands only inside of float32(...) or float64(...): a bare one makes the arithmetic double.
- Every element of a global buffer is addressed by a number, a variable, or uint32(...) / int32(...): else addresses are 64-bit.
- Shapes of shared and local arrays are numbers.
- Kernels make no call that is not among those known.
"""

from __future__ import annotations

import ast

from fusegraph.codegen.cuda.intrinsics import INTRINSICS

FLOATS = {"float32", "float64"}
NARROW = {"uint32", "int32"}


def lint(source: str) -> list[str]:
    """What breaks a rule, in words with the line number; an empty list for clean text. Raises SyntaxError for broken text."""
    tree = ast.parse(source)
    known = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found: list[str] = []
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        found += _Checker(function, known).found
    return sorted(found)


class _Checker(ast.NodeVisitor):
    def __init__(self, function: ast.FunctionDef, known: set[str]) -> None:
        self.found: list[str] = []
        arguments = [argument.arg for argument in function.args.args]
        part = arguments[:1] == [
            "block_number"
        ]  # a loop of a kernel with several: its other arguments are global buffers
        self._where, self._device = function.name, bool(function.decorator_list) and not part
        self._known = known | FLOATS | NARROW | {
            "int64", "uint8", "uint64", "range", "abs", "min", "max", *INTRINSICS,
        }  # fmt: skip
        self._global = set() if self._device else set(arguments)
        for statement in function.body:
            self.visit(statement)

    def _report(self, node: ast.AST, text: str) -> None:
        self.found.append(f"line {getattr(node, 'lineno', 0)}, {self._where}: {text}")

    def visit_Constant(self, node: ast.Constant) -> None:
        """A float that no type stands around."""
        if isinstance(node.value, float):
            self._report(node, f"bare float {node.value!r}")

    def visit_Call(self, node: ast.Call) -> None:
        """Types around literals, shapes, known functions, indices of 128-bit access."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in FLOATS and len(node.args) == 1 and _is_literal(node.args[0]):
            return
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr == "array"
            and not isinstance(getattr(node.args[0], "value", None), int)
        ):
            self._report(node, "the shape of a shared or local array is not a number")
        if name and name not in self._known:
            self._report(node, f"call of {name}, which is not known")
        pointer = INTRINSICS.get(name)
        base = node.args[pointer] if pointer is not None else None
        if pointer is not None and isinstance(base, ast.Name):
            self._check_index(node, base.id, node.args[pointer + 1])
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Indices of global memory."""
        if isinstance(node.value, ast.Name):
            self._check_index(node, node.value.id, node.slice)
        self.generic_visit(node)

    def _check_index(self, node: ast.AST, array: str, index: ast.expr) -> None:
        narrow = isinstance(index, ast.Call) and isinstance(index.func, ast.Name) and index.func.id in NARROW
        if array in self._global and not (narrow or isinstance(index, ast.Name | ast.Constant)):
            self._report(node, f"index of {array} is not wrapped in uint32(...): {ast.unparse(index)}")


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) or (
        isinstance(node, ast.Attribute) and ast.unparse(node) in ("math.inf", "math.nan")
    )
