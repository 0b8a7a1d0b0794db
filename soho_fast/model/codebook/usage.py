"""How often each code is used, and what follows from it; of any quantiser.

B images, L tokens per image, C channels, Q levels of K codes. Codes of all levels follow one another, level after
level: QK.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from soho_fast.ops.nn import Float32Buffers

from ..config import SohoConfig
from ..distributed import all_reduce_sum_
from ..normalization import finite_rows, is_recomputing

USAGE_DECAY = 0.99
"""Share of the running usage that stays in an update; ours."""
# From this usage on a code is active. In units of the uniform share; ours.
_ACTIVE = 0.01
# A code that is hardly used yet is not drawn by its lift alone. In units of the uniform share; ours.
_LEAST_USAGE = 0.05
_TINY = torch.finfo(torch.float32).tiny


class CodeUsage(Float32Buffers):
    """Counts the assigned features of a quantiser's codes, and does all of `Quantiser` that follows from that.

    A subclass calls `register_usage` in its constructor, and `gather` in training forwards; it has a `codes_of` and a
    `codebook_of` of its own.

    Attributes:
        usage: (QK,) float32 buffer, running mean of a code's share of the tokens, in units of the uniform share 1/K,
            counted from its start or reset.
        age: (QK,) float32 buffer, updates since the start or reset.
        step: () int64 buffer, updates.
    """

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.config = config
        self.num_levels, self.num_codes = config.num_levels, config.num_codes
        self.forget_counts()

    def register_usage(self) -> None:
        """Makes the buffers, for a constructor: those before come before in the order of names."""
        num_rows = self.num_levels * self.num_codes
        self.usage = nn.Buffer(torch.zeros(num_rows, dtype=torch.float32))
        self.age = nn.Buffer(torch.zeros(num_rows, dtype=torch.float32))
        self.step = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        """As `Quantiser.reset`, where nothing else has initial values."""
        self.reset_usage()

    def reset_usage(self) -> None:
        """No updates, no usage."""
        # transformers' functions leave alone what a checkpoint has filled.
        for buffer in (self.usage, self.age, self.step):
            init.zeros_(buffer)

    def forget_counts(self) -> None:
        """As before the first step."""
        self._gathered_K: Tensor | None = None
        self._num_non_finite: Tensor | None = None
        self._counts_QK: Tensor | None = None

    @torch.no_grad()
    def gather(self, feat_BLC: Tensor, valid_BL: Tensor, index_BL: Tensor) -> None:
        """Adds a training forward's real tokens that are finite to what `end_step` counts.

        Args:
            feat_BLC: v. valid_BL: bool. index_BL: int64, the code of each token, padding too; of one level.
        """
        if is_recomputing():
            return
        usable_BL = valid_BL & finite_rows(feat_BLC)
        self.count_non_finite(valid_BL, usable_BL)
        counts_K = self.usage.new_zeros(self.num_codes)
        counts_K.index_add_(0, index_BL.flatten(), usable_BL.flatten().to(counts_K.dtype))
        self._gathered_K = counts_K if self._gathered_K is None else self._gathered_K + counts_K

    @torch.no_grad()
    def distances(self, feat_BLC: Tensor, index_BLQ: Tensor) -> Tensor:
        """As `Quantiser.distances`, of one level: from the feature to the vector of its code."""
        return (feat_BLC.float() - self.codebook_of(0).float()[index_BLQ[..., 0]]).norm(dim=-1, keepdim=True)

    def codebook_of(self, level: int) -> Tensor:
        """As `Quantiser.codebook_of`: of a subclass."""
        raise NotImplementedError

    def begin_step(self) -> None:
        """As `Quantiser.begin_step`."""
        self._gathered_K = self._counts_QK = None

    @torch.no_grad()
    def end_step(self, *, applied: bool) -> None:
        """Counts what was gathered since `begin_step`, on all ranks, where the step is `applied`."""
        gathered_K, self._gathered_K = self._gathered_K, None
        if applied and gathered_K is not None:
            self.count(all_reduce_sum_(gathered_K))

    def count(self, counts_QK: Tensor) -> None:
        """Adds an update's assignments, of all ranks, to the running usage."""
        self._counts_QK = counts_QK
        total = counts_QK[: self.num_codes].sum()  # The same in each level.
        share_QK = counts_QK * (self.num_codes / total.clamp(min=1.0))
        # A step without tokens changes nothing.
        decay = torch.where(total > 0, USAGE_DECAY, 1.0)
        self.usage.mul_(decay).add_(share_QK * (1.0 - decay))
        self.age.add_((total > 0).float())
        self.step.add_(1)

    def count_non_finite(self, valid_BL: Tensor, usable_BL: Tensor) -> None:
        """Adds the real tokens of a forward that are not usable."""
        # It stays on the device until somebody asks.
        num = (valid_BL & ~usable_BL).sum()
        self._num_non_finite = num if self._num_non_finite is None else self._num_non_finite.to(num.device) + num

    def take_num_non_finite(self) -> int:
        """How many real tokens were not finite in the training forwards since the last call, on this rank.

        Waits for the device.
        """
        num, self._num_non_finite = self._num_non_finite, None
        return 0 if num is None else int(num)

    def unbiased_usage(self) -> Tensor:
        """(QK,), `usage` as a mean over the updates of each code alone; 0 of one that has seen none."""
        # From zero, the weights of n updates add up to 1 - decay^n (Adam's bias correction).
        seen_QK = 1.0 - torch.pow(USAGE_DECAY, self.age)
        return torch.where(self.age > 0, self.usage / seen_QK.clamp(min=_TINY), 0.0)

    @torch.no_grad()
    def statistics(self, level: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Of a level, the first is 0: perplexity (), active codes () and usage (K,) in units of the uniform share, over
        the running usage.

        Perplexity is exp of the entropy of the usage: K when all codes are used alike, 1 when one takes all.
        """
        usage_K = self.unbiased_usage().view(self.num_levels, -1)[level]
        perplexity, _ = _perplexity_of(usage_K)
        return perplexity, (usage_K >= _ACTIVE).sum(), usage_K

    @torch.no_grad()
    def step_statistics(self) -> dict[str, Tensor]:
        """Of the features that the last step's update was made by, in the first level, each (): `step_perplexity`, as
        in `statistics`, and `top_share`, that of the code with the most features; empty where there was no update.

        Unlike the running usage, which forgets slowly and which resets keep up, these show at once that features
        crowd into few codes.
        """
        if self._counts_QK is None:
            return {}
        perplexity, share_K = _perplexity_of(self._counts_QK[: self.num_codes])
        return {"step_perplexity": perplexity, "top_share": share_K.max()}

    def draw_by_lift(self, index_BL: Tensor, valid_BL: Tensor, uniform_B: Tensor) -> Tensor:
        """A code of each image, int64 (B,), -1 of one without tokens: the more often, the more frequent it is in the
        image than elsewhere.

        Its probability is in proportion to the square of its lift: its tokens in the image over its running usage. So
        what sets an image apart is drawn more often than what many have.

        Args:
            index_BL: int64, codes of the first level.
            valid_BL: bool, the tokens that count.
            uniform_B: float64 in [0, 1), by which one is drawn.
        """
        usage_K = self.unbiased_usage()[: self.num_codes].clamp(min=_LEAST_USAGE)
        count_BK = usage_K.new_zeros(len(index_BL), self.num_codes)
        # Padding's index of -1 counts as code 0, with a weight of 0.
        count_BK.scatter_add_(1, index_BL.clamp(min=0), valid_BL.to(count_BK.dtype))
        # Float64, as `uniform_B`, so that a code of little weight keeps its share of a long sum.
        sum_BK = (count_BK / usage_K).square().double().cumsum(1)
        total_B1 = sum_BK[:, -1:]
        # `right`: a draw of 0 must not fall on a code without tokens. The product may round up to the total.
        code_B1 = torch.searchsorted(sum_BK, uniform_B.unsqueeze(1) * total_B1, right=True)
        return torch.where(total_B1 > 0, code_B1.clamp(max=self.num_codes - 1), -1).squeeze(1)


def _perplexity_of(weight_K: Tensor) -> tuple[Tensor, Tensor]:
    """exp of the entropy of the codes' shares, (), and the shares (K,)."""
    share_K = weight_K / weight_K.sum().clamp(min=_TINY)
    # xlogy: an unused code adds 0, not NaN.
    return torch.exp(-torch.special.xlogy(share_K, share_K).sum()), share_K
