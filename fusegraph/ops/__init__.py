"""Functions of tensors under PyTorch's names, composed of primitives. Each file holds one family."""

from fusegraph.ops.create import *  # noqa: F403
from fusegraph.ops.elementwise import *  # noqa: F403
from fusegraph.ops.index import *  # noqa: F403
from fusegraph.ops.reduce import *  # noqa: F403
from fusegraph.ops.shape import *  # noqa: F403
