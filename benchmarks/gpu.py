"""Everything that only a real GPU can tell, in one command.

python -m benchmarks.gpu --write docs/gpu.md       numerics, trainings, compute-sanitizer, speed beside torch
python -m benchmarks.gpu --only numerics,products  some of the parts
python -m benchmarks.gpu --quick                   small sizes
python -m benchmarks.gpu --emulate                 the same code on an emulated GPU, tiny sizes; times mean nothing

The exit status is 1 if anything that was compared is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import gpu_checks as checks
from benchmarks import gpu_speed as speed
from benchmarks.gpu_report import Section, page
from benchmarks.models import MODELS
from fusegraph.errors import UnsupportedError
from fusegraph.ir import PRIMITIVES
from fusegraph.runtime.cuda import current_device, using_driver

PARTS = ("numerics", "training", "sanitizer", "products", "bandwidth", "rows", "steps")


@dataclass(frozen=True)
class Sizes:
    """How large everything is. batch: of the models (None: what is usual); limit: examples of a whole training (None: all)."""

    primitives: tuple[str, ...] = tuple(sorted(PRIMITIVES))
    models: tuple[str, ...] = tuple(MODELS)
    batch: int | None = None
    limit: int | None = None
    epochs: int | None = None
    trainings: bool = True
    products: tuple[tuple[int, int, int], ...] = (
        (512, 512, 512),
        (1024, 1024, 1024),
        (2048, 2048, 2048),
        (4096, 4096, 4096),
        (8192, 8192, 8192),
        (1000, 1000, 1000),
        (64, 4096, 4096),
        (4096, 64, 4096),
    )
    matrix: tuple[int, int] = (16384, 4096)
    repeats: int = 50
    rounds: int = 200


QUICK = Sizes(
    limit=1000, epochs=1, products=((512, 512, 512), (1000, 1000, 1000)), matrix=(1024, 1024), repeats=5, rounds=20
)
TINY = Sizes(
    primitives=("add", "exp", "sum", "take"),
    models=("mlp",),
    batch=2,
    trainings=False,
    products=((24, 20, 12),),
    matrix=(8, 40),
    repeats=2,
    rounds=2,
)


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--only", default=",".join(PARTS), help="parts, of %(default)s")
    result.add_argument("--write", type=Path, metavar="FILE", help="write the tables as Markdown")
    result.add_argument("--quick", action="store_true", help="small sizes")
    result.add_argument("--emulate", action="store_true", help="no GPU: run this script's code on an emulated one")
    return result


def parts(sizes: Sizes, options: argparse.Namespace) -> dict[str, Callable[[], list[Section]]]:
    """What each part does."""
    torch = speed.Torch(stand_in=options.emulate)
    again = [f"--{name}" for name in ("quick", "emulate") if getattr(options, name)]
    return {
        "numerics": lambda: [
            checks.primitives(sizes.primitives),
            checks.model_steps(sizes.models, sizes.batch),
        ],
        "training": lambda: [
            checks.trainings(sizes.limit, sizes.epochs)
            if sizes.trainings
            else Section(
                "Whole trainings", skipped="an emulated GPU would need hours (the tests train on a few images)"
            )
        ],
        "sanitizer": lambda: [checks.sanitizer(again)],
        "products": lambda: [speed.products(sizes.products, torch, sizes.repeats)],
        "bandwidth": lambda: [speed.bandwidth(*sizes.matrix, torch, sizes.repeats)],
        "rows": lambda: [speed.fused_rows(sizes.matrix, torch, sizes.repeats)],
        "steps": lambda: [speed.steps(sizes.models, sizes.batch, sizes.rounds)],
    }


@contextmanager
def _emulated() -> Iterator[None]:
    from tests.emulated_driver import EmulatedDriver

    with using_driver(EmulatedDriver()):
        yield


def _facts() -> dict[str, str]:
    """What the figures depend on."""
    device = current_device()
    found = {"memory": f"{device.driver.memory()[1] / 2**30:.1f} GiB", "compiled for": device.target}
    for package in ("fusegraph", "numba-cuda", "nvidia-cuda-nvcc", "torch"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that were asked for, print and write the tables; the exit status."""
    options = parser().parse_args(argv)
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"there is no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    sizes = TINY if options.emulate else QUICK if options.quick else Sizes()
    with _emulated() if options.emulate else nullcontext():
        try:
            card, facts = current_device().driver.name(), _facts()
            facts |= {"emulated": "the times below mean nothing"} if options.emulate else {}
        except UnsupportedError as error:
            print(f"{error}\n(--emulate runs this script's code without a GPU)", file=sys.stderr)
            return 2
        sections: list[Section] = []
        for name in (part for part in PARTS if part in chosen):
            made = parts(sizes, options)[name]()
            sections += made
            print("\n\n".join(section.markdown() for section in made), flush=True)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(page(sections, card, facts), encoding="utf-8")
    return int(any(section.failures for section in sections))


if __name__ == "__main__":
    sys.exit(main())
