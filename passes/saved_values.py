"""What a forward program keeps for the backward one: minimum cuts between what is at hand early and what is needed late.

Each forward value is either kept (its bytes are the price), or computed again in the backward program (its operations are the
price, and all that it reads must be there as well), or not needed. The cheapest choice is a minimum cut (as in the min-cut
partitioner of PyTorch's functorch; Jain et al., Checkmate, MLSys 2020, solve the same problem with time as an integer program):

    start -> v.in    computing v again      v.in -> v.out    keeping v      u.out -> v.in    v reads u: never cut

Where operations are dear, nearly everything is kept; the cheaper they are, the less. A series of prices gives a series of cuts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fractions import Fraction

from fusegraph.ir.graph import Graph, Node
from fusegraph.ir.primitives import PRIMITIVES
from fusegraph.passes.recompute import operations

# bytes that an operation on an element is worth. Keeping a result costs 4 bytes an element: maps are computed again from the first
# prices on, products of 64 to 2048 terms at the last ones
PRICES = tuple(Fraction(1, divisor) for divisor in (1, 4, 16, 64, 256, 1024, 4096))
PARTS = (3, 2, 1)  # quarters of what lies between two cuts


def cuts(graph: Graph, needed: Collection[Node], late: Collection[Node], updated: Collection[Node]) -> list[set[Node]]:
    """Sets of nodes to keep, from that which leaves least to compute again to that which is smallest.

    needed: what the late nodes read; updated: inputs that are overwritten before, and have to be kept to be read again.
    Between two cuts there are sets that keep a part of what the first does: the values that were made last.
    """
    early = [node for node in graph.nodes if node not in late]
    found: list[set[Node]] = []
    for price in PRICES:
        cut = _minimum_cut(early, needed, updated, price)
        if found and cut != found[-1]:
            more = [node for node in early if node in found[-1] and node not in cut]
            found += [cut | set(more[len(more) * (4 - part) // 4 :]) for part in PARTS]
        if not found or cut != found[-1]:
            found.append(cut)
    return found


def _minimum_cut(
    early: Iterable[Node], needed: Collection[Node], updated: Collection[Node], price: Fraction
) -> set[Node]:
    import networkx

    flow = networkx.DiGraph()
    flow.add_nodes_from(("start", "end"))
    place: dict[Node, int] = {}
    for node in early:
        if (node.op == "input" and node not in updated) or node.op in ("constant", "iota"):
            continue  # at hand at any time
        place[node] = number = len(place)
        if node.op == "input":
            flow.add_edge((number, "in"), (number, "out"), capacity=_scaled(node.nbytes))
            flow.add_edge("start", (number, "in"))
            continue
        if not _is_view(node):
            flow.add_edge((number, "in"), (number, "out"), capacity=_scaled(node.nbytes))
        else:
            flow.add_edge((number, "in"), (number, "out"))
        flow.add_edge("start", (number, "in"), capacity=_scaled(price * int(operations(node))))
        for value in node.inputs:
            if value in place:
                flow.add_edge((place[value], "out"), (number, "in"))
    for node in needed:
        if node in place:
            flow.add_edge((place[node], "out"), "end")
    _, (first, _) = networkx.minimum_cut(flow, "start", "end")
    return {node for node, number in place.items() if (number, "in") in first and (number, "out") not in first}


def _scaled(bytes_: int | Fraction) -> int:
    return int(bytes_ * 4096)


def _is_view(node: Node) -> bool:
    return PRIMITIVES[node.op].kind == "view" and node.op not in ("pad", "concat")
