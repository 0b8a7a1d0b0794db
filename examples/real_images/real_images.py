"""A folder of 1,392 real images with captions that people wrote, out of three of Debian's packages.

    python examples/real_images/real_images.py my_images

writes images.jsonl, images/ and licences.json, which recipe `own` and the explorer read. The packages (245 MB) are
fetched by `apt-get download` and read without being installed. Each is of one version, which Debian's archive replaces
some months later: then fetch that file from https://snapshot.debian.org and put it into the folder of `--cache`.
"""

import argparse
import hashlib
import io
import json
import re
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

LONGER_EDGE, SHORTEST_EDGE = 256, 24
# Of a drawing most neighbouring pixels are equal, or its colours are few. Set by looking at all of Tux Paint's stamps:
# of 329 that are kept about ten are drawings, of 250 that are not about forty are photographs.
MOST_EQUAL, LEAST_BITS, LEAST_PIXELS = 0.16, 4.8, 400
# Root mean square differences of thumbnails, of 255: images that differ less are the same; or too much alike to be held
# out.
SAME, ALIKE = 8.0, 16.0
# Of the images that may be held out, which are less than all.
HELD_OUT_SHARE = 0.35


@dataclass
class Found:
    """An image in a package: its path there, its file, its captions (the name first), its licence and its authors."""

    path: str
    content: bytes
    captions: tuple[str, ...]
    licence: str
    credit: str
    package: str = field(init=False)
    image: Image.Image = field(init=False)

    @property
    def file(self) -> str:
        """Where it is written."""
        path = f"{self.package}/{Path(self.path).with_suffix('')}"
        name = re.sub(r"[^\w.-]+", "_", path, flags=re.ASCII)
        return f"images/{name}.jpg"

    def words(self) -> frozenset[str]:
        """Those of the name, without articles, digits and plurals."""
        words = re.findall(r"[^\W\d_]+", self.captions[0].lower())
        return frozenset(word.rstrip("s") for word in words) - {"a", "an", "the", "of"}


def fetch(name: str, version: str, sha256: str, cache: Path) -> dict[str, bytes]:
    """The files of a package that are read here, by their names; the package is fetched where the cache lacks it.

    Raises SystemExit: it can't be fetched, or its file is another one.
    """
    path = cache / f"{name}_{version}_all.deb"
    if not path.is_file():
        print(f"fetching {path.name}")
        cache.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", f"{name}={version}"], cwd=cache, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            advice = f"fetch {path.name} from https://snapshot.debian.org and put it into {cache}"
            raise SystemExit(f"error: {name}: apt-get can't fetch version {version} ({error}); {advice}") from error
    deb = path.read_bytes()
    if (digest := hashlib.sha256(deb).hexdigest()) != sha256:
        raise SystemExit(f"error: {path}: expected a file of SHA-256 {sha256}, got {digest}; delete it to fetch again")
    # A .deb is an `ar` archive, see deb(5): headers of 60 bytes, a part's size in bytes 48 to 57; parts begin at even
    # places.
    at, size = 8, 0
    while not deb.startswith(b"data.tar", at):
        size = int(deb[at + 48 : at + 58])
        at += 60 + size + size % 2
    wanted = ("/copyright", ".png", ".txt", ".rcc", ".sh3f")
    with tarfile.open(fileobj=io.BytesIO(deb[at + 60 : at + 60 + int(deb[at + 48 : at + 58])])) as tar:
        members = [member for member in tar if member.isfile() and member.name.endswith(wanted)]
        return {member.name.removeprefix("./"): tar.extractfile(member).read() for member in members}


