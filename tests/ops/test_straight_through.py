"""straight_through: forward is the chosen code, backward the identity."""

import pytest
import torch

from soho_fast.ops import straight_through, triton_backend


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (2, 9), (300,)], ids=str)
@pytest.mark.parametrize("num_channels", [0, 1, 8, 17])
def test_forward_is_the_code(shape, num_channels, at_every_level):
    features, codebook = torch.randn(*shape, num_channels), torch.randn(11, num_channels)
    index = torch.randint(11, shape)
    assert torch.equal(at_every_level(straight_through, features, codebook, index), codebook[index])


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
def test_output_has_the_type_of_features(features_type, at_every_level):
    if triton_backend.INTERPRETING and features_type == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates to bfloat16, its compiler rounds (test_triton.py)")
    features, codebook, index = torch.randn(5, 8).to(features_type), torch.randn(4, 8), torch.tensor([3, 0, 1, 1, 2])
    output = at_every_level(straight_through, features, codebook, index)
    assert torch.equal(output, codebook[index].to(features_type))


def test_batched_codebooks(at_every_level):
    features, codebook, index = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 9, 5), torch.randint(9, (2, 3, 6))
    output = at_every_level(straight_through, features, codebook, index)
    assert torch.equal(output[1, 2], codebook[1, 2][index[1, 2]])
    assert torch.equal(output[0, 1], codebook[0, 1][index[0, 1]])


def test_padding_gives_zeros(at_every_level):
    output = at_every_level(straight_through, torch.ones(3, 4), torch.ones(2, 4), torch.tensor([1, -1, 0]))
    assert output[:, 0].tolist() == [1.0, 0.0, 1.0]


def test_layouts(at_every_level):
    features = torch.randn(6, 10).t()
    codebook, index = torch.randn(6, 8).t(), torch.randint(8, (20,))[::2]
    assert torch.equal(at_every_level(straight_through, features, codebook, index), codebook[index])


def test_gradient_is_the_identity(at_every_level):
    features = torch.randn(4, 6, 5, requires_grad=True)
    codebook = torch.randn(7, 5, requires_grad=True)
    index, weight = torch.randint(7, (4, 6)), torch.randn(4, 6, 5)

    def gradients(backend):
        output = straight_through(features, codebook, index, backend=backend)
        return torch.autograd.grad((output * weight).sum(), (features, codebook), allow_unused=True)

    of_features, of_codebook = at_every_level(gradients)
    assert torch.equal(of_features, weight) and of_codebook is None


def test_index_beyond_the_codebook_is_refused_on_a_cpu_and_gives_zeros_elsewhere(at_every_level):
    features, codebook, index = torch.ones(2, 4), torch.ones(3, 4), torch.tensor([2, 3])

    def check(backend):
        if backend in ("triton", "cuda"):  # where a refusal would need a sync
            assert straight_through(features, codebook, index, backend=backend)[:, 0].tolist() == [1.0, 0.0]
            return
        with pytest.raises((ValueError, RuntimeError), match=r"index: .*below 3 .*got 3"):
            straight_through(features, codebook, index, backend=backend)

    at_every_level(check)
