"""Images with captions in a data set of Hugging Face `datasets`: parquet, arrow, or WebDataset's tars.

An image is read by the number of its row, in any order. Arrow files are mapped into memory where they lie. Parquet is
copied once into arrow files, in the cache of `datasets` (`HF_DATASETS_CACHE`): a row of parquet can't be read alone.
Tars are read where they lie; of these the cache has the captions, and where each image begins.
"""

import glob
import io
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Unpack

from soho_fast.common.extras import from_extra
from soho_fast.common.images import check_size, one_line
from soho_fast.common.spelling import did_you_mean
from soho_fast.data.readers.records import (
    AnyPath,
    CaptionReading,
    ImageRef,
    ImageTextRecord,
    ReadReport,
    check_text,
    drawn_split,
    is_blank,
)
from soho_fast.data.stores import IMAGE_SUFFIXES, FolderStore

# In a folder the first that is there counts: img2dataset writes a .parquet of addresses beside each .tar.
_SUFFIXES = (".tar", ".parquet", ".arrow")
# The first of these counts too; numbers may stand behind it: caption_0, caption_1.
_CAPTIONS = ("captions?", "texts?", "txt", "sentences?")
_MOST_TEXT = 2**24


@dataclass(unsafe_hash=True)  # by its path
class DatasetStore:
    """The images of a data set; their names are the numbers of their rows.

    Args:
        path: The data set's, for messages; files that it names lie in its folder.
        dataset: A `datasets.Dataset`, which is pickled as the paths of its files.
        column: Has bytes; or `bytes` and `path`, as `datasets.Image` has; or what `_rows_of_tars` gives.
    """

    path: str
    dataset: Any = field(repr=False, compare=False)
    column: str = field(compare=False)

    def __str__(self) -> str:
        return self.path

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_rows"}

    @cached_property
    def _rows(self) -> Any:
        return self.dataset.data.column(self.column)

    @cached_property
    def _folder(self) -> FolderStore:
        return FolderStore(os.path.abspath(self.path if os.path.isdir(self.path) else os.path.dirname(self.path)))

    def _row(self, name: str) -> dict[str, Any]:
        """What a row has of an image: values of arrow, of which nothing is copied; empty where it has none."""
        value = self._rows[int(name)]
        fields = dict(value) if hasattr(value, "keys") and value.is_valid else {"bytes": value}
        return {key: each for key, each in fields.items() if each.is_valid}

    def holds(self, name: str) -> bool:
        """Whether a row has an image, or the name of one."""
        return bool(self._row(name))

    def read(self, name: str) -> bytes:
        """The image's bytes. Raises OSError."""
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> IO[bytes]:
        """The image, to read no more of it than is needed. Raises OSError."""
        import pyarrow

        row = self._row(name)
        if "bytes" in row:
            content = row["bytes"].as_buffer()
            check_size(content.size)
            return pyarrow.BufferReader(content)
        if "offset" in row:
            check_size(row["size"].as_py())
            with open(row["path"].as_py(), "rb") as tar:
                tar.seek(row["offset"].as_py())
                return io.BytesIO(tar.read(row["size"].as_py()))
        return self._folder.open(row["path"].as_py())

    def size(self, name: str) -> int:
        """The image's size in bytes, without reading it. Raises OSError."""
        row = self._row(name)
        if "bytes" in row:
            return row["bytes"].as_buffer().size
        return row["size"].as_py() if "size" in row else self._folder.size(row["path"].as_py())

    def locate(self, name: str) -> str:
        """Tar and member, or file, or data set and row."""
        row = self._row(name)
        if "member" in row:
            return f"{row['path']}!{row['member']}"
        return f"{self.path}: row {name}" if "bytes" in row else self._folder.locate(row["path"].as_py())


