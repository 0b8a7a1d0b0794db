"""BatchNorm of the released code's neck and gate: all tokens of all ranks, an image once for each of its texts.

B images, L tokens per image, C channels.
"""

import torch
from torch import Tensor

from .distributed import all_reduce_with_grad
from .normalization import RunningStatistics, finite_rows, is_recomputing


class AllTokenBatchNorm(RunningStatistics):
    """BatchNorm over every token, padding too, by the statistics of the batch in training.

    The released code repeats an image for each of its texts before its neck. Mean and biased variance of equally many
    copies are those of the images; the unbiased variance, which the running one moves towards, is divided by the number
    of copies less one. Here each image goes through once and counts as often as it has texts. Unlike there, tokens that
    are not finite take no part.

    The paper has no BatchNorm before its dictionary; ours for it is `normalization.py: TokenBatchNorm`.

    Running statistics move in every training forward.
    """

    def forward(self, feat_BLC: Tensor, valid_BL: Tensor | None = None, num_texts_B: Tensor | None = None) -> Tensor:
        """
        Args:
            feat_BLC: any floating type.
            valid_BL: not read: padding takes part. (`TokenBatchNorm` reads it.)
            num_texts_B: how often each image counts; `None`: once.

        Returns:
            feat_BLC's shape and type, computed in float32.
        """
        x_BLC = feat_BLC.float()
        if not self.training:
            return self._scaled(x_BLC, self.running_mean, self.running_var).to(feat_BLC.dtype)
        finite_BL1 = finite_rows(x_BLC.detach()).unsqueeze(-1)
        weight_BL1 = finite_BL1.float()
        if num_texts_B is not None:
            weight_BL1 = weight_BL1 * num_texts_B.to(weight_BL1).view(-1, 1, 1)
        # For the sums alone: 0 times NaN is NaN. What comes out is made of `x_BLC`.
        seen_BLC = torch.where(finite_BL1, x_BLC, 0.0)
        total = all_reduce_with_grad(torch.cat([(seen_BLC * weight_BL1).sum((0, 1)), weight_BL1.sum().reshape(1)]))
        count = total[-1].detach()
        mean_C = total[:-1] / count.clamp(min=1.0)
        var_C = all_reduce_with_grad(((seen_BLC - mean_C).square() * weight_BL1).sum((0, 1))) / count.clamp(min=1.0)
        if not is_recomputing():
            self._move(mean_C.detach(), var_C.detach(), count)
        return self._scaled(x_BLC, mean_C, var_C).to(feat_BLC.dtype)

    def _scaled(self, x_BLC: Tensor, mean_C: Tensor, var_C: Tensor) -> Tensor:
        return (x_BLC - mean_C) * (torch.rsqrt(var_C + self.eps) * self.weight.float()) + self.bias.float()

    @torch.no_grad()
    def _move(self, mean_C: Tensor, var_C: Tensor, count: Tensor) -> None:
        # Nothing is learnt from a batch without a token.
        momentum = torch.where(count > 0, self.momentum, 0.0)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(var_C * (count / (count - 1.0).clamp(min=1.0)), momentum)
        self.num_batches_tracked.add_(1)
