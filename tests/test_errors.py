"""What users do wrong: the error's class, that it says what, where and what to do, and that nothing was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusegraph as fg
import fusegraph.functional as F
from fusegraph import errors, nn, optim
from fusegraph.errors import (
    DTypeError,
    GradientError,
    IndexRangeError,
    OptionError,
    ShapeError,
    TraceError,
    UnsupportedError,
)
from fusegraph.trace import tracing

x34, x45, x5 = fg.zeros(3, 4), fg.zeros(4, 5), fg.zeros(5)
image, ids = fg.zeros(2, 3, 8, 8), fg.tensor([0, 3, 9])

# what is done, the class of the error, and what its message says
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # shapes
    "broadcast": (lambda: x34 + x5, ShapeError, r"add: shapes \[3, 4\] and \[5\] do not broadcast together"),
    "broadcast_where": (lambda: fg.where(x34 > 0, x5, 0), ShapeError, r"where: shapes \[3, 4\] and \[5\]"),
    "matmul": (lambda: x34 @ x34, ShapeError, r"matmul: shapes \[3, 4\] and \[3, 4\]: the inner sizes 4 and 3 differ"),
    "matmul_number": (lambda: x34 @ fg.tensor(1.0), ShapeError, r"a 0-d tensor is no matrix; use \*"),
    "matmul_batch": (lambda: fg.zeros(2, 3, 4) @ fg.zeros(3, 4, 5), ShapeError, r"\[2\] and \[3\] do not broadcast"),
    "reshape": (lambda: x34.reshape(5, -1), ShapeError, r"12 elements of shape \[3, 4\] do not fit \[5, -1\]"),
    "reshape_two": (lambda: x34.reshape(-1, -1), ShapeError, "only one size can be -1"),
    "reshape_count": (lambda: x34.reshape(7), ShapeError, r"\[3, 4\] has 12 elements, \[7\] has 7"),
    "expand": (lambda: x34.expand(3, 8), ShapeError, r"cannot broadcast shape \[3, 4\] to \[3, 8\]"),
    "permute": (lambda: x34.permute(0, 0), ShapeError, r"no order of the axes"),
    "cat": (lambda: fg.cat([x34, x45]), ShapeError, r"do not fit"),
    "cat_nothing": (lambda: fg.cat([]), ShapeError, "cat of no tensors"),
    "stack": (lambda: fg.stack([x34, x45]), ShapeError, r"do not fit"),
    "split": (lambda: x34.split([1, 1]), ShapeError, r"sizes \[1, 1\] do not add up to 3, axis 0 of shape \[3, 4\]"),
    "unflatten": (lambda: x34.unflatten(1, (3, 2)), ShapeError, r"do not multiply to 4"),
    "einsum_sizes": (lambda: fg.einsum("ij,jk->ik", x34, x34), ShapeError, "axis 'j' has sizes 4 and 3"),
    "einsum_axes": (
        lambda: fg.einsum("ijk->i", x34),
        ShapeError,
        r"'ijk' names 3 axes of an operand of shape \[3, 4\]",
    ),
    "einsum_output": (lambda: fg.einsum("ij->z", x34), ShapeError, "must name axes of the operands"),
    "dot": (lambda: fg.dot(x5, fg.zeros(4)), ShapeError, r"dot: shapes \[5\] and \[4\] differ"),
    "mm": (lambda: fg.mm(x5, x5), ShapeError, r"mm takes tensors with 2 axes, got shape \[5\]"),
    "unfold": (lambda: x5.unfold(0, 6, 1), ShapeError, "window of 6"),
    # axes
    "dim": (lambda: x34.sum(2), ShapeError, r"sum: dim 2 does not exist in a tensor of shape \[3, 4\]"),
    "dim_twice": (lambda: x34.sum((0, -2)), ShapeError, r"name an axis twice"),
    "dim_of_number": (lambda: fg.tensor(1.0).sum(0), ShapeError, r"a 0-d tensor has no axis"),
    "max_of_number": (lambda: fg.tensor(1.0).max(0), ShapeError, r"a 0-d tensor has no axis"),
    "cat_numbers": (lambda: fg.cat([fg.tensor(1.0), fg.tensor(2.0)]), ShapeError, r"a 0-d tensor has no axis"),
    "select_number": (lambda: fg.tensor(1.0)[0], ShapeError, r"1 indices for a tensor of shape \[\]"),
    "max_of_nothing": (
        lambda: fg.zeros(0, 3).amax(0),
        ShapeError,
        r"max of nothing: shape \[0, 3\] is empty along \[0\]",
    ),
    "unsqueeze": (lambda: x34.unsqueeze(4), ShapeError, r"unsqueeze: dim 4 does not fit"),
    "t": (lambda: image.t(), ShapeError, r"use .mT or .transpose"),
    "tril": (lambda: x5.tril(), ShapeError, "a triangle needs two axes"),
    # indices
    "index": (lambda: x34[3], IndexRangeError, r"index 3 is outside of axis 0 of shape \[3, 4\]"),
    "index_count": (lambda: x34[0, 0, 0], ShapeError, r"3 indices for a tensor of shape \[3, 4\]"),
    "index_array": (lambda: x34[np.array([0, 5])], IndexRangeError, r"index 5 is outside of axis 0"),
    "index_float": (lambda: x34[np.array([0.5])], DTypeError, r"an index must be integers, got float64\[1\]"),
    "index_mask": (lambda: x34[x34 > 0], UnsupportedError, r"use fg.where\(mask, x, 0\)"),
    "gather": (lambda: x34.gather(1, np.array([[4]])), IndexRangeError, r"index 4 at \[0, 0\] is outside of \[0, 4\)"),
    "gather_axes": (lambda: x34.gather(1, np.array([0])), ShapeError, "need the same number of axes"),
    "scatter": (
        lambda: x34.scatter_add(0, np.zeros((3, 5), int), fg.zeros(3, 5)),
        ShapeError,
        r"index \[3, 5\] must not be larger than input \[3, 4\]",
    ),
    "take": (lambda: fg.take(x34, np.array([-1])), IndexRangeError, r"index -1 at \[0\] is outside of \[0, 3\)"),
    "narrow": (lambda: x34.narrow(1, 2, 3), IndexRangeError, r"2 .. 5 is outside of axis 1"),
    "topk": (lambda: x5.topk(6), ShapeError, "k = 6 of axis 0"),
    # dtypes
    "bits": (lambda: x34 & x34, DTypeError, r"bit_and takes integers or bools, got float32\[3, 4\]"),
    "linear_dtypes": (
        lambda: nn.Linear(4, 2)(x34.double()),
        DTypeError,
        r"input is float64, weight is float32; convert one with .to",
    ),
    "embedding_dtype": (
        lambda: nn.Embedding(4, 2)(x34),
        DTypeError,
        r"token ids must be integers, got float32\[3, 4\]",
    ),
    "pow": (lambda: fg.tensor([2]) ** -1, OptionError, "negative power -1; convert to a floating point"),
    "pool_dtype": (lambda: F.max_pool2d(image.long(), 2), DTypeError, "takes floating point, got int64"),
    # layers
    "linear": (lambda: nn.Linear(3, 2)(x34), ShapeError, r"linear: input \[3, 4\] does not fit weight \[2, 3\]"),
    "conv_axes": (lambda: nn.Conv2d(3, 4, 3)(x34), ShapeError, r"conv2d: input \[3, 4\].*should be \[N, C, H, W\]"),
    "conv_channels": (lambda: nn.Conv2d(4, 4, 3)(image), ShapeError, r"3 channels do not fit weights for 4 x 1 groups"),
    "conv_kernel": (lambda: nn.Conv2d(3, 4, 9)(image), ShapeError, "the kernel is larger than the padded input"),
    "conv_groups": (
        lambda: nn.Conv2d(3, 4, 3, groups=2),
        OptionError,
        "3 input and 4 output channels do not divide into 2 groups",
    ),
    "conv_padding": (
        lambda: nn.Conv2d(3, 4, 3, padding="reflect"),
        OptionError,
        "padding must be numbers, 'valid' or 'same'",
    ),
    "conv_same": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"), OptionError, "padding='same' needs stride 1"),
    "conv_mode": (lambda: nn.Conv2d(3, 4, 3, padding_mode="circular"), OptionError, "only 'zeros'"),
    "conv1d_axes": (lambda: nn.Conv1d(3, 4, 3)(x5), ShapeError, r"should be \[N, C, L\]"),
    "pool_axes": (lambda: F.max_pool2d(x34, 2), ShapeError, r"should be \[N, C, H, W\] or \[C, H, W\], got \[3, 4\]"),
    "pool_kernel": (
        lambda: F.avg_pool2d(image, 9),
        ShapeError,
        r"kernel \(9, 9\) is larger than the input \[2, 3, 8, 8\]",
    ),
    "pool_padding": (lambda: F.max_pool2d(image, 2, padding=2), OptionError, "at most half of the kernel"),
    "pool_size": (lambda: F.max_pool2d(image, 0), OptionError, "kernel_size must be 2 number"),
    "batch_norm": (
        lambda: nn.BatchNorm2d(4)(image),
        ShapeError,
        r"BatchNorm2d\(4\): the input should be \[N, C, H, W\] with C = 4, got \[2, 3, 8, 8\]",
    ),
    "batch_norm_one": (lambda: nn.BatchNorm1d(4)(fg.zeros(1, 4)), ShapeError, "more than one value"),
    "layer_norm": (lambda: nn.LayerNorm(5)(x34), ShapeError, r"the last axes of input \[3, 4\] should be \[5\]"),
    "group_norm": (lambda: nn.GroupNorm(2, 3), OptionError, "3 channels do not divide into 2 groups"),
    "attention": (
        lambda: F.scaled_dot_product_attention(x34, x45, x34),
        ShapeError,
        r"query \[3, 4\], key \[4, 5\], value \[3, 4\]",
    ),
    "attention_both": (
        lambda: F.scaled_dot_product_attention(x34, x34, x34, attn_mask=x34, is_causal=True),
        OptionError,
        "not both",
    ),
    "dropout": (lambda: F.dropout(x34, -0.1), OptionError, r"p must be in \[0, 1\], got -0.1"),
    "gelu": (lambda: F.gelu(x34, "erf"), OptionError, "approximate must be 'none' or 'tanh'"),
    "padding_idx": (
        lambda: nn.Embedding(4, 2, padding_idx=4),
        OptionError,
        "padding_idx 4 is outside of a table of 4 rows",
    ),
    "mask": (lambda: F.masked_mean(image, x34, 1), DTypeError, "the mask should be bool"),
    "mask_shape": (lambda: F.masked_mean(x34, fg.zeros(2, 4).bool(), 1), ShapeError, "do not broadcast|does not fit"),
    # labels and losses
    "label": (
        lambda: F.cross_entropy(x34, np.array([0, 4, 1])),
        IndexRangeError,
        r"label 4 at \[1\] is outside of \[0, 4\)",
    ),
    "label_negative": (lambda: F.nll_loss(x34, np.array([0, 1, -1])), IndexRangeError, r"label -1 at \[2\]"),
    "label_dtype": (lambda: F.nll_loss(x34, x34[:, 0]), DTypeError, r"labels must be integers, got float32\[3\]"),
    "label_shape": (
        lambda: F.cross_entropy(x34, np.array([0, 1])),
        ShapeError,
        r"scores \[3, 4\] need labels of shape \[3\], got \[2\]",
    ),
    "class_weight": (
        lambda: F.cross_entropy(x34, np.array([0, 1, 1]), weight=np.ones(3)),
        ShapeError,
        r"weight must be \[4\], one for each class",
    ),
    "reduction": (
        lambda: F.mse_loss(x34, x34, reduction="average"),
        OptionError,
        "reduction must be 'mean', 'sum' or 'none', got 'average'",
    ),
    "bce": (
        lambda: F.binary_cross_entropy(x34, x5),
        ShapeError,
        r"input \[3, 4\] and target \[5\] must have the same shape",
    ),
    "smoothing": (
        lambda: F.cross_entropy(x34, np.array([0, 1, 1]), label_smoothing=2),
        OptionError,
        "label_smoothing must be in",
    ),
    "token": (lambda: nn.Embedding(4, 2)(ids), IndexRangeError, r"token id 9 at \[2\] is outside of \[0, 4\)"),
    "token_one_hot": (lambda: F.embedding_one_hot(ids, fg.zeros(4, 2)), IndexRangeError, r"token id 9 at \[2\]"),
    "one_hot": (lambda: F.one_hot(ids, 4), IndexRangeError, r"class 9 at \[2\]"),
    # others
    "seed": (lambda: fg.manual_seed(1.5), OptionError, "a seed must be an integer"),  # type: ignore[arg-type]
    "randint": (lambda: fg.randint(3, 3, (2,)), OptionError, r"\[3, 3\) is empty"),
    "arange": (lambda: fg.arange(0, 3, 0), OptionError, "step must not be 0"),
    "backward": (
        lambda: F.mse_loss(x34, x34).backward(),
        GradientError,
        "does not depend on anything that requires a gradient",
    ),
    "forward": (lambda: nn.Module()(x34), UnsupportedError, r"Module has no forward\(self, ...\)"),
    "norm": (lambda: x34.norm("nuc"), OptionError, "p must be a number or 'fro'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_message(name: str) -> None:
    do, kind, text = WRONG[name]
    with pytest.raises(kind, match=text) as caught:
        do()
    assert isinstance(caught.value, errors.FusegraphError)
    if name not in ("arange", "seed", "randint"):  # these need no place: the traceback's last own line is the call
        assert "test_errors.py:" in str(caught.value) or isinstance(caught.value, GradientError), str(caught.value)


TRACEABLE = [
    n
    for n in WRONG
    if n
    not in (
        "index_array",
        "index_mask",
        "topk",
        "arange",
        "seed",
        "randint",
        "backward",
        "gather",
        "take",
        "label",
        "label_negative",
        "token",
        "token_one_hot",
        "one_hot",
    )
]


@pytest.mark.parametrize("name", TRACEABLE)
def test_the_same_message_while_tracing(name: str) -> None:
    """Shapes, dtypes and options are checked when a function is traced, with the same words."""
    do, kind, text = WRONG[name]
    with tracing(), pytest.raises(kind, match=text):
        do()


def test_the_class_is_also_pythons() -> None:
    for kind, python in (
        (ShapeError, ValueError),
        (DTypeError, TypeError),
        (IndexRangeError, IndexError),
        (OptionError, ValueError),
        (UnsupportedError, NotImplementedError),
    ):
        assert issubclass(kind, python) and issubclass(kind, errors.FusegraphError)


def test_the_module_path_is_in_the_message() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Linear(3, 2))])

        def forward(self, x: fg.Tensor) -> Any:
            return self.body[0](x)

    with pytest.raises(ShapeError, match=r"test_errors.py:\d+ Net.body.0.1"):
        Net()(x34)
    with pytest.raises(ShapeError):  # and the path is not left over from the call that failed
        _ = x34 + x5
    try:
        _ = x34 + x5
    except ShapeError as error:
        assert "Net" not in str(error)


def test_a_failed_step_changes_nothing() -> None:
    """A wrong label or token: parameters, statistics, optimizer state, gradients and random streams stay."""
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    opt = optim.Adam(net.parameters())
    x = fg.randn(5, 4)
    F.cross_entropy(net(x), np.zeros(5, int)).backward()
    opt.step()
    before = {
        name: value.numpy().copy()
        for name, value in net.state_dict().items()
        if "running" not in name and "tracked" not in name
    }
    state = [value.numpy().copy() for entries in opt.state.values() for value in entries.values()]
    grads = [p.grad for p in net.parameters()]
    with pytest.raises(IndexRangeError):
        F.cross_entropy(net(x), np.array([0, 1, 2, 3, 0])).backward()
    for name, value in before.items():
        np.testing.assert_array_equal(net.state_dict()[name].numpy(), value)
    for got, want in zip((value for entries in opt.state.values() for value in entries.values()), state, strict=True):
        np.testing.assert_array_equal(got.numpy(), want)
    assert [p.grad for p in net.parameters()] == grads


def test_a_failed_trace_leaves_tensors_alone() -> None:
    w = nn.Parameter(fg.ones(3))
    with tracing(), pytest.raises(TraceError):
        with fg.no_grad():
            w.add_(1)
        _ = bool(w.sum() > 0)
    assert w.tolist() == [1, 1, 1] and isinstance(w._value, np.ndarray)


def test_nan_passes_through() -> None:
    """NaN is a value like another: no error, and it comes out where it should."""
    x = fg.tensor([[np.nan, 1.0], [2.0, 3.0]])
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.LayerNorm(2))
    out = net(x).detach().numpy()
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()
    assert np.isnan(F.cross_entropy(x, np.array([0, 1])).item())


@pytest.mark.parametrize("backend", ["cpu", "python", "reference"])
@pytest.mark.parametrize("bad", [3, -4])
def test_a_compiled_index_out_of_range(backend: str, bad: int) -> None:
    """x[i] with an i that comes with the arguments: as in eager code, and nothing has been changed."""
    table = fg.tensor(np.arange(12, dtype=np.float32).reshape(3, 4))

    @fg.compile(backend=backend)
    def bump(i: Any, j: Any) -> Any:
        table.add_(1.0)
        return table[i, j]

    np.testing.assert_array_equal(bump(np.array([0, -3, 2]), np.array([3, -4, 0])), table.numpy()[[0, 0, 2], [3, 0, 0]])
    before = table.numpy().copy()
    with pytest.raises(IndexRangeError, match=rf"axis 0 of shape \[3, 4\], {bad} at \[1\].* is outside of \[-3, 3\)"):
        bump(np.array([0, bad, 2]), np.array([3, -4, 0]))
    np.testing.assert_array_equal(table.numpy(), before)
