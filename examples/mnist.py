"""Learn to read handwritten digits: forward, backward and update fused into one native call a step.

    python -m examples.mnist
    python -m examples.mnist --model lenet --data DIR

Saves in --out: checkpoint.safetensors, learning_curve.png, confusion.png, misclassified.png.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if not __package__:  # run by its path: python examples/mnist.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fusegraph as fg
import fusegraph.functional as F
from examples import common, data, report
from fusegraph import nn, optim


class Net(nn.Module):
    """The network of MiniTorch's last module: two small convolutions, one pooling, two linear layers."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1)
        self.linear1 = nn.Linear(8 * 7 * 7, 64)
        self.linear2 = nn.Linear(64, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Images (N, 1, 28, 28) to log-probabilities (N, 10)."""
        x = self.conv1(x).relu()
        x = self.conv2(x).relu()
        x = F.max_pool2d(x, 4).flatten(1)
        x = self.dropout(self.linear1(x).relu())
        return F.log_softmax(self.linear2(x), 1)


class LeNet(nn.Module):
    """LeNet-5 with rectifiers and max-pooling, as it is written today."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, x: fg.Tensor) -> fg.Tensor:
        """Images (N, 1, 28, 28) to log-probabilities (N, 10)."""
        return F.log_softmax(self.classifier(self.features(x).flatten(1)), 1)


class Recipe(NamedTuple):
    """A network and the rate at which Adam trains it."""

    network: type[nn.Module]
    lr: float


RECIPES = {"minitorch": Recipe(Net, lr=4e-3), "lenet": Recipe(LeNet, lr=1e-3)}


def normalize(images: np.ndarray) -> np.ndarray:
    """Bytes (N, 28, 28) to float32 (N, 1, 28, 28) with the mean and deviation of the training set, 0 and 1."""
    return ((images.astype(np.float32) / 255 - 0.1307) / 0.3081)[:, None]


def make_step(model: nn.Module, opt: optim.Optimizer, compile: Callable[..., Any]) -> Any:
    """The training step: images (N, 1, 28, 28) and labels (N,) to the loss."""

    @compile
    def step(x: fg.Tensor, y: fg.Tensor) -> fg.Tensor:
        opt.zero_grad()
        loss = F.nll_loss(model(x), y)
        loss.backward()
        opt.step()
        return loss

    return step


def __getattr__(name: str) -> Any:
    """`step`, with new weights, is made when it is asked for: python -m fusegraph explain examples.mnist:step (see --help)."""
    if name != "step":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    model = Net()
    return make_step(model, optim.AdamW(model.parameters(), lr=RECIPES["minitorch"].lr, weight_decay=0.0), fg.compile)


def main(argv: Sequence[str] | None = None) -> common.History:
    """Train, measure, show and save; returns the losses and accuracies."""
    options = common.parser(__doc__ or "", RECIPES, "out/mnist")
    args = options.parse_args(argv)
    compile = common.compiler(args)
    digits = data.load_mnist(args.data)
    common.console.print(f"data: {digits.source}", highlight=False, soft_wrap=True)
    images, labels = normalize(digits.train_images[: args.limit]), digits.train_labels[: args.limit]
    test_images, test_labels = normalize(digits.test_images), digits.test_labels

    fg.manual_seed(args.seed)
    model = RECIPES[args.model].network()
    opt = optim.AdamW(model.parameters(), lr=RECIPES[args.model].lr, weight_decay=0.0)

    step = make_step(model, opt, compile)

    @compile
    def log_probabilities(x: fg.Tensor) -> fg.Tensor:
        with fg.no_grad():
            return model(x)

    def predict(images: np.ndarray) -> np.ndarray:
        model.eval()
        parts = [np.asarray(log_probabilities(fg.from_numpy(images[rows]))) for rows in common.slices(len(images), 500)]
        model.train()
        return np.concatenate(parts)

    # Ten passes are enough for the 60,000 official digits; fewer digits are looked at more often.
    epochs = args.epochs or (10 if len(images) > 20_000 else 20)
    batch_size = min(args.batch_size or 64, len(images))
    schedule = optim.lr_scheduler.CosineAnnealingLR(opt, T_max=epochs)
    rng = np.random.default_rng(args.seed)

    def batches(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = rng.permutation(len(images))
        for rows in common.slices(len(order) - len(order) % batch_size, batch_size):
            yield images[order[rows]], labels[order[rows]]

    def after_epoch() -> float:
        schedule.step()
        return float((predict(test_images).argmax(1) == test_labels).mean())

    history = common.train(step, epochs, batches, len(images) // batch_size, after_epoch)
    common.show(
        history,
        f"{args.model} on {len(images):,} digits, tested on {len(test_images):,} others",
        {
            "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
            "runs": "eager, numpy" if args.eager else f"compiled, {args.backend}",
            "images a second": f"{batch_size / np.median(history.step_seconds):,.0f}",
        },
    )
    common.show_fusion(step, args.dump)

    common.save(args.out / "checkpoint.safetensors", model, {"model": args.model})
    scores = predict(test_images)
    report.learning_curve(args.out / "learning_curve.png", history.losses, [row[1] for row in history.epochs])
    report.confusion_matrix(
        args.out / "confusion.png", test_labels, scores.argmax(1), [str(digit) for digit in range(10)]
    )
    report.misclassified(args.out / "misclassified.png", digits.test_images, test_labels, np.exp(scores))
    common.console.print(f"checkpoint and pictures: {args.out}")
    return history


if __name__ == "__main__":
    common.run(main)
