"""Choices of fusion and code generation that can be switched off by name, as passes can: `compile(disable=["stretches"])`.

Each has a rule that decides where it pays, made from measurements of a few machines. `autotune="on"` compiles programs without
one or the other as well, times them on the machine at hand, and keeps the fastest.
"""

from __future__ import annotations

CHOICES = {
    "epilogues": "products and convolutions compute the operations before and after them in the same kernel",
    "siblings": "kernels that read the same values run side by side in one",
    "rereads": "a large value is computed again where a kernel reads what it was made of (codegen/cpu/rereads.py)",
    "winners": "gradients below max-pooling multiply winners only (codegen/cpu/winners.py)",
    "blocks": "images lie in memory in blocks, the batch innermost (codegen/cpu/batch_blocks.py)",
    "stretches": "kernels that pass over the same rows run block by block (codegen/cpu/stretches.py)",
}
