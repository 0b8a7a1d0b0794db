"""BatchNorm whose running statistics stay float32.

B images, C channels, H x W pixels of a feature map, L tokens per image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker
from transformers import initialization as init

from soho_fast.common.errors import UserError
from soho_fast.ops.nn import Float32Buffers

from .distributed import all_reduce_sum_, all_reduce_with_grad

_TRACKER = ModuleTracker()


def is_recomputing() -> bool:
    """True while activation checkpointing runs a forward again inside a backward pass.

    State that a forward moves (running statistics, the codebook) must not move a second time then.
    """
    # A forward within a backward is one that checkpointing runs again.
    return _TRACKER.is_bw


def finite_rows(feat_BLC: Tensor) -> Tensor:
    """Bool (B, L): whether all channels of a token are finite."""
    # Many times as fast as `isfinite` and `all`: a NaN is both the largest and the smallest.
    return feat_BLC.amax(-1).isfinite() & feat_BLC.amin(-1).isfinite()


class BatchNorm2d(nn.BatchNorm2d, Float32Buffers):
    """`nn.BatchNorm2d` for mixed precision without autocast, and for images of several sizes in a batch.

    Running statistics and arithmetic are float32. Padded positions take no part in the statistics and come out as zero.
    A second forward (activation checkpointing) normalises by the batch as the first did, and leaves the running
    statistics alone.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, input: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
        """
        Args:
            input: (B, C, H, W), any floating type.
            mask_B1HW: 1 at real positions, 0 at padding; `None`: no padding, which is faster.

        Returns:
            input's shape and type.

        Raises:
            UserError: training on one value a channel, which is its own mean: all images would come out alike.
        """
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            raise UserError(
                "the CNN's BatchNorm: expected more than one image or grid position in a micro-batch, got one of each; "
                "give larger images, more images a micro-batch, or --engine.freeze_batch_norm true"
            )
        weight_C, bias_C = self.weight.float(), self.bias.float()
        if self.training and mask_B1HW is not None:
            output, mean_C, var_C, count = _MaskedBatchNorm.apply(input, mask_B1HW, weight_C, bias_C, self.eps)
            if not is_recomputing():
                with torch.no_grad():
                    self.num_batches_tracked.add_(1)
                    self.running_mean.lerp_(mean_C.float(), self.momentum)
                    # As torch has it: the batch is normalised by the biased variance, the running one is unbiased.
                    unbiased_C = var_C * (count / (count - 1).clamp(min=1))
                    self.running_var.lerp_(unbiased_C.float(), self.momentum)
            return output
        if self.training and is_recomputing():
            # Copies, because checkpointing wants the second forward to save as many tensors as the first.
            mean_C, var_C = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(input, mean_C, var_C, weight_C, bias_C, True, 0.0, self.eps)
        if self.training:
            self.num_batches_tracked.add_(1)
        output = F.batch_norm(
            input, self.running_mean, self.running_var, weight_C, bias_C, self.training, self.momentum, self.eps
        )
        # In place: the backward of BatchNorm reads its input, not this.
        return output if mask_B1HW is None else output.mul_(mask_B1HW)


class _MaskedBatchNorm(torch.autograd.Function):
    """BatchNorm by the mean and the biased variance of the real positions, zero at padding; arithmetic is float32.

    Written out, because autograd would keep several maps of features for each layer where this keeps the input alone,
    as `F.batch_norm` does. Two passes: the variance is that of differences from the mean.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, mask_B1HW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the output in input's shape and type, mean and biased variance (C,), number of real positions."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        # Products of half-precision features with it are taken in float32.
        mask_B1HW = mask_B1HW.to(dtype)
        count = mask_B1HW.sum().clamp(min=1)
        mean_C = (input * mask_B1HW).sum((0, 2, 3)) / count
        centred_BCHW = (input - _of_channels(mean_C)).mul_(mask_B1HW)
        var_C = centred_BCHW.square().sum((0, 2, 3)) / count
        inv_std_C = torch.rsqrt(var_C + eps)
        # Over the centred map, which is not kept: the backward centres the input once more. The bias stays off padding.
        output = centred_BCHW.mul_(_of_channels(inv_std_C * weight_C)).addcmul_(mask_B1HW, _of_channels(bias_C))
        ctx.save_for_backward(input, mask_B1HW, weight_C, mean_C, inv_std_C, count)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return output.to(input.dtype), mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias."""
        input, mask_B1HW, weight_C, mean_C, inv_std_C, count = ctx.saved_tensors
        grad_BCHW = grad_output * mask_B1HW
        # Not masked: each product with it is, by the gradient or by the mask.
        centred_BCHW = input - _of_channels(mean_C)
        grad_bias_C = grad_BCHW.sum((0, 2, 3))
        grad_var_C = (grad_BCHW * centred_BCHW).sum((0, 2, 3)) * inv_std_C.square()
        grad_input = None
        if ctx.needs_input_grad[0]:
            # The gradient, less its projections on a constant and on the centred input.
            centred_BCHW.mul_(_of_channels(grad_var_C / count)).add_(_of_channels(grad_bias_C / count))
            grad_BCHW.addcmul_(centred_BCHW, mask_B1HW, value=-1).mul_(_of_channels(weight_C * inv_std_C))
            grad_input = grad_BCHW.to(input.dtype)
        # The weight's gradient is the sum of gradient times normalised input.
        return grad_input, None, grad_var_C / inv_std_C, grad_bias_C, None


