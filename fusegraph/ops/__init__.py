"""Functions of tensors under PyTorch's names, composed of primitives. Each file holds one family."""

from fusegraph.ops.arrange import *  # noqa: F403
from fusegraph.ops.create import *  # noqa: F403
from fusegraph.ops.elementwise import *  # noqa: F403
from fusegraph.ops.index import *  # noqa: F403
from fusegraph.ops.linalg import *  # noqa: F403
from fusegraph.ops.order import *  # noqa: F403
from fusegraph.ops.reduce import *  # noqa: F403
from fusegraph.ops.shape import *  # noqa: F403
from fusegraph.ops.special import *  # noqa: F403
