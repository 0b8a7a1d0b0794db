"""sample_group and group_mask: what is drawn, what is replaced, and that nothing else is touched."""

import pytest
import torch

from soho_fast.ops import group_mask, sample_group


def _case(num_images, num_tokens, num_channels, num_codes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_images, num_tokens, num_channels, generator=generator)
    index = torch.randint(-1, num_codes, (num_images, num_tokens), generator=generator)
    valid = torch.rand(num_images, num_tokens, generator=generator) < 0.8
    target = torch.randint(-1, num_codes, (num_images,), generator=generator)
    return features, index, torch.randn(num_channels, generator=generator), target, valid


def _expected(features, index, mask_token, target, valid):
    masked, labels = features.clone(), torch.full_like(index, -100)
    for image in range(features.shape[0]):
        for token in range(features.shape[1]):
            hit = index[image, token] == target[image] and target[image] >= 0
            if hit and (valid is None or valid[image, token]):
                masked[image, token] = mask_token.to(features.dtype)
                labels[image, token] = index[image, token]
    return masked, labels


SIZES = [(0, 4, 3), (3, 0, 3), (2, 5, 0), (1, 1, 1), (3, 7, 5), (4, 33, 8), (5, 64, 17), (60, 40, 300)]


def _masked_in_a_copy(features, *arguments, **options):
    """group_mask in place, of a copy with the strides of features; it says whether what comes back is that copy."""
    copy = features.clone()
    masked, labels = group_mask(copy, *arguments, inplace=True, **options)
    return masked, labels, masked is copy


def _check(features, index, mask_token, target, valid, at_every_level):
    expected, before = _expected(features, index, mask_token, target, valid), features.clone()
    masked, labels = at_every_level(group_mask, features, index, mask_token, target, valid=valid)
    assert masked.dtype == features.dtype and torch.equal(masked, expected[0]) and torch.equal(labels, expected[1])
    assert torch.equal(features, before)
    masked, labels, same = at_every_level(_masked_in_a_copy, features, index, mask_token, target, valid=valid)
    assert same and torch.equal(masked, expected[0]) and torch.equal(labels, expected[1])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks(size, at_every_level):
    features, index, mask_token, target, valid = _case(*size)
    for given in (valid, None):
        _check(features, index, mask_token, target, given, at_every_level)


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
def test_types(features_type, at_every_level):
    features, *others = _case(3, 9, 6)
    _check(features.to(features_type), *others, at_every_level)


def test_layouts(laid_out, at_every_level, same_bits):
    features, index, mask_token, target, valid = _case(4, 9, 6)
    index, valid = index.t().contiguous().t(), valid.t().contiguous().t()
    mask_token = mask_token.repeat_interleave(2)[::2]

    def masked(inplace, backend):
        return group_mask(laid_out(features), index, mask_token, target, valid=valid, inplace=inplace, backend=backend)

    for inplace in (False, True):
        assert same_bits(at_every_level(masked, inplace=inplace), _expected(features, index, mask_token, target, valid))


def test_expanded_features_are_read_out_of_place(at_every_level):
    features = torch.randn(1, 5, 4).expand(3, 5, 4)
    index = torch.arange(5).expand(3, 5)
    masked, _ = at_every_level(group_mask, features, index, torch.zeros(4), torch.tensor([0, 2, -1]))
    assert [int((masked[image] == 0).all(-1).sum()) for image in range(3)] == [1, 1, 0]


def test_in_place_touches_nothing_else(at_every_level):
    def written(backend):
        memory = torch.full((6, 9, 12), 7.0)
        view = memory[1:4, 2:7, 3:10]
        index = torch.arange(5).expand(3, 5)
        group_mask(view, index, torch.zeros(7), torch.tensor([1, 4, 0]), inplace=True, backend=backend)
        return memory

    memory = at_every_level(written)
    view = memory[1:4, 2:7, 3:10]
    assert int((memory == 0).sum()) == 3 * 7
    assert (view[0, 1] == 0).all() and (view[1, 4] == 0).all() and (view[2, 0] == 0).all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("token_only", [False, True])
def test_gradient(inplace, token_only, at_every_level):
    features, index, mask_token, _, valid = _case(4, 9, 6)
    target, weight = torch.tensor([0, 3, 1, -1]), torch.randn(4, 9, 6)
    index[0, 0], valid[0, 0] = 0, True

    def gradients(backend):
        leaf, token = features.clone().requires_grad_(not token_only), mask_token.clone().requires_grad_()
        masked, labels = group_mask(leaf * 1, index, token, target, valid=valid, inplace=inplace, backend=backend)
        (masked * weight).sum().backward()
        return token.grad, leaf.grad, labels, labels.requires_grad

    of_token, of_features, labels, labels_need_one = at_every_level(gradients)
    hit = labels >= 0
    assert (labels == 0).any() and not labels_need_one
    torch.testing.assert_close(of_token, weight[hit].sum(0))
    assert of_features is None if token_only else torch.equal(of_features, torch.where(hit[..., None], 0.0, weight))


def test_half_precision_features_with_float32_token_gradient(at_every_level):
    features, index, mask_token, target, _ = _case(4, 9, 6)

    def gradient(backend):
        token = mask_token.clone().requires_grad_()
        masked, labels = group_mask(features.bfloat16(), index, token, target, backend=backend)
        masked.float().sum().backward()
        return token.grad, labels

    grad, labels = at_every_level(gradient)
    assert grad.dtype == torch.float32 and grad[0].item() == int((labels >= 0).sum())


@pytest.mark.parametrize("size", [(0, 4), (3, 0), (1, 1), (5, 9), (200, 33)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_sample_follows_uniform(size, masked, at_every_level):
    _, index, _, _, valid = _case(*size, 1, num_codes=20)
    valid = valid if masked else None
    uniform = torch.rand(size[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    target = at_every_level(sample_group, index, valid=valid, uniform=uniform)
    for image in range(size[0]):
        row = index[image] if valid is None else index[image][valid[image]]
        present = sorted({label for label in row.tolist() if label >= 0})
        expected = present[int(uniform[image].item() * len(present))] if present else -1
        assert target[image].item() == expected


def _drawn(index, seed, backend):
    return sample_group(index, generator=torch.Generator().manual_seed(seed), backend=backend)


def test_sample_is_uniform_over_labels_not_tokens(at_every_level):
    index = torch.tensor([[8, 8, 8, 8, 8, 8, 8, 8, 3, 5]]).expand(3000, 10)
    target = at_every_level(_drawn, index, 0)
    share = torch.stack([(target == label).double().mean() for label in (3, 5, 8)])
    assert (share - 1 / 3).abs().max() < 0.04  # 4.6 standard deviations


def test_sample_at_the_upper_edge(at_every_level):
    uniform = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert at_every_level(sample_group, torch.tensor([[4, 2, 9]]), uniform=uniform).item() == 9


def test_a_view_without_elements_is_masked_in_place(at_every_level):
    """Nothing of it shares memory, whatever its strides say."""
    features, index = torch.ones(1, 3, 4).expand(2, 3, 4)[:, :0], torch.zeros(2, 0, dtype=torch.int64)
    masked, labels = at_every_level(
        group_mask, features, index, torch.zeros(4), torch.zeros(2, dtype=torch.int64), inplace=True
    )
    assert masked.shape == (2, 0, 4) and labels.shape == (2, 0)
