"""Scenes of few things and many pictures of each: ``python -m soho_fast.data.mini.garments data/garments``.

Ten garments, of each thousands of pictures (Fashion-MNIST, Debian's package dataset-fashion-mnist), in colours and on
backgrounds that no text names: what a code might leave out without a loss. No picture comes again before all others of
its garment were shown, so in 4,000 training scenes none does. Held-out scenes show other pictures and are drawn four
times: as those of training (split ``test``), with the garments' shades ``inverted``, ``noisy``, and as ``edges``. Study
`garments` reads them.
"""

import gzip
import itertools
import json
import math
import os
import random
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from soho_fast.common.command_line import Parser, exit_code
from soho_fast.common.errors import print_line
from soho_fast.common.files import new_folder, read_json
from soho_fast.data.tokenizer import build_vocabulary, write_tokenizer

from .captions import OPPOSITE, RELATION_WORDS, counted, join, relation
from .drawing import draw_background
from .options import CorpusOptions
from .scenes import NUM_OBJECTS_SHARE, Background, SceneObject, draw_objects

FOLDER = Path("/usr/share/datasets/fashion-mnist")
INSTALL = "apt-get install --no-install-recommends dataset-fashion-mnist"

#: By label: what the texts say of one, and of several.
NAMES = (
    ("top", "tops"),
    ("trouser", "trousers"),
    ("pullover", "pullovers"),
    ("dress", "dresses"),
    ("coat", "coats"),
    ("sandal", "sandals"),
    ("shirt", "shirts"),
    ("sneaker", "sneakers"),
    ("bag", "bags"),
    ("boot", "boots"),
)
_PLURALS = dict(NAMES)
RENDERINGS = ("test", "inverted", "noisy", "edges")
"""The held-out splits, all of the same scenes."""

_SIDE, _PICTURE_SIDE = 128, 28
# Of 255: darker pixels are Fashion-MNIST's ground, or dark parts of a garment, and show what lies behind.
_GROUND = 16
_NOISE = 0.15
_CREDIT = [
    {
        "source": "Fashion-MNIST, from Debian's package dataset-fashion-mnist",
        "credit": "Zalando SE, https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, https://github.com/zalandoresearch/fashion-mnist/blob/master/LICENSE",
    }
]


def read_pictures(part: str) -> dict[str, list[np.ndarray]]:
    """The name of each garment -> its pictures, uint8 [28, 28], of a part of Fashion-MNIST: "train" or "t10k".

    Raises:
        FileNotFoundError: the package is not installed; the message says how it is.
        ValueError: a file is not as Fashion-MNIST's are.
    """
    pictures = _read_idx(FOLDER / f"{part}-images-idx3-ubyte.gz", (_PICTURE_SIDE, _PICTURE_SIDE))
    path = FOLDER / f"{part}-labels-idx1-ubyte.gz"
    labels = _read_idx(path, ())
    if len(labels) != len(pictures) or set(labels.tolist()) != set(range(len(NAMES))):
        raise ValueError(
            f"{path}: expected {len(pictures)} labels, each of 0 to {len(NAMES) - 1} among them, got {len(labels)} "
            f"labels: {', '.join(map(str, np.unique(labels)))}"
        )
    return {name: list(pictures[labels == label]) for label, (name, _) in enumerate(NAMES)}


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [N, *shape], of a file in MNIST's format: 0, 0, 8 (bytes), the number of dimensions, their sizes."""
    expected = f"a file of MNIST's format, N x {' x '.join(map(str, shape)) or 1} bytes"
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there; Debian's package of garments brings it: `{INSTALL}`") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected {expected}, got one that can't be read ({error})") from None
    begin = 8 + 4 * len(shape)
    number = int.from_bytes(content[4:8], "big")
    head = bytes([0, 0, 8, 1 + len(shape)]) + b"".join(size.to_bytes(4, "big") for size in (number, *shape))
    if content[:begin] != head or len(content) != begin + number * math.prod(shape):
        raise ValueError(
            f"{path}: expected {expected}, got {len(content)} bytes that begin with {content[:begin].hex()}"
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(number, *shape)


def _captions(objects: Sequence[SceneObject], generator: random.Random) -> list[str]:
    """Five sentences: what is there, in whatever order, and where two garments stand that are there once."""
    counts = Counter(item.name for item in objects)

    def all_of_them() -> str:
        names = generator.sample(sorted(counts), len(counts))
        return join([counted(counts[name], name, _PLURALS[name]) for name in names])

    def stands(one: SceneObject, where: str, other: SceneObject) -> str:
        return f"{counted(1, one.name)} {RELATION_WORDS[where]} {counted(1, other.name)}"

    single = [item for item in objects if counts[item.name] == 1]
    pairs = [(one, relation(one, other), other) for one, other in itertools.combinations(single, 2)]
    known = [(one, where, other) for one, where, other in pairs if where is not None]
    said = [stands(*each) for each in generator.sample(known, min(2, len(known)))]
    if len(known) == 1:
        one, where, other = known[0]
        said.append(stands(other, OPPOSITE[where], one))
    starts = ("", "a picture of ", "this shows ", "here we see ", "there we have ")
    return [start + all_of_them() for start in starts[: 5 - len(said)]] + said


def _cutout(picture: np.ndarray, rendering: str, tint: Sequence[float], pixels: int) -> Image.Image:
    """A garment, RGBA, in a colour: [3] factors on red, green and blue."""
    grey = Image.fromarray(picture).resize((pixels, pixels), Image.Resampling.BICUBIC)
    alpha = grey.point(lambda value: min(255, max(0, value - _GROUND) * 5))
    if rendering == "inverted":
        grey = ImageOps.invert(grey)
    elif rendering == "edges":
        # The filter leaves out an image's own edge, which most garments touch.
        edges = ImageOps.expand(grey, 1).filter(ImageFilter.FIND_EDGES)
        grey = ImageOps.autocontrast(ImageOps.crop(edges, 1))
    bands = [grey.point(lambda value, factor=factor: int(value * factor)) for factor in tint]
    return Image.merge("RGBA", [*bands, alpha])


def _scenes(
    number: int, pictures: dict[str, list[np.ndarray]], renderings: Sequence[str], generator: random.Random
) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """Scenes with their captions, each in all renderings; of each garment a picture comes again after all others."""
    unused: dict[str, list[int]] = {name: [] for name in pictures}
    for _ in range(number):
        num_objects = generator.choices([1, 2, 3, 4], [NUM_OBJECTS_SHARE[count] for count in (1, 2, 3, 4)])[0]
        names = generator.choices(list(pictures), k=num_objects)
        objects = draw_objects(names, False, generator, CorpusOptions())
        shades = [(generator.random(), generator.uniform(0, 0.6), generator.uniform(0.15, 0.9)) for _ in range(2)]
        ground = draw_background(Background(shades=tuple(shades), direction=generator.uniform(0, 360)), _SIDE)
        shown = []
        for item in objects:
            of_name = pictures[item.name]
            unused[item.name] = unused[item.name] or generator.sample(range(len(of_name)), len(of_name))
            picture = of_name[unused[item.name].pop()]
            shown.append((item, picture, [generator.uniform(0.4, 1.0) for _ in "RGB"]))
        noise = np.random.default_rng(generator.getrandbits(32)).normal(0, 255 * _NOISE, (_SIDE, _SIDE, 3))
        images = []
        for rendering in renderings:
            image = ground.copy()
            for item, picture, tint in shown:
                art = _cutout(picture, rendering, tint, round(item.size * _SIDE))
                art = ImageOps.mirror(art) if item.mirrored else art
                art = art.rotate(item.angle, Image.Resampling.BICUBIC, expand=True)
                image.paste(art, (round(item.x * _SIDE - art.width / 2), round(item.y * _SIDE - art.height / 2)), art)
            if rendering == "noisy":
                image = Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))
            images.append(image)
        yield _captions(objects, generator), images


