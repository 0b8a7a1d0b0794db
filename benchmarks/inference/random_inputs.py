"""Images and words at random, and what random weights need to compute as trained ones do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

_CLS, _SEP, _FIRST_WORD = 101, 102, 1000  # of bert-base-uncased
_VOCABULARY = 30522
# What a residual branch adds in units of what it adds to. With 1, as at random, rounding grows from block to block:
# after ResNet-101's 33 in bfloat16 half of a feature was rounding, which trained weights do not do.
_RESIDUAL_GAIN = 0.2


def noise_images(num_images: int, height: int, width: int, seed: int) -> Tensor:
    """(B, 3, H, W) of mean 0 and variance 1: noise of several scales, so that things differ in size and place."""
    generator = torch.Generator().manual_seed(seed)
    pixels_B3HW = torch.zeros(num_images, 3, height, width)
    for scale in (256, 64, 16, 4):
        coarse = torch.randn(num_images, 3, -(-height // scale) + 1, -(-width // scale) + 1, generator=generator)
        pixels_B3HW += F.interpolate(coarse, (height, width), mode="bilinear")
    return (pixels_B3HW - pixels_B3HW.mean()) / pixels_B3HW.std()


def random_words(num_texts: int, length: int, seed: int) -> Tensor:
    """int64 (P, S): [CLS], words, [SEP]."""
    generator = torch.Generator().manual_seed(seed)
    words_PS = torch.randint(_FIRST_WORD, _VOCABULARY, (num_texts, length), generator=generator)
    words_PS[:, 0], words_PS[:, -1] = _CLS, _SEP
    return words_PS


def with_small_residuals(net: nn.Module) -> None:
    """Makes the residual branches of a random ResNet small, in place, as training does."""
    for block in net.modules():
        if isinstance(block, Bottleneck):
            nn.init.constant_(block.bn3.weight, _RESIDUAL_GAIN)


@contextmanager
def taking_statistics(*modules: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalises by the batch and takes its mean and variance for the time after.

    With the initial 0 and 1 every block of a deep random ResNet would double the variance.
    """
    norms = [each for module in modules for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()
