"""Is a sentence about a film positive or negative? Learned from word vectors, fused into one native call a step.

    python -m examples.sentiment                       train Kim's convolutional network
    python -m examples.sentiment --model bag           train a bag of embeddings: the mean of the words
    python -m examples.sentiment predict "a lovely film ."
    python -m examples.sentiment nearest lisbon film   neighbours of words in the trained embedding
    python -m examples.sentiment nearest --query '^(lisbon|portugal|rome|athens)$'

Saves in --out: checkpoint.safetensors, learning_curve.png, confusion.png, words.png (`nearest`: nearest.png).
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if not __package__:  # run by its path: python examples/sentiment.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.table import Table

import fusegraph as fg
import fusegraph.functional as F
from examples import common, data, report, text
from examples.fetch import DataError
from fusegraph import nn, optim

NAMES = ("negative", "positive")


class Bag(nn.Module):
    """The mean of a sentence's word vectors, and a linear layer: the order of the words does not count."""

    def __init__(self, table: np.ndarray, frozen: bool, dropout: float = 0.3) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(fg.tensor(table), freeze=frozen)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(table.shape[1], 2)

    def forward(self, ids: fg.Tensor, lengths: fg.Tensor) -> fg.Tensor:
        """Token ids (N, W) and lengths (N,) to scores (N, 2)."""
        mean = F.masked_mean(self.embedding(ids), lengths, 1)
        return self.output(self.dropout(mean))


class KimCNN(nn.Module):
    """Kim (2014): detectors of 3, 4 and 5 words, the strongest answer of each wherever in the sentence it is."""

    def __init__(self, table: np.ndarray, frozen: bool, maps: int = 100, dropout: float = 0.5) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(fg.tensor(table), freeze=frozen)
        self.convolutions = nn.ModuleList([nn.Conv1d(table.shape[1], maps, width) for width in (3, 4, 5)])
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(3 * maps, 2)

    def forward(self, ids: fg.Tensor, lengths: fg.Tensor) -> fg.Tensor:
        """Token ids (N, W), padded with 0, to scores (N, 2); the lengths are not needed: padding is a word as well."""
        words = self.embedding(ids).transpose(1, 2)
        found = fg.cat([convolution(words).relu().amax(2) for convolution in self.convolutions], 1)
        return self.output(self.dropout(found))


class Recipe(NamedTuple):
    """A network, the rate at which Adam trains it, and for how many passes."""

    network: type[Bag] | type[KimCNN]
    lr: float
    epochs: int


RECIPES = {"cnn": Recipe(KimCNN, lr=1e-3, epochs=5), "bag": Recipe(Bag, lr=3e-3, epochs=6)}


def options() -> argparse.ArgumentParser:
    """The options of this example."""
    parser = common.parser(__doc__ or "", RECIPES, "out/sentiment")
    parser.add_argument("command", nargs="?", choices=["train", "nearest", "predict"], default="train")
    parser.add_argument("words", nargs="*", help="words for nearest, sentences for predict (else they are asked for)")
    parser.add_argument(
        "--vectors", choices=["glove", "none"], default="glove", help="pretrained or learned from scratch"
    )
    parser.add_argument("--frozen", action="store_true", help="leave the word vectors as they are")
    parser.add_argument("--query", type=re.compile, metavar="REGEX", help="nearest: every word that matches")
    parser.add_argument("--neighbours", type=int, default=8, metavar="N", help="nearest: how many (default: 8)")
    return parser


def embedding_table(
    vocabulary: text.Vocabulary, vectors: data.WordVectors | None, rng: np.random.Generator
) -> np.ndarray:
    """Vectors (len(vocabulary), 50) float32: the pretrained ones, small random ones for the rest, 0 for padding."""
    table = rng.uniform(-0.25, 0.25, (len(vocabulary), 50)).astype(np.float32)
    table[text.PAD] = 0
    if vectors is not None:
        table[[vocabulary.index[word] for word in vectors.words]] = vectors.table
    return table


