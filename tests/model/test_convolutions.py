"""Convolutions on a CPU: the same values in the fast form, and the form that is meant."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soho_fast.model import VisualEncoder
from soho_fast.model.fast.cpu.convolutions import speed_up_convolutions
from soho_fast.model.normalization import BatchNorm2d


def fast_encoder(config) -> VisualEncoder:
    encoder = VisualEncoder(config)
    speed_up_convolutions(encoder)
    return encoder


@pytest.mark.parametrize("backbone", ["resnet10", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_without_gradient_batch_norm_becomes_a_part_of_the_convolution(tiny_config, backbone, padded, monkeypatch):
    encoder = fast_encoder(tiny_config(backbone=backbone))
    generator = torch.Generator().manual_seed(0)
    for norm in encoder.modules():
        if isinstance(norm, BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    pixels = torch.randn(2, 3, 64, 96, generator=generator)
    mask = torch.ones(2, 64, 96)
    if padded:
        mask[0, :, 64:] = 0
    with_gradient = encoder.eval()(pixels, mask)[0].detach()
    monkeypatch.setattr(BatchNorm2d, "forward", None)
    with torch.no_grad():
        folded, _ = encoder(pixels, mask)
    torch.testing.assert_close(folded, with_gradient, rtol=0, atol=1e-5 * float(with_gradient.abs().max()))


def test_bf16_backward_avoids_onednns_reference_for_strided_depthwise(tiny_config):
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default and args[4] == [2, 2] and args[9] > 1:
                types_seen.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    types_seen = []
    encoder = fast_encoder(tiny_config(backbone="mobilenet_v2")).train().bfloat16()
    feat, _ = encoder(torch.randn(2, 3, 64, 64))
    assert feat.dtype == torch.bfloat16
    with Recorder():
        feat.float().square().sum().backward()
    assert types_seen == [torch.float32] * 4
