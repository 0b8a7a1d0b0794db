"""Padding and BatchNorm in training: statistics, tokens and gradients are those of the real cells alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soho_fast.common.errors import UserError
from soho_fast.model import VisualEncoder
from soho_fast.model.fast.cpu.convolutions import speed_up_convolutions
from soho_fast.model.normalization import BatchNorm2d

SIZES = [(65, 40), (97, 33), (33, 70)]


def padded_images(extra: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same images padded by `extra` pixels more; what lies in the padding is not zero."""
    generator = torch.Generator().manual_seed(2)
    height, width = (max(sides) + extra for sides in zip(*SIZES, strict=True))
    pixel_values = torch.full((len(SIZES), 3, height, width), 7.0, dtype=torch.float64)
    pixel_mask = torch.zeros(len(SIZES), height, width)
    for i, (h, w) in enumerate(SIZES):
        pixel_values[i, :, :h, :w] = torch.randn(3, h, w, generator=generator, dtype=torch.float64)
        pixel_mask[i, :h, :w] = 1
    return pixel_values, pixel_mask


def train_once(encoder: VisualEncoder, extra: int) -> dict[str, torch.Tensor]:
    """Tokens of the images one after the other, gradients and running statistics after one training step."""
    feat_BLC, mask_Bhw = encoder.train()(*padded_images(extra))
    tokens_NC = torch.cat([feat[mask.flatten()] for feat, mask in zip(feat_BLC, mask_Bhw, strict=True)])
    weight_NC = torch.randn(tokens_NC.shape, generator=torch.Generator().manual_seed(3))
    (tokens_NC * weight_NC).sum().backward()
    found = {"tokens": tokens_NC.detach()}
    found |= {f"gradient of {name}": p.grad for name, p in encoder.named_parameters()}
    return found | {name: buffer for name, buffer in encoder.named_buffers() if "running" in name}


@pytest.mark.parametrize(
    ("backbone", "fast"), [("resnet10", True), ("resnet18", False), ("resnet50", False), ("mobilenet_v2", False)]
)
def test_how_far_a_batch_is_padded_changes_nothing(tiny_config, backbone, fast):
    """In float64, where rounding stays below 3e-10; with padding in the statistics, tokens differ by 1.3 and more."""

    def build():
        torch.manual_seed(1)
        encoder = VisualEncoder(tiny_config(backbone=backbone))
        if fast:
            speed_up_convolutions(encoder)
        return encoder.double()

    little, much = train_once(build(), 0), train_once(build(), 64)
    assert little.keys() == much.keys()
    # A bias before a BatchNorm has no gradient but rounding.
    errors = {name: float((much[name] - value).norm() / value.norm().clamp(min=1e-3)) for name, value in little.items()}
    assert max(errors.values()) < 1e-9, max(errors, key=errors.get)


MASK = torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], [[1, 1, 0, 0]] * 3, [[1, 0, 0, 0], [0] * 4, [0] * 4]])


def a_norm(num_channels: int) -> BatchNorm2d:
    norm = BatchNorm2d(num_channels).train()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels-last"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)], ids=str
)
def test_batch_norm_of_the_real_cells_alone(dtype, tolerance, layout):
    """Half precision rounds what comes out, not the statistics: those are float32's."""
    norm, mask_B1HW = a_norm(5), MASK.unsqueeze(1).to(dtype)
    real = MASK.bool()
    pixels = (torch.randn(3, 5, 3, 4) * 3 + 20).to(dtype).contiguous(memory_format=layout).requires_grad_()
    grad = torch.randn(3, 5, 3, 4).to(dtype)
    output = norm(pixels, mask_B1HW)
    output.backward(grad)
    assert output.dtype == pixels.grad.dtype == dtype
    assert output.is_contiguous(memory_format=layout)

    plain = nn.BatchNorm1d(5).double()
    plain.load_state_dict({**norm.state_dict(), **BatchNorm2d(5).state_dict(), **dict(norm.named_parameters())})
    packed_NC = pixels.detach().double().permute(0, 2, 3, 1)[real].requires_grad_()
    expected = plain(packed_NC)
    expected.backward(grad.double().permute(0, 2, 3, 1)[real])

    def assert_close(actual, expected, tolerance=2e-6):
        assert float((actual - expected).detach().abs().max()) <= tolerance * float(expected.detach().abs().max())

    for map_BCHW, values_NC in ((output, expected), (pixels.grad, packed_NC.grad)):
        assert_close(map_BCHW.permute(0, 2, 3, 1)[real], values_NC, tolerance)
        assert map_BCHW.permute(0, 2, 3, 1)[~real].abs().max() == 0
    for name in ("weight", "bias"):
        assert_close(getattr(norm, name).grad, getattr(plain, name).grad)
    assert_close(norm.running_mean, plain.running_mean)
    assert_close(norm.running_var, plain.running_var)
    assert norm.num_batches_tracked == 1


def test_the_variance_of_features_far_from_zero():
    """The mean of the squares less the square of the mean would give 0, or 8, for 0.25."""
    norm = a_norm(1)
    pixels = torch.full((4, 1, 8, 8), 4096.0)
    pixels[..., ::2] += 1
    norm(F.pad(pixels, (0, 4)), F.pad(torch.ones(4, 1, 8, 8), (0, 4)))
    assert float(norm.running_var) == pytest.approx(0.9 + 0.1 * 0.25 * 256 / 255, rel=1e-6)


def test_a_single_real_cell_is_its_bias():
    norm, mask_B1HW = a_norm(3), torch.zeros(1, 1, 2, 2)
    mask_B1HW[..., 0, 0] = 1
    output = norm(torch.randn(1, 3, 2, 2), mask_B1HW)
    assert torch.equal(output[0, :, 0, 0], norm.bias)
    assert torch.equal(norm.running_var, torch.full((3,), 0.9))


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 1, 1)])
def test_one_value_a_channel_is_refused_in_training(mask):
    """Its variance is zero: every image would come out as the bias."""
    norm, one = BatchNorm2d(3), torch.randn(1, 3, 1, 1)
    with pytest.raises(UserError, match="expected more than one image or grid position in a micro-batch, got one of"):
        norm(one, mask)
    assert norm.num_batches_tracked == 0
    assert norm.eval()(one, mask).shape == one.shape
    assert norm.train()(torch.randn(2, 3, 1, 1), torch.ones(2, 1, 1, 1)).isfinite().all()