class Classifier:
    """A network with its vocabulary: what is saved, and what answers questions."""

    def __init__(self, name: str, vocabulary: text.Vocabulary, table: np.ndarray, frozen: bool) -> None:
        self.name, self.vocabulary = name, vocabulary
        self.model = RECIPES[name].network(table, frozen)

    @property
    def table(self) -> np.ndarray:
        """The word vectors as they are now."""
        return self.model.embedding.weight.detach().numpy()

    def encode(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """Token ids of every sentence."""
        return [self.vocabulary.encode(text.tokenize(sentence)) for sentence in sentences]

    def probabilities(self, forward: Callable[..., fg.Tensor], encoded: Sequence[np.ndarray]) -> np.ndarray:
        """How probably each sentence is negative and positive, (N, 2), with `forward` in evaluation mode."""
        self.model.eval()
        result = np.zeros((len(encoded), 2), np.float32)
        for batch in text.batches(encoded, np.zeros(len(encoded), np.int64), 50):
            scores = np.asarray(forward(fg.from_numpy(batch.ids), fg.from_numpy(batch.lengths)))[: len(batch.rows)]
            weights = np.exp(scores - scores.max(1, keepdims=True))
            result[batch.rows] = weights / weights.sum(1, keepdims=True)
        self.model.train()
        return result

    def save(self, path: Path) -> None:
        """Write parameters and words into one safetensors file."""
        common.save(path, self.model, {"model": self.name, "words": json.dumps(self.vocabulary.words)})

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        """Read what `save` wrote. Raises DataError when it is not there or not whole."""
        arrays, metadata = common.load(path)
        if metadata.get("model") not in RECIPES or "words" not in metadata:
            raise DataError(f"{path}: not a checkpoint of this example; train first, or name its folder with --out")
        loaded = cls(
            metadata["model"], text.Vocabulary(json.loads(metadata["words"])), arrays["embedding.weight"], True
        )
        loaded.model.load_state_dict({name: fg.from_numpy(array) for name, array in arrays.items()})
        return loaded


def make_step(model: nn.Module, opt: optim.Optimizer, compile: Callable[..., Any]) -> Any:
    """The training step: token ids (N, W), lengths (N,) and labels (N,) to the loss."""

    @compile
    def step(ids: fg.Tensor, lengths: fg.Tensor, y: fg.Tensor) -> fg.Tensor:
        opt.zero_grad()
        loss = F.cross_entropy(model(ids, lengths), y)
        loss.backward()
        opt.step()
        return loss

    return step


def __getattr__(name: str) -> Any:
    """`step`, with 5,000 words and new weights, is made when asked for: python -m fusegraph explain examples.sentiment:step."""
    if name != "step":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    model = KimCNN(np.random.default_rng(0).uniform(-0.25, 0.25, (5000, 50)).astype(np.float32), frozen=False)
    return make_step(model, optim.AdamW(model.parameters(), lr=RECIPES["cnn"].lr, weight_decay=0.0), fg.compile)


def compile_forward(
    classifier: Classifier, compile: Callable[..., Callable[..., fg.Tensor]]
) -> Callable[..., fg.Tensor]:
    """The forward pass alone, without gradients."""

    @compile
    def forward(ids: fg.Tensor, lengths: fg.Tensor) -> fg.Tensor:
        with fg.no_grad():
            return classifier.model(ids, lengths)

    return forward


def prepare(args: argparse.Namespace) -> tuple[Classifier, data.Sentences, list[list[str]]]:
    """Read the data, say where it is from, and build the network on its vocabulary."""
    sentences = data.load_polarity(args.data)
    tokens = [text.tokenize(sentence) for sentence in sentences.train[: args.limit]]
    wanted = {word for sentence in (*tokens, *map(text.tokenize, sentences.dev)) for word in sentence}
    vectors = data.load_vectors(args.data, wanted=wanted) if args.vectors == "glove" else None
    source = (
        vectors.source if vectors else "learned from scratch" + (", no file at hand" if args.vectors == "glove" else "")
    )
    common.console.print(f"sentences: {sentences.source}\nword vectors: {source}", highlight=False, soft_wrap=True)
    vocabulary = text.Vocabulary.build(tokens, vectors.words if vectors else ())
    table = embedding_table(vocabulary, vectors, np.random.default_rng(args.seed))
    return Classifier(args.model, vocabulary, table, args.frozen), sentences, tokens


def train(args: argparse.Namespace) -> common.History:
    """Train, measure, show and save; returns the losses and accuracies."""
    compile = common.compiler(args)
    fg.manual_seed(args.seed)
    classifier, sentences, tokens = prepare(args)
    model, recipe = classifier.model, RECIPES[args.model]
    encoded, labels = [classifier.vocabulary.encode(words) for words in tokens], sentences.train_labels[: args.limit]
    dev = classifier.encode(sentences.dev)
    opt = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=recipe.lr, weight_decay=0.0)
    forward = compile_forward(classifier, compile)

    step = make_step(model, opt, compile)
    epochs = args.epochs or recipe.epochs
    batch_size = min(args.batch_size or 50, len(encoded))
    schedule = optim.lr_scheduler.CosineAnnealingLR(opt, T_max=epochs)
    rng = np.random.default_rng(args.seed)

    def batches(epoch: int) -> Iterator[tuple[np.ndarray, ...]]:
        for batch in text.batches(encoded, labels, batch_size, rng=rng, drop_last=True):
            yield batch.ids, batch.lengths, batch.labels

    def after_epoch() -> float:
        schedule.step()
        return float((classifier.probabilities(forward, dev).argmax(1) == sentences.dev_labels).mean())

    history = common.train(step, epochs, batches, len(encoded) // batch_size, after_epoch)
    common.show(
        history,
        f"{args.model} on {len(encoded):,} sentences, tested on {len(dev):,} others",
        {
            "words": f"{len(classifier.vocabulary):,}, vectors {'frozen' if args.frozen else 'tuned'}",
            "runs": "eager, numpy" if args.eager else f"compiled, {args.backend}",
            "sentences a second": f"{batch_size / np.median(history.step_seconds):,.0f}",
        },
    )
    common.show_fusion(step, args.dump)
    classifier.save(args.out / "checkpoint.safetensors")
    report.learning_curve(args.out / "learning_curve.png", history.losses, [row[1] for row in history.epochs])
    predicted = classifier.probabilities(forward, dev).argmax(1)
    report.confusion_matrix(args.out / "confusion.png", sentences.dev_labels, predicted, NAMES)
    show_words(classifier, forward, tokens, args.out / "words.png")
    common.console.print(f"checkpoint and pictures: {args.out}")
    return history


def show_words(
    classifier: Classifier, forward: Callable[..., fg.Tensor], tokens: Sequence[Sequence[str]], path: Path
) -> None:
    """Print and draw the words that by themselves make the most negative and most positive sentences."""
    counts = Counter(word for sentence in tokens for word in sentence if word.isalpha() and len(word) > 2)
    words = [word for word, count in counts.most_common(3000) if count >= 10 and word in classifier.vocabulary]
    if len(words) < 4:
        return
    positive = classifier.probabilities(forward, [classifier.vocabulary.encode([word]) for word in words])[:, 1]
    order = np.argsort(positive, kind="stable")
    side = min(40, len(words) // 2)
    chosen = [*order[:side], *order[::-1][:side]]
    ids = classifier.vocabulary.encode([words[i] for i in chosen])
    report.word_map(path, [words[i] for i in chosen], classifier.table[ids], [0] * side + [1] * side, NAMES)
    for name, part in zip(NAMES, (order, order[::-1]), strict=True):
        common.console.print(f"most {name} words: {', '.join(words[i] for i in part[:12])}", highlight=False)


def neighbours(table: np.ndarray, row: int, count: int) -> list[tuple[int, float]]:
    """The `count` rows of `table` at the smallest angle to row `row`, without itself and the special words."""
    lengths = np.linalg.norm(table, axis=1)
    cosine = table @ table[row] / np.maximum(lengths * lengths[row], 1e-12)
    cosine[[*range(len(text.SPECIAL)), row]] = -np.inf
    best = np.argsort(-cosine, kind="stable")[:count]
    return [(int(i), float(cosine[i])) for i in best if np.isfinite(cosine[i])]


def nearest(args: argparse.Namespace) -> dict[str, list[str]]:
    """Print the neighbours of each word asked for and draw them all; returns them."""
    classifier = Classifier.load(args.out / "checkpoint.safetensors")
    vocabulary, table = classifier.vocabulary, classifier.table
    matching = [word for word in vocabulary.words if args.query.search(word)] if args.query else []
    asked = list(dict.fromkeys([*(word.lower() for word in args.words), *matching]))
    known = [word for word in asked if word in vocabulary and word not in text.SPECIAL]
    for word in set(asked) - set(known):
        common.console.print(f"{word}: not among the {len(vocabulary):,} words of the checkpoint")
    if not known:
        raise DataError("nearest: no word to look up; name words, or a --query that matches some")
    grid = Table("word", "nearest words (cosine of the angle)")
    found = {}
    for word in known:
        near = neighbours(table, vocabulary.index[word], args.neighbours)
        found[word] = [vocabulary.words[i] for i, _ in near]
        grid.add_row(word, ", ".join(f"{vocabulary.words[i]} {cosine:.2f}" for i, cosine in near))
    common.console.print(grid)
    others = [word for word in dict.fromkeys(word for near in found.values() for word in near) if word not in known]
    words = [*known[:60], *others[:120]]
    groups = [1] * len(known[:60]) + [0] * len(others[:120])
    report.word_map(
        args.out / "nearest.png", words, table[vocabulary.encode(words)], groups, ("neighbour", "asked for")
    )
    common.console.print(f"drawn in the plane where they differ most: {args.out / 'nearest.png'}")
    return found


def predict(args: argparse.Namespace) -> list[float]:
    """Say of each sentence (typed in, when none is given) how positive it is; returns the probabilities."""
    classifier = Classifier.load(args.out / "checkpoint.safetensors")
    forward = compile_forward(classifier, common.compiler(args))
    answers = []
    for sentence in args.words or iter(common.ask, ""):
        positive = float(classifier.probabilities(forward, classifier.encode([sentence]))[0, 1])
        answers.append(positive)
        unknown = [word for word in text.tokenize(sentence) if word not in classifier.vocabulary]
        note = f"  (unknown: {', '.join(unknown)})" if unknown else ""
        common.console.print(
            f"{NAMES[positive > 0.5]}, {max(positive, 1 - positive):.0%} sure: {sentence}{note}", highlight=False
        )
    return answers


def main(argv: Sequence[str] | None = None) -> object:
    """Do what the command line asks for."""
    args = options().parse_intermixed_args(argv)
    return {"train": train, "nearest": nearest, "predict": predict}[args.command](args)


if __name__ == "__main__":
    common.run(main)
