"""Arguments that a caller gives away (`donate_argnums`): the memory of such an argument takes a result.

    step = fg.compile(step, donate_argnums=0)
    params = step(params, x, y)          the new parameters lie where the old ones lay

Each result that has the shape and type of an argument that was given away is written in its place, first come, first served. That is an
update in place like any other: kernels that still read the old value run first, and a call that fails has changed nothing. A tensor whose
memory was taken cannot be used any more; an array of numpy holds the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from fusegraph import tree
from fusegraph.errors import OptionError, StateError, UnsupportedError
from fusegraph.records import dataclass
from fusegraph.tensor import Tensor

if TYPE_CHECKING:
    from fusegraph.ir.graph import Node

__all__ = ["GivenAway", "Taken", "argument_numbers", "check_donated", "give_away", "matches", "parts_given_away"]


@dataclass(frozen=True)
class Taken:
    """A result that lies in the memory of argument `number` (counted among a call's tensors)."""

    number: int


class GivenAway(Tensor):
    """What a tensor becomes when its memory was taken. Any use raises StateError."""

    __slots__ = ()

    @property
    def _value(self) -> NoReturn:  # type: ignore[override]
        raise StateError(
            "this tensor was given away to a compiled function (donate_argnums), and its memory holds a result now: "
            "use what the call returned, or pass a .clone()"
        )

    def __repr__(self) -> str:
        return "Tensor(given away)"


def argument_numbers(value: Any) -> tuple[int, ...]:
    """`donate_argnums` as numbers of positional arguments. Raises OptionError if it is something else."""
    numbers = (value,) if type(value) is int else value
    if not isinstance(numbers, (tuple, list)) or any(type(number) is not int or number < 0 for number in numbers):
        raise OptionError(f"donate_argnums is the number of a positional argument (from 0), or several, not {value!r}")
    return tuple(dict.fromkeys(numbers))


def parts_given_away(args: Sequence[Any], numbers: Sequence[int]) -> frozenset[int]:
    """Identities of the tensors inside of the arguments that are given away. Raises OptionError if there are fewer arguments."""
    if numbers and max(numbers) >= len(args):
        raise OptionError(
            f"donate_argnums={max(numbers)}, but the call has {len(args)} positional arguments (counted from 0)"
        )
    parts = (part for number in numbers for part in tree.flatten(args[number], Tensor)[0])
    return frozenset(id(part) for part in parts if isinstance(part, Tensor))


def matches(
    arguments: Sequence[Tensor], nodes: Sequence[Node], given: frozenset[int], results: Sequence[Any]
) -> dict[int, int]:
    """For results (by number) the argument whose memory each takes: one of the same shape and type that is not assigned to.

    nodes: what the arguments were when the function began; results: what it returns, tensors among them.
    """
    free = [
        number
        for number, (argument, node) in enumerate(zip(arguments, nodes, strict=False))
        if id(argument) in given and argument._value is node and not argument.requires_grad
    ]
    found: dict[int, int] = {}
    for place, result in enumerate(results):
        if not isinstance(result, Tensor) or result.requires_grad or result._value.op == "input":
            continue
        node = result._value
        number = next((n for n in free if (nodes[n].shape, nodes[n].dtype) == (node.shape, node.dtype)), None)
        if number is not None:
            free.remove(number)
            found[place] = number
    return found


def check_donated(results: Sequence[Any], arguments: Sequence[Tensor]) -> None:
    """Raise UnsupportedError, before anything is changed, where memory would be taken that a module owns."""
    for part in results:
        if type(part) is Taken and type(arguments[part.number]) is not Tensor:
            argument = arguments[part.number]
            raise UnsupportedError(
                f"a {type(argument).__name__} of shape {list(argument.shape)} is given away (donate_argnums), but its module goes "
                "on using it: pass parameter.detach().clone(), or let an optimizer update it in place"
            )


def give_away(results: Sequence[Any], arguments: Sequence[Tensor]) -> None:
    """From now on nobody can use the tensors whose memory results have taken."""
    for part in results:
        if type(part) is Taken:
            arguments[part.number].__class__ = GivenAway
