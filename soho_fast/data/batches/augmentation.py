"""Random changes of training images: what is drawn follows from (seed, epoch, image) alone."""

import re
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2

from soho_fast.data.images import SohoImageProcessor, fitted_size

# See the streams of `sample.py`.
_AUGMENTATION_STREAM = 6

# ImageNet's mean colour, about zero once it is normalised: what an image that is turned or moved leaves free.
MEAN_COLOUR = (124, 116, 104)

_SIDE = re.compile(r"\b(left|right)(?=most\b|ward|hand|\b)", re.IGNORECASE)


@dataclass
class Augmentation:
    """Random changes of training images, all of an image alike for the samples that it has in an epoch: a batch holds
    it once. An image keeps its size.

    Args:
        seed: Seed of everything drawn.
        crop_scale: Smallest share of the image's area that a random crop keeps; 1 crops nothing. The crop is stretched
            by at most 4/3 when it is resized to the image's size.
        flip: Images are flipped horizontally with this probability.
        rand_augment: So many operations of RandAugment (Cubuk et al. 2020), one after another; 0: none.
        rand_augment_magnitude: Their strength, 0 to 30.
        colour: Largest change of brightness, contrast and saturation, as a share; 0: none.
    """

    seed: int
    _: KW_ONLY
    crop_scale: float
    flip: float
    rand_augment: int
    rand_augment_magnitude: int
    colour: float

    def __post_init__(self) -> None:
        count, strength = self.rand_augment, self.rand_augment_magnitude
        self._changes: list[v2.Transform] = []
        if count:
            bilinear = InterpolationMode.BILINEAR
            # 31 steps of strength, 0 to 30; `bilinear` and the fill are for what is turned or moved.
            self._changes.append(v2.RandAugment(count, strength, 31, bilinear, list(MEAN_COLOUR)))
        if self.colour:
            self._changes.append(v2.ColorJitter(self.colour, self.colour, self.colour))

    def flips(self, epoch: int, number: int) -> bool:
        """Whether an image, by its number, is flipped in an epoch."""
        return bool(self._rng(epoch, number).random() < self.flip)

    def resize(self, pixels_3HW: torch.Tensor, processor: SohoImageProcessor, epoch: int, number: int) -> torch.Tensor:
        """A decoded image, by its number, as an epoch has it: uint8 (3, height, width), of the processor's size."""
        height, width = pixels_3HW.shape[-2:]
        size = fitted_size(height, width, processor.size.shortest_edge, processor.size.longest_edge)
        rng = self._rng(epoch, number)
        rng.random()  # that of `flips`
        # torchvision draws from the global generator, which dropout reads where images are loaded in the same process.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            if self.crop_scale < 1:
                ratio, scale = width / height, (self.crop_scale, 1.0)
                # The ratio is the image's own, so that the crop is stretched by at most 4/3 to its size.
                crop = v2.RandomResizedCrop(size, scale, (ratio * 3 / 4, ratio * 4 / 3), antialias=processor.antialias)
                pixels_3HW = crop(pixels_3HW)
            else:
                pixels_3HW = processor.resize_one(pixels_3HW)
            if self.flips(epoch, number):
                pixels_3HW = pixels_3HW.flip(-1)
            for change in self._changes:
                pixels_3HW = change(pixels_3HW)
        return pixels_3HW

    def _rng(self, epoch: int, number: int) -> np.random.Generator:
        return np.random.default_rng([_AUGMENTATION_STREAM, self.seed, epoch, number])


def swap_sides(text: str) -> str:
    """A text with "left" and "right" in each other's place, as in "leftmost" and "right-hand"; case is kept."""

    def other(found: re.Match[str]) -> str:
        side = found[0]
        swapped = "right" if side.lower() == "left" else "left"
        return swapped.upper() if side.isupper() else swapped.capitalize() if side[0].isupper() else swapped

    return _SIDE.sub(other, text)
