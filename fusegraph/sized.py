"""One program for many sizes of a leading (batch) axis.

The first size of a function's arguments gets a program of its own. When another size comes, the two traced graphs are compared
(ir/resize.py): if they differ in nothing but the number of rows, a program is made whose memory is laid out for the larger one
and whose loops run over the rows of the call. Every further size is traced too, which takes milliseconds, and is served by
that program only if its graph is the same one again: nothing is taken for granted that was not seen.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fusegraph import events
from fusegraph.build import Artifact, Options, ReferenceExecutable, build, build_native
from fusegraph.cache_key import cache_key
from fusegraph.ir.resize import Differs, NoSizes, Pattern, Sizes, compare, constants_of_one_row, resized, sizes_of
from fusegraph.records import dataclass, field
from fusegraph.tensor import Tensor

if TYPE_CHECKING:
    from fusegraph.ir.graph import Graph
    from fusegraph.ir.loops import Program
    from fusegraph.passes.fuse import FusionReport
    from fusegraph.passes.pipeline_log import Origin

Array = np.ndarray[Any, Any]
_REMEMBERED = 4  # graphs of earlier sizes that a new one is compared with
_UNFIT = ("split_reduce",)  # passes that depend on the number of rows: chunks of a sum must divide it


@dataclass
class TemplateArtifact(Artifact):
    """The program for every number of rows up to `sizes.old`.

    probe  its graph for `sizes.new` rows, to find the axes by
    plain  whether it is wanted even where images cannot lie in memory in blocks, which is several times as fast
    """

    probe: Graph | None = None
    sizes: Sizes = Sizes(1, 1)
    plain: bool = False

    @cached_property
    def fused(self) -> tuple[Program, FusionReport]:
        """The fused program with its axes of run-time extent. Raises Refused if there is no such program."""
        from fusegraph.build import fused_program, optimised
        from fusegraph.codegen.cpu.partial_blocks import partly_filled
        from fusegraph.codegen.cpu.run_time_axes import with_run_time_axes
        from fusegraph.runtime.llvm import target

        assert self.probe is not None
        program, report = fused_program(self.graph, self.options)
        other, _ = fused_program(optimised(self.probe, self.options)[0], self.options)
        program = with_run_time_axes(program, other, self.sizes)
        if not self.plain and not self.options.exact and "blocks" not in self.options.without:
            partly_filled(program, target().vector_bits)  # refused: a program of each size alone is faster
        return program, report


@dataclass
class SizedArtifact(Artifact):
    """A template's program for one number of rows."""

    template: TemplateArtifact | None = None

    @cached_property
    def fused(self) -> tuple[Program, FusionReport]:
        """The template's fused program."""
        return self._template.fused

    @cached_property
    def report(self) -> dict[str, Any]:
        """The template's report: shapes, sizes and times in it are those of the largest number of rows."""
        return self._template.report | {
            "axis": f"axis 0 at run time, up to {self._template.sizes.old}; figures for that many"
        }

    @cached_property
    def threads(self) -> list[int | str]:
        """As of the template."""
        return self._template.threads

    def in_memory(self) -> Program:
        """As of the template."""
        return self._template.in_memory()

    @property
    def _template(self) -> TemplateArtifact:
        assert self.template is not None
        return self.template


@dataclass(frozen=True)
class Template:
    """A program for many sizes: the graph of one size, how others differ from it, and the code.

    most: the largest number of rows.
    """

    graph: Graph
    size: int
    pattern: Pattern
    artifact: TemplateArtifact

    @property
    def most(self) -> int:
        """The largest number of rows."""
        return self.artifact.sizes.old

    def fit(self, graph: Graph, options: Options, origin: Origin | None = None) -> SizedArtifact:
        """The program for `graph`. Raises Differs if it is not the same graph with another number of rows, or with too many."""
        from fusegraph.runtime.executable import NativeStep
        from fusegraph.runtime.sized import SizedStep

        sizes = sizes_of(self.graph, graph) if self.graph != graph else Sizes(self.size, self.size)
        if sizes.old != self.size:
            raise Differs("other axes differ")
        if sizes.new > self.most:
            raise Differs(f"there are {sizes.new} rows, and memory for {self.most}")
        varying = [self.graph.nodes[index] for index in self.pattern.varying]
        constants = [
            np.array(value, node.dtype) for value, node in zip(self._constants(graph, sizes), varying, strict=True)
        ]
        step = self.artifact.executable
        assert isinstance(step, NativeStep)
        shapes = [node.shape for node in graph.outputs]
        executable = SizedStep(step, sizes.new, constants, shapes)
        return SizedArtifact(graph, options, executable, dict(self.artifact.seconds), self.artifact.from_cache,
                             origin=origin, template=self.artifact)  # fmt: skip

    def _constants(self, graph: Graph, sizes: Sizes) -> list[Any]:
        """Values of the varying constants in `graph`. Raises Differs if it is another graph."""
        if sizes.new == 1 != sizes.old:
            return constants_of_one_row(self.graph, sizes, self.pattern, graph)
        if sizes.new != sizes.old:
            found = compare(self.graph, graph, sizes)
            if found.rows != self.pattern.rows or not set(found.varying) <= set(self.pattern.varying):
                raise Differs("sizes and constants depend on the number of rows in another way")
        return [graph.nodes[index].params["value"] for index in self.pattern.varying]


