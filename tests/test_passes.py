"""Passes one by one, on graphs in text form (tests/passes/*.txt), and the pipeline that they make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusegraph.dtypes import float32
from fusegraph.errors import CompilerError, OptionError
from fusegraph.ir import Graph, GraphBuilder, interpret, parse, verify
from fusegraph.passes import PIPELINE, Rules, rewrite, run_pipeline
from fusegraph.passes.gradients import index_range

PASSES = {step.name: step for step in PIPELINE}
FILES = sorted((Path(__file__).parent / "passes").glob("*.txt"))


def read_cases(path: Path) -> list[tuple[str, list[str], str, str]]:
    """(title, pass names, graph before, graph after) of each case; `# title | passes`, a graph, `==>`, a graph."""
    found = []
    for case in path.read_text().split("\n----\n"):
        head, _, rest = case.strip().partition("\n")
        title, names = head.removeprefix("# ").rsplit(" | ", 1)
        before, after = rest.split("\n==>\n")
        found.append((title, [name.strip() for name in names.split(",")], before, after))
    return found


CASES = [pytest.param(*case[1:], id=f"{path.stem}: {case[0]}") for path in FILES for case in read_cases(path)]


def settle(names: list[str], graph: Graph) -> Graph:
    """`graph` after the named passes, again and again until they change nothing."""
    for _ in range(20):
        before = graph
        for name in names:
            graph = verify(PASSES[name](graph))
        if graph is before:
            return graph
    raise AssertionError("the passes do not settle")


def random_arrays(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    """Arrays for the inputs of `graph`."""
    rng = np.random.default_rng(seed)
    made = [
        rng.uniform(-2, 2, node.shape) if node.dtype.kind == "f" else rng.integers(0, 2, node.shape)
        for node in graph.inputs
    ]
    return [np.asarray(array).astype(node.dtype) for array, node in zip(made, graph.inputs, strict=True)]


@pytest.mark.parametrize("names, before, after", CASES)
def test_rewrites_to_the_expected_graph(names: list[str], before: str, after: str) -> None:
    graph = parse(before)
    result = settle(names, graph)
    assert str(result) == after.strip()
    assert graph == parse(before), "a pass must not change the graph that it is given"


@pytest.mark.parametrize("names, before, after", CASES)
def test_expected_graph_computes_the_same(names: list[str], before: str, after: str) -> None:
    graph = parse(before)
    for seed in range(3):
        arrays = random_arrays(graph, seed)
        wanted, got = interpret.run(graph, arrays), interpret.run(parse(after), arrays)
        for x, y in zip(wanted[0], got[0], strict=True):
            np.testing.assert_allclose(y, x, rtol=2e-5, atol=2e-5)
        new = {old.name: value for (old, _), value in zip(parse(after).updates, got[1], strict=True)}
        for (old, _), x in zip(graph.updates, wanted[1], strict=True):
            y = new.get(old.name, arrays[graph.inputs.index(old)])
            np.testing.assert_allclose(y, x, rtol=2e-5, atol=2e-5)


def test_every_pass_has_a_text_case() -> None:
    covered = {name for path in FILES for case in read_cases(path) for name in case[1]}
    assert covered == set(PASSES)


def test_pass_names_differ_and_are_documented() -> None:
    assert len(PASSES) == len(PIPELINE)
    assert all(step.run.__doc__ for step in PIPELINE)


CHAIN = """
graph g(x: float32[3], y: float32[3]) {
  %a = neg(%x) : float32[3]
  %b = neg(%a) : float32[3]
  %c = add(%b, %y) : float32[3]
  %d = add(%y, %x) : float32[3]
  %e = mul(%c, %d) : float32[3]
  return %e
  update %x = %b
}
"""


def test_record_lists_each_pass_that_changed_something() -> None:
    record: list[tuple[str, Graph]] = []
    result = run_pipeline(parse(CHAIN), record=record)
    assert [name for name, _ in record] == ["simplify", "cse", "dce"]
    assert record[-1][1] is result
    assert str(result).count("add(") == 1
    assert not result.updates


def test_disabled_passes_do_not_run() -> None:
    record: list[tuple[str, Graph]] = []
    result = run_pipeline(parse(CHAIN), disable=("simplify", "cse"), record=record)
    assert "neg(" in str(result) and "simplify" not in [name for name, _ in record]
    assert run_pipeline(parse(CHAIN), disable=PASSES) == parse(CHAIN)


def test_unknown_pass_is_named_together_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"no pass is called 'simplfy'; the passes are simplify, cse, "):
        run_pipeline(parse(CHAIN), disable=("simplfy",))


def test_exact_keeps_rounding() -> None:
    text = """
    graph g(x: float32[3], lr: float32[]) {
      %c = constant(dtype='float32', value=3.0) : float32[]
      %cs = expand(%c; shape=(3,)) : float32[3]
      %lrs = expand(%lr; shape=(3,)) : float32[3]
      %a = mul(%x, %lrs) : float32[3]
      %b = div(%a, %cs) : float32[3]
      return %b
    }
    """
    inexact = [step.name for step in PIPELINE if not step.exact]
    assert run_pipeline(parse(text), exact=True) == run_pipeline(parse(text), disable=inexact)
    assert "div(" in str(run_pipeline(parse(text), exact=True))
    assert "div(" not in str(run_pipeline(parse(text)))


def test_verification_finds_a_pass_that_breaks_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusegraph import passes
    from fusegraph.errors import GraphError
    from fusegraph.ir import Node

    def breaking(graph: Graph) -> Graph:
        """`graph` with a node that its rule does not allow."""
        bad = Node("relu", (graph.inputs[0],), {}, (99,), graph.inputs[0].dtype)
        return Graph(graph.name, graph.inputs, (bad,))

    monkeypatch.setattr(passes, "PIPELINE", (passes.Pass("breaking", breaking),))
    monkeypatch.setattr(passes, "MAX_ROUNDS", 1)
    with pytest.raises(GraphError, match="should be"):
        run_pipeline(parse(CHAIN), verify=True)
    monkeypatch.setenv("FUSEGRAPH_VERIFY", "1")
    with pytest.raises(GraphError, match="should be"):
        run_pipeline(parse(CHAIN))
    monkeypatch.setenv("FUSEGRAPH_VERIFY", "0")
    run_pipeline(parse(CHAIN))


def test_locations_stay_with_what_replaces_a_node() -> None:
    graph = parse("""
    graph g(x: float32[3], y: float32[3]) {
      %a = neg(%y) : float32[3]  # train.py:3 Net.fc
      %b = add(%x, %a) : float32[3]  # train.py:4 Net.act
      return %b
    }
    """)
    assert "sub(%x, %y) : float32[3]  # train.py:4 Net.act" in str(run_pipeline(graph))


def test_an_unchanged_graph_is_given_back_itself() -> None:
    graph = run_pipeline(parse(CHAIN))
    assert run_pipeline(graph) is graph
    assert all(step(graph) is graph for step in PIPELINE)


def test_rules_that_change_a_type_or_do_not_end_are_found() -> None:
    wrong, endless = Rules(), Rules()
    wrong.on("neg")(lambda build, node, inputs: build.reshape(inputs[0], (3, 1)))
    endless.on("neg")(lambda build, node, inputs: build.add("abs", inputs))
    endless.on("abs")(lambda build, node, inputs: build.add("neg", inputs))
    graph = parse("graph g(x: float32[3]) {\n %a = neg(%x) : float32[3]\n return %a\n}")
    with pytest.raises(CompilerError, match="another type"):
        rewrite(graph, wrong)
    with pytest.raises(CompilerError, match="do not come to an end"):
        rewrite(graph, endless)


def test_values_work_with_the_functions_that_vjp_rules_are_written_with() -> None:
    from fusegraph.ir import emit

    rules = Rules()

    @rules.on("relu")
    def as_choice(build, node, inputs):  # type: ignore[no-untyped-def]
        x = build.value(inputs[0])
        return emit.where(emit.gt(x, 0.0), x, 0.0)

    graph = parse("graph g(x: float32[3]) {\n %a = relu(%x) : float32[3]\n return %a\n}")
    result = verify(rewrite(graph, rules))
    assert [node.op for node in result.nodes[1:]] == ["constant", "expand", "gt", "where"]


@pytest.mark.parametrize(
    "line, expected",
    [
        ("%r = check_index(%i; allow=None, high=10, low=0, what='index') : int32[4]", (0, 10)),
        ("%r = check_index(%i; allow=-1, high=10, low=0, what='index') : int32[4]", (-1, 10)),
        ("%r = iota(dtype='int32', size=7) : int32[7]", (0, 7)),
        ("%r = argmax(%x; axes=(0,)) : int64[]", (0, 4)),
        ("%r = neg(%i) : int32[4]", (-(2**31), 2**31)),
        ("%r = cast(%i; dtype='int64') : int64[4]", (-(2**31), 2**31)),
        ("%r = cast(%i; dtype='uint8') : uint8[4]", (0, 256)),
        ("%r = cast(%x; dtype='uint8') : uint8[4]", (0, 256)),
    ],
)
def test_index_range(line: str, expected: tuple[int, int]) -> None:
    graph = parse(f"graph g(i: int32[4], x: float32[4]) {{\n {line}\n return %r\n}}")
    assert index_range(graph.outputs[0]) == expected


def test_deep_chains_need_no_recursion() -> None:
    build = GraphBuilder()
    x = build.input("x", (4,), float32)
    node = x
    for _ in range(20_000):
        node = build.add("exp", (node,))
    result = run_pipeline(build.finish([node]))
    assert len(result.nodes) == 20_001
