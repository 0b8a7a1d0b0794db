"""Backbones of timm, of transformers and of a user's own: stages, strides, padding, frozen stages, saved models."""

import json
import shutil
import sys
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

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
    with pytest.raises(ValueError, match="weights of timm/convnext_atto, or OWNER/NAME on the hub, got 'imagenet'"):
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


PATCH = {"clip": 8, "siglip": 8, "dinov2": 14, "vit": 16}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders with towers of transformers, CLIP's and SigLIP's with their text encoders."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
    wide = sizes | {"intermediate_size": 32}
    texts = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    for name, model in (
        ("clip", CLIPModel(CLIPConfig(text_config=texts, vision_config=wide | {"patch_size": 8}))),
        ("siglip", SiglipModel(SiglipConfig(text_config=texts, vision_config=wide | {"patch_size": 8}))),
        ("dinov2", Dinov2Model(Dinov2Config(patch_size=14, **sizes))),
        ("vit", ViTModel(ViTConfig(patch_size=16, **wide | {"image_size": 64}))),
    ):
        model.save_pretrained(folder / name)
    colours = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_processor_type": "SiglipImageProcessor"}
    (folder / "siglip/preprocessor_config.json").write_text(json.dumps(colours))
    return folder


def _tower(towers, tiny_config, name):
    """A configuration as a run has it, and the stride."""
    stride = 16 if name.startswith("timm/") else PATCH[name]
    backbone = name if name.startswith("timm/") else f"transformers/{towers / name}"
    given = SohoConfig.from_preset(backbone=backbone)
    return tiny_config(backbone=backbone, backbone_stride=stride, backbone_config=given.backbone_config), stride


@pytest.mark.parametrize("name", [*PATCH, "timm/vit_tiny_patch16_224"])
def test_a_tower_gives_an_image_the_features_that_it_has_alone(towers, tiny_config, name):
    """With what stands at padding, and in a patch that is partly outside."""
    config, stride = _tower(towers, tiny_config, name)
    encoder = VisualEncoder(config).train()
    alone, pixels, mask = _images(stride)
    alone.append(alone[0][:, :, :-3])
    pixels = torch.cat([pixels, nn.functional.pad(alone[2], (0, 2 * stride + 3, 0, 2 * stride))[None]])
    mask = torch.cat(
        [mask, nn.functional.pad(torch.ones(stride, 2 * stride - 3), (0, 2 * stride + 3, 0, 2 * stride))[None]]
    )
    pixels = torch.where(mask[:, None] == 1, pixels, 9.0)
    x, grid = encoder.backbone_output(pixels, mask)
    assert tuple(x.shape[2:]) == (3, 4) and not x[0, :, :, 2:].any() and not x[0, :, 1:].any()
    for image, features in zip(alone, cut_features(x, grid), strict=True):
        torch.testing.assert_close(encoder.backbone_output(image[None])[0][0], features, rtol=1e-4, atol=1e-5)
    assert padding_leak(encoder) == 0


