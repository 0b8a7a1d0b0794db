"""Asks the model of this folder. Needs torch, and nothing else.

    python run.py photo.ppm 101 2054 2003 102

Images are binary PPM files here (P6, 8 bits; `convert photo.jpg photo.ppm`); what decodes others gives `Model.pixels`
uint8 tensors (3, height, width) all the same. The numbers are the tokens of a text, [CLS] and [SEP] included, as
tokenizer.json has them: `tokenizers.Tokenizer.from_file("tokenizer.json").encode("a dog").ids`. A model that compares
two images takes two files.

about.json says what the two compiled stages, encode.pt2 and read.pt2, take and give.
"""

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# The header of a PPM file, with spaces and comments between its parts.
_PPM = re.compile(rb"P6%s(\d{1,9})%s(\d{1,9})%s255\s" % ((rb"(?:\s|#[^\n]*\n)+",) * 3))


class Model:
    """A model that was exported into a folder.

    Attributes:
        about: what about.json holds.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        _check_files(folder)
        self.about: dict[str, Any] = json.loads((folder / "about.json").read_text())
        self._encode, self._read = (
            torch._inductor.aoti_load_package(str(folder / name)) for name in ("encode.pt2", "read.pt2")
        )

    @torch.no_grad()
    def pixels(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Images, uint8 (3, height, width), resized, normalised and padded to a batch: pixel_values, pixel_mask."""
        image = self.about["image"]
        for each in images:
            _check("image", each, torch.uint8, "3 height width", {})
        resized = [_resized(each, image) for each in images]
        divisor, least = image["size_divisor"], image["least_edge"]
        edges = (max(least, *(each.shape[axis] for each in resized)) for axis in (1, 2))
        height, width = (-(-edge // divisor) * divisor for edge in edges)
        pixel_values = torch.zeros(len(resized), 3, height, width)
        pixel_mask = torch.zeros(len(resized), height, width, dtype=torch.bool)
        std = torch.tensor(image["std"]).view(3, 1, 1)
        scale, shift = image["rescale_factor"] / std, -torch.tensor(image["mean"]).view(3, 1, 1) / std
        for number, each in enumerate(resized):
            rows, columns = each.shape[1:]
            pixel_values[number, :, :rows, :columns] = each.float().mul_(scale).add_(shift)
            pixel_mask[number, :rows, :columns] = True
        return pixel_values, pixel_mask

    @torch.no_grad()
    def encode(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        """The first stage, once for each image: (visual, valid), and of a model with a dictionary codes."""
        divisor, least = self.about["image"]["size_divisor"], self.about["image"]["least_edge"]
        sizes: dict[str, int] = {}
        _check("pixel_values", pixel_values, torch.float32, "images 3 height width", sizes)
        _check("pixel_mask", pixel_mask, torch.bool, "images height width", sizes)
        height, width = pixel_mask.shape[1:]
        if height % divisor or width % divisor or min(height, width) < least:
            expected = f"edges that are multiples of {divisor}, at least {least}"
            raise ValueError(f"pixel_values: expected {expected}, got {tuple(pixel_values.shape)}")
        return tuple(self._encode(pixel_values.contiguous(), pixel_mask.contiguous()))

    @torch.no_grad()
    def read(
        self, visual: Tensor, valid: Tensor, input_ids: Tensor, attention_mask: Tensor, image_index: Tensor
    ) -> Tensor:
        """The second stage, for each text: logits float32 (texts, labels).

        visual, valid: of the first stage. input_ids, attention_mask: int64 (texts, tokens); 0 in the mask at padding.
        image_index: int64 (texts,), the image of each; (texts, 2), left and right, of a model that compares.
        """
        text, compares = self.about["text"], len(self.about["images"]) == 2
        sizes = {"channels": self.about["channels"]}
        _check("visual", visual, torch.float32, "images patches channels", sizes)
        _check("valid", valid, torch.bool, "images patches", sizes)
        _check("input_ids", input_ids, torch.int64, "texts tokens", sizes)
        _check("attention_mask", attention_mask, torch.int64, "texts tokens", sizes)
        _check("image_index", image_index, torch.int64, "texts 2" if compares else "texts", sizes)
        if sizes["tokens"] > text["max_tokens"]:
            raise ValueError(f"input_ids: expected at most {text['max_tokens']} tokens, got {sizes['tokens']}")
        for name, numbers, limit in (
            ("input_ids", input_ids, text["vocab_size"]),
            ("image_index", image_index, len(visual)),
        ):
            if not 0 <= int(numbers.min()) <= int(numbers.max()) < limit:
                raise ValueError(f"{name}: expected 0 to {limit - 1}, got {int(numbers.min())} to {int(numbers.max())}")
        found = self._read(*(each.contiguous() for each in (visual, valid, input_ids, attention_mask, image_index)))
        return found if isinstance(found, Tensor) else found[0]

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """The model's own probability of each label; of one that ranks (texts,), that a text belongs to its image."""
        if self.about["question"] == "answer":
            return logits.sigmoid()
        return logits.softmax(-1)[:, 1] if self.about["question"] == "rank" else logits.softmax(-1)


def read_ppm(path: str | Path) -> Tensor:
    """A binary PPM file as uint8 (3, height, width)."""
    content = Path(path).read_bytes()
    header = _PPM.match(content)
    if header is None:
        raise ValueError(f"{path}: expected a binary PPM image of 8 bits (P6 WIDTH HEIGHT 255)")
    width, height, place = int(header[1]), int(header[2]), header.end()
    if len(content) - place < 3 * width * height or not width * height:
        raise ValueError(f"{path}: expected {width} x {height} pixels, got {len(content) - place} bytes")
    pixels = torch.frombuffer(bytearray(content[place : place + 3 * width * height]), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1)


def _check_files(folder: Path) -> None:
    """That the files are those that were exported, where SHA256SUMS lists them."""
    path = folder / "SHA256SUMS"
    for line in path.read_text(errors="replace").removesuffix("\n").split("\n") if path.is_file() else []:
        digest, name = line[:64], line[66:]
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder}: {name} is missing or has changed since it was exported; export it again")


def _check(name: str, value: object, dtype: torch.dtype, axes: str, sizes: dict[str, int]) -> None:
    """Raises ValueError: it is no tensor of this type and shape. `sizes`: those of axes by name, filled here; what is
    not there yet may be any but 0."""
    names, shape = axes.split(), tuple(value.shape) if isinstance(value, Tensor) else ()
    expected = [sizes.get(name, name) for name in names]
    pairs = zip(expected, shape, strict=False)
    fits = [size == int(axis) if str(axis).isdigit() else size > 0 for axis, size in pairs]
    if not isinstance(value, Tensor) or value.dtype != dtype or len(shape) != len(names) or not all(fits):
        got = f"{value.dtype} {shape}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected {dtype} ({', '.join(map(str, expected))}), got {got}")
    sizes.update(zip(names, shape, strict=True))


def _resized(pixels: Tensor, image: dict[str, Any]) -> Tensor:
    height, width = pixels.shape[1:]
    scale = min(image["longest_edge"] / max(height, width), image["shortest_edge"] / min(height, width))
    size = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    if size == (height, width):
        return pixels
    return F.interpolate(pixels.unsqueeze(0), size, mode="bilinear", antialias=image["antialias"])[0]


def main(arguments: list[str]) -> None:
    model = Model(Path(__file__).resolve().parent)
    shown = len(model.about["images"])
    files, ids = arguments[:shown], arguments[shown:]
    if len(files) < shown or not ids or not all(each.isdigit() for each in ids):
        raise ValueError(f"usage: python run.py {' '.join(f'{name}.ppm' for name in model.about['images'])} TOKEN ...")
    visual, valid, *codes = model.encode(*model.pixels([read_ppm(file) for file in files]))
    input_ids = torch.tensor([[int(each) for each in ids]])
    image_index = torch.arange(shown).unsqueeze(0) if shown > 1 else torch.zeros(1, dtype=torch.int64)
    scores = model.scores(model.read(visual, valid, input_ids, torch.ones_like(input_ids), image_index))
    if model.about["question"] == "rank":
        print(f"{100 * float(scores[0]):5.1f} %  that the text belongs to the image")
    else:
        best = scores[0].topk(min(5, scores.shape[1]))
        for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            print(f"{100 * score:5.1f} %  {ascii(model.about['labels'][place])[1:-1]}")
    if codes:
        print("codes", *(code for code in codes[0].flatten().tolist() if code >= 0))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