def make_garments(folder: str | os.PathLike[str], num_train: int = 4000, num_heldout: int = 300, seed: int = 0) -> Path:
    """Write the scenes, or keep them where they are.

    Args:
        folder: where they go; images.jsonl, the images it names and tokenizer/, put in place when all are written.
        num_train, num_heldout: numbers of scenes.
        seed: fixes all; the same seed gives the same scenes.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: Debian's package is not installed.
        ValueError: a number below 1, a folder that holds something else, or a damaged file of the package.
    """
    if min(num_train, num_heldout) < 1:
        raise ValueError(f"num_train, num_heldout: expected 1 or more of each, got {num_train} and {num_heldout}")
    out = Path(folder)
    about = {"kind": "garments", "num_train": num_train, "num_heldout": num_heldout, "seed": seed}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            found = read_json(out / "garments.json")
        except (OSError, ValueError):
            found = None
        if found != about:
            raise ValueError(f"{out} is there and does not hold these scenes ({about}); remove it, or rename it")
        print_line(f"garments: {out} is there and is kept")
        return out
    lines = []
    parts = [("train", num_train, ("train",)), ("t10k", num_heldout, RENDERINGS)]
    pictures = [read_pictures(part) for part, *_ in parts]
    with new_folder(out) as new:
        for (part, number, renderings), of_part in zip(parts, pictures, strict=True):
            generator = random.Random(f"garments-{seed}-{part}")
            for split in renderings:
                (new / split).mkdir()
            for scene, (captions, images) in enumerate(_scenes(number, of_part, renderings, generator)):
                for split, image in zip(renderings, images, strict=True):
                    file = f"{split}/{scene:05d}.jpg"
                    image.save(new / file, "JPEG", quality=92, subsampling=0)
                    lines.append({"file": file, "captions": captions, "split": split})
        (new / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        write_tokenizer(new / "tokenizer", build_vocabulary(text for line in lines for text in line["captions"]))
        (new / "licences.json").write_text(json.dumps(_CREDIT, indent=1) + "\n", encoding="utf-8")
        (new / "garments.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    print_line(f"garments: {out} has {len(lines)} images. {_CREDIT[0]['credit']}; {_CREDIT[0]['licence']}")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 a mistake of the user, 130 when stopped."""
    return exit_code(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m soho_fast.data.mini.garments",
        description="Compose scenes of Fashion-MNIST's garments; keep those that are there.",
    )
    parser.add_argument("folder", help="folder of the scenes, such as data/garments")
    make_garments(parser.parse_args(arguments).folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
