"""Visual encoder: image -> CNN -> 1x1 convolution -> 2x2 max-pool -> tokens (paper section 3.1, CNN of stride 32).

B images, 3 colours, H x W pixels or grid positions, C channels, L = H*W tokens.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backbones import Masks, Step, backbone_stages, build_backbone, conv_norm, grid_mask
from .config import SohoConfig
from .inputs import check_pixels


class CnnBackend:
    """How a `VisualEncoder` computes its CNN: torchvision's modules as they are.

    It holds no weights. `fast/` has others, for a CPU, for a GPU, and for a model that was prepared for inference.
    """

    name = "plain"
    conv_norm = staticmethod(conv_norm)

    def run(self, encoder: "VisualEncoder", x: Tensor, masks: Masks) -> Tensor:
        """Pixels (B, 3, H, W) to the CNN's features (B, C, h, w), h = H/backbone_stride."""
        return encoder.run_backbone(x, masks)

    def project(self, encoder: "VisualEncoder", x_BChw: Tensor) -> Tensor:
        """The CNN's features through the 1x1 convolution."""
        return encoder.projection(x_BChw)

    def padding(self, mask: Tensor | None) -> Tensor | None:
        """The mask of the real positions, which may be left out where all are."""
        return mask

    def __repr__(self) -> str:
        return self.name