def read_rcc(content: bytes) -> dict[str, bytes]:
    """The files in one of Qt's resource files by name, in the order of its tree, as Qt's `rcc` writes it.

    All numbers are big-endian: "qres", the format's version, the offsets of tree, data and names. A node of the tree is
    its name's offset, flags and, of a folder, how many nodes it holds and which is the first, of a file, country,
    language and the offset of its data; from version 2 on also a time stamp. A name is its length, a hash and UTF-16.
    """

    def numbers(layout: str, at: int) -> tuple:
        return struct.unpack_from(f">{layout}", content, at)

    version, tree, data, names = numbers("4I", 4)
    found = {}
    pending = [(0, "")]  # node 0 is the root, which has no name
    while pending:
        node, folder = pending.pop()
        start, flags, size, first = numbers("IHII", tree + node * (14 if version == 1 else 22))
        length, _ = numbers("HI", names + start)
        name = content[names + start + 6 : names + start + 6 + 2 * length].decode("utf-16-be") if node else ""
        path = f"{folder}/{name}".removeprefix("/")
        if flags & 2:  # a folder; its last node comes off first
            pending += [(child, path) for child in reversed(range(first, first + size))]
        else:
            at = data + first + 4
            packed = content[at : at + numbers("I", data + first)[0]]
            found[path] = zlib.decompress(packed[4:]) if flags & 1 else packed
    return found


def rights_of(files: Mapping[str, bytes]) -> Callable[[str], tuple[str, str]]:
    """What gives a file's licence and authors, by a package's copyright file: Debian's machine-readable format 1.0.

    In that format the last paragraph that names a file holds. A file's suffix does not count here: images were saved in
    another format after the paragraphs had been written.
    """
    text = next(content for name, content in files.items() if name.endswith("/copyright")).decode()
    rules = []
    for paragraph in re.split(r"\n\s*\n", text):
        # A field goes on in lines that begin with a blank.
        fields = dict(re.findall(r"^([\w-]+):[ \t]*((?:.|\n(?=[ \t]))*)", paragraph, re.MULTILINE))
        patterns = [re.sub(r"\.(jpe?g|png|webp)$", "", each) for each in fields.get("Files", "").split()]
        licence = fields.get("License", "").partition("\n")[0].strip()
        rules.append((patterns, licence, " ".join(fields.get("Copyright", "").split())))

    def of(path: str) -> tuple[str, str]:
        stem = str(PurePosixPath(path).with_suffix(""))
        for patterns, licence, credit in reversed(rules):
            if any(fnmatchcase(stem, pattern) for pattern in patterns):
                return licence, credit
        return "", ""

    return of


