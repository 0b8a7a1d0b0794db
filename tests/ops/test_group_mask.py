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


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_masks(size, masked, inplace, backend, threads):
    features, index, mask_token, target, valid = _case(*size)
    valid = valid if masked else None
    before = features.clone()
    expected = _expected(features, index, mask_token, target, valid)
    result = group_mask(features, index, mask_token, target, valid=valid, inplace=inplace, backend=backend)
    assert torch.equal(result[0], expected[0]) and torch.equal(result[1], expected[1])
    assert (result[0] is features) if inplace else torch.equal(features, before)


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inplace", [False, True])
def test_types(features_type, inplace, backend):
    features, index, mask_token, target, valid = _case(3, 9, 6)
    features = features.to(features_type)
    expected = _expected(features, index, mask_token, target, valid)
    masked, labels = group_mask(features, index, mask_token, target, valid=valid, inplace=inplace, backend=backend)
    assert masked.dtype == features_type
    assert torch.equal(masked, expected[0]) and torch.equal(labels, expected[1])


LAYOUTS = {
    "channels permuted": lambda x: x.permute(0, 2, 1).contiguous().permute(0, 2, 1),
    "batch permuted": lambda x: x.permute(1, 0, 2).contiguous().permute(1, 0, 2),
    "channels sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "rows strided": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("inplace", [False, True])
def test_layouts(name, inplace, backend):
    features, index, mask_token, target, valid = _case(4, 9, 6)
    expected = _expected(features, index, mask_token, target, valid)
    laid_out = LAYOUTS[name](features)
    index, valid = index.t().contiguous().t(), valid.t().contiguous().t()
    result = group_mask(
        laid_out, index, mask_token.repeat_interleave(2)[::2], target, valid=valid, inplace=inplace, backend=backend
    )
    assert torch.equal(result[0], expected[0]) and torch.equal(result[1], expected[1])


def test_expanded_features_are_read_out_of_place(backend):
    features = torch.randn(1, 5, 4).expand(3, 5, 4)
    index = torch.arange(5).expand(3, 5)
    masked, _ = group_mask(features, index, torch.zeros(4), torch.tensor([0, 2, -1]), backend=backend)
    assert [int((masked[image] == 0).all(-1).sum()) for image in range(3)] == [1, 1, 0]


def test_in_place_touches_nothing_else(backend):
    memory = torch.full((6, 9, 12), 7.0)
    view = memory[1:4, 2:7, 3:10]
    index = torch.arange(5).expand(3, 5)
    group_mask(view, index, torch.zeros(7), torch.tensor([1, 4, 0]), inplace=True, backend=backend)
    assert int((memory == 0).sum()) == 3 * 7
    assert (view[0, 1] == 0).all() and (view[1, 4] == 0).all() and (view[2, 0] == 0).all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("token_only", [False, True])
def test_gradient(inplace, token_only, backend):
    features, index, mask_token, target, valid = _case(4, 9, 6)
    leaf, token = features.clone().requires_grad_(not token_only), mask_token.clone().requires_grad_()
    weight = torch.randn(4, 9, 6)
    masked, labels = group_mask(leaf * 1, index, token, target, valid=valid, inplace=inplace, backend=backend)
    (masked * weight).sum().backward()
    hit = labels >= 0
    assert hit.any() and not labels.requires_grad
    torch.testing.assert_close(token.grad, weight[hit].sum(0))
    if not token_only:
        assert torch.equal(leaf.grad, torch.where(hit[..., None], 0.0, weight))


def test_half_precision_features_with_float32_token_gradient(backend):
    features, index, mask_token, target, _ = _case(4, 9, 6)
    token = mask_token.clone().requires_grad_()
    masked, labels = group_mask(features.bfloat16(), index, token, target, backend=backend)
    masked.float().sum().backward()
    assert token.grad.dtype == torch.float32 and token.grad[0].item() == int((labels >= 0).sum())


@pytest.mark.parametrize("size", [(0, 4), (3, 0), (1, 1), (5, 9), (200, 33)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_sample_follows_uniform(size, masked, backend, threads):
    _, index, _, _, valid = _case(*size, 1, num_codes=20)
    valid = valid if masked else None
    uniform = torch.rand(size[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    target = sample_group(index, valid=valid, uniform=uniform, backend=backend)
    for image in range(size[0]):
        row = index[image] if valid is None else index[image][valid[image]]
        present = sorted({label for label in row.tolist() if label >= 0})
        expected = present[int(uniform[image].item() * len(present))] if present else -1
        assert target[image].item() == expected


def test_sample_is_uniform_over_labels_not_tokens(backend):
    index = torch.tensor([[8, 8, 8, 8, 8, 8, 8, 8, 3, 5]]).expand(3000, 10)
    target = sample_group(index, generator=torch.Generator().manual_seed(0), backend=backend)
    share = torch.stack([(target == label).double().mean() for label in (3, 5, 8)])
    assert (share - 1 / 3).abs().max() < 0.04  # 4.6 standard deviations


def test_sample_at_the_upper_edge(backend):
    uniform = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert sample_group(torch.tensor([[4, 2, 9]]), uniform=uniform, backend=backend).item() == 9


def test_sample_without_labels_is_minus_one(backend):
    index = torch.tensor([[-1, -1], [3, 3]])
    valid = torch.tensor([[True, True], [False, False]])
    assert sample_group(index, valid=valid, backend=backend).tolist() == [-1, -1]


def test_sample_repeats_with_the_generator(backend):
    index = torch.randint(50, (40, 20))
    draws = [sample_group(index, generator=torch.Generator().manual_seed(5), backend=backend) for _ in range(2)]
    assert torch.equal(draws[0], draws[1])


FEATURES, INDEX, TOKEN, TARGET = (
    torch.ones(2, 3, 4),
    torch.zeros(2, 3, dtype=torch.int64),
    torch.zeros(4),
    torch.zeros(2, dtype=torch.int64),
)
REFUSALS = [
    (lambda: group_mask(FEATURES[0], INDEX, TOKEN, TARGET), ValueError, r"features: expected 3 dimensions \(B, L, C\)"),
    (lambda: group_mask(FEATURES.double(), INDEX, TOKEN, TARGET), TypeError, "features: expected float32"),
    (lambda: group_mask(FEATURES, INDEX.int(), TOKEN, TARGET), TypeError, "index: expected int64, got int32"),
    (
        lambda: group_mask(FEATURES, INDEX.t(), TOKEN, TARGET),
        ValueError,
        r"index: expected shape \(2, 3\) = \(B, L\), got \(3, 2\)",
    ),
    (
        lambda: group_mask(FEATURES, INDEX, TOKEN[:2], TARGET),
        ValueError,
        r"mask_token: expected shape \(4,\) = \(C,\), got \(2,\)",
    ),
    (
        lambda: group_mask(FEATURES, INDEX, TOKEN, TARGET[:1]),
        ValueError,
        r"target: expected shape \(2,\) = \(B,\), got \(1,\)",
    ),
    (lambda: group_mask(FEATURES, INDEX, TOKEN, TARGET, valid=INDEX), TypeError, "valid: expected bool"),
    (
        lambda: group_mask(FEATURES[:1].expand(2, 3, 4), INDEX, TOKEN, TARGET, inplace=True),
        ValueError,
        r"features: .* expanded or overlapping tensor of shape \(2, 3, 4\), strides \(0, 4, 1\); pass inplace=False",
    ),
    (
        lambda: group_mask(FEATURES.as_strided((2, 3, 4), (4, 4, 1)), INDEX, TOKEN, TARGET, inplace=True),
        ValueError,
        r"features: expected elements that lie apart in memory, got .* shape \(2, 3, 4\), strides \(4, 4, 1\)",
    ),
    (
        lambda: group_mask(FEATURES.clone().requires_grad_(), INDEX, TOKEN, TARGET, inplace=True),
        ValueError,
        "features: a leaf",
    ),
    (lambda: sample_group(TARGET), ValueError, r"index: expected 2 dimensions \(B, L\)"),
    (lambda: sample_group(INDEX.float()), TypeError, "index: expected int64, got float32"),
    (lambda: sample_group(INDEX, uniform=torch.zeros(2)), TypeError, "uniform: expected float64, got float32"),
    (lambda: sample_group(INDEX, uniform=torch.zeros(3).double()), ValueError, r"uniform: expected shape \(2,\)"),
    (lambda: sample_group(INDEX, uniform=torch.zeros(2).double(), generator=torch.Generator()), ValueError, "got both"),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case[2])
def test_refusals(case):
    with pytest.raises(case[1], match=case[2]):
        case[0]()


def test_a_view_without_elements_is_masked_in_place(backend):
    """Nothing of it shares memory, whatever its strides say."""
    features = FEATURES[:1].expand(2, 3, 4)[:, :0]
    masked, labels = group_mask(features, INDEX[:, :0], TOKEN, TARGET, inplace=True, backend=backend)
    assert masked.shape == (2, 0, 4) and labels.shape == (2, 0)
