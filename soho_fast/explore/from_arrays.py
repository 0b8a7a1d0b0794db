"""The explorer of any codebook, from arrays: features or indices, codes and images.

N images (B of a batch), h x w patches of an image, C channels, Q levels of a codebook, K codes of each, H x W pixels.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from soho_fast import ops
from soho_fast.common.errors import print_line
from soho_fast.common.extras import from_extra
from soho_fast.explore.assemble import assemble, check_folder
from soho_fast.explore.licences import Licences, licence_of_all
from soho_fast.explore.sources import SeenImage, as_array, by_level, open_image, small_copy

with from_extra("explore"):
    from PIL import Image, ImageOps

    from soho_fast.common.images import to_rgb

# Looked up at a time: enough to keep the lookup busy, little beside the images.
_IMAGES_AT_A_TIME = 256
# A wall of more tiles is of no use.
_MOST_CODES = 2**18
# Of a label they would turn what follows it.
_BIDI_CONTROLS = re.compile("[\u202a-\u202e\u2066-\u2069]")

Array = np.ndarray | torch.Tensor
Arrays = Array | Sequence[Array]
Images = Array | Sequence[Array | Image.Image | str | os.PathLike[str] | bytes]
Captions = Sequence[str | Sequence[str]]
LicenceEntries = str | Licences | Sequence[Mapping[str, Any]] | None
Metric = Literal["euclidean", "cosine"]


def build_from_arrays(
    features: Arrays | None = None,
    codebook: Array | None = None,
    images: Images = (),
    folder: str | os.PathLike[str] = "explorer",
    *,
    index: Arrays | None = None,
    num_codes: int | None = None,
    metric: Metric = "euclidean",
    captions: Captions | None = None,
    names: Sequence[str] | None = None,
    labels: Sequence[str | None] | None = None,
    decoded: Arrays | None = None,
    window: float | None = None,
    title: str = "What the codes mean",
    licences: LicenceEntries = None,
    say: Callable[[str], None] = print_line,
) -> Path:
    """Write the explorer of a codebook: which patches of which images have each code, and what these have in common.

    Give `index`, the codes that your quantiser chose, or `features` and `codebook`: each feature's code is then the
    nearest one (`ops.codebook_lookup`, exact). All three also tell how far each patch lies from its code; without
    distances no patch is the nearest, and without a codebook there is no map. What does not fit into memory comes in
    batches: `build_from_batches`.

    Args:
        features: Floating point (N, h, w, C), or N of (h, w, C), of any number of patches each: what is quantised.
        codebook: Floating point (K, C), or of Q levels (Q, K, C): each codes what those before it leave of a feature
            (residual); or (Q, K, C / Q): each codes its part of the channels (grouped). Where it is None and there
            are features and an index of one level, the mean of each code's features stands for it.
        images: uint8 (N, H, W, 3), or N of (H, W, 3), of any size, or N PIL images, paths or contents of image files.
        folder: Where the explorer goes; one that is there is replaced, anything else is not overwritten.
        index: Integers (N, h, w) or of Q levels (N, h, w, Q), or N of them, 0 to K - 1; -1 where a patch has no code.
        num_codes: K where there is no codebook; as many as there are labels or images decoded, else up to the highest
            in the index, if not given.
        metric: What is nearest: "cosine" gives all features and codes the length 1; of grouped codes each part of a
            feature, of residual ones the feature alone and not what a level leaves of it.
        captions: N texts, or N lists of texts; words are found in them.
        names: What the images are called; the names of their files, or their numbers, if not given.
        labels: What each code is called, Q K of them, None where it has no name.
        decoded: uint8 (Q K, H, W, 3): what a decoder makes of each code.
        window: How much of an image a tile shows around a patch, such as the receptive field of a feature: its side in
            patches. If not given, 5 patches or 45 % of the images' shorter edge.
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
    codes = None if codebook is None else check_codebook(codebook, metric)
    per_image = {"features": features, "images": images, "captions": captions, "names": names, "index": index}
    num_images = _check_lengths(per_image, least=1)

    def batches() -> Iterator[dict[str, Any]]:
        for first in range(0, num_images, _IMAGES_AT_A_TIME):
            some = slice(first, first + _IMAGES_AT_A_TIME)
            yield {name: None if value is None else value[some] for name, value in per_image.items()}

    # All of it is looked at before anything is written.
    highest, sizes = -1, dict[str, int]()
    # A first pass, which keeps nothing but sizes; `ArraySource` takes a second one.
    for number, batch in enumerate(batches()):
        checked = check_batch(batch, codes, number * _IMAGES_AT_A_TIME, sizes)
        highest = max([highest, *(int(each.max()) for each in checked["index"] or ())])
    is_count = num_codes is None or (codes is None and num_codes in range(highest + 1, _MOST_CODES + 1))
    told = f"more than the highest code, {highest}, up to {_MOST_CODES}" if codes is None else "none with a codebook"
    _expect(is_count, "num_codes", told, repr(num_codes))
    if codes is not None:
        shape = codes.shape[:2]
    else:
        said = max(len(value) if isinstance(value, Sized) else 0 for value in (labels, decoded))
        shape = sizes["index"], int(num_codes or max(highest + 1, said // sizes["index"]))
        if features is not None:
            told = f"one, with features of {shape[0]} levels; or give no features"
            _expect(shape[0] == 1, "codebook", told, "none")
            codes = _means(map(lambda batch: check_batch(batch, None, 0, sizes), batches()), shape[1], metric)[None]
    # `batches` begins again: a generator is used up after one pass.
    source = ArraySource(batches(), images, codes, shape, metric, title, licences, num_images)
    return assemble(source, folder, say=say, **_check_of_codes(source.num_codes, labels, decoded, window))


def _means(batches: Iterable[Mapping[str, Any]], num_codes: int, metric: str) -> np.ndarray:
    """float32 (K, C), the mean of the features that have each code, by cosine all of length 1; 0 where none has."""
    counts: Any = 0
    sums: Any = 0
    for batch in batches:
        features = np.concatenate([each.reshape(-1, each.shape[2]) for each in batch["features"]])
        features = _of_length_1(features) if metric == "cosine" else features
        index = torch.from_numpy(np.concatenate([each.ravel() for each in batch["index"]])).long()
        more = ops.codebook_stats(torch.from_numpy(features), index, num_codes, wide=True)
        counts, sums = counts + more[0], sums + more[1]
    means = (sums / counts.clamp(min=1)[:, None]).float().numpy()
    return _of_length_1(means) if metric == "cosine" else means


def build_from_batches(
    batches: Iterable[Sequence[Any]],
    codebook: Array,
    folder: str | os.PathLike[str],
    *,
    metric: Metric = "euclidean",
    labels: Sequence[str | None] | None = None,
    decoded: Arrays | None = None,
    window: float | None = None,
    title: str = "What the codes mean",
    licences: LicenceEntries = None,
    num_images: int | None = None,
    say: Callable[[str], None] = print_line,
) -> Path:
    """As `build_from_arrays`, of images that come in batches, once each: memory does not grow with their number.

    Small copies of all images are on disk until it is known which are shown, some kilobytes each.

    Args:
        batches: (features, images), (features, images, captions), (features, images, captions, names) or (features,
            images, captions, names, index) of some images each, as `build_from_arrays` takes them, such as from a
            generator; features may be None where there is an index.
        codebook, folder, metric, labels, decoded, window, title, licences, say: See there.
        num_images: How many come, by which the time that is left is estimated.

    Raises:
        TypeError, ValueError, FileNotFoundError: As there, when a batch's turn comes; the folder is as it was then.
    """
    folder = Path(folder)
    check_folder(folder)
    codes = check_codebook(codebook, metric)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder.absolute().parent) as file:
        of_all = _Copies(file), codes, codes.shape[:2], metric, title, licences, num_images
        named = (dict(zip(_OF_A_BATCH, (*batch, None, None, None), strict=False)) for batch in batches)
        source = ArraySource(named, *of_all)
        return assemble(source, folder, say=say, **_check_of_codes(source.num_codes, labels, decoded, window))


_OF_A_BATCH = ("features", "images", "captions", "names", "index")


class _Copies:
    """Small copies of images that are gone when their batch is, in a file; paths as they are."""

    def __init__(self, file: Any) -> None:
        self._file, self._begins = file, list[int]()

    def add(self, image: Any) -> None:
        """Append one."""
        place = len(self._begins)
        # At the end, since reading one moves the position.
        self._begins.append(self._file.seek(0, os.SEEK_END))
        is_path = isinstance(image, (str, os.PathLike))
        pickle.dump(image if is_path else small_copy(_opened(image, place)), self._file)

    def __getitem__(self, place: int) -> Any:
        self._file.seek(self._begins[place])
        return pickle.load(self._file)


def _expect(holds: object, where: str, expected: str, got: object, error: type[Exception] = ValueError) -> None:
    if not holds:
        raise error(f"{where}: expected {expected}, got {got}")


def check_metric(metric: Any) -> None:
    """Raises ValueError: there is no such metric."""
    _expect(metric in ("euclidean", "cosine"), "metric", "euclidean or cosine", repr(metric))


def check_codebook(codebook: Any, metric: str = "euclidean") -> np.ndarray:
    """A codebook as float32 (Q, K, C), by cosine of length 1. Raises TypeError, ValueError: it is something else."""
    codes = _floats("codebook", codebook).copy()  # A mapped file can't be written to, of which torch would warn.
    is_shape = codes.ndim in (2, 3) and 0 not in codes.shape
    _expect(is_shape, "codebook", "(codes, channels) or (levels, codes, channels)", f"shape {codes.shape}")
    if not np.isfinite(codes).all():
        wrong = int(np.flatnonzero(~np.isfinite(codes.reshape(-1, codes.shape[-1])).all(1))[0])
        raise ValueError(f"codebook: code {wrong} holds values that are not finite")
    codes = codes.reshape(-1, *codes.shape[-2:])
    return _of_length_1(codes) if metric == "cosine" else codes


def _of_length_1(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.where(length > 0, length, 1)


def _check_of_codes(num_codes: int, labels: Any, decoded: Any, window: Any) -> dict[str, Any]:
    """What is said of each code and of tiles, as `assemble` takes it. Raises TypeError, ValueError: it is otherwise."""
    for name, value in (("labels", labels), ("decoded", decoded)):
        if value is not None:
            is_list = hasattr(value, "__len__") and not isinstance(value, str)
            got = len(value) if is_list else type(value).__name__
            _expect(got == num_codes, name, f"{num_codes}, one for each code", got)
    for code, image in enumerate(decoded if decoded is not None else ()):
        _check_image(image, f"decoded[{code}]", others=())
    is_window = window is None or (isinstance(window, (int, float)) and 1 <= window < np.inf)
    _expect(is_window, "window", "a number of patches, at least 1", repr(window))
    arrays = None if decoded is None else [as_array(image) for image in decoded]
    if labels is not None:
        labels = [label and (_BIDI_CONTROLS.sub("", label).strip() or None) for label in labels]
    return {"labels": labels, "decoded": arrays, "window": window}


@dataclass
class ArraySource:
    """A `Source` of batches of arrays.

    Args:
        batches: {features, images, captions, names, index} each, of which only images can't be None.
        shown: All images, by their place, or where those of batches are copied to.
        levels: The codebook, float32 (Q, K, C), see `check_codebook`, or None.
        shape: (Q, K).
        metric: See `build_from_arrays`.
        title: What the heading of the pages says.
        given: Licences; see `build_from_arrays`.
        num_images: How many there are, where that is known.
    """

    batches: Iterable[Mapping[str, Any]]
    shown: Images | _Copies
    levels: np.ndarray | None
    shape: tuple[int, ...]
    metric: str
    title: str
    given: LicenceEntries = None
    num_images: int | None = None
    model = "arrays"

    def __post_init__(self) -> None:
        check_metric(self.metric)
        self.num_levels, self.num_codes = self.shape[0], self.shape[0] * self.shape[1]
        self.codebook = None if self.levels is None else self.levels.reshape(self.num_codes, -1)
        self.data_sets = ["images"]
        given = licence_of_all(self.given) if isinstance(self.given, str) else self.given
        self._licences = given if isinstance(given, Licences) else Licences(given or [])
        self.licences = self._licences.entries  # That of what has none comes with the first such image.

    def images(self) -> Iterator[SeenImage]:
        first, sizes = 0, dict[str, int]()
        for given in self.batches:
            batch = check_batch(given, self.levels, first, sizes)
            images, captions, names = batch["images"], batch["captions"], batch["names"]
            for number, (index, distance) in enumerate(look_up(batch, self.levels, self.metric)):
                image = images[number]
                if isinstance(self.shown, _Copies):
                    self.shown.add(image)
                is_path = isinstance(image, (str, os.PathLike))
                path = Path(image).as_posix() if is_path else f"image {first + number}"
                # A folder that is sent away does not tell where the images lie on this machine.
                name = names[number] if names is not None else "/".join(path.split("/")[-2:])
                texts = () if captions is None else captions[number]
                texts = (texts,) if isinstance(texts, str) else tuple(texts)
                index = by_level(index, self.num_codes // self.num_levels)
                yield SeenImage(
                    index, distance, name, first + number, texts, 0, self._licences.of(path if names is None else name)
                )
            first += len(images)

    def small_copy(self, place: int) -> tuple[bytes, int, int]:
        image: Any = self.shown[place]
        if isinstance(image, tuple):
            return image  # It was made when its batch came.
        return small_copy(_opened(image, place))

    def masked(self, places: Sequence[int], captions: Sequence[str]) -> Iterator[None]:
        """Arrays have no model that predicts."""
        return iter(())


def _opened(image: Any, place: int) -> Image.Image:
    if isinstance(image, bytes):
        return open_image(io.BytesIO(image), f"images[{place}]")
    if isinstance(image, (str, os.PathLike)):
        return open_image(image, os.fspath(image))
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    return Image.fromarray(as_array(image))


def look_up(
    batch: Mapping[str, Any], levels: np.ndarray | None, metric: str
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """(index int32 (Q, h, w), distance float32 (Q, h, w) or None) of each image of a batch; one lookup for all.

    Args:
        batch: Of `check_batch`.
        levels: float32 (Q, K, C), or None, whose distances are not known.
        metric: See `build_from_arrays`.
    """
    features, given = batch["features"], batch["index"]
    if features is None or levels is None:
        return [(each, None) for each in given]
    if not features:
        return []
    sizes = [each.shape[:2] for each in features]
    rest = np.concatenate([each.reshape(-1, each.shape[2]) for each in features])
    index_QT = np.concatenate([each.reshape(len(levels), -1) for each in given], axis=1) if given else None
    channels = levels.shape[2]
    if metric == "cosine":
        rest = _of_length_1(rest.reshape(len(rest), -1, channels)).reshape(rest.shape)
    grouped = channels < rest.shape[1]
    found = []
    for level, codes in enumerate(levels):
        own = rest[:, level * channels : (level + 1) * channels] if grouped else rest
        if index_QT is None:
            code, squared = ops.codebook_lookup(torch.from_numpy(own), torch.from_numpy(codes), return_distance=True)
            index, distance = code.numpy().astype(np.int32), squared.sqrt().numpy()
        else:
            index = index_QT[level]
            # -1 reads the last code: such distances are written, and never looked at.
            distance = np.linalg.norm(own - codes[index], axis=1)
        found.append((index, distance))
        # A patch without a code leaves all of its feature to the next level.
        rest = rest if grouped else rest - np.where(index[:, None] < 0, 0, codes[index])
    ends = np.cumsum([rows * columns for rows, columns in sizes])[:-1]
    split = [np.split(np.stack(each), ends, axis=1) for each in zip(*found, strict=True)]
    return [(one.reshape(-1, *size), other.reshape(-1, *size)) for size, one, other in zip(sizes, *split, strict=True)]


def _floats(name: str, value: Any) -> np.ndarray:
    array = _array(name, value)
    _expect(array.dtype.kind == "f", name, "floating point", array.dtype, TypeError)
    return np.ascontiguousarray(array, dtype=np.float32)


def _array(name: str, value: Any, told: str = "an array or a tensor") -> np.ndarray:
    _expect(isinstance(value, (np.ndarray, torch.Tensor)), name, told, type(value).__name__, TypeError)
    return as_array(value)


def check_batch(
    batch: Mapping[str, Any], levels: np.ndarray | None, first: int, sizes: dict[str, int]
) -> dict[str, Any]:
    """A batch, of which image number `first` is the first: features float32 (h, w, C) each, index int32 (Q, h, w).

    sizes: Channels and levels of the first image of all, which others must have; filled here.
    """
    _check_lengths(batch)
    checked = dict(batch)
    is_enough = batch["index"] is not None or levels is not None
    _expect(is_enough, "codebook", "one, to look features up in, or an index", "neither")
    for name, check, axis, what in (("features", _check_features, 2, "channels"), ("index", _check_index, 0, "levels")):
        if batch[name] is None:
            continue
        checked[name] = []
        for number, value in enumerate(batch[name], first):
            array = check(value, levels, f"{name}[{number}]")
            size = sizes.setdefault(name, array.shape[axis])
            _expect(array.shape[axis] == size, f"{name}[{number}]", f"{size} {what}", array.shape[axis])
            checked[name].append(array)
    both = zip(checked["features"] or (), checked["index"] or (), strict=False)
    for number, (features, index) in enumerate(both, first):
        expected = f"the rows and columns of features, {features.shape[:2]}"
        _expect(index.shape[1:] == features.shape[:2], f"index[{number}]", expected, index.shape[1:])
    for number, image in enumerate(batch["images"], first):
        _check_image(image, f"images[{number}]")
    return checked


def _check_lengths(given: Mapping[str, Any], least: int = 0) -> int:
    """How many images there are; raises where these are no arrays or lists, as many of each."""
    first = "features" if given["features"] is not None else "index"
    _expect(given[first] is not None, "features, index", "one of them", "neither", TypeError)
    for name in (first, *given):
        value = given[name]
        if value is None and name != "images":
            continue
        is_list = hasattr(value, "__len__") and not isinstance(value, (str, bytes, set, Mapping))
        got = f"{type(value).__name__}{'; see build_from_batches' if isinstance(value, Iterator) else ''}"
        _expect(is_list, name, "an array or a list", got, TypeError)
        count = len(given[first])
        _expect(count >= least, first, "at least one image", "none")
        _expect(len(value) == count, name, f"{count}, one for each of {first}", len(value))
    return len(given[first])


def _check_features(features: Any, levels: np.ndarray | None, where: str) -> np.ndarray:
    array = _floats(where, features)
    channels = array.shape[-1:] if levels is None else (levels.shape[2], levels.shape[0] * levels.shape[2])
    named = "channels" if levels is None else " or ".join(map(str, dict.fromkeys(channels)))
    is_shape = array.ndim == 3 and array.shape[2] in channels and 0 not in array.shape
    _expect(is_shape, where, f"(rows, columns, {named}), with the codebook's channels", f"shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: holds values that are not finite")
    return array


def _check_index(index: Any, levels: np.ndarray | None, where: str) -> np.ndarray:
    """int32 (Q, h, w)."""
    array = _array(where, index)
    _expect(array.dtype.kind in "iu", where, "integers", array.dtype, TypeError)
    is_shape = array.ndim in (2, 3) and 0 not in array.shape
    _expect(is_shape, where, "(rows, columns) or (rows, columns, levels)", f"shape {array.shape}")
    array = array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)
    num_levels, num_codes = (len(array), _MOST_CODES) if levels is None else levels.shape[:2]
    _expect(len(array) == num_levels, where, f"{num_levels} levels, as the codebook has", len(array))
    is_code = array.min() >= -1 and array.max() < num_codes
    _expect(is_code, where, f"codes of -1 to {num_codes - 1}", f"{array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype=np.int32)


def _check_image(image: Any, where: str, others: tuple[type, ...] = (Image.Image, bytes)) -> None:
    """An array, or, where there are `others`, one of these or a file."""
    if others and isinstance(image, (str, os.PathLike)):
        if not os.path.isfile(image):
            raise FileNotFoundError(f"{where}: there is no file {os.fspath(image)}")
    elif not isinstance(image, others):
        array = _array(where, image, f"a uint8 array{', PIL image, path or bytes' if others else ''}")
        _expect(array.dtype == np.uint8, where, "uint8", array.dtype, TypeError)
        is_shape = array.ndim == 3 and array.shape[2] == 3 and 0 not in array.shape
        _expect(is_shape, where, "(height, width, 3)", f"shape {array.shape}")