def as_words(name: str) -> str:
    """The name of a file or folder as words: "statueOfLiberty2" is "statue of liberty"."""
    return " ".join(re.sub(r"[\d_\W]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower().split())


def kinds(*names: str) -> str:
    """What an image shows, and of what kind that is: names as words, each once, between commas."""
    return ", ".join(dict.fromkeys(filter(None, map(as_words, names))))


def read_stamps(files: Mapping[str, bytes]) -> Iterator[Found]:
    """Tux Paint: of each .png a .txt, whose first line is English, and names of folders."""
    rights = rights_of(files)
    for name, content in files.items():
        inner = PurePosixPath(name.removeprefix("usr/share/tuxpaint/stamps/"))
        sentence = files.get(str(PurePosixPath(name).with_suffix(".txt")), b"").decode().partition("\n")[0]
        if inner.suffix == ".png" and inner.parts[0] != "symbols" and "cartoon" not in inner.parts and sentence:
            captions = (sentence, as_words(inner.stem), kinds(inner.stem, *reversed(inner.parent.parts)))
            yield Found(str(inner), content, captions, *rights(str(inner)))


# The activities of GCompris with whole photographs, and what these show; others have parts of photographs, or drawings.
ACTIVITIES = {
    "categorization": "",
    "details": "",
    "erase": "animals",
    "explore_farm_animals": "farm animals",
    "explore_monuments": "monuments",
    "explore_world_animals": "animals",
    "explore_world_music": "music",
    "solar_system": "solar system",
}
TITLE = re.compile(r'"title": qsTr\("(.+?)"\),\s*"text": qsTr\("(.+?)"\)(?:.|\n)*?"image2": "qrc:/(.+?)"')
INSTRUCTION = re.compile(r'instruction: qsTr\("(.+?)"\)(?:.|\n)*?"pixmapfile"\s*: "(.+?)"')
FIRST_SENTENCE = re.compile(r"(?<=\w{3}[\w)])\. ")


def read_scenes(packed: Mapping[str, bytes]) -> Iterator[Found]:
    """GCompris: of .webp in Qt's resources their names and folders, and what the .qml beside them say."""
    rights = rights_of(packed)
    for activity, kind in ACTIVITIES.items():
        root = f"gcompris/src/activities/{activity}/resource/"
        files = read_rcc(next(content for name, content in packed.items() if name.endswith(f"/{activity}.rcc")))
        boards = "\n".join(content.decode() for name, content in files.items() if name.endswith(".qml"))
        said = {image: (title, FIRST_SENTENCE.split(text)[0]) for title, text, image in TITLE.findall(boards)}
        # These paths are relative to the activity's resources; those above are whole.
        said |= {root + image: (title,) for title, image in INSTRUCTION.findall(boards)}
        for name, content in files.items():
            inner = PurePosixPath(name.removeprefix(root))
            if inner.suffix == ".webp" and (activity != "details" or name in said):
                names = (inner.stem, inner.parent.name.replace("others", ""), kind) if activity != "details" else ()
                captions = (*said.get(name, (as_words(inner.stem),)), kinds(*names))
                yield Found(f"{activity}/{inner}", content, captions, *rights(name.removeprefix("gcompris/")))


def read_furniture(packed: Mapping[str, bytes]) -> Iterator[Found]:
    """Sweet Home 3D: of the icons in catalogues (.sh3f) a name, a category and tags."""
    rights = rights_of(packed)
    for name, content in packed.items():
        if name.endswith(".sh3f"):
            catalogue, archive = PurePosixPath(name).stem, zipfile.ZipFile(io.BytesIO(content))
            text = archive.read(next(each for each in archive.namelist() if each.endswith("Catalog.properties")))
            # Java's properties files: Latin-1, and escapes for all else.
            fields = dict(re.findall(r"^(\w+#\d+)=(.*?)\s*$", text.decode("unicode_escape"), re.MULTILINE))
            for number in (key.removeprefix("icon#") for key in fields if key.startswith("icon#")):
                icon, title = fields[f"icon#{number}"].strip("/"), fields[f"name#{number}"]
                tags = [tag.strip() for tag in fields.get(f"tags#{number}", "").split(",")]
                about = ", ".join([title, fields[f"category#{number}"], *filter(None, tags)]).lower()
                about = re.sub(", (blend swap|scpts)", "", about)  # whose they are
                licence, credit = rights(f"{catalogue}/{icon}")
                credit = fields.get(f"creator#{number}", credit)
                yield Found(f"{catalogue}/{icon}", archive.read(icon), (title, about), licence, credit)


# Name, version, SHA-256, reader, and whether there are drawings among the images.
PACKAGES = (
    (
        "tuxpaint-stamps-default",
        "2025.03.31-1",
        "6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb",
        read_stamps,
        True,
    ),
    (
        "gcompris-qt-data",
        "25.0.12-1",
        "7312aa5387d4c5a6a1145609db5e8c38e2e2a9056c8b3b9d44e52f12358ac41d",
        read_scenes,
        False,
    ),
    (
        "sweethome3d-furniture",
        "1.8-1",
        "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
        read_furniture,
        False,
    ),
)


def draw(content: bytes, has_drawings: bool) -> Image.Image | None:
    """An RGB image of at most 256 pixels on white, cut to what shows; None of one that is small, or a drawing."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())
    image.thumbnail((LONGER_EDGE, LONGER_EDGE), Image.Resampling.LANCZOS)
    if min(image.size) < SHORTEST_EDGE or (has_drawings and is_drawing(image)):
        return None
    ground = Image.new("RGBA", image.size, "white")  # a JPEG has no transparency
    ground.alpha_composite(image)
    return ground.convert("RGB")


def is_drawing(image: Image.Image) -> bool:
    small = image.copy()
    small.thumbnail((128, 128))
    pixels = np.asarray(small).astype(int)
    opaque = pixels[..., 3] > 200
    if opaque.sum() < LEAST_PIXELS:
        return True
    # Where both neighbours show; summed over the three colours.
    differences = np.abs(np.diff(pixels[..., :3], axis=1)).sum(-1)[opaque[:, 1:] & opaque[:, :-1]]
    _, counts = np.unique(pixels[opaque][:, :3] // 8, axis=0, return_counts=True)
    shares = counts / counts.sum()
    return bool((differences <= 2).mean() > MOST_EQUAL or -(shares * np.log2(shares)).sum() < LEAST_BITS)


def distances(images: list[Image.Image]) -> np.ndarray:
    """Root mean square difference of each two images' thumbnails, of which one may be mirrored: [images, images]."""
    small = np.stack([np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float64) for image in images])
    flat, mirrored = (each.reshape(len(small), -1) for each in (small, small[:, :, ::-1]))
    squares = (flat**2).sum(1)
    # Mirroring changes no square, so the larger product is the smaller distance.
    products = np.maximum(flat @ flat.T, flat @ mirrored.T)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0) / flat.shape[1])


