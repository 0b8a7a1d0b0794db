"""Images of all kinds of pixels as RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image of any of Pillow's modes as RGB, as it is seen on white paper.

    16-bit grey is scaled from 0 to 65535, floating point from 0 to 1; what is transparent is white.

    Raises:
        ValueError: values outside of these have no defined brightness.
    """
    if image.mode == "RGB":
        return image
    # Pillow's own conversion clips these instead of scaling.
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if image.mode == "I" and (grey.min() < 0 or grey.max() > 65535):
            raise ValueError(f"grey from {grey.min()} to {grey.max()}; expected 0 to 65535 (16 bits)")
        white = grey == image.info.get("transparency")
        return Image.fromarray(np.where(white, 255, grey // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.asarray(image)
        if not (grey.min() >= 0 and grey.max() <= 1):  # NaN is neither
            raise ValueError(f"floating-point grey from {grey.min():g} to {grey.max():g}; expected 0 to 1")
        return Image.fromarray((grey * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
