"""Backbones of timm and of a user's own: stages, strides, padding, frozen stages, saved models."""

import sys
from types import ModuleType

import pytest
import timm
import torch
from torch import nn

from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.model.other_backbones import MaskedBatchNorm, padding_leak
from soho_fast.model.visual_encoder import VisualEncoder, cut_features


class Net(nn.Sequential):
    """Two stages."""

    strides, channels = (4, 8), (6, 10)

    def __init__(self):
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.GELU()),
            nn.Sequential(nn.Conv2d(6, 10, 3, 2, 1), nn.BatchNorm2d(10), nn.ReLU(inplace=True)),
        )


class Pooled(nn.Module):
    """One stage, which looks at all positions."""

    strides, channels = (4,), (6,)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, 4)

    def forward(self, x):
        x = self.conv(x)
        return x + x.mean((2, 3), keepdim=True)


class Wrong(Pooled):
    channels = (7,)


@pytest.fixture
def own(monkeypatch):
    """A module that is imported."""
    module = ModuleType("own_net")
    module.Net, module.Pooled, module.Wrong = Net, Pooled, Wrong
    monkeypatch.setitem(sys.modules, "own_net", module)


def _images(stride):
    """Two images of other sizes, together and alone."""
    pixels, mask = torch.zeros(2, 3, 3 * stride, 4 * stride), torch.zeros(2, 3 * stride, 4 * stride)
    alone = [torch.randn(3, stride, 2 * stride), torch.randn(3, 3 * stride, 4 * stride)]
    for number, image in enumerate(alone):
        height, width = image.shape[1:]
        pixels[number, :, :height, :width] = image
        mask[number, :height, :width] = 1
    return alone, pixels, mask


@pytest.mark.parametrize(
    ("backbone", "stride", "channels", "num_stages"),
    [
        ("timm/resnet18", 32, 512, 5), ("timm/resnet18", 16, 256, 4), ("timm/convnext_atto", 8, 80, 2),
        ("timm/mobilenetv3_small_050", 32, 288, 1), ("own_net:Net", 8, 10, 2), ("own_net:Net", 4, 6, 1),
    ],
)  # fmt: skip
def test_stages_and_strides_are_its_own(tiny_config, own, backbone, stride, channels, num_stages):
    encoder = VisualEncoder(tiny_config(backbone=backbone, backbone_stride=stride)).eval()
    assert (encoder.backbone.num_features, len(encoder.backbone.stage_names)) == (channels, num_stages)
    assert encoder.strides[-1] == stride
    x, mask = encoder.backbone_output(torch.randn(1, 3, 64, 96))
    assert tuple(x.shape) == (1, channels, 64 // stride, 96 // stride) and mask is None


@pytest.mark.parametrize(
    ("backbone", "stride"), [("timm/resnet18", 32), ("timm/convnext_atto", 16), ("own_net:Net", 8)]
)
def test_an_image_does_not_see_the_padding_of_its_batch(tiny_config, own, backbone, stride):
    encoder = VisualEncoder(tiny_config(backbone=backbone, backbone_stride=stride)).eval()
    alone, pixels, mask = _images(stride)
    together = cut_features(*encoder.backbone_output(pixels, mask))
    for image, features in zip(alone, together, strict=True):
        torch.testing.assert_close(encoder.backbone_output(image[None])[0][0], features, rtol=1e-4, atol=1e-4)
    assert padding_leak(encoder) == 0
    # Nor do BatchNorm's statistics in training.
    norms = [module for module in encoder.modules() if isinstance(module, MaskedBatchNorm)]
    means = []
    for extra in (0, stride):
        torch.manual_seed(3)
        encoder.train()
        for norm in norms:
            norm.reset_running_stats()
        encoder.backbone_output(
            nn.functional.pad(pixels, (0, extra, 0, extra)), nn.functional.pad(mask, (0, extra, 0, extra))
        )
        means.append([norm.running_mean.clone() for norm in norms])
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-5)
    assert (backbone == "timm/convnext_atto") == (not norms)


@pytest.mark.parametrize(("backbone", "stride"), [("timm/seresnet18", 32), ("own_net:Pooled", 4)])
def test_one_that_sees_it_is_found(own, tiny_config, backbone, stride):
    encoder = VisualEncoder(tiny_config(backbone=backbone, backbone_stride=stride))
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert padding_leak(encoder) > 0.01
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in state.items()), (
        "it was tried on a copy"
    )