def read_dataset(
    path: AnyPath,
    columns: Sequence[str] = (),
    splits: Collection[str] = (),
    **reading: Unpack[CaptionReading],
) -> list[ImageTextRecord]:
    """Images with captions, in the order of the rows; rows without an image or a caption are left out and counted.

    Args:
        path: What `save_to_disk` wrote of one split; a folder of .tar, .parquet or .arrow files; one such file; or a
            pattern of them, such as `cc3m/*.tar`.
        columns: The image's column, and those of captions; without any, see `_choose`.
        splits: Those to use, `train` and `val`, as `drawn_split` draws them; none takes all rows.
        reading: See `CaptionReading`; the set has the name of its folder or file. `missing_images` does not count.

    Raises:
        MissingExtraError: `datasets` is not installed.
        FileNotFoundError: There are no such files.
        ValueError: They can't be read, lack a column, or no row has an image and a caption.
    """
    path = str(path)
    if set(splits) - {"train", "val"}:
        raise ValueError(
            f"{path}: splits {', '.join(splits)}; expected some of train and val, into which the rows are drawn, or "
            "none. Of a data set that has splits of its own, give the path of one"
        )
    dataset = _load(path)
    image, texts = _choose(dataset.data.schema, columns, path)
    store, report = DatasetStore(path, dataset, image), reading.get("report") or ReadReport()
    found = Path(os.path.abspath(path))
    report.source = (found if found.exists() else found.parent).stem
    records = []
    for row, values in enumerate(zip(*(dataset.data.column(name).to_pylist() for name in texts), strict=True)):
        name = str(row)
        split = drawn_split(name, len(dataset))
        if splits and split not in splits:
            continue
        captions = [text for value in values for text in ([value] if isinstance(value, str) else value or ()) if text]
        for text in captions:
            check_text(text, f"{path}: row {row}: a caption")
        kept = tuple(text.strip() for text in captions if not is_blank(text))
        report.num_empty_captions += len(captions) - len(kept)
        if not kept:
            report.num_without_caption += 1
        elif not store.holds(name):
            report.num_missing += 1
            report.first_missing = report.first_missing or f"row {row}"
        else:
            kept = kept[: reading.get("max_captions")]
            records.append(ImageTextRecord(ImageRef(store, name), kept, name, report.source))
            report.num_captions += len(kept)
            report.count_split(split if splits else "")
    report.num_images = len(records)
    if not records:
        raise ValueError(f"{path}: no image with a caption was found in {len(dataset):,} rows; expected at least one")
    return records


def _choose(schema: Any, columns: Sequence[str], path: str) -> tuple[str, list[str]]:
    """The image's column and those of captions. Without `columns`: the first of images, whether with their paths or
    plain bytes, and of texts or lists of texts those that the first usual name has."""
    from pyarrow import types

    def is_image(kind: Any) -> bool:
        with_path = types.is_struct(kind) and {field.name for field in kind} & {"bytes", "offset"}
        return bool(with_path) or types.is_binary(kind) or types.is_large_binary(kind)

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
        return types.is_string(kind) or types.is_large_string(kind)

    images, texts = ([field.name for field in schema if fits(field.type)] for fits in (is_image, is_text))
    usual = ([name for name in texts if re.fullmatch(rf"{each}(_?\d+)?", name.lower())] for each in _CAPTIONS)
    image = columns[0] if columns else next(iter(images), "")
    captions = list(columns[1:]) or next(filter(None, usual), [])
    for wanted, there, what in ((image, images, "an image"), *((each, texts, "texts") for each in captions or [""])):
        if wanted not in there:
            lacking = f"no column {wanted!r} of {what}" if wanted else f"no column of {what}"
            listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise ValueError(
                f"{path}: {lacking}; expected columns: the image's, then those of captions, among {listed}"
                f"{did_you_mean(wanted, there)}"
            )
    return image, captions


