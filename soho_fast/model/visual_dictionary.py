"""The visual dictionary (paper section 3.2, eq. 2-5): a codebook that learns by a momentum mean, not by gradient.

B images, L tokens per image, N = B*L, C channels, Q levels (1 in the paper) of K codes, R candidates for the dead-code
reset. Codes of all levels are rows of one table, level after level: QK.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import initialization as init

from soho_fast import ops

from .config import SohoConfig
from .distributed import all_gather_rows, all_reduce_sum_, broadcast_from_first_, rank, world_size
from .normalization import Float32Buffers, finite_rows, is_recomputing

_NO_CANDIDATE = torch.iinfo(torch.int64).max
# Codes beyond the number of available features start near a feature; the spread is ours, in units of the features'
# own standard deviation: enough to tell the copies apart, small beside the distance between features.
_COPY_NOISE = 0.1
# How far `dictionary_follow`'s running mean moves to that of a step. Ours: a tenth stays behind features that move by a
# fifth of their deviation a step, and with two fifths still ones lose nothing either.
_FOLLOW_MOMENTUM = 0.2
# A code that is hardly used yet is not drawn by its lift alone. In units of the uniform share; ours.
_LEAST_USAGE = 0.05


def _mix64(x: Tensor) -> Tensor:
    """A bijective hash of int64 (the finaliser of SplitMix64): the same bits on every device and rank."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x


def _perplexity_of(weight_K: Tensor) -> tuple[Tensor, Tensor]:
    """exp of the entropy of the codes' shares, (), and the shares (K,)."""
    share_K = weight_K / weight_K.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.exp(-torch.special.xlogy(share_K, share_K).sum()), share_K


@dataclass
class _Assignments:
    """What a step's training forwards leave for its update, on this rank: how many features are assigned to each code
    and their sum, the sum of their squares (0 without `dictionary_follow`), the number of images, and where codes may
    be reset the candidates drawn so far: their hashes (R,), and what of each every level looks up (R, Q, C)."""

    counts_QK: Tensor
    sums_QKC: Tensor
    squares_C: Tensor
    num_images: int = 0
    candidates: tuple[Tensor, Tensor] | None = None


