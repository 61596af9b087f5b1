"""From sentences to batches of token ids: tokenizer, vocabulary, padded batches of few different widths."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PAD, UNKNOWN = 0, 1
SPECIAL = ("<pad>", "<unk>")
# Each width is one more shape to compile for, so there are few. The longest sentence of the usual corpora has 60 words.
WIDTHS = (8, 16, 24, 32, 48, 64)

# Treebank habits: "don't" -> do n't, "film's" -> film 's, an ellipsis or dash is one token, punctuation stands alone.
_TOKEN = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+?(?=n't\b)|\w+(?:\.\w+)*|\.\.\.|--|[^\w\s]")


def tokenize(sentence: str) -> list[str]:
    """Split a sentence into lower-case tokens.

    >>> tokenize("It's a well-made film, isn't it?")
    ['it', "'s", 'a', 'well', '-', 'made', 'film', ',', 'is', "n't", 'it', '?']
    """
    return _TOKEN.findall(sentence.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


class Vocabulary:
    """Words and their ids. Id 0 is padding, id 1 stands for every unknown word."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = list(dict.fromkeys((*SPECIAL, *words)))
        self.index = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self.index

    def encode(self, tokens: Sequence[str]) -> np.ndarray:
        """Ids of `tokens`, int64, shape (len(tokens),); an unknown word becomes id 1."""
        return np.array([self.index.get(token, UNKNOWN) for token in tokens], dtype=np.int64)

    @classmethod
    def build(cls, sentences: Iterable[Sequence[str]], known: Iterable[str] = (), min_count: int = 2) -> "Vocabulary":
        """Every word of `known` (those with a pretrained vector) and every word seen `min_count` times.

        Words come most frequent first, so the order does not depend on how the sentences were shuffled.
        """
        counts = Counter(token for sentence in sentences for token in sentence)
        frequent = [word for word, n in counts.items() if n >= min_count]
        frequent.sort(key=lambda word: (-counts[word], word))
        return cls([*frequent, *known])


@dataclass(frozen=True)
class Batch:
    """Sentences of about one length: ids (B, W) int64 padded with 0, lengths (B,), labels (B,), rows (count,).

    `rows` are the positions of the sentences in the data set. When fewer than B sentences were left,
    the batch is filled up with empty ones, so that its shape stays one that was compiled: only the first
    `len(rows)` entries mean something.
    """

    ids: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    rows: np.ndarray


def width_of(length: int, widths: Sequence[int] = WIDTHS) -> int:
    """The smallest width that holds `length` tokens; longer sentences are cut to the last width."""
    return next((width for width in widths if length <= width), widths[-1])


def pad(sentences: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Stack id arrays into (len(sentences), width), padded with 0 or cut, and their lengths (at least 1)."""
    ids = np.full((len(sentences), width), PAD, dtype=np.int64)
    lengths = np.ones(len(sentences), dtype=np.int64)  # a mean over no words at all would be 0 / 0
    for row, sentence in enumerate(sentences):
        kept = sentence[:width]
        ids[row, : len(kept)] = kept
        lengths[row] = max(1, len(kept))
    return ids, lengths


def batches(
    sentences: Sequence[np.ndarray],
    labels: np.ndarray,
    batch_size: int,
    *,
    rng: np.random.Generator | None = None,
    widths: Sequence[int] = WIDTHS,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Yield batches of `batch_size` sentences of about one length, in an order drawn from `rng` (or as they stand).

    Sentences that do not fill a batch of their width move to the next wider one, so at most `len(widths)` shapes
    ever occur. What is left in the end is one batch filled up with empty sentences, or nothing with `drop_last`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = np.arange(len(sentences)) if rng is None else rng.permutation(len(sentences))
    chunks = _chunks(order, [width_of(len(sentence), widths) for sentence in sentences], batch_size, widths)
    if drop_last:
        chunks = [(width, rows) for width, rows in chunks if len(rows) == batch_size]
    if rng is not None:
        rng.shuffle(chunks)  # else all short sentences would be trained on first
    for width, rows in chunks:
        filled = [sentences[row] for row in rows] + [np.empty(0, np.int64)] * (batch_size - len(rows))
        ids, lengths = pad(filled, width)
        batch_labels = np.zeros(batch_size, np.int64)
        batch_labels[: len(rows)] = labels[rows]
        yield Batch(ids, lengths, batch_labels, np.asarray(rows, np.int64))


def _chunks(
    order: np.ndarray, width_by_row: Sequence[int], batch_size: int, widths: Sequence[int]
) -> list[tuple[int, list[int]]]:
    """(width, rows) of every batch: whole batches per width, what is left over moves on to the next width."""
    chunks: list[tuple[int, list[int]]] = []
    waiting: list[int] = []
    for width in widths:
        waiting += [int(row) for row in order if width_by_row[row] == width]
        whole = len(waiting) - len(waiting) % batch_size
        chunks += [(width, waiting[start : start + batch_size]) for start in range(0, whole, batch_size)]
        waiting = waiting[whole:]
    if waiting:
        needed = max(width_by_row[row] for row in waiting)
        chunks.append((needed, waiting))
    return chunks
