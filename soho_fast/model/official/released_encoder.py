"""The released code's visual encoder: image -> CNN -> max-pool -> 1x1 convolution, and the mask it gives its tokens.

B images, 3 colours, H x W pixels, h x w positions of the CNN's features, R x S of the token grid, C channels,
L = R*S tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones import Masks, Step
from ..config import SohoConfig
from ..inputs import check_pixels
from ..normalization import BatchNorm2d
from ..visual_encoder import VisualEncoder

# Stride of the CNN, to which the released code pads each image; of its BatchNorm, torch's own.
_STRIDE, _MOMENTUM = 32, 0.1


class OfficialVisualEncoder(VisualEncoder):
    """Max-pool (sizes round down: an odd last row or column is lost), then a 1x1 convolution without bias.

    Where it departs from `VisualEncoder`, which follows the paper: the order of these two, the rounding, the bias; and
    the padded area, which is left as it is: the CNN convolves it as a part of the image, so a token feels how far its
    batch was padded. BatchNorm follows in the model (`feature_norm`). The mask is `released_mask`.

    With `official="pretraining"` the running statistics of the CNN's blocks are those of the released pre-training, in
    which activation checkpointing runs each block whose input needs a gradient a second time, its BatchNorm included:
    they move once in the forward pass and once more in the backward pass, here by both at once. What a training forward
    computes stays.
    """

    projection_bias = False
    padding_leaks = True

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.recomputed_batch_norm = config.official == "pretraining"

    def forward(self, pixel_values_B3HW: Tensor, pixel_mask_BHW: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            pixel_values_B3HW: normalised images, floating point, each at the top left; the rest counts as zero. Sides
                that are no multiples of 32 are padded to ones.
            pixel_mask_BHW: 1 at real pixels, 0 at padding; `None`: no padding.

        Returns:
            feat (B, L, C) of all positions, and the mask bool (B, R, S), R = floor(ceil(H/32) / pool).

        Raises:
            ValueError: an image is smaller than a token, or the mask's shape is another.
        """
        check_pixels(pixel_values_B3HW, pixel_mask_BHW)
        B, _, H, W = pixel_values_B3HW.shape
        if pixel_mask_BHW is None:
            height_B, width_B = (torch.full((B,), side, device=pixel_values_B3HW.device) for side in (H, W))
        else:
            real_BHW = pixel_mask_BHW.bool()
            pixel_values_B3HW = pixel_values_B3HW.masked_fill(~real_BHW.unsqueeze(1), 0.0)
            height_B, width_B = real_BHW.any(2).sum(1), real_BHW.any(1).sum(1)
        # -W % 32 is what is missing to a multiple of 32. No mask: to this CNN padding is image.
        x_BChw, _ = self.backbone_output(F.pad(pixel_values_B3HW, (0, -W % _STRIDE, 0, -H % _STRIDE)))
        if min(x_BChw.shape[-2:]) < self.pool:
            least = _STRIDE * (self.pool - 1) + 1
            raise ValueError(f"pixel_values: expected at least {least} x {least} pixels for one token, got {H} x {W}")
        # The padded height for both axes, as `released_mask` explains.
        side = _STRIDE * x_BChw.shape[-2]
        with torch.autocast(x_BChw.device.type, enabled=False):
            pooled_BCRS = F.max_pool2d(x_BChw, self.pool) if self.pool > 1 else x_BChw
            x_BCRS = self.projection(pooled_BCRS.to(self.projection.weight.dtype))
        mask_BRS = released_mask(height_B, width_B, side, *x_BCRS.shape[-2:])
        return x_BCRS.flatten(2).transpose(1, 2).contiguous(), mask_BRS

    def tokens(self, x_BChw: Tensor, mask_Bhw: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Refused with ValueError: the mask is made of sizes in pixels, which the CNN's features do not tell."""
        raise ValueError(
            "backbone_features: the released model makes its mask from the images' sizes in pixels, and its features "
            "from their padding too; expected pixel_values"
        )

    def counted(self, valid_BL: Tensor) -> Tensor:
        """Bool (B, L), which tokens the dictionary counts and gives a code: all, padding too."""
        return torch.ones_like(valid_BL)

    def run_step(self, step: Step, x: Tensor, masks: Masks) -> Tensor:
        """As `VisualEncoder.run_step`; see the class for what the released pre-training does."""
        twice = self.recomputed_batch_norm and torch.is_grad_enabled() and x.requires_grad
        for norm in (norm for module in step.modules for norm in module.modules() if isinstance(norm, BatchNorm2d)):
            # Two moves by one batch are one of 1 - (1 - momentum)^2.
            norm.momentum = 1.0 - (1.0 - _MOMENTUM) ** 2 if twice else _MOMENTUM
        return super().run_step(step, x, masks)


def released_mask(height_B: Tensor, width_B: Tensor, side: int, rows: int, columns: int) -> Tensor:
    """Which tokens of an image the released code takes as real.

    It draws each image's area on a square canvas, whose side is the batch's padded height along both axes, and shrinks
    that to the token grid by nearest neighbour. So an upright image loses columns at the right (6 of 9 are left
    of one 1,000 pixels high and 600 wide), and in one that is wider than high padding at the right can count as real.
    Ours for the paper is `backbones.py: grid_mask`.

    Args:
        height_B, width_B: int64, the images' sizes in pixels.
        side: the batch's height in pixels.
        rows, columns: the token grid.

    Returns:
        Bool (B, rows, columns).
    """
    row_R, column_S = (_nearest(side, count, height_B.device) for count in (rows, columns))
    return (row_R < height_B.unsqueeze(1)).unsqueeze(2) & (column_S < width_B.unsqueeze(1)).unsqueeze(1)


def _nearest(side: int, count: int, device: torch.device) -> Tensor:
    """The pixel of `side` that each of `count` is taken from; in float32 torch's scale picks another one at times than
    the formula in integers would."""
    place = torch.arange(side, dtype=torch.float32, device=device)
    return F.interpolate(place.view(1, 1, -1), size=count, mode="nearest").view(-1)
