"""What a corpus holds, and what makes its scenes harder than those of the demo, which the defaults describe."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

#: The style of the demo: Twemoji's drawings, from the Python package. Any other style is a folder (`mini/styles.py`).
TWEMOJI = "twemoji"
#: Folder of a built corpus with a copy of the drawings of each further style.
DRAWINGS = "drawings"

# What each number may be: lowest and highest.
_LIMITS: dict[str, tuple[float, float]] = {
    "num_train": (2, 10**6),
    "num_heldout": (2, 10**6),
    "image_size": (32, 1024),
    "seed": (0, 2**63 - 1),
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


@dataclass(frozen=True)
class CorpusOptions:
    """What a corpus holds, and how its scenes are composed and drawn.

    Args:
        num_train: Number of training scenes.
        num_heldout: Number of held-out scenes, half val and half test.
        image_size: Side of the square images, in pixels.
        seed: Seed of the whole corpus.
        styles: Drawing styles of training, val and test scenes: twemoji, or folders of drawings (python -m
            soho_fast.data.mini.styles makes some). Each object is drawn in one of them, at random.
        heldout_styles: Styles of as many further held-out scenes, split `styles`; none in `styles`.
        max_objects: Maximum number of objects in a scene, 1 to 6.
        texts: Factor on the number of questions, statements and hypotheses.
        photo_share: Share of the scenes with a photograph as background.
        monuments: 49 photographs of Debian's gcompris-qt-data as backgrounds too.
        object_scale: Factor on the objects' sizes.
        max_rotation: Maximum rotation of an object, in degrees, either way.
        overlap: How much nearer than touching the centres of two objects may be, as a share of that distance.
        noise: Maximum standard deviation of the noise over an image, as a share of white.
        blur: Maximum radius of a Gaussian blur, as a share of the side.
        jitter: Maximum change of brightness, contrast and saturation, each a factor of 1 +- this.

    Raises:
        TypeError, ValueError: a value of another type, or out of range.
    """

    num_train: int = 4000
    num_heldout: int = 500
    image_size: int = 128
    seed: int = 0
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
            value, kinds = getattr(self, name), (int,) if isinstance(low, int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or math.isnan(value):
                raise TypeError(f"{name}: expected {'a whole' if kinds == (int,) else 'a'} number, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name}: expected {low} to {high}, got {value}")
        if not isinstance(self.monuments, bool):
            raise TypeError(f"monuments: expected true or false, got {self.monuments!r}")
        names = [style_name(style) for style in (*self.styles, *self.heldout_styles)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"styles, heldout_styles: {', '.join(twice)} comes twice; expected different styles")

    @classmethod
    def of_corpus(cls, folder: Path, settings: Mapping[str, Any]) -> Self:
        """The options among a built corpus' settings; its styles are the folders of drawings that it keeps."""
        given = {field.name: settings[field.name] for field in dataclasses.fields(cls) if field.name in settings}
        for name in given.keys() & {"styles", "heldout_styles"}:
            given[name] = [style if style == TWEMOJI else str(folder / DRAWINGS / style) for style in given[name]]
        return cls(**given)

    @property
    def folders(self) -> tuple[str, ...]:
        """The styles that are folders of drawings."""
        return tuple(style for style in (*self.styles, *self.heldout_styles) if style != TWEMOJI)

    def settings(self) -> dict[str, Any]:
        """The first four, and what is not the demo's, as JSON gives it back: styles by name, wherever their folders
        lie."""
        found: dict[str, Any] = {}
        for number, field in enumerate(dataclasses.fields(CorpusOptions)):
            value = getattr(self, field.name)
            if number < 4 or value != field.default:
                found[field.name] = [style_name(style) for style in value] if isinstance(value, tuple) else value
        return found

    @property
    def held_out_pair_share(self) -> float:
        """Share of all pairs of concepts that is kept for held-out scenes.

        Of five concepts and more all pairs must be on one side; with 0.3 held-out scenes rarely find a fifth, and with
        one half both sides find them equally often.
        """
        return 0.3 if self.max_objects <= 4 else 0.5
