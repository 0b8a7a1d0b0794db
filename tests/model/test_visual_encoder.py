"""Tokens of an image: how many, where, and that padding does not change them."""

import pytest
import torch
import torchvision
from torch import nn

from soho_fast.model import VisualEncoder
from soho_fast.model.embeddings import sine_position
from soho_fast.model.visual_encoder import cut_features, pad_features


def eval_encoder(tiny_config, **overrides) -> VisualEncoder:
    """In eval, with running statistics and biases that make BatchNorm's output non-zero at padding."""
    encoder = VisualEncoder(tiny_config(**overrides)).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.bias, 0.2, 1.0)
    return encoder


@torch.no_grad()
def test_dropout_of_the_backbone_leaves_out_whole_channels_of_an_image_in_training(tiny_config):
    encoder = VisualEncoder(tiny_config(backbone_dropout_prob=0.5, visual_pool=1)).train()
    features = torch.rand(3, encoder.projection.in_channels, 4, 5) + 0.1
    encoder.projection = nn.Identity()
    seen, _ = encoder.tokens(features)
    scale = seen.transpose(1, 2).unflatten(2, (4, 5)) / features
    assert set(scale.unique().tolist()) == {0.0, 2.0}
    assert (scale == scale[:, :, :1, :1]).all(), "at all places of an image"
    assert (scale[0] != scale[1]).any(), "each image its own"
    assert 0.35 < float(scale.mean()) / 2 < 0.65
    torch.testing.assert_close(encoder.eval().tokens(features)[0], features.flatten(2).transpose(1, 2))


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet10", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize(("stride", "pool"), [(32, 1), (32, 2), (16, 1), (16, 2), (8, 1), (4, 2)])
def test_padding_changes_neither_tokens_nor_their_number(tiny_config, backbone, stride, pool):
    encoder = eval_encoder(tiny_config, backbone=backbone, backbone_stride=stride, visual_pool=pool)
    images = [torch.randn(3, 97, 65), torch.randn(3, 160, 40), torch.randn(3, 33, 130)]
    pixel_values, pixel_mask = torch.full((3, 3, 192, 160), 7.0), torch.zeros(3, 192, 160)
    for i, image in enumerate(images):
        pixel_values[i, :, : image.shape[1], : image.shape[2]] = image
        pixel_mask[i, : image.shape[1], : image.shape[2]] = 1
    feat, mask = encoder(pixel_values, pixel_mask)
    assert feat.flatten(0, 1)[~mask.flatten()].abs().max() == 0
    for i, image in enumerate(images):
        alone, mask_alone = encoder(image.unsqueeze(0))
        assert bool(mask_alone.all())
        scale = alone.abs().max()
        torch.testing.assert_close(feat[i][mask[i].flatten()] / scale, alone[0] / scale, rtol=0, atol=1e-5)
        ceil = [-(-side // (stride * pool)) for side in image.shape[1:]]
        assert mask_alone.shape[1:] == (*ceil,)
        position = sine_position(mask[i : i + 1], 16)[0][mask[i].flatten()]
        torch.testing.assert_close(position, sine_position(mask_alone, 16)[0], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("stride", "pool"), [(32, 1), (32, 2), (16, 1)])
def test_kept_features_give_the_same_tokens_in_any_batch(tiny_config, stride, pool):
    """Computed in one batch, cut to the image, and padded anew in another."""
    encoder = eval_encoder(tiny_config, backbone_stride=stride, visual_pool=pool)
    sizes = [(97, 65), (160, 40), (33, 130), (97, 65)]
    pixel_values, pixel_mask = torch.zeros(4, 3, 192, 160), torch.zeros(4, 192, 160)
    for i, (height, width) in enumerate(sizes):
        pixel_values[i, :, :height, :width] = torch.randn(3, height, width)
        pixel_mask[i, :height, :width] = 1
    feat, mask = encoder(pixel_values, pixel_mask)
    kept = cut_features(*encoder.backbone_output(pixel_values, pixel_mask))
    grids = [(4, 3), (5, 2), (2, 5), (4, 3)] if stride == 32 else [(7, 5), (10, 3), (3, 9), (7, 5)]
    assert [x.shape[1:] for x in kept] == grids
    for batch in ([2, 0], [1], [0, 3]):
        again, mask_again = encoder.tokens(*pad_features([kept[i] for i in batch]))
        for row, i in enumerate(batch):
            torch.testing.assert_close(again[row][mask_again[row].flatten()], feat[i][mask[i].flatten()])


def test_sine_position_against_the_formula():
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[:, :3, :4] = True
    position = sine_position(mask, 16).view(4, 5, 16)
    y, x = 2, 1
    for axis, value in ((0, (y + 1) / 3), (1, (x + 1) / 4)):
        for i in range(4):
            angle = torch.tensor(value * 2 * torch.pi / 10000 ** (2 * i / 8))
            assert position[y, x, 8 * axis + 2 * i].item() == pytest.approx(angle.sin().item(), abs=1e-5)
            assert position[y, x, 8 * axis + 2 * i + 1].item() == pytest.approx(angle.cos().item(), abs=1e-5)


def test_frozen_backbone_gets_no_gradient_and_keeps_its_statistics(tiny_config):
    encoder = VisualEncoder(tiny_config()).train()
    encoder.freeze_backbone(True)
    encoder.train()
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    encoder(torch.randn(2, 3, 64, 64))[0].sum().backward()
    assert all(p.grad is None and p.requires_grad for p in encoder.backbone.parameters())
    assert encoder.projection.weight.grad.abs().sum() > 0
    assert all(torch.equal(before[name], value) for name, value in encoder.backbone.state_dict().items())
    encoder.freeze_backbone(False)
    encoder(torch.randn(2, 3, 64, 64))[0].sum().backward()
    assert all(p.grad is not None for p in encoder.backbone.parameters())
    assert not torch.equal(before["bn1.running_mean"], encoder.backbone.bn1.running_mean)


def test_stages_frozen_for_good(tiny_config):
    encoder = VisualEncoder(tiny_config(backbone_frozen_stages=1)).train()
    encoder(torch.randn(2, 3, 64, 64))[0].sum().backward()
    frozen = {name for name, p in encoder.backbone.named_parameters() if p.grad is None}
    assert frozen == {n for n, _ in encoder.backbone.named_parameters() if n.startswith(("conv1", "bn1", "layer1"))}
    assert encoder.backbone.bn1.num_batches_tracked == 0
    assert encoder.backbone.layer2[0].bn1.num_batches_tracked == 1


@pytest.mark.parametrize(("num_frozen", "last"), [(1, 3), (2, 6), (3, 13)])
def test_stages_of_mobilenet_end_where_its_stride_grows(tiny_config, num_frozen, last):
    encoder = VisualEncoder(tiny_config(backbone="mobilenet_v2", backbone_frozen_stages=num_frozen)).train()
    encoder(torch.randn(2, 3, 64, 64))[0].sum().backward()
    trained = {int(name.split(".")[1]) for name, p in encoder.backbone.named_parameters() if p.grad is not None}
    assert trained == set(range(last + 1, 19))
    with torch.no_grad():
        side = encoder.backbone.features[: last + 1](torch.randn(1, 3, 64, 64)).shape[-1]
    assert side == 64 // 2 ** (num_frozen + 1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize(("stride", "stages", "last"), [(4, 1, 4), (8, 2, 7), (16, 3, 14), (32, 4, 19)])
def test_a_smaller_stride_is_torchvisions_net_up_to_there(tiny_config, name, stride, stages, last):
    encoder = eval_encoder(tiny_config, backbone=name, backbone_stride=stride)
    plain = getattr(torchvision.models, name)().eval()
    plain.load_state_dict(encoder.backbone.state_dict(), strict=False)
    x = torch.randn(1, 3, 96, 64)
    if name == "mobilenet_v2":
        whole, kept = plain.features[:last], {"features"}
    else:
        parts = ["conv1", "bn1", "relu", "maxpool", *(f"layer{number + 1}" for number in range(stages))]
        whole, kept = nn.Sequential(*(getattr(plain, part) for part in parts)), {*parts} - {"relu", "maxpool"}
    expected = whole(x)
    assert expected.shape[2:] == (96 // stride, 64 // stride)
    torch.testing.assert_close(encoder.backbone_output(x)[0], expected)
    torch.testing.assert_close(encoder(x)[0], encoder.projection(expected).flatten(2).transpose(1, 2))
    assert {key.partition(".")[0] for key in encoder.backbone.state_dict()} == kept


def test_frozen_stages_follow_their_weights(tiny_config):
    encoder = VisualEncoder(tiny_config(backbone="mobilenet_v2", backbone_frozen_stages=1)).train()
    encoder.freeze_batch_norm()
    other = VisualEncoder(tiny_config(backbone="mobilenet_v2", backbone_frozen_stages=1)).train()
    other.freeze_batch_norm()
    pixels = torch.randn(2, 3, 64, 64)
    before, _ = encoder(pixels)
    encoder.load_state_dict(other.state_dict())
    after, _ = encoder(pixels)
    expected, _ = other(pixels)
    assert torch.equal(after, expected) and not torch.equal(after, before)
