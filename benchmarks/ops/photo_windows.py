"""Real features: windows of the two photographs that scikit-learn brings, as vectors.

Letters: N windows, C channels.
"""

import functools
import math

import pytest
import torch
from torch import Tensor


@functools.lru_cache(maxsize=1)
def _photographs() -> list[Tensor]:
    """float32 (height, width, 3) in [0, 1]."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    return [torch.tensor(image).float() / 255 for image in datasets.load_sample_images().images]


def photo_windows(num_rows: int, num_channels: int, generator: torch.Generator) -> Tensor:
    """float32 (N, C): the first C numbers of square windows at random places, the smallest that hold so many."""
    side = math.ceil(math.sqrt(num_channels / 3))
    parts = []
    for number, image in enumerate(_photographs()):
        count = num_rows // 2 + (num_rows % 2) * (number == 0)
        high, wide = image.shape[0] - side + 1, image.shape[1] - side + 1
        windows = image.unfold(0, side, 1).unfold(1, side, 1)  # (high, wide, 3, side, side), a view
        place_N = torch.randint(high * wide, (count,), generator=generator)
        for place in place_N.split(4096):
            window = windows[place // wide, place % wide]
            parts.append(window.permute(0, 2, 3, 1).flatten(1)[:, :num_channels].contiguous())
    return torch.cat(parts)[torch.randperm(num_rows, generator=generator)]
