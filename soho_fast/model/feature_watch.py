"""Detects within some steps that the visual features of a run collapse. It does not affect training.

B images, L tokens per image, C channels.
"""

import math

import torch
from torch import Tensor, nn

from soho_fast.ops.nn import Float32Buffers

from .distributed import all_reduce_sum_
from .normalization import finite_rows, is_recomputing

# Steps over which the reference is a running mean: while the backbone is frozen, and while it is trained.
_REMEMBERED_FROZEN, _REMEMBERED = 50.0, 1000.0
# No step counts as lost before the reference has seen so many steps, nor before the codes have fitted the features for
# so many steps in a row. A run begins with random codes or with none, and a CNN that is trained from the beginning
# unlearns matching for some dozens of steps.
_UNTIL_KNOWN = 100
# The rule, see `FeatureWatch`.
_LEAST_SPREAD, _LARGEST_ERROR, STEPS_UNTIL_LOST = 0.05, 1.0, 20
# Nats: the loss of matching where nothing is known of pairs of which half match, what counts as learnt, and as lost.
_CHANCE, _LEARNT, _UNLEARNT = math.log(2), 0.62, 0.68
_MATCHING_REMEMBERED = 50.0  # steps


class FeatureWatch(Float32Buffers):
    """Compares the features that the dictionary gets in each step with a reference, their running mean and variance.

    While the backbone is frozen the reference follows the features closely, later slowly. So during a collapse it is
    still about what it was when the backbone was unfrozen, and over many thousand steps it lets the features move.

    A step is lost if one of these holds:

    - All features are alike: their variance is below a twentieth of the sum of the reference's variance and the squared
      distance between the two means.
    - The codes do not fit: a single code at the features' mean would be nearer to them (`code_error` above 1).
    - Matching has fallen back to chance, in steps in which about half of the pairs match. Features can lose what they
      tell of the image while the codes still fit.

    The run is lost after twenty lost steps in a row.

    Buffers:
        mean, variance (C,): the reference, float32.
        num_updates (): steps that are in it.
        num_coded (): steps in a row in which the codes fitted; from a hundred on, every step counts.
        matching, least_matching (): running mean of the loss of matching over about fifty steps, in nats, and the least
        that it has been.
        num_lost (): lost steps in a row.

    Attributes:
        backbone_frozen: whether the backbone is frozen.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.backbone_frozen = False
        self.mean = nn.Buffer(torch.zeros(num_channels, dtype=torch.float32))
        self.variance = nn.Buffer(torch.ones(num_channels, dtype=torch.float32))
        self.num_updates = nn.Buffer(torch.zeros((), dtype=torch.float32))
        self.num_coded = nn.Buffer(torch.zeros((), dtype=torch.float32))
        self.num_lost = nn.Buffer(torch.zeros((), dtype=torch.float32))
        self.matching = nn.Buffer(torch.tensor(_CHANCE, dtype=torch.float32))
        self.least_matching = nn.Buffer(torch.tensor(_CHANCE, dtype=torch.float32))
        self._gathered: Tensor | None = None
        self._matched: Tensor | None = None
        self._has_codes = False
        self._figures: dict[str, Tensor] = {}

    def begin_step(self) -> None:
        """From here on `see` gathers what `end_step` makes figures of."""
        self._gathered, self._matched, self._figures = None, None, {}

    @torch.no_grad()
    def see(self, feat_BLC: Tensor, valid_BL: Tensor, embed_BLC: Tensor | None) -> None:
        """A training forward's features, and the codes that stand for them (eq. 3) where there is a dictionary."""
        if not self.training or is_recomputing():
            return
        usable_BL1 = (valid_BL & finite_rows(feat_BLC)).unsqueeze(-1)
        # About the reference, where the sums below lose few digits. `where`, since 0 times NaN is NaN.
        centred_BLC = torch.where(usable_BL1, feat_BLC.float() - self.mean, 0.0)
        self._has_codes = embed_BLC is not None
        # Without codes the error is 0, and `end_step` does not read it.
        code_BLC = feat_BLC if embed_BLC is None else embed_BLC
        error = torch.where(usable_BL1, feat_BLC.float() - code_BLC.float(), 0.0).square().sum()
        numbers = torch.stack([error, usable_BL1.sum().float()])
        gathered = torch.cat([centred_BLC.sum((0, 1)), centred_BLC.square().sum((0, 1)), numbers])
        self._gathered = gathered if self._gathered is None else self._gathered + gathered

    @torch.no_grad()
    def see_matching(self, loss: Tensor, num_pairs: Tensor, num_matched: Tensor) -> None:
        """A training forward's loss of matching, eq. 8, its sum over so many pairs, of which so many match; each ()."""
        if self.training:
            matched = torch.stack([loss.float(), num_pairs.float(), num_matched.float()])
            self._matched = matched if self._matched is None else self._matched + matched

    @torch.no_grad()
    def end_step(self, *, applied: bool) -> None:
        """Makes the figures of what was seen since `begin_step`. All ranks make the call, with the same `applied`."""
        gathered, matched = self._gathered, self._matched
        self._gathered = self._matched = None
        if not applied or gathered is None:
            return
        num_channels = len(self.mean)
        # Without a loss of matching: zeros, which count as no pairs.
        gathered = torch.cat([gathered, gathered.new_zeros(3) if matched is None else matched])
        parts = all_reduce_sum_(gathered).split([num_channels, num_channels, 1, 1, 1, 1, 1])
        sums_C, squares_C, error, count, matching, num_pairs, num_matched = parts
        count = count.clamp(min=1.0)
        # How far the step's mean lies from the reference, about which it was summed.
        shift_C = sums_C / count
        variance_C = (squares_C / count - shift_C.square()).clamp(min=0.0)
        remembered = _REMEMBERED_FROZEN if self.backbone_frozen else _REMEMBERED
        # A plain mean at first; exponential once it has followed as many steps as it remembers.
        momentum = 1 / (self.num_updates + 1).clamp(max=remembered)
        self.mean.addcmul_(shift_C, momentum)
        self.variance.lerp_(variance_C, momentum)
        self.num_updates.add_(1)
        tiny = torch.finfo(torch.float32).tiny
        before, now = self.variance.sum().clamp(min=tiny), variance_C.sum()
        # `mean` has gone `momentum` of the way by now: this is the distance that is left.
        drift = ((1 - momentum) * shift_C).square().sum().div(before).sqrt()
        self._figures = {"feature_drift": drift, "feature_spread": now / before}
        # In units of `before`, drift^2 is the squared distance of the means: so this is variance plus distance.
        lost = now < _LEAST_SPREAD * before * (1 + drift.square())
        if self._has_codes:
            code_error = (error / count).squeeze() / now.clamp(min=tiny)
            self._figures["code_error"] = code_error
            # Random codes do not fit at first, so only codes that have fitted for long can be lost.
            known, coded = self.num_coded >= _UNTIL_KNOWN, code_error <= _LARGEST_ERROR
            lost |= known & ~coded
            # Once known, all steps count: a row of bad ones must not make it unknown.
            self.num_coded.copy_(torch.where(known | coded, self.num_coded + 1, 0.0))
        # With other shares the loss at chance is another one, so such steps are left out. Without pairs 0 < 0 is False.
        are_even = (num_matched - num_pairs / 2).abs() < num_pairs / 10
        change = (matching / num_pairs.clamp(min=1.0) - self.matching) / _MATCHING_REMEMBERED
        # A NaN would stay in the mean for good.
        self.matching.add_(torch.where(are_even & change.isfinite(), change, 0.0).squeeze())
        torch.minimum(self.least_matching, self.matching, out=self.least_matching)
        # Only what was learnt can be lost.
        lost |= (self.least_matching < _LEARNT) & (self.matching > _UNLEARNT)
        self.num_lost.copy_(torch.where(lost & (self.num_updates > _UNTIL_KNOWN), self.num_lost + 1, 0.0))

    def figures(self) -> dict[str, Tensor]:
        """Of the last step, by name, each (); empty where it had no features, as in the bag-of-words phase.

        feature_drift: how far the mean of the features has moved from the reference's, in the reference's standard
        deviations. feature_spread: their variance in units of the reference's. code_error: mean squared distance of a
        feature from its code, in units of the features' variance.
        """
        return self._figures

    def steps_lost(self) -> int:
        """For how many steps in a row this looks lost, up to the last one. Waits for the device."""
        return int(self.num_lost)

    def is_sound(self) -> bool:
        """Whether the last step was not lost, and matching is not half-way from its best to what counts as lost: its
        running mean shows a loss only some hundred steps later. Waits for the device."""
        halfway = (self.least_matching + _UNLEARNT) / 2
        return not self.num_lost and not bool((self.least_matching < _LEARNT) & (self.matching > halfway))