def _of_channels(values_C: Tensor) -> Tensor:
    return values_C.view(-1, 1, 1)


class RunningStatistics(Float32Buffers):
    """What a BatchNorm over tokens learns.

    Args:
        num_channels: C.

    Attributes:
        eps: added to the variance.
        momentum: how far running statistics move to those of a batch or a step.

    Buffers:
        running_mean, running_var (C,), float32; num_batches_tracked (), updates so far.
    """

    eps, momentum = 1e-5, 0.1

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.running_mean = nn.Buffer(torch.zeros(num_channels, dtype=torch.float32))
        self.running_var = nn.Buffer(torch.ones(num_channels, dtype=torch.float32))
        self.num_batches_tracked = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        """The initial values."""
        # transformers' functions leave alone what a checkpoint has filled.
        for ones in (self.weight, self.running_var):
            init.ones_(ones)
        for zeros in (self.bias, self.running_mean, self.num_batches_tracked):
            init.zeros_(zeros)


class TokenBatchNorm(RunningStatistics):
    """BatchNorm over tokens that normalises by its running statistics, in training too.

    What a token becomes then does not depend on who shares its batch. By the statistics of a batch of few images it
    would: in recipe `mini` (8 images, 128 tokens) one token in eight had another code in training than in evaluation.
    The gradient is BatchNorm's, through the statistics of the batch: batch renormalisation (Ioffe 2017, "Batch
    Renormalization") without its limits.

    Statistics are over the valid and finite tokens of all ranks. Between `begin_step` and `end_step` forwards only
    gather them, as those of the dictionary, and the end moves the running ones once. The first training forward has
    nothing to go by and takes the statistics of its own batch.

    Args:
        num_channels: as in `RunningStatistics`. The running statistics are the plain mean over the first 1 / momentum
            steps, and then move by `momentum`.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)
        self.register_load_state_dict_post_hook(TokenBatchNorm._forget_host_state)
        self._forget_host_state()

    def reset(self) -> None:
        """The initial values."""
        super().reset()
        self._forget_host_state()

    def _forget_host_state(self, *_: object) -> None:
        # A mirror of `num_batches_tracked` (-1: not read yet), read from the buffer once so that no step waits for the
        # device.
        self._num_updates = -1
        self._in_step = False
        self._gathered: Tensor | None = None

    def begin_step(self) -> None:
        """From here on training forwards gather what `end_step` updates from; what was gathered before is forgotten."""
        self._in_step, self._gathered = True, None

    def end_step(self, *, applied: bool) -> None:
        """Updates from all that was gathered since `begin_step`, or forgets it where the optimiser left the step out.

        All ranks make the call, with the same `applied`.
        """
        gathered, self._in_step, self._gathered = self._gathered, False, None
        if applied and gathered is not None:
            self._update(gathered)

    def forward(self, feat_BLC: Tensor, valid_BL: Tensor, num_texts_B: Tensor | None = None) -> Tensor:
        """
        Args:
            feat_BLC: any floating type.
            valid_BL: bool.
            num_texts_B: not read: each image counts once. (`official/batch_norm.py: AllTokenBatchNorm` reads it.)

        Returns:
            feat_BLC's shape and type, zero where a token is not valid, computed in float32.
        """
        return self._normalised(feat_BLC, valid_BL).masked_fill(~valid_BL.unsqueeze(-1), 0.0)

    def _normalised(self, feat_BLC: Tensor, valid_BL: Tensor) -> Tensor:
        x_BLC = feat_BLC.float()
        if not self.training:
            scale_C = torch.rsqrt(self.running_var + self.eps) * self.weight.float()
            shift_C = self.bias.float() - self.running_mean * scale_C
            return torch.addcmul(shift_C, x_BLC, scale_C).to(feat_BLC.dtype)
        usable_BL1 = (valid_BL & finite_rows(x_BLC.detach())).unsqueeze(-1)
        # Before the running statistics are read: the first forward fills them.
        gathered = None if is_recomputing() else self._gather(x_BLC.detach(), usable_BL1)
        mean_C, var_C = self._batch_statistics(x_BLC, usable_BL1)
        inv_std_C = torch.rsqrt(var_C + self.eps)
        with torch.no_grad():
            running_inv_std_C = torch.rsqrt(self.running_var + self.eps)
            # r and d of batch renormalisation: the batch's statistics cancel in the value and stay in the gradient.
            ratio_C, shift_C = running_inv_std_C / inv_std_C, (mean_C - self.running_mean) * running_inv_std_C
        scale_C = inv_std_C * ratio_C * self.weight.float()
        bias_C = self.bias.float() + (shift_C * self.weight.float()) - mean_C * scale_C
        if gathered is not None and not self._in_step:
            self._update(gathered)
        elif gathered is not None:
            self._gathered = gathered if self._gathered is None else self._gathered + gathered
        return torch.addcmul(bias_C, x_BLC, scale_C).to(feat_BLC.dtype)

    def _batch_statistics(self, x_BLC: Tensor, usable_BL1: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) of the usable tokens of all ranks, for the gradient through them."""
        total = torch.cat([torch.where(usable_BL1, x_BLC, 0.0).sum((0, 1)), usable_BL1.sum().float().reshape(1)])
        total = all_reduce_with_grad(total)
        count = total[-1].detach().clamp(min=1.0)
        mean_C = total[:-1] / count
        # In two passes, as `_MaskedBatchNorm`.
        square_C = torch.where(usable_BL1, x_BLC - mean_C, 0.0).square().sum((0, 1))
        return mean_C, all_reduce_with_grad(square_C) / count

    @torch.no_grad()
    def _gather(self, x_BLC: Tensor, usable_BL1: Tensor) -> Tensor:
        """Sums (2C + 1,) of this rank: the tokens' differences from the running mean, their squares, the tokens."""
        if self._num_updates < 0:
            self._num_updates = int(self.num_batches_tracked)
        # Of the first step the first micro-batch alone: the others are gathered about its mean.
        if not self._num_updates and self._gathered is None:
            mean_C, var_C = self._batch_statistics(x_BLC, usable_BL1)
            self.running_mean.copy_(mean_C)
            # A channel that is constant would be scaled by 1 / sqrt(eps).
            self.running_var.copy_(torch.where(var_C > 0, var_C, 1.0))
        # From the running mean: about zero the sum of squares would hide a small variance.
        difference_BLC = torch.where(usable_BL1, x_BLC - self.running_mean, 0.0)
        count = usable_BL1.sum().float().reshape(1)
        return torch.cat([difference_BLC.sum((0, 1)), difference_BLC.square().sum((0, 1)), count])

    @torch.no_grad()
    def _update(self, gathered: Tensor) -> None:
        num_channels = len(self.running_mean)
        sums_C, squares_C, count = all_reduce_sum_(gathered.clone()).split([num_channels, num_channels, 1])
        count = count.clamp(min=1.0)
        difference_C = sums_C / count
        var_C = (squares_C / count - difference_C.square()).clamp(min=0.0) * (count / (count - 1.0).clamp(min=1.0))
        # One token, or none that is finite, has no spread to tell.
        var_C = torch.where(count > 1, var_C, self.running_var)
        self._num_updates += 1
        self.num_batches_tracked.add_(1)
        momentum = max(self.momentum, 1.0 / self._num_updates)
        self.running_mean.add_(difference_C, alpha=momentum)
        self.running_var.lerp_(var_C, momentum)
