"""fused_l2_nn_argmin: the calls that pylibraft's own test made, and what it refused; scipy gives the distances."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from soho_fast.adapters.pylibraft import fused_l2_nn_argmin


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("num_rows", [1, 10, 300])
@pytest.mark.parametrize("num_clusters", [1, 5, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy(num_rows, num_clusters, dtype, inplace):
    X, Y = np.random.rand(num_rows, 5).astype(dtype), np.random.rand(num_clusters, 5).astype(dtype)
    out = np.full(num_rows, -1, dtype=np.int32) if inplace else None
    returned = fused_l2_nn_argmin(X, Y, out, True, handle=object())
    assert returned is out if inplace else isinstance(returned, np.ndarray)
    assert returned.dtype == np.int32 and returned.shape == (num_rows,)
    assert np.array_equal(returned, cdist(X, Y).argmin(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sqrt", [True, False])
def test_torch(dtype, sqrt):
    X, Y = torch.rand(3, 40, dtype=dtype).T, torch.rand(9, 3, dtype=dtype, requires_grad=True)
    expected = cdist(X.numpy(), Y.detach().numpy()).argmin(1)
    out = torch.full((40, 1), -1, dtype=torch.int32)
    returned = fused_l2_nn_argmin(X, Y, sqrt=sqrt)
    assert isinstance(returned, torch.Tensor) and returned.dtype == torch.int32
    assert np.array_equal(returned.numpy(), expected)
    assert fused_l2_nn_argmin(X, Y, out=out, sqrt=sqrt) is out
    assert np.array_equal(out[:, 0].numpy(), expected)


def test_strided_out_is_written_and_its_surroundings_are_not():
    X, Y = np.random.rand(20, 4), np.random.rand(6, 4)
    buffer = np.full((20, 2), -7, dtype=np.int32)
    fused_l2_nn_argmin(X, Y, out=buffer[:, 1])
    assert np.array_equal(buffer[:, 1], cdist(X, Y).argmin(1))
    assert (buffer[:, 0] == -7).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("flipped", ["X", "Y", "columns", "out", "all"])
def test_flipped_views(flipped, dtype):
    """numpy's negative strides, which torch has none of."""
    X, Y = np.random.rand(20, 4).astype(dtype), np.random.rand(6, 4).astype(dtype)
    X = X[::-1] if flipped in ("X", "all") else X
    Y = Y[::-2] if flipped in ("Y", "all") else Y
    X, Y = (X[:, ::-1], Y[:, ::-1]) if flipped in ("columns", "all") else (X, Y)
    buffer = np.full((20, 2), -7, dtype=np.int32)
    out = buffer[::-1, 1] if flipped in ("out", "all") else buffer[:, 1]
    expected = cdist(X, Y).argmin(1)
    assert len(set(expected.tolist())) > 1
    assert np.array_equal(fused_l2_nn_argmin(X, Y), expected)
    assert fused_l2_nn_argmin(X, Y, out=out) is out
    assert np.array_equal(out, expected) and (buffer[:, 0] == -7).all()


def test_float64_is_not_rounded():
    # In float32 both rows of Y are equal and the first would win.
    assert fused_l2_nn_argmin(np.zeros((1, 1)), np.array([[1.0 + 1e-12], [1.0]]))[0] == 1


def test_ties_go_to_the_lowest_and_no_rows_give_none():
    Y = np.array([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    assert fused_l2_nn_argmin(np.zeros((1, 2), np.float32), Y).tolist() == [1]
    assert fused_l2_nn_argmin(np.zeros((0, 2), np.float32), Y).shape == (0,)


def read_only() -> np.ndarray:
    out = np.zeros(4, dtype=np.int32)
    out.flags.writeable = False
    return out


A, B = np.zeros((4, 3), np.float32), np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", B), TypeError, "X: expected a torch tensor, a numpy array"),
        ((A[0], B), ValueError, r"X: expected 2 dimensions \(rows, columns\), got shape \(3,\)"),
        ((A.astype(np.float16), B), ValueError, "X: expected float32 or float64, got float16"),
        ((A, B[:, :2]), ValueError, r"Y: expected 3 columns like X, got shape \(2, 2\)"),
        ((A, B[:0]), ValueError, r"Y: expected at least one row, got shape \(0, 3\)"),
        ((A, B.astype(np.float64)), ValueError, "Y: expected float32 like X, got float64"),
        ((A, B, np.zeros(4)), ValueError, "out: expected int32, got float64"),
        ((A, B, np.zeros(3, np.int32)), ValueError, r"out: expected shape \(4,\) or \(4, 1\), got \(3,\)"),
        ((A, B, [0, 0, 0, 0]), TypeError, "out: expected a torch tensor, a numpy or CUDA array, got list"),
        ((A, B, read_only()), ValueError, "out: expected a writable array"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        fused_l2_nn_argmin(*arguments)
