"""The life of a dictionary on real pictures: python benchmarks/model/dictionary_life.py --pictures FOLDER

Pictures go through an ImageNet CNN once; a 1x1 convolution with the model's own random start and the max-pool make them
tokens. Each case is a `VisualDictionary` in training over random batches of these tokens, with the fields of SohoConfig
that it names. First the features stand still, as under a CNN that is frozen; then they move, step by step, as far as to
the tokens of a second draw of the 1x1 convolution, of which not a channel is like the first: what a CNN does to a
dictionary when it learns, without the losses. Printed of each case, at the end of each phase:

- used: codes that had a member in that phase;
- live, perplexity: `VisualDictionary.statistics`;
- error: mean squared distance to the nearest code, in units of the tokens' variance (1: as good as one code for all).
"""

import argparse
import io
import math
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from soho_fast.data.images import SohoImageProcessor, decode_image
from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.model.fast.cpu import speed_up_on_cpu
from soho_fast.model.normalization import TokenBatchNorm
from soho_fast.model.visual_dictionary import VisualDictionary

CASES = (
    "{}",
    "{dictionary_batch_norm: true}",
    "{code_reset_threshold: 0.02}",
    "{dictionary_init: data}",
    "{dictionary_init: data, code_reset_threshold: 0.02}",
)
_NAME = 52  # Width of the first column.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def qt_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in a Qt resource file (.rcc), by name: Debian's gcompris-qt-data keeps its photographs in these."""
    version, tree, contents, names = struct.unpack_from(">4xIIII", data)
    entry_size = 14 if version == 1 else 22  # Later versions end an entry with a time stamp.
    folders = [0]
    while folders:
        count, first = struct.unpack_from(">II", data, tree + folders.pop() * entry_size + 6)
        for number in range(first, first + count):
            name_at, flags, _, content_at = struct.unpack_from(">IHII", data, tree + number * entry_size)
            if flags & 2:
                folders.append(number)
                continue
            (length,) = struct.unpack_from(">H", data, names + name_at)
            name = data[names + name_at + 6 :][: 2 * length].decode("utf-16-be")
            (size,) = struct.unpack_from(">I", data, contents + content_at)
            content = data[contents + content_at + 4 :][:size]
            yield name, zlib.decompress(content[4:]) if flags & 1 else content


def read_pictures(folder: Path, smallest_edge: int) -> Iterator[Tensor]:
    """Pictures (uint8, 3 x H x W) in a folder or in Qt resource files there, without cut-outs and small ones."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (*_SUFFIXES, ".rcc")):
        data = path.read_bytes()
        for name, content in qt_resources(data) if path.suffix == ".rcc" else [(path.name, data)]:
            if not name.endswith(_SUFFIXES):
                continue
            with Image.open(io.BytesIO(content)) as image:
                opaque = image.convert("RGBA").getchannel("A").getextrema()[0] == 255
            if opaque and min(image.size) >= smallest_edge:
                yield decode_image(content)


def views(pixels_3HW: Tensor, num: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The picture, then random crops of it with 0.55 to 0.95 of its edges, every second one mirrored."""
    yield pixels_3HW
    for number in range(1, num):
        share, y, x = torch.rand(3, generator=generator).tolist()
        height, width = (round(edge * (0.55 + 0.4 * share)) for edge in pixels_3HW.shape[1:])
        top, left = round(y * (pixels_3HW.shape[1] - height)), round(x * (pixels_3HW.shape[2] - width))
        view = pixels_3HW[:, top : top + height, left : left + width]
        yield view.flip(2) if number % 2 else view


@torch.inference_mode()
def cnn_maps(arguments: argparse.Namespace) -> list[Tensor]:
    """Feature maps (C, H/32, W/32) of the CNN, half precision."""
    config = SohoConfig.from_preset("paper", backbone=arguments.backbone, num_hidden_layers=1, vocab_size=8)
    model = SohoForPreTraining(config).eval()
    print(model.init_backbone_from(arguments.weights))
    speed_up_on_cpu(model)
    processor = SohoImageProcessor(shorter_edge=arguments.shorter_edge, longer_edge=arguments.longer_edge)
    generator = torch.Generator().manual_seed(0)
    maps = []
    for pixels_3HW in read_pictures(arguments.pictures, arguments.smallest_edge):
        for view in views(pixels_3HW, arguments.views, generator):
            batch = processor.collate([processor.resize_one(view)])
            x_BCHW = model.soho.visual_encoder.run_backbone(batch["pixel_values"], {})
            maps.append(x_BCHW[0].half())
        if arguments.images and len(maps) >= arguments.images * arguments.views:
            break
    if not maps:
        raise ValueError(f"--pictures: no picture of {arguments.smallest_edge} pixels or more in {arguments.pictures}")
    return maps


def tokens(maps: Sequence[Tensor], channels: int, seed: int) -> list[Tensor]:
    """Each map's tokens (L, channels), through a 1x1 convolution as the model starts it and the max-pool."""
    torch.manual_seed(seed)
    config = SohoConfig.from_preset(
        "paper", backbone="resnet10", hidden_size=channels, num_attention_heads=1, num_hidden_layers=1, vocab_size=8
    )
    made = nn.Conv2d(len(maps[0]), channels, kernel_size=1)
    SohoForPreTraining(config)._init_weights(made)
    with torch.inference_mode():
        pooled = (F.max_pool2d(made(x_CHW.float()), 2, 2, ceil_mode=True) for x_CHW in maps)
        return [x_CHW.flatten(1).T.contiguous() for x_CHW in pooled]


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


