"""Asks the model of this folder:

    python run.py photo.jpg "a dog" "two cats"

Needs torch, pillow and tokenizers, and onnxruntime where the folder has graphs for ONNX. A model that compares two
images takes two files. about.json says what is asked, and how images become pixels.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from torch import Tensor


def load_stage(folder: Path, name: str) -> Callable[..., Any]:
    """The function of tensors that is `name`.pt2, or `name`.onnx."""
    if (folder / f"{name}.pt2").is_file():
        return torch.export.load(str(folder / f"{name}.pt2")).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
    names = [each.name for each in session.get_inputs()]
    return lambda *given: [
        torch.from_numpy(each)
        for each in session.run(None, dict(zip(names, (each.numpy() for each in given), strict=True)))
    ]


def pixels_of(paths: Sequence[str], image: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Files as a batch: pixel_values float32 (B, 3, H, W), pixel_mask bool (B, H, W). image: as in about.json."""
    resized = []
    for path in paths:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)
        edges = picture.height, picture.width
        scale = min(image["longest_edge"] / max(edges), image["shortest_edge"] / min(edges))
        height, width = (max(1, int(edge * scale + 0.5)) for edge in edges)
        if (height, width) != edges:
            pixels = F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=image["antialias"])[0]
        resized.append(pixels)
    divisor = image["size_divisor"]
    largest = (max(image["least_edge"], *(pixels.shape[axis] for pixels in resized)) for axis in (1, 2))
    height, width = (-(-edge // divisor) * divisor for edge in largest)
    pixel_values = torch.zeros(len(resized), 3, height, width)
    pixel_mask = torch.zeros(len(resized), height, width, dtype=torch.bool)
    mean, std = (torch.tensor(image[name]).view(3, 1, 1) for name in ("mean", "std"))
    for number, pixels in enumerate(resized):
        rows, columns = pixels.shape[1:]
        pixel_values[number, :, :rows, :columns] = (pixels.float() * image["rescale_factor"] - mean) / std
        pixel_mask[number, :rows, :columns] = True
    return pixel_values, pixel_mask


@torch.no_grad()
def ask(folder: Path, files: Sequence[str], texts: Sequence[str]) -> tuple[list[list[tuple[str, float]]], list[int]]:
    """Of each text its answers with their probabilities, best first, of a model that ranks the text itself with its
    own; and the codes of all images' patches, none of a model without a dictionary."""
    about = json.loads((folder / "about.json").read_text())
    visual, valid, *codes = load_stage(folder, "encode")(*pixels_of(files, about["image"]))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(about["text"]["max_tokens"])
    tokenizer.enable_padding(pad_id=about["text"]["pad_token"])
    encoded = tokenizer.encode_batch(list(texts))
    input_ids, attention_mask = (
        torch.tensor([getattr(each, name) for each in encoded]) for name in ("ids", "attention_mask")
    )
    index = torch.tensor([[0, 1]] if len(files) == 2 else [0]).repeat(len(texts), *[1] * (len(files) - 1))
    logits = load_stage(folder, "read")(visual, valid, input_ids, attention_mask, index)
    logits = logits if isinstance(logits, Tensor) else logits[0]
    score = logits.sigmoid() if about["question"] == "answer" else logits.softmax(-1)
    if about["question"] == "rank":
        answers = [[(text, float(score_A[1]))] for text, score_A in zip(texts, score, strict=True)]
    else:
        best = [score_A.topk(min(5, len(score_A))) for score_A in score]
        answers = [[(about["labels"][int(at)], float(value)) for value, at in zip(*top, strict=True)] for top in best]
    return answers, [code for code in codes[0].flatten().tolist() if code >= 0] if codes else []


def main(folder: Path, arguments: Sequence[str]) -> None:
    about = json.loads((folder / "about.json").read_text())
    names = about["images"]
    files, texts = arguments[: len(names)], arguments[len(names) :]
    if not texts:
        sys.exit(f"usage: python run.py {' '.join(f'{name}.jpg' for name in names)} TEXT ...")
    answers, codes = ask(folder, files, texts)
    for text, rows in zip(texts, answers, strict=True):
        if about["question"] != "rank":
            print(text)
        for answer, value in rows:
            print(f"{100 * value:5.1f} %  {answer}")
    if codes:
        print("codes", *codes)


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, sys.argv[1:])
