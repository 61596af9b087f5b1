"""Products on a GPU."""
from __future__ import annotations
def emit_contract(loop, program, names, readable=False):
    return None
