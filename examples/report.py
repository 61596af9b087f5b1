"""Pictures of what was learned, as PNG files. No display is needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

BLUE, ORANGE = "#2b6cb0", "#c05621"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)  # a Figure made without pyplot draws with Agg


def learning_curve(path: Path, losses: Sequence[float], accuracies: Sequence[float]) -> None:
    """Loss of every step (and its running mean), accuracy on held-out data after every epoch."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    steps = np.arange(1, len(losses) + 1)
    window = max(1, len(losses) // 50)
    left.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.7)
    mean = np.convolve(losses, np.ones(window) / window, mode="valid")
    left.plot(steps[window - 1 :], mean, color=BLUE, label=f"training loss (mean of {window} steps)")
    left.set(xlabel="step", ylabel="training loss", ylim=(0, max(losses[: 3 * window]) * 1.05))
    right = left.twinx()
    at = np.linspace(len(losses) / len(accuracies), len(losses), len(accuracies))
    right.plot(at, [100 * accuracy for accuracy in accuracies], "o-", color=ORANGE, label="accuracy on held-out data")
    right.set_ylabel("accuracy, %")
    figure.legend(loc="outside upper center", ncols=2)
    _save(figure, path)


def confusion_matrix(path: Path, truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> None:
    """How often each class was taken for each other: truth in rows, prediction in columns."""
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth, predicted), 1)
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure = Figure(figsize=(1.6 + 0.55 * len(names), 1.2 + 0.55 * len(names)), layout="constrained")
    axes = figure.subplots()
    # The root makes the rare mistakes visible beside the many right answers on the diagonal.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            color = "white" if share[row, column] > 0.4 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    ticks = range(len(names))
    axes.set(xlabel="predicted", ylabel="truth", title=f"{(truth == predicted).mean():.2%} right of {len(truth):,}")
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    _save(figure, path)


def misclassified(path: Path, images: np.ndarray, truth: np.ndarray, probabilities: np.ndarray, most: int = 40) -> None:
    """The images that were read wrongly, the most confident mistakes first."""
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != truth)
    wrong = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:most]
    columns = 8
    rows = max(1, -(-len(wrong) // columns))
    figure = Figure(figsize=(columns * 1.15, 0.5 + rows * 1.4), layout="constrained")
    figure.suptitle(
        f"{int((predicted != truth).sum()):,} of {len(truth):,} misread"
        + (f", {most} shown" if len(wrong) == most else "")
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(grid, wrong, strict=False):
        axes.imshow(images[index], cmap="gray_r")
        sure = probabilities[index, predicted[index]]
        axes.set_title(f"{truth[index]} read as {predicted[index]}\n{sure:.0%} sure", fontsize=7)
    _save(figure, path)


def project(vectors: np.ndarray) -> np.ndarray:
    """The two directions in which `vectors` (N, D) differ most (principal components): (N, 2)."""
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))  # a single word or dimension has no second direction


def word_map(
    path: Path, words: Sequence[str], vectors: np.ndarray, groups: Sequence[int], names: Sequence[str]
) -> None:
    """Words at their place in the plane of `project`; `groups` (one number a word) choose the colour."""
    points = project(vectors)
    chosen = np.asarray(groups)
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots()
    for group, (name, color) in enumerate(zip(names, (BLUE, ORANGE, "#4a5568"), strict=False)):
        members = points[chosen == group]
        axes.scatter(members[:, 0], members[:, 1], s=14, color=color, label=name)
    for word, (x, y) in zip(words, points, strict=True):
        axes.annotate(word, (x, y), xytext=(3, 2), textcoords="offset points", fontsize=8)
    axes.set(xlabel="first principal component", ylabel="second principal component")
    axes.legend()
    _save(figure, path)
