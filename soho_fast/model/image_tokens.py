"""Visual tokens image by image: a batch taken apart, without padding, and put together again.

B images, L tokens of each, H x W positions of the grid.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .outputs import VisualTokens

_PER_TOKEN = ("features", "valid", "position", "embedding", "index")


def split_images(visual: VisualTokens) -> list[VisualTokens]:
    """Each image of a batch, as what `encode_images` gives of it alone. Waits for the device."""
    grid_BHW = visual.valid.cpu().unflatten(1, (-1, visual.columns))
    images = []
    for row, grid_HW in enumerate(grid_BHW):
        real_L = grid_HW.flatten().nonzero().squeeze(1)
        own = {name: value[row : row + 1] for name in _PER_TOKEN if (value := getattr(visual, name)) is not None}
        if len(real_L) < grid_HW.numel():
            real_L = real_L.to(visual.valid.device)
            own = {name: value[:, real_L] for name, value in own.items()}
        # Padding is at the right and below: what is left is a grid again, with fewer columns.
        images.append(VisualTokens(**own, columns=int(grid_HW.any(0).sum())))
    return images


def join_images(images: Sequence[VisualTokens]) -> VisualTokens:
    """Images of one model as a batch, those with fewer tokens padded. It is no grid any more and has no `columns`."""
    if len(images) == 1:
        return images[0]
    longest = max(image.valid.shape[1] for image in images)

    def join(name: str) -> Tensor | None:
        parts = [getattr(image, name) for image in images]
        if any(part is None for part in parts):
            return None
        fill = -1 if name == "index" else 0
        # `F.pad` counts from the last dimension: the tokens alone, dimension 1, become more.
        padding = [0, 0] * (parts[0].dim() - 2)
        return torch.cat([F.pad(part, (*padding, 0, longest - part.shape[1]), value=fill) for part in parts])

    joined: dict[str, Any] = {name: join(name) for name in _PER_TOKEN}
    return VisualTokens(**joined)