class VisualEncoder(nn.Module):
    """Turns images into tokens that do not depend on how far the batch was padded, in training neither.

    The padded area takes no part in BatchNorm's statistics and comes out of it as zero, which is what a convolution
    sees beyond the border of an image that stands alone; without it the padding would grow BatchNorm's bias and leak
    into the border tokens. The statistics are those of one process's batch.

    Attributes:
        cnn: how the CNN is computed; it holds no weights and may be replaced.
        padding_leaks: a backbone whose padding cannot be kept out was found to be one, see `padding_leak`.
    """

    gradient_checkpointing = False
    projection_bias = True
    padding_leaks = False

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.cnn = CnnBackend()
        self.backbone = build_backbone(config.backbone, config.backbone_stride, config.backbone_config)
        channels = self.backbone.num_features, config.hidden_size
        # Any: in a prepared model it is one of `fast/prepared/layers.py`.
        self.projection: Any = nn.Conv2d(*channels, kernel_size=1, bias=self.projection_bias)
        # 1, 2, 4 and so on, up to the backbone's; 1 and that of patches that are of another size.
        stride = config.backbone_stride
        powers = tuple(2**number for number in range(stride.bit_length()))
        self.strides = powers if stride == powers[-1] else (1, stride)
        self.pool = config.visual_pool
        self.dropout = config.backbone_dropout_prob
        self.num_frozen_stages = config.backbone_frozen_stages
        self.backbone_frozen = False
        self.batch_norm_frozen = False
        if self.num_frozen_stages > (most := len(backbone_stages(self.backbone))):
            raise ValueError(
                f"backbone_frozen_stages: expected 0 to {most}, the stages of {config.backbone} up to backbone_stride="
                f"{config.backbone_stride}, got {self.num_frozen_stages}"
            )
        for module in self._modules_for_good_frozen():
            module.requires_grad_(False)

    def _modules_for_good_frozen(self) -> list[nn.Module]:
        stages = backbone_stages(self.backbone)[: self.num_frozen_stages]
        return [module for stage in stages for step in stage for module in step.modules]

    def freeze_backbone(self, frozen: bool = True) -> None:
        """Cold start (paper section 3.2: the ResNet is frozen in the first epochs): no gradient, BatchNorm in eval.

        `requires_grad` stays as it is, so an optimiser or ZeRO partition built before stays valid: the backbone runs
        under no_grad and its parameters simply get no gradient. Momentum and weight decay would still move them, so
        the optimiser's learning rate for them must be 0 meanwhile.
        """
        self.backbone_frozen = frozen
        self.train(self.training)

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Holds the BatchNorm layers of the backbone in eval (running statistics) while the rest trains."""
        self.batch_norm_frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> "VisualEncoder":
        super().train(mode)
        if mode:
            all_frozen = self.backbone_frozen or self.batch_norm_frozen
            for module in [self.backbone] if all_frozen else self._modules_for_good_frozen():
                module.eval()
        return self

    def forward(self, pixel_values_B3HW: Tensor, pixel_mask_BHW: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            pixel_values_B3HW: normalised images, floating point; the padded area is treated as zero.
            pixel_mask_BHW: 1 at real pixels, 0 at padding; `None`: no padding.

        Returns:
            feat (B, L, C) with zeros at padding, and the grid mask bool (B, h, w), L = h*w, h = ceil(H / token_stride).
        """
        return self.tokens(*self.backbone_output(pixel_values_B3HW, pixel_mask_BHW))

    def backbone_output(
        self, pixel_values_B3HW: Tensor, pixel_mask_BHW: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The CNN alone: features (B, C, h, w), h = ceil(H / backbone_stride), and their mask bool (B, h, w); `None`:
        no padding.

        Raises:
            ValueError: the images are not normalised, or the mask is not of their shape.
        """
        check_pixels(pixel_values_B3HW, pixel_mask_BHW)
        # A weight keeps its type where ZeRO has taken its values away, so it decides what the images become.
        x = pixel_values_B3HW.to(self.projection.weight.dtype)
        masks, at, mask_Bhw = {}, 1, self.cnn.padding(pixel_mask_BHW)
        if mask_Bhw is not None:
            for s in self.strides:
                # Each from the one before; with stride 1 it only becomes bool.
                mask_Bhw = grid_mask(mask_Bhw, s // at)
                at = s
                masks[s] = mask_Bhw.unsqueeze(1).to(x.dtype)
        with torch.no_grad() if self.backbone_frozen else nullcontext():
            return self.cnn.run(self, x, masks), mask_Bhw

    def tokens(self, x_BChw: Tensor, mask_Bhw: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From the CNN's features and their mask, as `backbone_output` gives them, to what `forward` returns."""
        if self.dropout:
            x_BChw = F.dropout2d(x_BChw, self.dropout, self.training)
        x, mask_Bhw = self.cnn.project(self, x_BChw), self.cnn.padding(mask_Bhw)
        if self.pool > 1:
            if mask_Bhw is not None:
                # Padding wins no window; one with nothing else is set to zero below.
                x = x.masked_fill(~mask_Bhw.unsqueeze(1), float("-inf"))
            # ceil_mode as in `grid_mask`: a last window that is partly outside is a token, too.
            x = F.max_pool2d(x, self.pool, self.pool, ceil_mode=True)
        if mask_Bhw is None:
            grid_mask_Bhw = x.new_ones(x.shape[0], *x.shape[-2:], dtype=torch.bool)
        else:
            grid_mask_Bhw = grid_mask(mask_Bhw, self.pool)
            x = x.masked_fill(~grid_mask_Bhw.unsqueeze(1), 0.0)
        # Row by row of the grid, as `masking.margin` and `sine_position` count tokens.
        return x.flatten(2).transpose(1, 2).contiguous(), grid_mask_Bhw

    def counted(self, valid_BL: Tensor) -> Tensor:
        """Bool (B, L), which tokens the dictionary counts and gives a code: the real ones."""
        return valid_BL

    def run_backbone(self, x: Tensor, masks: Masks) -> Tensor:
        """As `CnnBackend.run`, stage by stage."""
        for number, stage in enumerate(backbone_stages(self.backbone, self.cnn.conv_norm)):
            with torch.no_grad() if number < self.num_frozen_stages else nullcontext():
                for step in stage:
                    x = self.run_step(step, x, masks)
        return x

    def run_step(self, step: Step, x: Tensor, masks: Masks) -> Tensor:
        """One piece of the CNN, with activation checkpointing where it is on."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(step.run, x, masks, use_reentrant=False)
        return step.run(x, masks)


def cut_features(x_BChw: Tensor, mask_Bhw: Tensor | None) -> list[Tensor]:
    """Each image's own features (C, h, w) of what `VisualEncoder.backbone_output` gives, without padding."""
    if mask_Bhw is None:
        return list(x_BChw)
    # The real area is a rectangle at the top left.
    heights, widths = mask_Bhw.any(2).sum(1).tolist(), mask_Bhw.any(1).sum(1).tolist()
    return [x[:, :height, :width] for x, height, width in zip(x_BChw, heights, widths, strict=True)]


def pad_features(features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Features of images (C, h, w) as one batch, zero at the right and below, and its mask, for `tokens`."""
    if all(x.shape == features[0].shape for x in features):
        return torch.stack(list(features)), None
    num_channels = features[0].shape[0]
    height, width = (max(x.shape[axis] for x in features) for axis in (1, 2))
    x_BChw = features[0].new_zeros(len(features), num_channels, height, width)
    mask_Bhw = torch.zeros(len(features), height, width, dtype=torch.bool, device=x_BChw.device)
    for number, x in enumerate(features):
        x_BChw[number, :, : x.shape[1], : x.shape[2]] = x
        mask_Bhw[number, : x.shape[1], : x.shape[2]] = True
    return x_BChw, mask_Bhw
