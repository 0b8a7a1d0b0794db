"""Writes shards of a data set that one of the readers reads, so that WebDataset's users and this package can read them.

A sample is the image under its own name and, where the set has captions, a `.json` beside it with `captions` (and
`image_id`, where it is not the image's name). Sets of questions, statements and hypotheses give their images alone:
their annotation files stay as they are, and name the images as before.

What is written can be compared with its index, and decoded.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from soho_fast.common.errors import CorruptImageError
from soho_fast.common.files import scratch_beside
from soho_fast.data.readers.formats import CAPTION_FORMATS, FORMATS_OF, read_captions
from soho_fast.data.readers.json_lines import read_json_lines_questions
from soho_fast.data.readers.questions import read_easy_vqa, read_vqa
from soho_fast.data.readers.records import ImageRef, ReadReport, fingerprint
from soho_fast.data.readers.statements import Nlvr2Record, read_nlvr2, read_snli_ve
from soho_fast.data.shards.index import index_path, key_of, read_index
from soho_fast.data.shards.indexing import IMAGE_SUFFIXES, build_index, read_contents
from soho_fast.data.shards.store import TarStore

_DIGITS = 5


@dataclass(frozen=True, slots=True)
class ShardSample:
    """An image to be written, with what is said of it; None where it goes alone."""

    image: ImageRef
    captions: tuple[str, ...] | None
    image_id: str


_TEXTS: dict[str, Callable[..., Sequence[Any]]] = {
    "json_lines_questions": read_json_lines_questions,
    "vqa": read_vqa,
    "easy_vqa": read_easy_vqa,
    "nlvr2": read_nlvr2,
    "snli_ve": read_snli_ve,
}

FORMATS = (*CAPTION_FORMATS, *_TEXTS)


def read_samples(source: argparse.Namespace, report: ReadReport) -> list[ShardSample]:
    """The images of a set, in its order, checked for names that a shard can hold.

    Args:
        source: `format`, one of `FORMATS`, and the options of the command `write` that say where it lies and what is
            left out.
        report: Filled with what was found and left out.

    Raises:
        FileNotFoundError, ValueError: As the readers; ValueError where two names are one to WebDataset.
    """
    for name, formats in {**FORMATS_OF, "images": FORMATS, "max_captions": CAPTION_FORMATS}.items():
        if getattr(source, name, None) not in (None, [], ()) and source.format not in formats:
            raise ValueError(f"--{name.replace('_', '-')}: format {source.format} has none; leave it out")
    if source.format == "visual_genome" and source.image_data is None:
        raise ValueError("--image-data: expected the path of Visual Genome's image_data.json")
    if source.format in CAPTION_FORMATS:
        captioned = read_captions(source.format, vars(source), report)
        samples = [ShardSample(record.image, record.captions, record.image_id) for record in captioned]
    else:
        read = _TEXTS[source.format]
        records = read(source.annotations, source.images, missing_images=source.missing_images, report=report)
        images_of = ((each.left, each.right) if isinstance(each, Nlvr2Record) else (each.image,) for each in records)
        images = {str(image): image for images in images_of for image in images}
        samples = [ShardSample(image, None, "") for image in images.values()]
    name_of: dict[str, str] = {}
    for sample in samples:
        name = sample.image.name
        if name.rpartition(".")[2].lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"{sample.image}: expected a name that ends in one of .{', .'.join(sorted(IMAGE_SUFFIXES))}"
            )
        if name.startswith("/"):
            raise ValueError(f"{sample.image}: a path from the root can't be in a shard; name it below its folder")
        other = name_of.setdefault(key_of(name).lower(), name)
        if other is not name:
            raise ValueError(
                f"{sample.image}: in a shard it would be one sample with {other}: names count up to their first dot, "
                "and case does not; rename one"
            )
    return samples


def shard_names(folder: Path, num_samples: int, per_shard: int) -> list[str]:
    """Paths of the shards."""
    return [str(folder / f"{number:0{_DIGITS}d}.tar") for number in range(-(-num_samples // per_shard))]


def range_of(paths: Sequence[str]) -> str:
    """The paths of `shard_names` as one path."""
    first, last = (Path(path).stem for path in (paths[0], paths[-1]))
    return paths[0] if len(paths) == 1 else str(Path(paths[0]).parent / f"{{{first}..{last}}}.tar")


def write_shards(
    samples: Sequence[ShardSample], folder: Path, *, per_shard: int, shuffle: int | None = None
) -> Iterator[tuple[str, int, bool]]:
    """Write samples into shards with their indexes, each whole or not at all; keep those that are there already.

    Args:
        samples: What to write.
        folder: Where to.
        per_shard: Images of a shard, at least 1.
        shuffle: Seed of a random order, at least 0; None keeps that of `samples`.

    Yields:
        (path, images, whether it was written now) of each shard, when it is there.

    Raises:
        ValueError: A shard holds something else than would be written; its images are read to know.
        OSError: An image can't be read, or a shard not written.
    """
    order = np.arange(len(samples)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(samples))
    folder.mkdir(parents=True, exist_ok=True)
    paths = shard_names(folder, len(samples), per_shard)
    others = sorted(path for path in folder.glob("*.tar") if str(path) not in paths)
    if others:
        raise ValueError(f"{others[0]}: a shard that is none of these {len(paths):,}; give another folder")
    for number, path in enumerate(paths):
        own = [samples[row] for row in order[number * per_shard : (number + 1) * per_shard]]
        written_from = fingerprint(
            (sample.image.name for sample in own),
            (sample.image_id for sample in own),
            (caption for sample in own for caption in (*(sample.captions or ()), "")),
        )
        there = os.path.exists(path)
        if there:
            try:
                is_same = read_index(path).written_from == written_from and _holds(path, own)
            except (FileNotFoundError, ValueError) as error:
                raise ValueError(f"{path} is in the way: {error}; or give another folder") from None
            if not is_same:
                raise ValueError(f"{path}: was written from other images or captions; give another folder")
        else:
            _write(own, path, written_from)
        yield path, len(own), not there


def _holds(path: str, samples: Sequence[ShardSample]) -> bool:
    """Whether the images in a shard are still those that it was written from, byte by byte."""
    from soho_fast.data.overlap import content_of  # loads transformers

    store = TarStore(path)
    images = [sample.image for sample in samples]
    return content_of(images) == content_of(ImageRef(store, image.name) for image in images)


def _write(samples: Sequence[ShardSample], path: str, written_from: str) -> None:
    with scratch_beside(Path(path)) as folder:
        folder.mkdir()
        scratch = str(folder / "new.tar")
        # GNU's format names files of any length in any script; what else there would be in a header is left at 0.
        with open(scratch, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as archive:
                for sample in samples:
                    _add(archive, sample.image.name, sample.image.read())
                    if sample.captions is not None:
                        key = key_of(sample.image.name)
                        own_id = {"image_id": sample.image_id} if sample.image_id != key else {}
                        about = {"captions": sample.captions, **own_id}
                        _add(archive, f"{key}.json", json.dumps(about, ensure_ascii=False).encode())
            file.flush()
            os.fsync(file.fileno())
        build_index(scratch, written_from)
        os.replace(index_path(scratch), index_path(path))
        os.replace(scratch, path)  # Last: a shard that is there has its index.


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def check_shard(shard: str, *, decode: bool) -> list[str]:
    """Read a shard from end to end.

    Args:
        shard: Path of the tar.
        decode: Decode each image too.

    Returns:
        A line for each image that can't be decoded.

    Raises:
        FileNotFoundError, ValueError: The shard does not follow the format, or its index is missing, stale, damaged or
            does not match the shard.
    """
    from soho_fast.data.images import decode_image  # which loads torchvision

    index = read_index(shard)
    with open(shard, "rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
        arrays, counts = read_contents(content, shard)
        different = [name for name, array in arrays.items() if not np.array_equal(array, getattr(index, name))]
        # An index of an earlier version does not list what is left out.
        if different or replace(counts, left_out=[]) != replace(index.counts, left_out=[]):
            raise ValueError(
                f"{index_path(shard)}: does not match {shard}: {', '.join(different) or 'counts'} differ; "
                f"make it again with: python -m soho_fast.data.shards index {shard} --again"
            )
        corrupt = []
        for row in range(len(index)) if decode else ():
            begin = int(index.offset[row])
            try:
                decode_image(content[begin : begin + int(index.size[row])])
            except CorruptImageError as error:
                corrupt.append(f"{shard}!{index.name(row)}: {error}")
    return corrupt