def _load(path: str) -> Any:
    """A `datasets.Dataset` of the files at a path."""
    with from_extra("datasets"):
        import datasets

    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        raise ValueError(f"{path}: has several splits; expected the path of one of the folders in it")
    is_saved = os.path.isfile(os.path.join(path, "state.json"))
    files = [] if is_saved else _files(path)
    try:
        if is_saved:
            return datasets.load_from_disk(path)
        if files[0].endswith(".parquet"):
            return datasets.Dataset.from_parquet(files)
        if files[0].endswith(".arrow"):
            return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
        # By these, too, the cache is looked up: a tar that has changed is read again.
        tars = [(file, (status := os.stat(file)).st_size, status.st_mtime_ns) for file in files]
        text, number = datasets.Value("string"), datasets.Value("int64")
        kinds = {"image": {"path": text, "member": text, "offset": number, "size": number}, "captions": [text]}
        return datasets.Dataset.from_generator(
            _rows_of_tars, features=datasets.Features(kinds), gen_kwargs={"tars": tars, "version": 1}
        )
    except Exception as error:  # of any kind: arrow's own, tarfile's, OSError; a builder's has the reason as its cause
        reason = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ValueError(f"{path}: can't be read as a data set: {one_line(reason)}") from error


def _files(path: str) -> list[str]:
    """The files at a path, absolute: all have the same suffix."""
    if os.path.isdir(path):
        every = (sorted(glob.glob(f"{glob.escape(path)}/*{suffix}")) for suffix in _SUFFIXES)
        files = next(filter(None, every), [])
    else:
        files = [path] if os.path.isfile(path) else sorted(glob.glob(path))
    suffixes = {Path(file).suffix for file in files}
    if len(suffixes) != 1 or not suffixes <= set(_SUFFIXES):
        raise FileNotFoundError(
            f"{path}: holds no data set; expected {', '.join(_SUFFIXES)} files of one kind, or what save_to_disk wrote"
        )
    return [os.path.abspath(file) for file in files]


def _rows_of_tars(tars: Sequence[tuple[str, int, int]], version: int) -> Iterator[dict[str, Any]]:
    """Where the images of tars are, with their captions. Members that follow each other with one name up to its first
    dot are a sample; `version` is part of what the cache is looked up by."""
    for path, *_ in tars:
        try:
            with tarfile.open(path, "r:") as archive:
                files = (member for member in archive if member.isfile())
                for _, members in groupby(files, lambda member: re.match(r"(.*/)?[^.]*", member.name)[0]):  # type: ignore[index]
                    yield from _row_of_sample(archive, path, {m.name.lower(): m for m in members})
        except (tarfile.TarError, OSError, EOFError) as error:
            name = os.path.basename(path)
            raise ValueError(f"{name} is no whole tar without compression ({one_line(error)})") from error


def _row_of_sample(archive: tarfile.TarFile, path: str, members: dict[str, tarfile.TarInfo]) -> list[dict[str, Any]]:
    """The row of a sample; none of a sample without an image and a caption. Captions are `captions`, a list, in its
    .json, or else its .txt, or else `caption` in its .json; what can't be read is none."""

    def content(suffix: str) -> bytes:
        member = next((each for name, each in members.items() if name.endswith(suffix)), None)
        file = archive.extractfile(member) if member and member.size <= _MOST_TEXT else None
        return file.read() if file else b""

    try:
        about = json.loads(content(".json") or "{}")
    except (ValueError, RecursionError):
        about = {}
    about = about if isinstance(about, dict) else {}
    text = content(".txt").decode("utf-8-sig", "replace")
    texts = about["captions"] if isinstance(about.get("captions"), list) else [text or about.get("caption")]
    # Half a character, which JSON can spell and a file can't hold.
    captions = [each.encode("utf-8", "replace").decode() for each in texts if isinstance(each, str)]
    image = next((each for name, each in members.items() if name.endswith(IMAGE_SUFFIXES)), None)
    place = image and {"path": path, "member": image.name, "offset": image.offset_data, "size": image.size}
    return [{"image": place, "captions": captions}] if place or captions else []
