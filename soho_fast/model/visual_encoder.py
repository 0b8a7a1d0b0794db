"""Visual encoder: image -> ResNet (stride 32) -> 1x1 convolution -> 2x2 max-pool -> tokens (paper section 3.1).

B images, 3 colours, H x W pixels or cells, C channels, L = H*W tokens.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from .config import SohoConfig
from .normalization import BatchNorm2d

_BLOCKS = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}
_STAGES = ("layer1", "layer2", "layer3", "layer4")


def build_resnet(name: str) -> nn.Module:
    """torchvision's ResNet under torchvision's parameter names, without pooling and classifier."""
    block, depths = _BLOCKS[name]
    resnet = torchvision.models.ResNet(block, depths, norm_layer=BatchNorm2d)
    resnet.num_features = resnet.fc.in_features
    del resnet.fc, resnet.avgpool
    return resnet


def grid_mask(pixel_mask_BHW: Tensor, stride: int) -> Tensor:
    """Which cells of `stride` x `stride` pixels hold a real one: bool (B, ceil(H/stride), ceil(W/stride))."""
    return F.max_pool2d(pixel_mask_BHW.float().unsqueeze(1), stride, stride, ceil_mode=True).squeeze(1) > 0


class VisualEncoder(nn.Module):
    """Turns images into tokens that do not depend on how far the batch was padded (with BatchNorm in eval).

    The padded area is set to zero after every BatchNorm, which is what a convolution sees beyond the border of an
    image that stands alone; without it the padding would grow BatchNorm's bias and leak into the border tokens.
    """

    gradient_checkpointing = False

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.backbone = build_resnet(config.backbone)
        self.projection = nn.Conv2d(self.backbone.num_features, config.hidden_size, kernel_size=1)
        self.pool = config.visual_pool
        self.num_frozen_stages = config.backbone_frozen_stages
        self.backbone_frozen = False
        self.batch_norm_frozen = False
        for module in self._modules_for_good_frozen():
            module.requires_grad_(False)

    def _modules_for_good_frozen(self) -> list[nn.Module]:
        if self.num_frozen_stages == 0:
            return []
        stages = [getattr(self.backbone, name) for name in _STAGES[: self.num_frozen_stages]]
        return [self.backbone.conv1, self.backbone.bn1, *stages]

    def freeze_backbone(self, frozen: bool = True) -> None:
        """Cold start (paper section 4.1: the ResNet is frozen in the first epochs): no gradient, BatchNorm in eval.

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
            feat (B, L, C) with zeros at padding, and the grid mask bool (B, h, w), L = h*w, h = ceil(H/(32*pool)).
        """
        B, _, H, W = pixel_values_B3HW.shape
        if pixel_mask_BHW is not None and tuple(pixel_mask_BHW.shape) != (B, H, W):
            raise ValueError(
                f"pixel_mask: expected shape {(B, H, W)} to match pixel_values {tuple(pixel_values_B3HW.shape)}, "
                f"got {tuple(pixel_mask_BHW.shape)}"
            )
        # A weight keeps its type where ZeRO has taken its values away, so it decides what the images become.
        x = pixel_values_B3HW.to(self.projection.weight.dtype)
        stride = 32 * self.pool
        if pixel_mask_BHW is not None and pixel_mask_BHW.device.type == "cpu" and bool(pixel_mask_BHW.all()):
            pixel_mask_BHW = None
        if pixel_mask_BHW is None:
            masks = {}
            mask_Bhw = x.new_ones(B, -(-H // stride), -(-W // stride), dtype=torch.bool)
        else:
            masks, mask_Bhw = {}, pixel_mask_BHW
            for s in (1, 2, 4, 8, 16, 32):
                mask_Bhw = grid_mask(mask_Bhw, min(s, 2))
                masks[s] = mask_Bhw.unsqueeze(1).to(x.dtype)
            mask_Bhw = grid_mask(mask_Bhw, self.pool)

        with torch.no_grad() if self.backbone_frozen else nullcontext():
            x = self._run_backbone(x, masks)
        x = self.projection(x)
        if self.pool > 1:
            if masks:
                x = x.masked_fill(masks[32] == 0, float("-inf"))
            x = F.max_pool2d(x, self.pool, self.pool, ceil_mode=True)
        if masks:
            x = x.masked_fill(~mask_Bhw.unsqueeze(1), 0.0)
        return x.flatten(2).transpose(1, 2).contiguous(), mask_Bhw

    def _run_backbone(self, x: Tensor, masks: dict[int, Tensor]) -> Tensor:
        net = self.backbone
        with torch.no_grad() if self.num_frozen_stages else nullcontext():
            x = net.conv1(_masked(x, masks.get(1), inplace=False))
            # A padded zero is never above a real value after the ReLU, so it is as good as the border of the max-pool.
            x = _masked(net.maxpool(net.relu(_masked(net.bn1(x), masks.get(2)))), masks.get(4))
        stride = 4
        for number, name in enumerate(_STAGES, start=1):
            frozen = number <= self.num_frozen_stages
            with torch.no_grad() if frozen else nullcontext():
                for block in getattr(net, name):
                    stride_out = stride * block.stride
                    args = (block, x, masks.get(stride), masks.get(stride_out))
                    if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                        x = self._gradient_checkpointing_func(_run_block, *args)
                    else:
                        x = _run_block(*args)
                    stride = stride_out
        return x


def _masked(x: Tensor, mask: Tensor | None, inplace: bool = True) -> Tensor:
    if mask is None:
        return x
    return x.mul_(mask) if inplace else x * mask


def _run_block(block: nn.Module, x: Tensor, mask_in: Tensor | None, mask_out: Tensor | None) -> Tensor:
    """torchvision's residual block with the padded area set to zero after every BatchNorm."""
    identity = x if block.downsample is None else _masked(block.downsample(x), mask_out)
    if isinstance(block, Bottleneck):
        x = block.relu(_masked(block.bn1(block.conv1(x)), mask_in))
        x = block.relu(_masked(block.bn2(block.conv2(x)), mask_out))
        x = _masked(block.bn3(block.conv3(x)), mask_out)
    else:
        x = block.relu(_masked(block.bn1(block.conv1(x)), mask_out))
        x = _masked(block.bn2(block.conv2(x)), mask_out)
    return block.relu(x.add_(identity))
