"""Log topics: FUSEGRAPH_LOG=fusion,recompile prints what happens, one line an event; FUSEGRAPH_LOG=all prints every topic.

Events go through `logging`, each topic with a logger of its own below "fusegraph" (`logging.getLogger("fusegraph.recompile")`):
a program that has set up logging gets them by their level. FUSEGRAPH_LOG raises the topics that it names to INFO and, where
nothing else does, prints them on stderr. All others are DEBUG.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

TOPICS = {
    "recompile": "a signature is compiled, and why",
    "passes": "a pass has changed the graph",
    "fusion": "two kernels were merged, or may not be, by which rule",
    "kernels": "what a finished program consists of, and how long it took",
    "cache": "the disk cache was hit, or has stored a program",
    "threads": "a step has settled on a number of threads",
}
ALL = "all"
_DEBUG, _INFO = 10, 20  # as in logging


def logger(topic: str = "") -> logging.Logger:
    """The logger of a topic, or that of all."""
    import logging  # what nobody listens to takes no time: a warm start does without

    return logging.getLogger(f"fusegraph.{topic}" if topic else "fusegraph")


def _read(text: str) -> frozenset[str]:
    """The topics that a value of FUSEGRAPH_LOG names; a warning for what is none."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        return frozenset()
    import logging

    if not logger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("fusegraph: %(message)s"))
        logger().addHandler(handler)
        logger().propagate = False  # else a program that sets up logging prints every line twice
    unknown = [name for name in names if name not in TOPICS and name != ALL]
    if unknown:
        topics = "; ".join(f"{topic} ({what})" for topic, what in TOPICS.items())
        logger().warning("FUSEGRAPH_LOG=%s: no topic %s; the topics are %s; or all", text, ", ".join(unknown), topics)
    chosen = frozenset(TOPICS) if ALL in names else frozenset(names) & frozenset(TOPICS)
    for topic in chosen:
        logger(topic).setLevel(logging.INFO)
    return chosen


_topics = _read(os.environ.get("FUSEGRAPH_LOG", ""))


def wanted(topic: str) -> bool:
    """Whether anyone reads events of `topic`: for events that cost something to tell."""
    if topic in _topics:
        return True
    # DEBUG reaches nobody who has not imported logging, and set its level
    return "logging" in sys.modules and logger(topic).isEnabledFor(_DEBUG)


def event(topic: str, message: str) -> None:
    """Report one event of `topic`, on one line."""
    if wanted(topic):
        level = _INFO if topic in _topics else _DEBUG
        logger(topic).log(level, "[%s] %s", topic, message.replace("\n", " "))
