"""The explorer of any codebook, from arrays: features, codes and images.

N images (B of a batch), h x w patches of an image, C channels, K codes, H x W pixels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soho_fast import ops
from soho_fast.common.extras import from_extra
from soho_fast.explore.assemble import assemble, check_folder
from soho_fast.explore.licences import Licences, licence_of_all
from soho_fast.explore.sources import ImageError, SeenImage, small_copy

with from_extra("explore"):
    from PIL import Image, ImageOps

    from soho_fast.common.images import FORMATS, MAX_PIXELS, to_rgb

# Looked up at a time: enough to keep the lookup busy, little beside the images.
_IMAGES_AT_A_TIME = 256

Features = np.ndarray | torch.Tensor | Sequence[np.ndarray | torch.Tensor]
Images = np.ndarray | torch.Tensor | Sequence[np.ndarray | torch.Tensor | str | os.PathLike[str]]
Captions = Sequence[str | Sequence[str]]
LicenceEntries = str | Sequence[Mapping[str, Any]] | None


def build_from_arrays(
    features: Features,
    codebook: np.ndarray | torch.Tensor,
    images: Images,
    folder: str | os.PathLike[str],
    *,
    captions: Captions | None = None,
    names: Sequence[str] | None = None,
    title: str = "What the codes mean",
    licences: LicenceEntries = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the explorer of a codebook: which patches of which images have each code, and what these have in common.

    Each feature's code is the nearest one (`ops.codebook_lookup`, exact). What does not fit into memory comes in
    batches: `build_from_batches`.

    Args:
        features: Floating point (N, h, w, C), or N of (h, w, C), of any number of patches each: what is quantised.
        codebook: Floating point (K, C).
        images: uint8 (N, H, W, 3), or N of (H, W, 3), of any size, or N paths of image files.
        folder: Where the explorer goes; one that is there is replaced, anything else is not overwritten.
        captions: N texts, or N lists of texts; words are found in them.
        names: What the images are called; the paths, or their numbers, if not given.
        title: What the pages are headed by.
        licences: Licence and credit of all images, or a list of {what, credit, licence}, with "images", patterns of
            names, where an entry does not hold for all. The licence is said to be unknown if not given.
        say: Called with each line of what is done.

    Returns:
        The folder; open its index.html.

    Raises:
        TypeError, ValueError: an argument has another type or shape, or values that are not finite. Nothing is written.
        FileNotFoundError: an image file is not there.
    """
    folder = Path(folder)
    check_folder(folder)
    codes = check_codebook(codebook)
    if isinstance(features, Iterator) or isinstance(images, Iterator):
        raise TypeError("features, images: expected arrays or lists, got an iterator; see build_from_batches")
    if isinstance(features, Sized) and not len(features):
        raise ValueError("features: expected at least one image, got none")
    _check_lengths(features, images, captions, names)

    def batches() -> Iterator[tuple[Any, ...]]:
        for first in range(0, len(features), _IMAGES_AT_A_TIME):
            some = slice(first, first + _IMAGES_AT_A_TIME)
            yield tuple(None if x is None else x[some] for x in (features, images, captions, names))

    # All of it is looked at before anything is written.
    for number, batch in enumerate(batches()):
        _check_batch(batch, codes.shape[1], number * _IMAGES_AT_A_TIME)
    source = ArraySource(batches(), codes, title=title, licences=licences, num_images=len(features))
    return assemble(source, folder, say=say)


