"""`fusegraph.diff`, without importing what compares until it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusegraph.inspect.diff import Difference


def diff(a: Any, b: Any) -> Difference:
    """What changed from one compile to another: kernels gained, lost and changed, bytes, flops, launches. Print the result.

    a, b: compiled functions (their last used version), or what their `explain` or `profile` gave, or its `to_dict()`.
    Raises OptionError for anything else, and for a compiled function that has not been called yet.
    """
    from fusegraph.inspect.diff import diff as compare

    return compare(a, b)