def test_frozen_stages_are_frozen(tiny_config):
    encoder = VisualEncoder(tiny_config(backbone="timm/resnet18", backbone_frozen_stages=2)).train()
    frozen = {name.partition(".")[0] for name, each in encoder.backbone.named_parameters() if not each.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    assert not encoder.backbone.bn1.training and encoder.backbone.layer2.training
    encoder.backbone_output(torch.randn(2, 3, 64, 64))[0].sum().backward()
    assert encoder.backbone.layer2[0].conv1.weight.grad is not None and encoder.backbone.conv1.weight.grad is None


@pytest.mark.parametrize(("backbone", "stride"), [("timm/resnet18", 32), ("own_net:Net", 8)])
def test_a_model_trains_and_is_saved_and_loaded(own, tiny_model, batch, tmp_path, backbone, stride):
    model = tiny_model(backbone=backbone, backbone_stride=stride).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    given = batch(size=(64, 64))
    model(**given).loss.backward()
    assert all(each.grad is not None for each in model.soho.visual_encoder.backbone.parameters())
    model.save_pretrained(tmp_path)
    loaded, missing = SohoForPreTraining.loaded_from(str(tmp_path))
    assert not missing
    expected, found = model.eval()(**given), loaded.eval()(**given)
    torch.testing.assert_close(found.itm_logits, expected.itm_logits)
    prepared = loaded.prepare_for_inference("float32")
    torch.testing.assert_close(prepared(**given).itm_logits, expected.itm_logits, rtol=1e-4, atol=1e-4)


def test_a_models_folder_has_nothing_imported(own, tiny_model, tmp_path, monkeypatch):
    tiny_model(backbone="own_net:Net", backbone_stride=8).save_pretrained(tmp_path)
    monkeypatch.delitem(sys.modules, "own_net")
    with pytest.raises(ValueError, match="own_net:Net is code that a file names, which alone may not have it"):
        SohoForPreTraining.from_pretrained(str(tmp_path))
    config = SohoConfig.from_preset(backbone="own_net:Net", backbone_stride=8)
    with pytest.raises(ValueError, match="import own_net before"):
        VisualEncoder(config)


def test_weights_of_a_file(tiny_model, tmp_path):
    torch.manual_seed(7)
    source = timm.create_model("convnext_atto")
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = tiny_model(backbone="timm/convnext_atto", backbone_stride=16)
    report = model.init_backbone_from(str(tmp_path / "weights.pt"))
    assert not report.missing
    own = model.soho.visual_encoder.backbone
    assert torch.equal(own.stem_0.weight, source.stem[0].weight)
    state = source.state_dict()
    del state["stages.0.blocks.0.conv_dw.weight"]
    for other in (state, timm.create_model("resnet10t").state_dict()):
        torch.save(other, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other\.pt (has no weights|lacks 1 tensors) of timm/convnext_atto"):
            model.init_backbone_from(str(tmp_path / "other.pt"))
    with pytest.raises(ValueError, match="expected a file with weights of timm/convnext_atto, got 'imagenet'"):
        model.init_backbone_from("imagenet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "timm/resnet81"}, "backbone: timm has no 'resnet81'; did you mean resnet"),
        ({"backbone": "timm/hf-hub:someone/net"}, "backbone: timm has no 'hf-hub:someone/net'"),
        ({"backbone": "resnet81"}, "backbone: expected one of resnet10, resnet18"),
        (
            {"backbone": "timm/resnet18", "backbone_stride": 12},
            "backbone_stride: expected one of 2, 4, 8, 16, 32, wher",
        ),
        ({"backbone": "timm/resnet18", "backbone_frozen_stages": 6}, "backbone_frozen_stages: expected 0 to 5, the st"),
        ({"backbone": "own_net:Net", "backbone_stride": 32}, "expected one of 4, 8, where a stage of own_net:Net ends"),
        ({"backbone": "own_net:Bare"}, "backbone: own_net has no Bare"),
    ],
)
def test_a_mistake_is_one_line(own, tiny_config, changes, message):
    with pytest.raises(ValueError) as error:  # the message is looked at
        VisualEncoder(tiny_config(**changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_features_of_another_shape_than_it_says_are_refused(own, tiny_config):
    encoder = VisualEncoder(tiny_config(backbone="own_net:Wrong", backbone_stride=4))
    with pytest.raises(ValueError, match=r"expected features \(2, 7, 3, 3\) of 12 pixels, got \(2, 6, 3, 3\)"):
        padding_leak(encoder)
