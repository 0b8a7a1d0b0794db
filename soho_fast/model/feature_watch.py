"""What shows within some steps that a run is losing its visual features. Nothing that is trained depends on it.

B images, L tokens per image, C channels.
"""

import torch
from torch import Tensor

from .distributed import all_reduce_sum_
from .normalization import Float32Buffers, finite_rows, is_recomputing

# Steps that the reference is a plain mean of at first, and about as many that it remembers later.
_REMEMBERED = 50
# Steps after which a reference stands that no frozen backbone keeps alive.
_UNTIL_IT_STANDS = 100


class FeatureWatch(Float32Buffers):
    """Compares the features of each step, those that the dictionary gets, with what they were before the CNN learnt.

    The reference follows the features while the backbone is frozen, and stands from then on; where it is never frozen,
    it is that of the first hundred steps.

    Buffers:
        mean, variance (C,): the reference, float32; num_updates (): steps it has followed.

    Attributes:
        follows: whether the reference follows the features.
    """

    mean: Tensor
    variance: Tensor
    num_updates: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.follows = False
        self.register_buffer("mean", torch.zeros(num_channels, dtype=torch.float32))
        self.register_buffer("variance", torch.ones(num_channels, dtype=torch.float32))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.float32))
        self._gathered: Tensor | None = None
        self._has_codes = False
        self._figures: dict[str, Tensor] = {}

    def begin_step(self) -> None:
        """From here on `see` gathers what `end_step` makes figures of."""
        self._gathered, self._figures = None, {}

    @torch.no_grad()
    def see(self, feat_BLC: Tensor, valid_BL: Tensor, embed_BLC: Tensor | None) -> None:
        """A training forward's features, and the codes that stand for them (eq. 3) where there is a dictionary."""
        if not self.training or is_recomputing():
            return
        usable_BL1 = (valid_BL & finite_rows(feat_BLC)).unsqueeze(-1)
        centred_BLC = torch.where(usable_BL1, feat_BLC.float() - self.mean, 0.0)
        error = centred_BLC.new_zeros(())
        self._has_codes = embed_BLC is not None
        if embed_BLC is not None:
            error = torch.where(usable_BL1, feat_BLC.float() - embed_BLC.float(), 0.0).square().sum()
        sums = [centred_BLC.sum((0, 1)), centred_BLC.square().sum((0, 1))]
        gathered = torch.cat([*sums, torch.stack([error, usable_BL1.sum().float()])])
        self._gathered = gathered if self._gathered is None else self._gathered + gathered

    @torch.no_grad()
    def end_step(self, *, applied: bool) -> None:
        """Makes the figures of what was seen since `begin_step`. All ranks make the call, with the same `applied`."""
        gathered, self._gathered = self._gathered, None
        if not applied or gathered is None:
            return
        num_channels = len(self.mean)
        sums_C, squares_C, error, count = all_reduce_sum_(gathered.clone()).split([num_channels, num_channels, 1, 1])
        count = count.clamp(min=1.0)
        shift_C = sums_C / count
        variance_C = (squares_C / count - shift_C.square()).clamp(min=0.0)
        follows = torch.ones_like(self.num_updates) if self.follows else (self.num_updates < _UNTIL_IT_STANDS).float()
        momentum = follows / (self.num_updates + 1).clamp(max=_REMEMBERED)
        self.mean.addcmul_(shift_C, momentum)
        self.variance.lerp_(variance_C, momentum)
        self.num_updates.add_(follows)
        tiny = torch.finfo(torch.float32).tiny
        before, now = self.variance.sum().clamp(min=tiny), variance_C.sum()
        self._figures = {
            "feature_drift": ((1 - momentum) * shift_C).square().sum().div(before).sqrt(),
            "feature_spread": now / before,
        }
        if self._has_codes:
            self._figures["code_error"] = (error / count).squeeze() / now.clamp(min=tiny)

    def figures(self) -> dict[str, Tensor]:
        """Of the last step, by name, each (); empty where it had no features, as in the bag-of-words phase.

        feature_drift: how far the mean of the features has moved from the reference's, in the reference's standard
        deviations. feature_spread: their variance in units of the reference's. code_error: mean squared distance of a
        feature from its code, in units of the features' variance; above 1 a single code would stand closer to them all.
        """
        return self._figures