def template_of(
    graph: Graph, sizes: Sizes, pattern: Pattern, most: int, options: Options, plain: bool = False
) -> Template:
    """A program for up to `most` rows, of `graph` for sizes.old rows. Raises Differs if there is none."""
    from fusegraph.codegen.cpu.run_time import Refused

    if most < 2:
        raise Differs("there is one row at most")
    probe = most - 1 if most > 3 else most + 1
    chosen = options.changed(
        autotune="off", disable=(*options.disable, *(name for name in _UNFIT if name not in options.disable))
    )
    graphs = [resized(graph, Sizes(sizes.old, size), pattern, pattern.varying, graph.name) for size in (most, probe)]
    artifact = TemplateArtifact(
        graphs[0], chosen, ReferenceExecutable(graphs[0]), probe=graphs[1], sizes=Sizes(most, probe), plain=plain
    )
    key = f"up to {most} rows, {plain}: {pattern.rows}"
    cache, refusal = cache_key(graphs[0], chosen, f"why not {key}")
    if (entry := cache.get(refusal)) is not None:
        raise Differs(entry["reason"].decode())
    try:
        build_native(artifact, key)
    except Refused as error:
        cache.put(refusal, {"reason": str(error).encode()})
        raise Differs(str(error)) from error
    return Template(graph, sizes.old, pattern, artifact)


@dataclass
class SizedBuilder:
    """Builds the graphs of one function: `build` of fusegraph.build, with programs for many sizes where that can be.

    at_once   programs for many sizes are wanted from the first call on, and at any price
    watching  graphs are only remembered, to compare others with, and not compiled
    notes     what was decided for the last program, in words
    """

    at_once: bool = False
    watching: bool = False
    templates: list[Template] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: dict[tuple[int, ...], str] = field(default_factory=dict)  # by what varies, why there is no such program

    def build(self, graph: Graph, options: Options, origin: Origin | None = None) -> Artifact:
        """Compile `graph`, or take a program that is there already."""
        why = []
        self.notes.clear()
        if self.watching:
            self.graphs = [*self.graphs, graph][-_REMEMBERED:]
            return Artifact(graph, options, ReferenceExecutable(graph), origin=origin)
        for template in reversed(self.templates):
            try:
                return self._noted(template, template.fit(graph, options, origin), ", without compilation")
            except NoSizes:
                continue
            except Differs as error:
                why.append(str(error))
        for old in reversed(self.graphs):
            try:
                template = self._made(old, graph, options)
                fitted = template.fit(graph, options, origin)
            except NoSizes:
                continue
            except Differs as error:
                why.append(str(error))
                continue
            self.templates.append(template)
            return self._noted(template, fitted, "")
        if why:
            self.notes.append(f"a program of its own, because {why[-1]}")
        self.graphs = [*self.graphs, graph][-_REMEMBERED:]
        return build(graph, options, origin)

    def _made(self, old: Graph, new: Graph, options: Options) -> Template:
        """A new template for two graphs; with room for more where there is one already that has too little."""
        sizes = sizes_of(old, new)
        most, pattern = max(sizes.old, sizes.new), compare(old, new, sizes)
        if pattern.rows in self.refused:
            raise Differs(self.refused[pattern.rows])
        if self.at_once:
            most = 1 << (sizes.new - 1).bit_length()
        elif any(template.graph == old for template in self.templates):
            most = 1 << (most - 1).bit_length()
        try:
            return template_of(old, sizes, pattern, most, options, self.at_once)
        except Differs as error:
            self.refused[pattern.rows] = str(error)
            raise

    def _noted(self, template: Template, fitted: SizedArtifact, how: str) -> SizedArtifact:
        text = f"axis 0 at run time, up to {template.most}{how}"
        self.notes.append(text)
        events.event("recompile", f"{fitted.source.name}: {text}")
        return fitted


def one_row_more(tensors: list[Any]) -> list[Any]:
    """Arguments of which those with as many rows as the first one that has axes have one row more. Their values are undefined."""
    size = next((tensor.shape[0] for tensor in tensors if isinstance(tensor, Tensor) and tensor.shape), None)
    made = []
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.shape and tensor.shape[0] == size:
            value = np.empty((size + 1, *tensor.shape[1:]), tensor.dtype)
            tensor = type(tensor)._make(value, tensor.requires_grad)
        made.append(tensor)
    return made
