"""The page of `dump()`: one self-contained HTML file that shows a report (see `Explanation.to_dict`)."""

from fusegraph.inspect.page.render import render

__all__ = ["render"]