@pytest.mark.parametrize("name", PATCH)
def test_a_tower_is_transformers_own_at_its_own_size(towers, tiny_model, tiny_config, name):
    """With its weights and as its images are normalised."""
    config, stride = _tower(towers, tiny_config, name)
    model = SohoForPreTraining(config).eval()
    report = model.init_backbone_from(str(towers / name))
    assert not report.missing and not report.unexpected
    source = AutoModel.from_pretrained(towers / name).eval()
    side = config.backbone_config["image_size"]
    colours = torch.rand(2, 3, side, side)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    wanted = (colours - 0.5) / 0.25 if name == "siglip" else (colours - mean) / std
    expected = getattr(source, "vision_model", source)(pixel_values=wanted).last_hidden_state
    expected = expected[:, -((side // stride) ** 2) :].transpose(1, 2)
    found, _ = model.soho.visual_encoder.backbone_output((colours - mean) / std)
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["clip", "timm/vit_tiny_patch16_224"])
def test_a_model_with_a_tower_trains_and_is_saved_without_its_folder(towers, tiny_config, batch, tmp_path, name):
    config, _ = _tower(towers, tiny_config, name)
    model = SohoForPreTraining(config).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    given = batch(size=(64, 64))
    model(**given).loss.backward()
    blocks = [
        each for key, each in model.soho.visual_encoder.named_parameters() if "layers." in key or "blocks." in key
    ]
    assert blocks and all(each.grad is not None and each.grad.any() for each in blocks)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(str(towers), "/nowhere"))
    loaded, missing = SohoForPreTraining.loaded_from(str(tmp_path))
    assert not missing
    expected = model.eval()(**given).itm_logits
    torch.testing.assert_close(loaded.eval()(**given).itm_logits, expected)
    prepared = loaded.prepare_for_inference("float32")
    torch.testing.assert_close(prepared(**given).itm_logits, expected, rtol=1e-4, atol=1e-4)


def test_weights_of_a_tower_of_timm(tiny_model, tmp_path):
    source = timm.create_model("vit_tiny_patch16_224")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = tiny_model(backbone="timm/vit_tiny_patch16_224", backbone_stride=16)
    assert not model.init_backbone_from(str(tmp_path)).missing
    assert torch.equal(model.soho.visual_encoder.backbone.net.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)


def test_a_users_own_network_is_given_images_without_padding(own, tiny_config, monkeypatch):
    monkeypatch.setattr(Pooled, "alone", True, raising=False)
    assert padding_leak(VisualEncoder(tiny_config(backbone="own_net:Pooled", backbone_stride=4))) == 0


@pytest.mark.parametrize("name", ["nowhere/at/all", "./nowhere"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_a_hub(towers, monkeypatch, name):
    monkeypatch.setattr("soho_fast.common.hub.hub_failure", lambda *_: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match=f"backbone: no configuration .* from '{name}'.*no such file or folder"):
        SohoConfig.from_preset(backbone=f"transformers/{name}")
    config = SohoConfig.from_preset(backbone=f"transformers/{towers / 'clip'}", backbone_stride=8, hidden_size=12)
    model = SohoForPreTraining(config)
    with pytest.raises(FileNotFoundError, match=f"init_backbone_from: no weights of CLIPVisionModel .* '{name}'"):
        model.init_backbone_from(name)


def test_what_is_no_tower_is_named(towers, tiny_config, tmp_path):
    BertConfig().save_pretrained(tmp_path)
    given = SohoConfig.from_preset(backbone=f"transformers/{tmp_path}").backbone_config
    with pytest.raises(ValueError, match=r"expected a vision tower of patches, .* of transformers' bert none"):
        VisualEncoder(tiny_config(backbone="transformers/x", backbone_config=given))
    config, _ = _tower(towers, tiny_config, "clip")
    deep = config.backbone_config | {"num_hidden_layers": 8000, "hidden_size": 8, "intermediate_size": 8}
    with pytest.raises(ValueError, match=r"expected at most 1,000 layers, got 8,000"):
        VisualEncoder(tiny_config(backbone="transformers/x", backbone_config=deep, backbone_stride=8))
    config.backbone_stride = 16
    with pytest.raises(ValueError, match=r"backbone_stride: expected one of 8, where a stage of .* ends, got 16"):
        VisualEncoder(config)
    shutil.copytree(towers / "clip", tmp_path / "part")
    state = load_file(tmp_path / "part/model.safetensors")
    del state["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(state, tmp_path / "part/model.safetensors", {"format": "pt"})
    config.backbone_stride = 8
    with pytest.raises(
        ValueError, match=r"part' lacks 1 tensors of CLIPVisionModel \(encoder.layers.1.mlp.fc1.weight\)"
    ):
        SohoForPreTraining(config).init_backbone_from(str(tmp_path / "part"))


def test_a_tower_is_not_trained_under_zero_3(towers, tiny_config):
    """Where ranks run it for other numbers of sizes, its backward would find parameters gone."""
    config, _ = _tower(towers, tiny_config, "clip")
    encoder = VisualEncoder(config)
    next(encoder.backbone.parameters()).ds_id = 0
    with pytest.raises(ValueError, match="backbone: a vision tower is not trained under ZeRO 3; freeze it"):
        encoder.backbone_output(torch.randn(1, 3, 16, 16))
    encoder.freeze_backbone()
    assert encoder.backbone_output(torch.randn(1, 3, 16, 16))[0].isfinite().all()