class VisualDictionary(Float32Buffers):
    """Maps features to the nearest code (eq. 2), puts the code in their place (eq. 3, 5) and moves the codes (eq. 4).

    Codebook and statistics are float32 buffers, whatever the precision of the model. A training forward looks up and
    answers with the codebook as it was before, and updates it afterwards from the assigned features of all ranks; every
    rank then holds the same bits. In eval nothing moves. Padding and tokens that are not finite take no part.

    Between `begin_step` and `end_step` forwards only gather assignments, and the end updates from all of them at once:
    with gradient accumulation the batch of eq. 4 is then that of the optimiser step, and a step that is not applied
    moves nothing. (Data-dependent init is no update: the first lookup needs its codes, drawn from the first
    micro-batch.)

    With `num_levels` a feature is the sum of a code of each level (a residual quantiser): the second level's codes are
    looked up in what the first leaves, and so on. All of the above holds for each level by itself. A level's codes are
    drawn in the update after that of the level before; until then they are zero, but for one that eq. 4 moves to the
    mean of what is left.

    Attributes:
        pack: makes of codebook and levels what is looked up in, for codes that are frozen; `None`: the codebook itself.
        codebook: (QK, C) buffer, as all that follow.
        usage: (QK,) running mean of a code's share of the tokens, in units of the uniform share 1/K, counted from its
            start or reset.
        age: (QK,) updates since the start or reset.
        step: () updates.
        initialised: () levels whose codes have been initialised.
        cluster_size: (QK,), for `ema_variant="vqvae"` alone.
        cluster_sum: (QK, C), the same.
        feature_mean: (C,) running mean, for `dictionary_follow` alone.
        feature_variance: (C,) running variance, the same.
    """

    codebook: Tensor
    usage: Tensor
    age: Tensor
    step: Tensor
    initialised: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    feature_mean: Tensor
    feature_variance: Tensor

    # Whether codes move in each training forward, within a step too, which answers with the moved ones.
    moves_in_forward = False

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.config = config
        self.pack: Callable[[Tensor, int], ops.PreparedCodebook] | None = None
        self.num_levels, self.num_codes, self.num_channels = config.num_levels, config.num_codes, config.hidden_size
        self._num_resettable = min(config.code_reset_limit, self.num_codes)
        num_rows = self.num_levels * self.num_codes
        shape = (num_rows, self.num_channels)
        self.register_buffer("codebook", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("usage", torch.zeros(num_rows, dtype=torch.float32))
        self.register_buffer("age", torch.zeros(num_rows, dtype=torch.float32))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.int64))
        if config.ema_variant == "vqvae":
            self.register_buffer("cluster_size", torch.zeros(num_rows, dtype=torch.float32))
            self.register_buffer("cluster_sum", torch.zeros(shape, dtype=torch.float32))
        if config.dictionary_follow != "none":
            self.register_buffer("feature_mean", torch.zeros(self.num_channels, dtype=torch.float32))
            self.register_buffer("feature_variance", torch.ones(self.num_channels, dtype=torch.float32))
        self.register_load_state_dict_post_hook(VisualDictionary._forget_host_state)
        self.reset()

    def reset(self) -> None:
        """Random codes (the paper's start; zero in several levels, which are drawn), no usage, nothing learnt."""
        # transformers' functions leave alone what a checkpoint has filled.
        init.normal_(self.codebook, std=self.config.dictionary_init_std if self.num_levels == 1 else 0.0)
        for name in ("usage", "age", "step", "initialised"):
            init.zeros_(getattr(self, name))
        if self.config.ema_variant == "vqvae":
            init.ones_(self.cluster_size)
            init.copy_(self.cluster_sum, self.codebook)
        if self.config.dictionary_follow != "none":
            init.zeros_(self.feature_mean)
            init.ones_(self.feature_variance)
        self._forget_host_state()

    def _forget_host_state(self, *_: object) -> None:
        # Mirrors of `step` (-1: not read yet) and `initialised`, read from the buffers once so that no step waits for
        # the device.
        self._host_step = -1
        self._host_initialised = 0
        self._ranks_agree = False
        self._in_step = False
        self._assignments: _Assignments | None = None
        self._num_non_finite: Tensor | None = None
        self._before_QKC: Tensor | None = None
        self._counts_QK: Tensor | None = None
        self._subspace = ops.MovingSubspace()

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
        usage_K = self._unbiased_usage()[: self.num_codes].clamp(min=_LEAST_USAGE)
        count_BK = usage_K.new_zeros(len(index_BL), self.num_codes)
        count_BK.scatter_add_(1, index_BL.clamp(min=0), valid_BL.to(count_BK.dtype))
        sum_BK = (count_BK / usage_K).square().double().cumsum(1)
        total_B1 = sum_BK[:, -1:]
        code_B1 = torch.searchsorted(sum_BK, uniform_B.unsqueeze(1) * total_B1, right=True)
        return torch.where(total_B1 > 0, code_B1.clamp(max=self.num_codes - 1), -1).squeeze(1)

    def begin_step(self) -> None:
        """From here on training forwards gather what `end_step` updates from; what was gathered before is forgotten."""
        self._in_step, self._assignments = not self.moves_in_forward, None
        self._before_QKC = self._counts_QK = None

    @torch.no_grad()
    def end_step(self, *, applied: bool) -> None:
        """Eq. 4, by all that was gathered since `begin_step`, or nothing where the optimiser left the step out.

        All ranks make the call, with the same `applied`.
        """
        assignments, self._in_step, self._assignments = self._assignments, False, None
        if not applied or assignments is None:
            return
        self._before_QKC = self.codebook.clone()
        counts_QK, sums_QKC = assignments.counts_QK, assignments.sums_QKC
        if world_size() > 1:
            packed = all_reduce_sum_(torch.cat([sums_QKC, counts_QK.unsqueeze(1)], dim=1))
            counts_QK, sums_QKC = packed[:, -1].contiguous(), packed[:, :-1].contiguous()
        if self.config.dictionary_follow != "none":
            num = self.num_codes
            self._follow(counts_QK[:num], sums_QKC[:num], all_reduce_sum_(assignments.squares_C))
        if self.config.ema_variant == "paper":
            ops.codebook_ema_(self.codebook, counts_QK, sums_QKC, self.config.ema_decay)
        else:
            self._move_vqvae(counts_QK, sums_QKC)
        self._counts_QK = counts_QK
        self.count(counts_QK)
        if assignments.candidates is not None:
            self._reset_unused(*assignments.candidates)

    def take_num_non_finite(self) -> int:
        """How many real tokens were not finite in the training forwards since the last call, on this rank.

        Waits for the device.
        """
        num, self._num_non_finite = self._num_non_finite, None
        return 0 if num is None else int(num)

    def forward(
        self,
        feat_BLC: Tensor,
        valid_BL: Tensor,
        sample_key_B: Tensor | None = None,
        num_texts_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            feat_BLC: features, floating point.
            valid_BL: bool, True at real tokens.
            sample_key_B: float64 number of each image, the same whichever rank holds it; data-dependent init and
                reset draw by it. `None`: drawn by rank and position in the batch.
            num_texts_B: how often each image counts; `None`: once. (Read by `official/dictionary.py` alone.)

        Returns:
            embed (B, L, C) in the features' type, gradient straight through (eq. 5), and index int64 (B, L), the first
            level's code of each token, -1 at padding.
        """
        if feat_BLC.shape[-1] != self.num_channels:
            raise ValueError(f"feat_BLC: expected {self.num_channels} channels, got shape {tuple(feat_BLC.shape)}")
        with torch.autocast(feat_BLC.device.type, enabled=False):
            constant_BLC = feat_BLC.detach()
            moving = self.training and not is_recomputing()
            if moving:
                # A row that is not finite would make its code so, for ever.
                usable_BL = valid_BL & finite_rows(constant_BLC)
                image_B = self._image_numbers(constant_BLC, sample_key_B)
                self._prepare_update(constant_BLC, valid_BL, usable_BL, image_B)
            embed_BLC, index_BLQ = self._look_up(feat_BLC)
            if moving:
                self._gather(constant_BLC, valid_BL, usable_BL, index_BLQ, num_texts_B, image_B)
                if not self._in_step:
                    self.end_step(applied=True)
                if self.moves_in_forward:
                    embed_BLC = ops.straight_through(feat_BLC, self.codebook, index_BLQ[..., 0])
        return embed_BLC, index_BLQ[..., 0].masked_fill(~valid_BL, -1)

    @torch.no_grad()
    def begin_average(self, rows: slice = slice(None)) -> None:
        """Begins the running counts and sums of `ema_variant="vqvae"` where the codes are: each counts once."""
        self.cluster_size[rows] = 1.0
        self.cluster_sum[rows] = self.codebook[rows]

    def codes_of(self, feat_BLC: Tensor) -> Tensor:
        """int64 (B, L, Q), the code of each level for each feature, counted from 0 in each level."""
        return self._look_up(feat_BLC.detach())[1]

    def codebook_of(self, level: int) -> Tensor:
        """(K, C), the codes of a level; the first is 0."""
        return self.codebook[level * self.num_codes : (level + 1) * self.num_codes]

    def _look_up(self, feat_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """The codes in the features' place, gradient straight through, and the code of each level (B, L, Q)."""
        if self.num_levels > 1:
            books_QKC = self.codebook.unflatten(0, (self.num_levels, -1))
            books = self.pack(self.codebook, self.num_levels) if self.pack else books_QKC
            index_BLQ, embed_BLC = ops.residual_lookup(feat_BLC, books)
            return embed_BLC, index_BLQ
        constant_BLC = feat_BLC.detach()
        if self.pack is None:
            subspace = self._subspace.of(self.codebook)
            index_BL = ops.codebook_lookup(constant_BLC, self.codebook, subspace=subspace)
        else:
            index_BL = ops.codebook_lookup(constant_BLC, self.pack(self.codebook, 1))
        return ops.straight_through(feat_BLC, self.codebook, index_BL), index_BL.unsqueeze(-1)

    def _rests(self, feat_NC: Tensor, index_NQ: Tensor) -> list[Tensor]:
        """What each level looks up: the features, then what the levels before have left of them, float32."""
        rests = [feat_NC]
        for level in range(self.num_levels - 1):
            rests.append(rests[-1].float() - self.codebook_of(level)[index_NQ[..., level]])
        return rests

    @torch.no_grad()
    def statistics(self, level: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Of a level, the first is 0: perplexity (), active codes () and usage (K,) in units of the uniform share, over
        the running usage.

        Perplexity is exp of the entropy of the usage: K when all codes are used alike, 1 when one takes all.
        """
        usage_K = self._unbiased_usage().view(self.num_levels, -1)[level]
        perplexity, _ = _perplexity_of(usage_K)
        return perplexity, (usage_K >= self.config.active_threshold).sum(), usage_K

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

    @torch.no_grad()
    def drift(self) -> float:
        """How far the last step moved the codes that it did not reset, root mean square, in units of the codebook's
        spread (the same of the codes' distances from their mean); 0 where it moved none. Waits for the device."""
        if self._before_QKC is None:
            return 0.0
        first = self.codebook_of(0)
        moved_KC = (first - self._before_QKC[: self.num_codes])[self.age[: self.num_codes] > 0]
        spread_KC = first - first.mean(0)
        tiny = torch.finfo(torch.float32).tiny
        moved, spread = (values.square().sum() / max(len(values), 1) for values in (moved_KC, spread_KC))
        return float((moved / spread.clamp(min=tiny)).sqrt())

    def _unbiased_usage(self) -> Tensor:
        seen_QK = 1.0 - torch.pow(self.config.usage_decay, self.age)
        return torch.where(self.age > 0, self.usage / seen_QK.clamp(min=torch.finfo(torch.float32).tiny), 0.0)

    @torch.no_grad()
    def _prepare_update(self, feat_BLC: Tensor, valid_BL: Tensor, usable_BL: Tensor, image_B: Tensor) -> None:
        if not self._ranks_agree:
            # Ranks that were seeded differently, or of which only one loaded a checkpoint, start alike all the same.
            broadcast_from_first_(list(self.buffers(recurse=False)))
            self._ranks_agree = True
        if self._host_step < 0:
            self._host_step = int(self.step)
            # Codes of one level that have learnt are kept, whatever start they had; several are always drawn.
            drawn = self.config.dictionary_init == "data" and (self.num_levels > 1 or not self.age.any())
            self._host_initialised = int(self.initialised) if drawn else self.num_levels
        # Of the features that became the codes of a level none leaves anything to the next: that draws a step later.
        if self._host_initialised < min(self.num_levels, self._host_step + 1):
            self._init_from_data(feat_BLC, valid_BL, usable_BL, image_B)

    def _init_from_data(self, feat_BLC: Tensor, valid_BL: Tensor, usable_BL: Tensor, image_B: Tensor) -> None:
        """Draws the codes of the first level that has none."""
        level = self._host_initialised
        drawn = self._draw(feat_BLC, valid_BL, usable_BL, image_B, self.num_codes, self._host_step)
        feat_RC, available_R = self._draw_from_all_ranks(*drawn, self.num_codes)
        num_available = int(available_R.sum())
        if num_available == 0:
            return
        if level:
            books_QKC = self.codebook.unflatten(0, (self.num_levels, -1))[:level]
            feat_RC = ops.residual_lookup(feat_RC, books_QKC, return_residual=True)[2]
        copy_K = torch.arange(self.num_codes, device=feat_RC.device) % num_available
        generator = torch.Generator().manual_seed(self.config.dictionary_seed + level)
        noise_KC = torch.randn(feat_RC[copy_K].shape, generator=generator).to(feat_RC.device)
        spread_C = feat_RC[:num_available].std(0, correction=0) * _COPY_NOISE
        codebook_KC = feat_RC[copy_K]
        codebook_KC[num_available:] += (noise_KC * spread_C)[num_available:]
        rows = slice(level * self.num_codes, (level + 1) * self.num_codes)
        self.codebook[rows] = codebook_KC
        self.usage[rows], self.age[rows] = 0.0, 0.0
        if self.config.ema_variant == "vqvae":
            self.begin_average(rows)
        self._host_initialised += 1
        self.initialised.fill_(self._host_initialised)

    def _image_numbers(self, feat_BLC: Tensor, sample_key_B: Tensor | None) -> Tensor:
        """int64 (B,), what an image is known by in the draws of this step."""
        if sample_key_B is not None:
            return sample_key_B.to(torch.float64).contiguous().view(torch.int64)
        before = self._assignments.num_images if self._assignments is not None else 0
        return torch.arange(before, before + len(feat_BLC), device=feat_BLC.device) + (rank() << 32)

    def _draw(
        self, feat_BLC: Tensor, valid_BL: Tensor, usable_BL: Tensor, image_B: Tensor, num: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """At most `num` of this rank's usable features: their hashes, smallest first, and the features.

        Each token gets a hash of its image's number, its own among the image's valid tokens and the step; the smallest
        win. So the draw depends neither on the number of ranks nor on the order, padding or division of the batch.
        """
        token_BL = valid_BL.long().cumsum(1)
        salt = ((self.config.dictionary_seed << 32) ^ step) & _NO_CANDIDATE
        key_BL = _mix64(_mix64(_mix64(image_B).unsqueeze(1) + token_BL) ^ salt) & _NO_CANDIDATE
        key_N = key_BL.masked_fill(~usable_BL, _NO_CANDIDATE).flatten()
        key_R, pick_R = key_N.topk(min(num, key_N.numel()), largest=False, sorted=True)
        return key_R, feat_BLC.flatten(0, 1)[pick_R].float()

    def _draw_from_all_ranks(self, key_R: Tensor, feat_RC: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """`num` of what all ranks drew, and which rows hold a feature (these come first)."""
        if world_size() > 1:
            missing = num - len(key_R)
            key_R = all_gather_rows(torch.cat([key_R, key_R.new_full((missing,), _NO_CANDIDATE)]))
            feat_RC = all_gather_rows(torch.cat([feat_RC, feat_RC.new_zeros(missing, feat_RC.shape[1])]))
            key_R, pick_R = key_R.topk(num, largest=False, sorted=True)
            feat_RC = feat_RC[pick_R]
        return feat_RC, key_R != _NO_CANDIDATE

    @torch.no_grad()
    def assigned_to_codes(
        self, feat_BLC: Tensor, index_BL: Tensor, usable_BL: Tensor, num_texts_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """How many features are assigned to each code (K,) and their sums (K, C) in a forward, on this rank."""
        return ops.codebook_stats(feat_BLC, index_BL, self.num_codes, valid=usable_BL)

    @torch.no_grad()
    def _gather(
        self,
        feat_BLC: Tensor,
        valid_BL: Tensor,
        usable_BL: Tensor,
        index_BLQ: Tensor,
        num_texts_B: Tensor | None,
        image_B: Tensor,
    ) -> None:
        """Adds a forward's assignments to those of its step."""
        num = (valid_BL & ~usable_BL).sum()
        self._num_non_finite = num if self._num_non_finite is None else self._num_non_finite.to(num.device) + num
        rests = self._rests(feat_BLC, index_BLQ)
        parts = [
            self.assigned_to_codes(rest_BLC, index_BLQ[..., level], usable_BL, num_texts_B)
            for level, rest_BLC in enumerate(rests)
        ]
        counts_QK, sums_QKC = (part[0] if len(parts) == 1 else torch.cat(part) for part in zip(*parts, strict=True))
        squares_C = counts_QK.new_zeros(())
        if self.config.dictionary_follow != "none":
            squares_C = torch.where(usable_BL.unsqueeze(-1), feat_BLC.float(), 0.0).square().sum((0, 1))
        if self._assignments is None:
            self._assignments = _Assignments(counts_QK, sums_QKC, squares_C, len(feat_BLC))
        else:
            self._assignments.counts_QK += counts_QK
            self._assignments.sums_QKC += sums_QKC
            self._assignments.squares_C += squares_C
            self._assignments.num_images += len(feat_BLC)
        assignments = self._assignments
        step, num_drawn = self._host_step + 1, self._num_resettable
        if self.config.code_reset_threshold > 0 and step % self.config.code_reset_interval == 0:
            rests_BLX = rests[0] if len(rests) == 1 else torch.cat(rests, -1)
            key_R, rests_RX = self._draw(rests_BLX, valid_BL, usable_BL, image_B, num_drawn, step)
            rests_RQC = rests_RX.view(len(key_R), self.num_levels, -1)
            if assignments.candidates is not None:
                drawn = zip(assignments.candidates, (key_R, rests_RQC), strict=True)
                key_R, rests_RQC = (torch.cat(parts) for parts in drawn)
                key_R, pick_R = key_R.topk(min(num_drawn, len(key_R)), largest=False, sorted=True)
                rests_RQC = rests_RQC[pick_R]
            assignments.candidates = key_R, rests_RQC

    def count(self, counts_QK: Tensor) -> None:
        """Adds an update's assignments, of all ranks, to the running usage."""
        total = counts_QK[: self.num_codes].sum()  # The same in each level.
        share_QK = counts_QK * (self.num_codes / total.clamp(min=1.0))
        decay = torch.where(total > 0, self.config.usage_decay, 1.0)
        self.usage.mul_(decay).add_(share_QK * (1.0 - decay))
        self.age.add_((total > 0).float())
        self._host_step += 1
        self.step.add_(1)

    def _follow(self, counts_K: Tensor, sums_KC: Tensor, squares_C: Tensor) -> None:
        """Moves all codes as the features move together, with assigned features or without; those of further levels, in
        which nothing of their mean is left, only spread with them."""
        total = counts_K.sum()
        momentum = max(_FOLLOW_MOMENTUM, 1.0 / (self._host_step + 1))
        # Codes that have learnt without following (`init_from`) follow from the first step that has features.
        known = self.feature_mean.any()
        weight = torch.where(known, momentum, torch.ones_like(total))
        mean_C = sums_KC.sum(0) / total.clamp(min=1.0)
        variance_C = (squares_C / total.clamp(min=1.0) - mean_C.square()).clamp(min=0.0)
        before_C, spread_C = self.feature_mean.clone(), self.feature_variance.clone()
        self.feature_mean.lerp_(torch.where(total > 0, mean_C, before_C), weight)
        self.feature_variance.lerp_(torch.where(total > 1, variance_C, spread_C), weight)
        if momentum > _FOLLOW_MOMENTUM:  # The running mean itself is still finding its place.
            return
        scale_C = torch.ones_like(spread_C)
        if self.config.dictionary_follow == "affine":
            scale_C = torch.where(known & (spread_C > 0), (self.feature_variance / spread_C).sqrt(), 1.0)
        shift_QKC = torch.zeros_like(self.codebook)
        shift_QKC[: self.num_codes] = torch.where(known, self.feature_mean - before_C * scale_C, 0.0)
        torch.addcmul(shift_QKC, self.codebook, scale_C, out=self.codebook)
        if self.config.ema_variant == "vqvae":
            torch.addcmul(self.cluster_size.unsqueeze(1) * shift_QKC, self.cluster_sum, scale_C, out=self.cluster_sum)

    def _move_vqvae(self, counts_QK: Tensor, sums_QKC: Tensor) -> None:
        # The moving average of VQ-VAE (van den Oord et al. 2017, appendix A.1) with Laplace smoothing of the counts.
        weight = 1.0 - self.config.ema_decay
        self.cluster_size.lerp_(counts_QK, weight)
        self.cluster_sum.lerp_(sums_QKC, weight)
        size_QxK, eps = self.cluster_size.view(self.num_levels, -1), self.config.laplace_eps
        total_Q1 = size_QxK.sum(1, keepdim=True)
        smoothed_QxK = (size_QxK + eps) / (total_Q1 + self.num_codes * eps) * total_Q1
        # Statistics that are empty say nothing of where the codes are.
        empty_QK1 = (total_Q1 <= 0).expand_as(size_QxK).reshape(-1, 1)
        moved_QKC = self.cluster_sum / smoothed_QxK.reshape(-1, 1)
        self.codebook.copy_(torch.where(empty_QK1, self.codebook, moved_QKC))

    def _reset_unused(self, key_R: Tensor, rests_RQC: Tensor) -> None:
        """In each level the j-th unused code takes the j-th candidate; on the device, and the same on every rank."""
        rests_RX, available_R = self._draw_from_all_ranks(key_R, rests_RQC.flatten(1), self._num_resettable)
        unused_QK = self._unbiased_usage() < self.config.code_reset_threshold
        unused_QK &= self.age >= self.config.code_reset_patience
        unused_QxK = unused_QK.view(self.num_levels, -1)
        place_QxK = unused_QxK.long().cumsum(1) - 1
        row_QxK = place_QxK.clamp(0, len(rests_RX) - 1)
        reset_QK = (unused_QxK & (place_QxK < len(rests_RX)) & available_R[row_QxK]).flatten()
        level_Q1 = torch.arange(self.num_levels, device=row_QxK.device).unsqueeze(1)
        candidate_QKC = rests_RX.view(len(rests_RX), self.num_levels, -1)[row_QxK, level_Q1].flatten(0, 1)
        reset_QK1 = reset_QK.unsqueeze(1)
        self.codebook.copy_(torch.where(reset_QK1, candidate_QKC, self.codebook))
        self.usage.masked_fill_(reset_QK, 0.0)
        self.age.masked_fill_(reset_QK, 0.0)
        if self.config.ema_variant == "vqvae":
            self.cluster_size.masked_fill_(reset_QK, 1.0)
            self.cluster_sum.copy_(torch.where(reset_QK1, self.codebook, self.cluster_sum))
