"""What makes scenes harder than those of the demo, whose scenes the defaults describe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The style of the demo: Twemoji's drawings, from the Python package. Any other style is a folder (`mini/styles.py`).
TWEMOJI = "twemoji"
#: Folder of a built corpus with a copy of the drawings of each further style.
DRAWINGS = "drawings"

# What each number may be: lowest and highest.
_LIMITS: dict[str, tuple[float, float]] = {
    "max_objects": (1, 6),  # of more the held-out scenes would find no concepts all of whose pairs are held out
    "texts": (1, 8),
    "photo_share": (0.0, 1.0),
    "object_scale": (0.5, 1.2),
    "max_rotation": (0.0, 180.0),
    "overlap": (0.0, 0.5),  # beyond that one object may hide another
    "noise": (0.0, 0.2),
    "blur": (0.0, 0.02),
    "jitter": (0.0, 0.2),  # beyond that a white background is a gray one
}


def style_name(style: str) -> str:
    """What a corpus calls a style: "twemoji", or the name of its folder of drawings."""
    return Path(style).name


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises TypeError, ValueError: a setting is no number (of whole limits: no whole one), or is outside of them."""
    kinds = (int,) if isinstance(low, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or math.isnan(value):
        raise TypeError(f"{name}: expected {'a whole' if kinds == (int,) else 'a'} number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value}")


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are composed and drawn.

    Attributes:
        styles: drawing styles of training, val and test scenes: ``"twemoji"`` or folders of drawings. Each object is
            drawn in one of them, at random.
        heldout_styles: styles of further held-out scenes, split ``styles``; none in ``styles``.
        max_objects: most objects a scene, 1 to 6.
        texts: so many times the demo's questions, statements and hypotheses an image.
        photo_share: share of the scenes with a photograph as their background.
        monuments: 49 photographs of Debian's package gcompris-qt-data are backgrounds too.
        object_scale: factor on the sizes of objects.
        max_rotation: degrees by which an object is turned at most, either way.
        overlap: how much nearer than touching the centres of two objects may be, as a share of that distance.
        noise: highest standard deviation of the noise over an image, as a share of white.
        blur: highest radius of a Gaussian blur, as a share of the image's side.
        jitter: most by which brightness, contrast and saturation are changed, each as a factor of 1 +- this.

    Raises:
        TypeError, ValueError: a value of another type, or out of range.
    """

    styles: tuple[str, ...] = (TWEMOJI,)
    heldout_styles: tuple[str, ...] = ()
    max_objects: int = 4
    texts: int = 1
    photo_share: float = 0.3
    monuments: bool = False
    object_scale: float = 1.0
    max_rotation: float = 12.0
    overlap: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("styles", "heldout_styles"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(style, str) and style for style in value):
                raise TypeError(f"{name}: expected a list of styles, twemoji or folders of drawings, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        if not self.styles:
            raise ValueError("styles: expected one style or more, got none; the demo's is twemoji")
        for name, (low, high) in _LIMITS.items():
            check_number(name, getattr(self, name), low, high)
        if not isinstance(self.monuments, bool):
            raise TypeError(f"monuments: expected true or false, got {self.monuments!r}")
        names = [style_name(style) for style in (*self.styles, *self.heldout_styles)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"styles, heldout_styles: {', '.join(twice)} comes twice; expected different styles")

    @classmethod
    def of_corpus(cls, folder: Path, settings: Mapping[str, Any]) -> SceneOptions:
        """The options among a built corpus' settings; its styles are the folders of drawings that it keeps."""
        names = {field.name for field in dataclasses.fields(cls)}
        options = cls(**{name: value for name, value in settings.items() if name in names})
        kept: dict[str, Any] = {
            name: tuple(
                style if style == TWEMOJI else str(folder / DRAWINGS / style) for style in getattr(options, name)
            )
            for name in ("styles", "heldout_styles")
        }
        return dataclasses.replace(options, **kept)

    @property
    def folders(self) -> tuple[str, ...]:
        """The styles that are folders of drawings."""
        return tuple(style for style in (*self.styles, *self.heldout_styles) if style != TWEMOJI)

    def changed(self) -> dict[str, Any]:
        """What is not the demo's, as JSON gives it back: the demo's corpus has no such settings.

        Styles by name, wherever their folders lie.
        """
        values = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        changed = {name: value for name, (value, default) in values.items() if value != default}
        return {
            name: [style_name(style) for style in value] if isinstance(value, tuple) else value
            for name, value in changed.items()
        }

    @property
    def held_out_pair_share(self) -> float:
        """Share of all pairs of concepts that is kept for held-out scenes.

        Of five concepts and more all pairs must be on one side; with 0.3 held-out scenes rarely find a fifth, and with
        one half both sides find them equally often.
        """
        return 0.3 if self.max_objects <= 4 else 0.5
