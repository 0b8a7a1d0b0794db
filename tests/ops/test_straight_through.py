"""straight_through: forward is the chosen code, backward the identity."""

import pytest
import torch

from soho_fast.ops import straight_through, triton_backend


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (2, 9), (300,)], ids=str)
@pytest.mark.parametrize("num_channels", [0, 1, 8, 17])
def test_forward_is_the_code(shape, num_channels, backend, threads):
    features, codebook = torch.randn(*shape, num_channels), torch.randn(11, num_channels)
    index = torch.randint(11, shape)
    assert torch.equal(straight_through(features, codebook, index, backend=backend), codebook[index])


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
def test_output_has_the_type_of_features(features_type, backend):
    if triton_backend.INTERPRETING and features_type == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates to bfloat16, its compiler rounds (test_triton.py)")
    features, codebook, index = torch.randn(5, 8).to(features_type), torch.randn(4, 8), torch.tensor([3, 0, 1, 1, 2])
    output = straight_through(features, codebook, index, backend=backend)
    assert torch.equal(output, codebook[index].to(features_type))


def test_batched_codebooks(backend):
    features, codebook, index = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 9, 5), torch.randint(9, (2, 3, 6))
    output = straight_through(features, codebook, index, backend=backend)
    assert torch.equal(output[1, 2], codebook[1, 2][index[1, 2]])
    assert torch.equal(output[0, 1], codebook[0, 1][index[0, 1]])


def test_padding_gives_zeros(backend):
    output = straight_through(torch.ones(3, 4), torch.ones(2, 4), torch.tensor([1, -1, 0]), backend=backend)
    assert output[:, 0].tolist() == [1.0, 0.0, 1.0]


def test_layouts(backend):
    features = torch.randn(6, 10).t()
    codebook, index = torch.randn(6, 8).t(), torch.randint(8, (20,))[::2]
    assert torch.equal(straight_through(features, codebook, index, backend=backend), codebook[index])


def test_gradient_is_the_identity(backend):
    features = torch.randn(4, 6, 5, requires_grad=True)
    codebook = torch.randn(7, 5, requires_grad=True)
    weight = torch.randn(4, 6, 5)
    (straight_through(features, codebook, torch.randint(7, (4, 6)), backend=backend) * weight).sum().backward()
    assert torch.equal(features.grad, weight)
    assert codebook.grad is None


def test_index_beyond_the_codebook_is_refused(backend):
    if backend in ("triton", "cuda"):
        index = torch.tensor([2, 3])  # on a device a refusal would need a sync: a row of zeros
        output = straight_through(torch.ones(2, 4), torch.ones(3, 4), index, backend=backend)
        assert output[:, 0].tolist() == [1.0, 0.0]
        return
    with pytest.raises((ValueError, RuntimeError), match="index: expected values below 3"):
        straight_through(torch.ones(2, 4), torch.ones(3, 4), torch.tensor([0, 3]), backend=backend)


def test_index_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"index: expected shape \(2,\)"):
        straight_through(torch.ones(2, 4), torch.ones(3, 4), torch.tensor([0]))
