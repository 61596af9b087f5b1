"""What the structured control flow of FunctionBuilder hands to its body: one counted loop, one conditional."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusegraph.codegen.cpu.irtext import FunctionBuilder

__all__ = ["Branch", "Loop"]


class Loop:
    """One counted loop, as given by :meth:`FunctionBuilder.loop`.

    ``index`` names the i64 induction variable and ``phis`` the carried values inside the body; the body calls
    :meth:`next` once with the values for the next iteration; after the loop ``results`` holds the final values.
    """

    def __init__(self, index: str, phis: list[str]) -> None:
        self.index = index
        self.phis = phis
        self.results: list[str] = []
        self._next: list[str] | None = None

    def next(self, *values: str) -> None:
        """Set the carried values of the next iteration, in the order of ``carried``."""
        if len(values) != len(self.phis):
            raise ValueError(f"loop carries {len(self.phis)} values, next() got {len(values)}")
        self._next = list(values)

    def next_values(self) -> list[str]:
        """What the body passed to :meth:`next`; an error if it carries values and never did."""
        if self._next is None and self.phis:
            raise ValueError(f"loop carries {len(self.phis)} values, but its body never called next()")
        return self._next or []


class Branch:
    """A conditional, as given by :meth:`FunctionBuilder.if_` and :meth:`FunctionBuilder.if_else`.

    :meth:`give` states, inside an arm, the values that leave it; ``results`` names the merged values afterwards.
    """

    def __init__(self, fn: FunctionBuilder, types: Sequence[str], labels: tuple[str, str, str]) -> None:
        self._fn = fn
        self._types = list(types)
        self._then_label, self._else_label, self._end_label = labels
        self.arms: list[tuple[str, list[str]]] = []
        self._given: list[str] | None = None
        self.results: list[str] = []

    def give(self, *values: str) -> None:
        """Set the merged values as this arm leaves them, in the order of the types."""
        if len(values) != len(self._types):
            raise ValueError(f"branch merges {len(self._types)} values, give() got {len(values)}")
        self._given = list(values)

    @contextlib.contextmanager
    def then(self) -> Iterator[None]:
        """The arm taken when the condition holds (only for if_else)."""
        with self._arm(self._then_label):
            yield

    @contextlib.contextmanager
    def otherwise(self) -> Iterator[None]:
        """The arm taken when the condition does not hold (only for if_else)."""
        with self._arm(self._else_label):
            yield

    @contextlib.contextmanager
    def _arm(self, label: str) -> Iterator[None]:
        self._fn.label(label)
        self._given = None
        yield
        if self._given is None and self._types:
            raise ValueError(f"branch merges {len(self._types)} values, but an arm never called give()")
        self.arms.append((self._fn.block, self._given or []))
        self._fn.emit(f"br label %{self._end_label}")

    def finish(self, arms: Sequence[tuple[str, list[str]]] = ()) -> None:
        """Open the block after both arms and merge their values by phis."""
        arms = [*arms, *self.arms]
        self._fn.label(self._end_label)
        for position, type_ in enumerate(self._types):
            incoming = ", ".join(f"[ {values[position]}, %{block} ]" for block, values in arms)
            self.results.append(self._fn.op(f"phi {type_} {incoming}"))
