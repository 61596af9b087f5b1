"""Layers and losses as functions, under the names and with the arguments of torch.nn.functional. Each file holds one family.

Everything is composed of primitives, so that the compiler has something to fuse.
"""

from __future__ import annotations

from fusegraph.functional.activation import *  # noqa: F403
from fusegraph.functional.attention import *  # noqa: F403
from fusegraph.functional.conv import *  # noqa: F403
from fusegraph.functional.linear import *  # noqa: F403
from fusegraph.functional.loss import *  # noqa: F403
from fusegraph.functional.norm import *  # noqa: F403
from fusegraph.functional.pooling import *  # noqa: F403
from fusegraph.functional.sequence import *  # noqa: F403
from fusegraph.ops import pad as pad
