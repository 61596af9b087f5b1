"""Functions of tensors under PyTorch's names, composed of primitives. Each file holds one family."""

from __future__ import annotations

from fusegraph.ops import arrange, create, elementwise, index, linalg, order, reduce, shape, special
from fusegraph.ops.arrange import *  # noqa: F403
from fusegraph.ops.create import *  # noqa: F403
from fusegraph.ops.elementwise import *  # noqa: F403
from fusegraph.ops.index import *  # noqa: F403
from fusegraph.ops.linalg import *  # noqa: F403
from fusegraph.ops.linalg import trace as trace  # (not in __all__: fusegraph.trace is a module)
from fusegraph.ops.order import *  # noqa: F403
from fusegraph.ops.reduce import *  # noqa: F403
from fusegraph.ops.shape import *  # noqa: F403
from fusegraph.ops.special import *  # noqa: F403

__all__ = []
__all__ += arrange.__all__
__all__ += create.__all__
__all__ += elementwise.__all__
__all__ += index.__all__
__all__ += linalg.__all__
__all__ += order.__all__
__all__ += reduce.__all__
__all__ += shape.__all__
__all__ += special.__all__
