"""The rotation trick, the gradient beside straight-through's."""

import math

import pytest
import torch

from soho_fast.ops import rotation_trick, straight_through, triton_backend

pytestmark = pytest.mark.skipif(triton_backend.INTERPRETING, reason="straight_through's kernel alone is reached")


def problem(*shape, dtype=torch.float32):
    features, codebook = torch.randn(*shape, 6).to(dtype), torch.randn(9, 6)
    return features.requires_grad_(), codebook.requires_grad_(), torch.randint(9, shape)


def rotation(x, d):
    """The matrix that turns x to the direction of d and leaves all that is orthogonal to both, from a basis of their
    plane: not the paper's formula."""
    a, b = x / x.norm(), d / d.norm()
    across = b - (a @ b) * a
    across = across / across.norm()
    cos, sin = a @ b, across @ b
    plane = torch.outer(a, a) + torch.outer(across, across)
    turned = cos * plane + sin * (torch.outer(across, a) - torch.outer(a, across))
    return torch.eye(len(x), dtype=x.dtype) - plane + turned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_trick(dtype):
    features, codebook, index = problem(3, 7, dtype=dtype)
    quantized, grad = rotation_trick(features, codebook, index), torch.randn(3, 7, 6).to(dtype)
    assert torch.equal(quantized, straight_through(features, codebook, index)) and quantized.dtype == dtype
    found, of_codebook = torch.autograd.grad(quantized, (features, codebook), grad, allow_unused=True)
    assert of_codebook is None
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for row in [(i, j) for i in range(3) for j in range(7)]:
        x, d = features[row].detach().double(), codebook[index[row]].detach().double()
        turn = rotation(x, d)
        torch.testing.assert_close(turn @ x * d.norm() / x.norm(), d)  # that the test's own matrix is right
        expected = turn.T @ grad[row].double() * d.norm() / x.norm()
        torch.testing.assert_close(found[row].double(), expected, rtol=tolerance, atol=tolerance)


def test_rotation_trick_where_no_rotation_is():
    """A feature of zeros, its own code, the opposite of one, and padding."""
    codebook = torch.tensor([[1.0, 2.0, 2.0], [3.0, 0.0, 4.0]])
    features = torch.stack([torch.zeros(3), codebook[1], -codebook[0], codebook[0]]).requires_grad_()
    index, grad = torch.tensor([0, 1, 0, -1]), torch.tensor([1.0, 2.0, 5.0]).expand(4, 3)
    quantized = rotation_trick(features, codebook, index)
    (found,) = torch.autograd.grad(quantized, features, grad)
    assert torch.equal(quantized[3], torch.zeros(3)) and torch.equal(found[3], torch.zeros(3))
    torch.testing.assert_close(found[:2], grad[:2])
    unit = codebook[0] / 3
    torch.testing.assert_close(found[2], grad[2] - 2 * (grad[2] @ unit) * unit)


def test_an_index_beyond_the_codes_is_refused():
    with pytest.raises((ValueError, RuntimeError), match=r"index: .*below 2 .*got 2"):
        rotation_trick(torch.zeros(1, 4), torch.ones(2, 4), torch.tensor([2]))


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_a_feature_that_is_not_finite_has_no_gradient_nor_has_padding(wrong):
    features = torch.tensor([[wrong, 1.0], [wrong, 1.0], [1.0, 0.0]], requires_grad=True)
    codebook = torch.tensor([[0.0, 2.0]], requires_grad=True)
    quantized = rotation_trick(features, codebook, torch.tensor([0, -1, 0]))
    quantized.sum().backward()
    assert features.grad[:2].tolist() == [[0, 0]] * 2 and features.grad[2].isfinite().all()
    assert quantized[1].tolist() == [0, 0] and codebook.grad is None


def test_batched_codebooks_and_compiled():
    features, codebook, index = torch.randn(3, 5, 6), torch.randn(3, 9, 6), torch.randint(9, (3, 5))

    def gradient(op, x, d, i):
        moving = x.clone().requires_grad_()
        return torch.autograd.grad((op(moving, d, i) * torch.arange(6.0)).sum(), moving)[0]

    loop = torch.stack([gradient(rotation_trick, *one) for one in zip(features, codebook, index, strict=True)])
    torch.testing.assert_close(gradient(rotation_trick, features, codebook, index), loop)
    compiled = torch.compile(rotation_trick, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, features, codebook, index), loop)