def build_from_batches(
    batches: Iterable[Sequence[Any]],
    codebook: np.ndarray | torch.Tensor,
    folder: str | os.PathLike[str],
    *,
    title: str = "What the codes mean",
    licences: LicenceEntries = None,
    num_images: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """As `build_from_arrays`, of images that come in batches, once each: memory does not grow with their number.

    Small copies of all images are kept on disk until it is known which are shown, some kilobytes each.

    Args:
        batches: (features, images), (features, images, captions) or (features, images, captions, names) of some images
            each, as `build_from_arrays` takes them, such as from a generator.
        codebook, folder, title, licences, say: See there.
        num_images: How many come, by which the time that is left is estimated.

    Raises:
        TypeError, ValueError, FileNotFoundError: As there, when a batch's turn comes; the folder is as it was then.
    """
    folder = Path(folder)
    check_folder(folder)
    codes = check_codebook(codebook)
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected an iterable of (features, images), got {type(batches).__name__}")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder.absolute().parent) as kept:
        source = ArraySource(batches, codes, title=title, licences=licences, num_images=num_images, kept=kept)
        return assemble(source, folder, say=say)


def check_codebook(codebook: Any) -> np.ndarray:
    """A codebook as float32 (K, C). Raises TypeError, ValueError: it is something else."""
    codes = _floats("codebook", codebook)
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"codebook: expected (codes, channels), got shape {codes.shape}")
    if not np.isfinite(codes).all():
        wrong = int(np.flatnonzero(~np.isfinite(codes).all(1))[0])
        raise ValueError(f"codebook: code {wrong} holds values that are not finite")
    return codes


class ArraySource:
    """A `Source` of batches of arrays.

    Args:
        batches: (features, images, captions, names) each, the last two perhaps left out or None.
        codebook: float32 (K, C).
        title: What the heading of the pages says.
        licences: See `build_from_arrays`.
        num_images: How many there are, where that is known.
        kept: A file for small copies of arrays that are gone when their batch is; the arrays are held if None.
    """

    model = "arrays"
    num_levels = 1

    def __init__(
        self,
        batches: Iterable[Sequence[Any]],
        codebook: np.ndarray,
        *,
        title: str,
        licences: LicenceEntries = None,
        num_images: int | None = None,
        kept: Any = None,
    ) -> None:
        if isinstance(licences, str):
            licences = licence_of_all(licences)
        self.codebook, self.title, self.num_images = codebook, title, num_images
        self.data_sets = ["images"]
        self._licences = Licences(licences or [])
        self._batches, self._kept = batches, kept
        # Of each image its path or array; of one in the file of small copies (begin, end, width, height).
        self._shown: list[Any] = []

    @property
    def licences(self) -> list[dict[str, str]]:
        return self._licences.entries

    def images(self) -> Iterator[SeenImage]:
        first = 0
        for batch in self._batches:
            features, images, captions, names = _check_batch(batch, self.codebook.shape[1], first)
            maps = look_up(features, self.codebook)
            for number, (index, distance) in enumerate(maps):
                image = images[number]
                is_path = isinstance(image, (str, os.PathLike))
                self._shown.append(image if is_path or self._kept is None else self._keep(image))
                name = (
                    names[number] if names is not None else os.fspath(image) if is_path else f"image {first + number}"
                )
                texts = () if captions is None else captions[number]
                texts = (texts,) if isinstance(texts, str) else tuple(texts)
                yield SeenImage(index, distance, name, first + number, texts, 0, self._licences.of(name))
            first += len(features)

    def _keep(self, image: Any) -> tuple[int, int, int, int]:
        jpeg, width, height = small_copy(Image.fromarray(_array(image)))
        begin = self._kept.seek(0, os.SEEK_END)
        self._kept.write(jpeg)
        return begin, begin + len(jpeg), width, height

    def small_copy(self, place: int) -> tuple[bytes, int, int]:
        image = self._shown[place]
        if isinstance(image, tuple):
            begin, end, width, height = image
            self._kept.seek(begin)
            return self._kept.read(end - begin), width, height
        is_path = isinstance(image, (str, os.PathLike))
        return small_copy(open_image(image) if is_path else Image.fromarray(_array(image)))

    def masked(self, places: Sequence[int], captions: Sequence[str]) -> Iterator[None]:
        """Arrays have no model that predicts."""
        return iter(())


