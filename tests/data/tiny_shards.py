"""Tiny shards, written member by member with the standard library alone."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

MADE_AT = 1_700_000_000.25  # A fraction: WebDataset's writer gives each member a PAX header for it.


def jpeg(colour=(250, 10, 10), size=(48, 40)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, members, *, format=tarfile.PAX_FORMAT) -> Path:
    """A tar of (name, bytes) or TarInfo, at a time with a fraction of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), MADE_AT if format == tarfile.PAX_FORMAT else int(MADE_AT)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, caption: str | None = "a dog", *, colour=(250, 10, 10), size=(48, 40), **more):
    """The members of a sample as img2dataset writes them: jpg, txt, json."""
    members = [(f"{key}.jpg", jpeg(colour, size))]
    if caption is not None:
        members.append((f"{key}.txt", caption.encode()))
    about = {"caption": caption, "key": key, "status": "success", "error_message": None, **more}
    return [*members, (f"{key}.json", json.dumps(about, indent=4).encode())]


def write_karpathy_set(folder: Path, corpus: Path, splits: list[str], per_shard: int) -> str:
    """Indexed shards of a Karpathy set in a folder, with its captions. Returns them as one path."""
    from soho_fast.data.readers.captions import read_karpathy
    from soho_fast.data.shards.indexing import build_index

    records = read_karpathy(corpus / "dataset_coco.json", corpus, splits)
    num_shards = -(-len(records) // per_shard)
    for shard in range(num_shards):
        members = []
        for record in records[shard * per_shard : (shard + 1) * per_shard]:
            about = {"captions": record.captions, "image_id": record.image_id}
            members += [(record.image.name, record.image.read())]
            members += [(f"{record.image.name.rpartition('.')[0]}.json", json.dumps(about).encode())]
        build_index(str(write_tar(folder / f"{shard:05d}.tar", members)))
    return str(folder / f"{{00000..{num_shards - 1:05d}}}.tar")


def write_set(folder: Path, num_shards: int = 3, per_shard: int = 4) -> str:
    """Indexed shards as img2dataset numbers them; each image and caption is another. Returns them as one path."""
    from soho_fast.data.shards.indexing import build_index

    for shard in range(num_shards):
        members = []
        for number in range(per_shard):
            place = shard * per_shard + number
            colour = (place * 37 % 256, place * 11 % 256, place * 5 % 256)
            caption = f"image{place} of shard{shard}"
            members += sample(f"{shard:05d}{number:04d}", caption, colour=colour, size=(40 + place, 40))
        build_index(str(write_tar(folder / f"{shard:05d}.tar", members)))
    return str(folder / f"{{00000..{num_shards - 1:05d}}}.tar")
