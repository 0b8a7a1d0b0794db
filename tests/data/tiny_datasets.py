"""Tiny data sets of images with captions, in every form that `datasets` has for them."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image


def jpeg(colour=(250, 10, 10), size=(48, 40)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, members) -> Path:
    """A tar of (name, bytes), each at a time with a fraction of a second, for which it gets a PAX header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000.25
            archive.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path: Path, rows: list[dict], **options) -> Path:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def about(key: str, caption: str | None, content: bytes | None) -> dict:
    """What img2dataset notes of an image."""
    failed = {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
    status = {"status": "success", "error_message": None} if content else failed
    return {"url": f"http://a/{key}", "caption": caption, "key": key, **status, "width": 48, "height": 40}


def write_img2dataset(folder: Path, images: list[tuple[bytes | None, str | None]], form: str, per_file: int = 5) -> str:
    """What img2dataset writes of (content, caption): form `webdataset`, with a .parquet of what it noted beside each
    .tar, or `parquet`. None as content is an image that could not be fetched. Returns the folder."""
    for first in range(0, len(images), per_file):
        number = first // per_file
        keys = [f"{number:05d}{place:04d}" for place in range(per_file)]
        rows = list(zip(keys, images[first : first + per_file], strict=False))
        noted = [about(key, caption, content) for key, (content, caption) in rows]
        (folder / f"{number:05d}_stats.json").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}_stats.json").write_text("{}")
        if form == "parquet":
            contents = [{"jpg": content} for _, (content, _) in rows]
            write_parquet(folder / f"{number:05d}.parquet", [a | b for a, b in zip(noted, contents, strict=True)])
            continue
        write_parquet(folder / f"{number:05d}.parquet", noted)
        members = []
        for (key, (content, caption)), note in zip(rows, noted, strict=True):
            if content is not None:
                members += [
                    (f"{key}.jpg", content),
                    (f"{key}.txt", (caption or "").encode()),
                    (f"{key}.json", json.dumps(note, indent=4).encode()),
                ]
        write_tar(folder / f"{number:05d}.tar", members)
    return str(folder)


FORMS = ("bytes", "images", "saved", "arrow", "tars", "paths")


def write_as(folder: Path, form: str, rows: list[tuple[bytes, list[str]]]) -> str:
    """Images with captions in one of `FORMS`; the path of the data set."""
    import datasets

    contents, captions = [content for content, _ in rows], [texts for _, texts in rows]
    folder.mkdir(parents=True, exist_ok=True)
    if form == "bytes":  # plain bytes, a column for each caption
        most = max(map(len, captions))
        columns = [{f"caption_{n}": (texts + [None] * most)[n] for n in range(most)} for texts in captions]
        images = [{"image": content} for content in contents]
        parts = [a | b for a, b in zip(images, columns, strict=True)]
        for number in range(0, len(parts), 5):
            write_parquet(folder / f"train-{number // 5:05d}.parquet", parts[number : number + 5], row_group_size=2)
        return str(folder)
    if form == "tars":
        for first in range(0, len(rows), 5):
            members = []
            for number, (content, texts) in list(enumerate(rows))[first : first + 5]:
                members += [(f"{number:04d}.jpg", content)]
                members += [(f"{number:04d}.json", json.dumps({"captions": texts}).encode())]
            write_tar(folder / f"{first:05d}.tar", members)
        return f"{folder}/*.tar"
    if form == "paths":  # images in files beside the data set
        for number, content in enumerate(contents):
            (folder / f"{number}.jpg").write_bytes(content)
        images = [{"bytes": None, "path": f"{number}.jpg"} for number in range(len(rows))]
        rows_of = [{"image": image, "captions": texts} for image, texts in zip(images, captions, strict=True)]
        return str(write_parquet(folder / "set.parquet", rows_of))
    features = datasets.Features({"image": datasets.Image(), "captions": [datasets.Value("string")]})
    images = [{"bytes": content, "path": f"{number}.jpg"} for number, content in enumerate(contents)]
    whole = datasets.Dataset.from_dict({"image": images, "captions": captions}, features=features)
    if form == "images":
        whole.to_parquet(folder / "set.parquet")
        return str(folder / "set.parquet")
    whole.save_to_disk(folder / "saved", num_shards=3)
    return str(folder / "saved") if form == "saved" else str(folder / "saved/*.arrow")
