"""Layers and losses as functions, with the names and arguments of torch.nn.functional. Each file holds one family.

Everything is composed of primitives, so that the compiler has something to fuse.
"""

from __future__ import annotations

from fusegraph.functional import activation, attention, conv, linear_maps, loss, norm, pooling, sequence
from fusegraph.functional.activation import *  # noqa: F403
from fusegraph.functional.attention import *  # noqa: F403
from fusegraph.functional.conv import *  # noqa: F403
from fusegraph.functional.linear_maps import *  # noqa: F403
from fusegraph.functional.loss import *  # noqa: F403
from fusegraph.functional.norm import *  # noqa: F403
from fusegraph.functional.pooling import *  # noqa: F403
from fusegraph.functional.sequence import *  # noqa: F403
from fusegraph.ops import pad

__all__ = [
    "pad",
    *(
        name
        for file in (activation, attention, conv, linear_maps, loss, norm, pooling, sequence)
        for name in file.__all__
    ),
]