def look_up(features: Sequence[np.ndarray], codebook: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(index int32 (h, w), distance float32 (h, w)) of the features (h, w, C) of some images; one lookup for all."""
    if not features:
        return []
    sizes = [each.shape[:2] for each in features]
    flat = np.concatenate([each.reshape(-1, codebook.shape[1]) for each in features])
    index, squared = ops.codebook_lookup(torch.from_numpy(flat), torch.from_numpy(codebook), return_distance=True)
    ends = np.cumsum([rows * columns for rows, columns in sizes])[:-1]
    indices = np.split(index.numpy().astype(np.int32), ends)
    distances = np.split(squared.sqrt().numpy(), ends)
    return [
        (one.reshape(size), other.reshape(size)) for size, one, other in zip(sizes, indices, distances, strict=True)
    ]


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """An image file in RGB, upright. Raises ImageError: it can't be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.draft("RGB", (512, 512))  # Of a JPEG a half, quarter or eighth is decoded, at least that large.
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels; expected at most {MAX_PIXELS:,} in all")
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # A decoder meets damage with errors of any kind.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split(" <_io")[0]
        raise ImageError(f"{os.fspath(path)}: can't be read as an image ({reason})") from error


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)


def _floats(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        raise TypeError(f"{name}: expected an array or a tensor, got {type(value).__name__}")
    array = _array(value)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected floating point, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _check_batch(batch: Any, num_channels: int, first: int) -> tuple[list[np.ndarray], Any, Any, Any]:
    """(features float32 (h, w, C) each, images, captions, names) of a batch whose first image is number `first`."""
    if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 4:
        raise TypeError(
            "batches: expected (features, images), (features, images, captions) or (features, images, captions, "
            f"names), got {type(batch).__name__}{f' of {len(batch)}' if isinstance(batch, (tuple, list)) else ''}"
        )
    features, images, captions, names = (*batch, None, None)[:4]
    _check_lengths(features, images, captions, names)
    checked = [_check_features(each, num_channels, f"features[{first + n}]") for n, each in enumerate(features)]
    for number, image in enumerate(images):
        _check_image(image, f"images[{first + number}]")
    for number, texts in enumerate(captions if captions is not None else ()):
        if not isinstance(texts, str) and not (
            isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)
        ):
            raise TypeError(f"captions[{first + number}]: expected a text or a list of texts, got {texts!r:.60}")
    for number, name in enumerate(names if names is not None else ()):
        if not isinstance(name, str):
            raise TypeError(f"names[{first + number}]: expected a text, got {name!r:.60}")
    return checked, images, captions, names


def _check_lengths(features: Any, images: Any, captions: Any, names: Any) -> None:
    """That they are arrays or lists, as many of each; captions and names may be None."""
    given = {"features": features, "images": images, "captions": captions, "names": names}
    for name, value in given.items():
        if value is None and name in ("captions", "names"):
            continue
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            raise TypeError(f"{name}: expected an array or a list, got {type(value).__name__}")
        if len(value) != len(features):
            raise ValueError(f"{name}: expected {len(features)}, one for each of features, got {len(value)}")


def _check_features(features: Any, num_channels: int, where: str) -> np.ndarray:
    array = _floats(where, features)
    if array.ndim != 3 or array.shape[2] != num_channels or 0 in array.shape:
        raise ValueError(
            f"{where}: expected (rows, columns, {num_channels}), with the codebook's channels, got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: holds values that are not finite")
    return array


def _check_image(image: Any, where: str) -> None:
    if isinstance(image, (str, os.PathLike)):
        if not os.path.isfile(image):
            raise FileNotFoundError(f"{where}: there is no file {os.fspath(image)}")
        return
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise TypeError(f"{where}: expected a uint8 array or a path, got {type(image).__name__}")
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise TypeError(f"{where}: expected uint8, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{where}: expected (height, width, 3), got shape {tuple(image.shape)}")
