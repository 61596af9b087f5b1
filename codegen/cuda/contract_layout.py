"""How a part of an operand (depth x outer elements) lies in shared memory, so that the threads of a warp meet in no bank.

Columns           by k, outer elements side by side: what the register tile reads by 128 bits
SwizzledColumns   the same; groups of 8 are exchanged by k, so that a tensor core's operand (4 k x 8 outer) spans all banks
SwizzledRows      by outer, 16 k side by side; groups of 4 are exchanged by outer, for the same reason
"""

from __future__ import annotations

from dataclasses import dataclass

SECTOR_ELEMENTS = 8  # of 32 bits, in a sector of memory
WARP = 32


@dataclass(frozen=True)
class Layout:
    """Places of elements (k, outer), as texts. k_step, outer_step: what distances of whole rounds add to a place."""

    depth: int
    outer: int

    @property
    def size(self) -> int:
        """Elements of a part."""
        return self.depth * self.outer

    @property
    def k_step(self) -> int:
        """From k to k + 1 (where no exchange is between)."""
        raise NotImplementedError

    @property
    def outer_step(self) -> int:
        """From outer to outer + 1 (where no exchange is between)."""
        return 1

    @property
    def neighbours(self) -> str:
        """Along which direction four neighbours of memory stay neighbours: "outer" or "sums"."""
        return "outer"

    def place(self, k: str, outer: str) -> str:
        """The number of an element in the part."""
        raise NotImplementedError

    def fast(self, along: str, vector: int) -> int:
        """How many chunks of `vector` neighbours in memory neighbouring threads copy, before the next row."""
        whole = (self.depth if along == "sums" else self.outer) // vector
        return min(whole, WARP)


@dataclass(frozen=True)
class Columns(Layout):
    """padding: elements behind each k's, so that a transposing copy writes to other banks."""

    padding: int = 0

    @property
    def size(self) -> int:
        """Elements of a part."""
        return self.depth * self.k_step

    @property
    def k_step(self) -> int:
        """A row and its padding."""
        return self.outer + self.padding

    def place(self, k: str, outer: str) -> str:
        """k by k."""
        return f"({k}) * {self.k_step} + {outer}"

    def fast(self, along: str, vector: int) -> int:
        """One sector of memory along the sums: more would meet in a bank on the way into shared memory."""
        most = SECTOR_ELEMENTS // vector if along == "sums" else WARP
        return min(super().fast(along, vector), most)


@dataclass(frozen=True)
class SwizzledColumns(Layout):
    """Groups of 8 outer elements: group g of k lies where group g ^ k % 4 would."""

    @property
    def k_step(self) -> int:
        """A row."""
        return self.outer

    def place(self, k: str, outer: str) -> str:
        """k by k, groups exchanged."""
        return f"({k}) * {self.outer} + (({outer}) ^ ({k}) % 4 * 8)"


@dataclass(frozen=True)
class SwizzledRows(Layout):
    """Groups of 4 k: group g of an outer element lies where group g ^ outer // 2 % 4 would."""

    @property
    def k_step(self) -> int:
        """A neighbour."""
        return 1

    @property
    def outer_step(self) -> int:
        """A row."""
        return self.depth

    @property
    def neighbours(self) -> str:
        """Along the sums."""
        return "sums"

    def place(self, k: str, outer: str) -> str:
        """Row by row, groups exchanged."""
        return f"({outer}) * {self.depth} + (({k}) ^ ({outer}) // 2 % 4 * 4)"
