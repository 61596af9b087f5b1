"""Runnable examples on real data: `python -m examples.mnist`, `python -m examples.sentiment`."""
