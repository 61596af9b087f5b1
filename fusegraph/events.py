"""Log topics: FUSEGRAPH_LOG=fusion,recompile,cache,kernels prints what happens, one line an event, through `logging`."""

from __future__ import annotations

import logging
import os

TOPICS = ("fusion", "recompile", "cache", "kernels")
logger = logging.getLogger("fusegraph")


def _wanted() -> frozenset[str]:
    names = frozenset(part.strip() for part in os.environ.get("FUSEGRAPH_LOG", "").split(",") if part.strip())
    if names and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("fusegraph: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    return names


_topics = _wanted()


def event(topic: str, message: str) -> None:
    """Report one event of `topic`."""
    if topic in _topics or "all" in _topics:
        logger.info("[%s] %s", topic, message)
    else:
        logger.debug("[%s] %s", topic, message)
