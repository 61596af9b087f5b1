"""What the examples share: options, how a step is compiled, progress on the terminal, results."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import fusegraph as fg
from examples.fetch import DataError

console = Console()


def parser(description: str, models: Iterable[str], out: str) -> argparse.ArgumentParser:
    """The options that every example has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = list(models)
    options.add_argument("--model", choices=models, default=models[0], help=f"network (default: {models[0]})")
    options.add_argument(
        "--backend", choices=["cpu", "cuda", "numba", "reference"], default="cpu", help="code generator"
    )
    options.add_argument("--eager", action="store_true", help="do not compile: every operation runs in numpy")
    options.add_argument("--epochs", type=_positive, metavar="N", help="passes over the training data")
    options.add_argument("--batch-size", type=_positive, metavar="N", help="examples a step")
    options.add_argument("--seed", type=int, default=1, metavar="N", help="same seed, same numbers (default: 1)")
    options.add_argument("--limit", type=_positive, metavar="N", help="train on the first N examples only")
    options.add_argument("--data", type=Path, metavar="DIR", help="folder with the data files, instead of a download")
    options.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help=f"for results (default: {out})")
    options.add_argument("--dump", type=Path, metavar="DIR", help="write every stage of the compiled step to DIR")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def compiler(args: argparse.Namespace) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`fg.compile` with the backend that was asked for, or nothing at all with `--eager`."""
    return (lambda function: function) if args.eager else partial(fg.compile, backend=args.backend)


def run(main: Callable[[], object]) -> None:
    """Run an example as a program: bad data ends in a message, not in a traceback."""
    try:
        main()
    except DataError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@dataclass
class History:
    """What happened in training: the loss of every step, and loss, accuracy and seconds of every epoch."""

    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    epochs: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Share of held-out examples that were right after the last epoch."""
        return self.epochs[-1][1]


def train(
    step: Callable[..., Any],
    epochs: int,
    batches: Callable[[int], Iterable[tuple[np.ndarray, ...]]],
    steps_an_epoch: int,
    after_epoch: Callable[[], float],
) -> History:
    """Call `step` on every batch of every epoch; `after_epoch` measures the accuracy on held-out data."""
    history = History()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("training", total=epochs * steps_an_epoch, note="compiling")
        for epoch in range(epochs):
            started, first = time.perf_counter(), len(history.losses)
            for arrays in batches(epoch):
                before = time.perf_counter()
                history.losses.append(float(step(*map(fg.from_numpy, arrays))))
                history.step_seconds.append(time.perf_counter() - before)
                if len(history.losses) % 20 == 1:  # drawing at every step would cost more than the step
                    progress.update(task, completed=len(history.losses), note=f"loss {history.losses[-1]:.3f}")
            loss = float(np.mean(history.losses[first:]))
            history.epochs.append((loss, after_epoch(), time.perf_counter() - started))
            progress.update(task, description=f"epoch {epoch + 1}: {history.accuracy:.2%}")
    return history


def show(history: History, what: str, facts: dict[str, str]) -> None:
    """Print the epochs as a table and what was reached as another."""
    console.print(what)
    table = Table()
    for name in ("epoch", "training loss", "accuracy", "seconds"):
        table.add_column(name, justify="right")
    for number, (loss, accuracy, seconds) in enumerate(history.epochs, start=1):
        table.add_row(str(number), f"{loss:.4f}", f"{accuracy:.2%}", f"{seconds:.1f}")
    console.print(table)
    # The first call of each shape compiles; the median step does not see them.
    median = float(np.median(history.step_seconds))
    summary = Table(show_header=False)
    facts |= {
        "first step": f"{history.step_seconds[0]:.2f} s, compilation included",
        "median step": f"{median * 1e3:.3f} ms",
        "steps": f"{len(history.losses):,}",
        "accuracy": f"[bold]{history.accuracy:.2%}[/bold]",
    }
    for name, value in facts.items():
        summary.add_row(name, value)
    console.print(summary)


def show_fusion(step: Any, dump: Path | None) -> None:
    """Print which kernels the compiled step consists of, and write all its stages to `dump`."""
    if not hasattr(step, "explain"):
        console.print("nothing was fused: --eager runs every operation by itself")
        return
    console.rule("what was fused")
    console.print(str(step.explain()), highlight=False, markup=False, soft_wrap=True)
    if dump is not None:
        step.dump(dump)
        console.print(f"every stage of the step: {dump}; open {dump / 'index.html'} in a browser", soft_wrap=True)


def save(path: Path, model: Any, metadata: dict[str, str]) -> None:
    """Write parameters and buffers, and `metadata` beside them, as a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(np.asarray(tensor)) for name, tensor in model.state_dict().items()}
    save_file(arrays, path, metadata)


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file. Raises DataError when there is none or it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except FileNotFoundError:
        raise DataError(f"{path}: no checkpoint there; train first, or name its folder with --out") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error}); train again") from None


def ask(prompt: str = "sentence (empty: end)> ") -> str:
    """A line typed by the user; empty when there is no more."""
    try:
        return console.input(prompt)
    except EOFError:
        return ""


def slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `count` rows."""
    return (slice(start, start + size) for start in range(0, count, size))