class Life:
    """One case: a dictionary, and a BatchNorm before it if the case asks for one, in training."""

    def __init__(self, num_codes: int, channels: int, fields: dict) -> None:
        torch.manual_seed(0)
        config = SohoConfig.from_preset(
            "paper", **{"num_codes": num_codes, "hidden_size": channels, "num_attention_heads": 1, **fields}
        )
        self.dictionary = VisualDictionary(config).train()
        self.norm = TokenBatchNorm(channels).train() if config.dictionary_batch_norm else None
        self.used_K = torch.zeros(num_codes, dtype=torch.bool)

    @torch.no_grad()
    def step(self, feat_NC: Tensor) -> float:
        """Learns from N tokens; returns the error, see the top of this file."""
        feat_BLC, valid_BL = feat_NC.unsqueeze(0), torch.ones(1, len(feat_NC), dtype=torch.bool)
        if self.norm is not None:
            feat_BLC = self.norm(feat_BLC, valid_BL)
        embed_BLC, index_BL = self.dictionary(feat_BLC, valid_BL)
        self.used_K[index_BL.flatten()] = True
        return float((embed_BLC - feat_BLC).square().sum() / (feat_BLC - feat_BLC.mean(1)).square().sum())

    def figures(self, error: float) -> str:
        """What the phase came to; the next one starts."""
        perplexity, live, _ = self.dictionary.statistics()
        used = int(self.used_K.sum())
        self.used_K.zero_()
        return f"{used:8,d} {int(live):7,d} {float(perplexity):11,.0f} {error:7.2f}"


def batches(still: Sequence[Tensor], num_tokens: int, generator: torch.Generator) -> Iterator[list[int]]:
    """For ever: numbers of random images, all different, that hold at least so many tokens, or all images."""
    while True:
        chosen, total = [], 0
        for number in torch.randperm(len(still), generator=generator).tolist():
            chosen.append(number)
            total += len(still[number])
            if total >= num_tokens:
                break
        yield chosen


def live(fields: str, features: tuple[list[Tensor], list[Tensor]], arguments: argparse.Namespace) -> None:
    """Runs one case and prints its line."""
    before, after = features
    life = Life(arguments.codes, before[0].shape[1], yaml.safe_load(fields))
    drawn = batches(before, arguments.tokens, torch.Generator().manual_seed(1))
    lines = []
    for step in range(1, arguments.still + arguments.moving + 1):
        chosen = next(drawn)
        feat_NC = torch.cat([before[number] for number in chosen])
        if step > arguments.still:
            # On a circle, so that the features keep their size on the way.
            way = min(1.0, (step - arguments.still) / (arguments.way or arguments.moving))
            angle = math.pi / 2 * way
            feat_NC = math.cos(angle) * feat_NC + math.sin(angle) * torch.cat([after[number] for number in chosen])
        error = life.step(feat_NC)
        if step in (arguments.still, arguments.still + arguments.moving):
            lines.append(life.figures(error))
    print(f"{fields:{_NAME}s} {' |'.join(lines)}", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder of pictures, or of Qt resource files with pictures")
    parser.add_argument("--maps", type=Path, help="file to keep the CNN's maps in, or to take them from if it is there")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet", help="imagenet, or a file of the backbone's weights")
    parser.add_argument("--smallest-edge", type=int, default=200, help="smaller pictures are left out, as icons")
    parser.add_argument("--images", type=int, default=0, help="at most so many pictures; 0: all")
    parser.add_argument("--views", type=int, default=2, help="views of a picture: itself and crops")
    parser.add_argument("--shorter-edge", type=int, default=600)
    parser.add_argument("--longer-edge", type=int, default=1000)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--codes", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a step, at least")
    parser.add_argument("--still", type=int, default=100, help="steps with features that stand still")
    parser.add_argument("--moving", type=int, default=100, help="steps in which they move")
    parser.add_argument("--way", type=int, default=0, help="of these, steps that the whole way takes; 0: all")
    parser.add_argument("--case", action="append", help='fields of SohoConfig, like "{dictionary_init: data}"')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    if arguments.maps is not None and arguments.maps.exists():
        maps = torch.load(arguments.maps)
    else:
        maps = cnn_maps(arguments)
        if arguments.maps is not None:
            torch.save(maps, arguments.maps)
    features = tuple(tokens(maps, arguments.channels, seed) for seed in (1, 2))
    all_NC = torch.cat(features[0])
    mean_C = all_NC.mean(0)
    print(
        f"{len(maps)} images, {len(all_NC):,} tokens, {arguments.channels} channels of standard deviation "
        f"{rms(all_NC - mean_C):.2f} about a mean of {rms(mean_C):.2f} (root mean square over channels)"
    )
    columns = f"{'used':>8s} {'live':>7s} {'perplexity':>11s} {'error':>7s}"
    phases = [f"{name}, {num} steps" for name, num in (("still", arguments.still), ("moving", arguments.moving))]
    print(f"{'':{_NAME}s} {phases[0]:>36s} |{phases[1]:>36s}")
    print(f"{f'{arguments.codes} codes, {arguments.tokens} tokens a step':{_NAME}s} {columns} |{columns}")
    for fields in arguments.case or CASES:
        live(fields, features, arguments)


if __name__ == "__main__":
    main()