def held_out(images: list[Found], num_alike: list[int]) -> list[bool]:
    """A share of the images that look like no other, and of whose name no other image's is a part, or the other way
    round, but for names of a word; the same in every build."""
    names = [each.words() for each in images]

    def is_held_out(number: int) -> bool:
        name = names[number]
        for other in (*names[:number], *names[number + 1 :]):
            if name == other or (min(len(name), len(other)) > 1 and (name <= other or other <= name)):
                return False
        draw = int.from_bytes(hashlib.sha256(" ".join(sorted(name)).encode()).digest()[:8], "big")
        return num_alike[number] == 1 and draw < HELD_OUT_SHARE * 2**64  # an image is like itself

    return list(map(is_held_out, range(len(images))))


def build(folder: Path, cache: Path) -> None:
    """Write images.jsonl, licences.json and images/ into a new folder.

    Raises SystemExit: the folder is there, or a package can't be fetched or is another one.
    """
    if folder.exists():
        raise SystemExit(f"error: {folder} is there; expected the name of a new folder")
    packed = [fetch(name, version, sha256, cache) for name, version, sha256, *_ in PACKAGES]
    kept: list[Found] = []
    for (name, _, _, read, has_drawings), files in zip(PACKAGES, packed, strict=True):
        for each in read(files):
            # In Latin letters alone: the tokenizer's are few.
            texts = (text.strip() for text in each.captions if text and not re.search(r"[^\W\d_\0-\u024f]", text))
            each.captions = tuple(dict.fromkeys(texts))
            image = draw(each.content, has_drawings)
            if image:
                each.package, each.image = name, image
                kept.append(each)
        print(f"read {name}: {len(kept):,} images so far", flush=True)
    between = distances([each.image for each in kept])
    # Above the diagonal: of two that are the same the first one stays.
    distinct = np.flatnonzero(~np.triu(between < SAME, 1).any(0))
    kept = [kept[number] for number in distinct]
    is_held_out = held_out(kept, (between < ALIKE)[np.ix_(distinct, distinct)].sum(1).tolist())
    (folder / "images").mkdir(parents=True)
    lines = []
    licences: dict[tuple[str, ...], list[str]] = {}
    for each, is_val in zip(kept, is_held_out, strict=True):
        each.image.save(folder / each.file, quality=90)
        line = {"file": each.file, "captions": each.captions, "split": "val" if is_val else "train"}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        licences.setdefault((each.package, each.credit, each.licence), []).append(each.file)
    entries = [
        {"what": f"of package {package}", "credit": credit or package, "licence": licence, "images": images}
        for (package, credit, licence), images in licences.items()
    ]
    (folder / "licences.json").write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    # Last: what has it is whole.
    (folder / "images.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = ", ".join(f"{count:,} of {package}" for package, count in Counter(each.package for each in kept).items())
    num_captions = sum(len(each.captions) for each in kept)
    print(f"{len(kept):,} images ({counts}) with {num_captions:,} captions; held out: {sum(is_held_out):,}")
    print(f"wrote {folder}; next: soho tokenizer {folder}/images.jsonl {folder}/tokenizer, then soho check {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the new folder")
    cache = Path("~/.cache/soho_fast/packages").expanduser()
    parser.add_argument("--cache", type=Path, default=cache, help="folder of the packages' files (%(default)s)")
    chosen = parser.parse_args()
    build(chosen.folder, chosen.cache)
