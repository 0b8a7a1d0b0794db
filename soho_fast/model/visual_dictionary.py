"""The visual dictionary (paper section 3.2, eq. 2-5): a codebook that learns by a momentum mean, not by gradient.

Here are eq. 2 to 5 and the step; start, resets, levels and figures are in `codebook/`.

B images, L tokens per image, N = B*L, C channels, Q levels (1 in the paper) of K codes, R candidates for the dead-code
reset. Codes of all levels are rows of one table, level after level: QK. X channels of what is averaged, C here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import initialization as init

from soho_fast import ops

from .codebook.draws import Tokens, image_numbers
from .codebook.levels import rests
from .codebook.reset import Candidates, joined, new_codes
from .codebook.start import codes_from_features
from .codebook.usage import CodeUsage
from .config import SohoConfig
from .distributed import all_reduce_sum_, broadcast_from_first_, world_size
from .normalization import finite_rows, is_recomputing

# Every draw inside the dictionary.
_SEED = 0
# Codes that are reset at once, at most, which bounds what ranks exchange; and for how many updates a code is left alone
# after its reset. Ours.
_MOST_RESET, _PATIENCE = 256, 10


@dataclass
class _Assignments:
    """What a step's training forwards leave for its update, on this rank: how many features are assigned to each code
    and their sum, the number of images, and where codes may be reset the candidates drawn so far."""

    counts_QK: Tensor
    sums_QKX: Tensor
    num_images: int = 0
    candidates: Candidates | None = None


class VisualDictionary(CodeUsage):
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
        codebook: (QK, C) buffer, as all that follow and `usage`, `age` and `step`.
        initialised: () levels whose codes have been initialised.
    """

    # Whether codes move in each training forward, within a step too, which answers with the moved ones.
    moves_in_forward = False
    near_features = True
    # The buffer in which eq. 2 looks.
    searched = "codebook"

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.pack: Callable[[Tensor, int], ops.PreparedCodebook] | None = None
        self.num_channels = config.hidden_size
        self._num_resettable = min(_MOST_RESET, self.num_codes)
        shape = (self.num_levels * self.num_codes, self.num_channels)
        self.codebook: Tensor = nn.Buffer(torch.zeros(shape, dtype=torch.float32))
        self.register_usage()
        self.initialised = nn.Buffer(torch.zeros((), dtype=torch.int64))
        # The function, not a bound method: torch hands it the module that was loaded.
        self.register_load_state_dict_post_hook(VisualDictionary._forget_host_state)
        self.reset()

    def reset(self) -> None:
        """Random codes (the paper's start; zero in several levels, which are drawn), no usage, nothing learnt."""
        # transformers' functions leave alone what a checkpoint has filled.
        init.normal_(self.codebook, std=1.0 if self.num_levels == 1 else 0.0)
        self.reset_usage()
        init.zeros_(self.initialised)
        self._forget_host_state()

    def _forget_host_state(self, *_: object) -> None:
        # Mirrors of `step` (-1: not read yet) and `initialised`, read from the buffers once so that no step waits for
        # the device.
        self._host_step = -1
        self._host_initialised = 0
        self._ranks_agree = False
        self._in_step = False
        self._assignments: _Assignments | None = None
        self._offered: Candidates | None = None
        self._subspace = ops.MovingSubspace()
        self.forget_counts()

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
        # Autocast would compare features and average codes in half precision.
        with torch.autocast(feat_BLC.device.type, enabled=False):
            # The second forward pass of activation checkpointing must not count its features again.
            moving = self.training and not is_recomputing()
            rows_BLX = self.rows(feat_BLC)
            if moving:
                tokens = self._tokens(rows_BLX, valid_BL, sample_key_B)
                # Before the lookup, which needs codes.
                self._prepare_update(tokens)
            embed_BLC, index_BLQ = self.look_up(feat_BLC, rows_BLX)
            if moving:
                self._gather(tokens, index_BLQ, num_texts_B)
                # A forward outside of `begin_step` and `end_step` is a step by itself.
                if not self._in_step:
                    self.end_step(applied=True)
                if self.moves_in_forward:
                    # The assignment from before the move, the codes after it; such a dictionary has one level.
                    embed_BLC = ops.straight_through(feat_BLC, self.codebook, index_BLQ[..., 0])
        # Padding was looked up with the rest; this index and the attention's mask keep it out from here on.
        return embed_BLC, index_BLQ[..., 0].masked_fill(~valid_BL, -1)

    def rows(self, feat_BLC: Tensor) -> Tensor:
        """What a code is the moving mean of, of each feature, (B, L, X), without gradient: in the paper the feature."""
        return feat_BLC.detach()

    def look_up(self, feat_BLC: Tensor, rows_BLX: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 2, 3 and 5: the codes in the features' place, gradient straight through, and the code of each level
        (B, L, Q)."""
        if self.num_levels > 1:
            books = self.pack(self.codebook, self.num_levels) if self.pack else self._books_QKC
            # Its gradient is straight through, too, so the features go in with theirs.
            index_BLQ, embed_BLC = ops.residual_lookup(feat_BLC, books)
            return embed_BLC, index_BLQ
        # The argmin of eq. 2 has no gradient; eq. 5 hands that of the output to the features.
        index_BL = self._nearest(rows_BLX, self.codebook)
        return ops.straight_through(feat_BLC, self.codebook, index_BL), index_BL.unsqueeze(-1)

    def _nearest(self, rows_BLX: Tensor, codes_KX: Tensor) -> Tensor:
        """Eq. 2, int64 (B, L)."""
        if self.pack is not None:
            return ops.codebook_lookup(rows_BLX, self.pack(codes_KX, 1))
        # For speed alone: the index is exact with any subspace, a stale one too.
        return ops.codebook_lookup(rows_BLX, codes_KX, subspace=self._subspace.of(codes_KX))

    def begin_step(self) -> None:
        """From here on training forwards gather what `end_step` updates from; what was gathered before is forgotten."""
        # A dictionary that moves in each forward never waits for the end of a step: each forward is one.
        self._in_step, self._assignments = not self.moves_in_forward, None
        self._counts_QK = None

    @torch.no_grad()
    def end_step(self, *, applied: bool) -> None:
        """Eq. 4, by all that was gathered since `begin_step`, or nothing where the optimiser left the step out.

        All ranks make the call, with the same `applied`.
        """
        # Taken and cleared at once: a step that is left out leaves nothing to the next.
        assignments, self._in_step, self._assignments = self._assignments, False, None
        if not applied or assignments is None:
            return
        counts_QK, sums_QKX = assignments.counts_QK, assignments.sums_QKX
        if world_size() > 1:
            # The counts travel as one more channel of the sums: one call between the ranks, not two.
            packed = all_reduce_sum_(torch.cat([sums_QKX, counts_QK.unsqueeze(1)], dim=1))
            counts_QK, sums_QKX = packed[:, -1].contiguous(), packed[:, :-1].contiguous()
        self.move(counts_QK, sums_QKX)
        self.count(counts_QK)
        # As `count` has added to the buffer `step`.
        self._host_step += 1
        # Last: usage counts this step, and the average of this step does not pull at the new codes.
        if assignments.candidates is not None:
            self._reset_unused(assignments.candidates)

    def move(self, counts_QK: Tensor, sums_QKX: Tensor) -> None:
        """Eq. 4, by how many features are assigned to each code and their sums; of all levels, rows of one table."""
        ops.codebook_ema_(self.codebook, counts_QK, sums_QKX, self.config.ema_decay)

    def replace(self, replaced_QK: Tensor, rows_QKX: Tensor) -> None:
        """Puts rows in the place of some codes (bool), which have seen nothing then."""
        # Masks, not indices: how many codes are reset is never asked of the device.
        self.codebook.copy_(torch.where(replaced_QK.unsqueeze(1), rows_QKX, self.codebook))
        self.usage.masked_fill_(replaced_QK, 0.0)
        self.age.masked_fill_(replaced_QK, 0.0)
        self.codes_replaced(replaced_QK)

    def codes_replaced(self, replaced_QK: Tensor) -> None:
        """Called where these codes (bool) were not moved but replaced. Eq. 4 keeps nothing beside the codes."""

    def codes_of(self, feat_BLC: Tensor) -> Tensor:
        """int64 (B, L, Q), the code of each level for each feature, counted from 0 in each level."""
        return self.look_up(feat_BLC.detach(), self.rows(feat_BLC))[1]

    def distances(self, feat_BLC: Tensor, index_BLQ: Tensor) -> Tensor:
        """How far each level's code is from what the level looks up, float32 (B, L, Q)."""
        parts = rests(feat_BLC, index_BLQ, self._books_QKC)
        errors = [rest.float() - self.codebook_of(q)[index_BLQ[..., q]] for q, rest in enumerate(parts)]
        return torch.stack([error.square().sum(-1).sqrt() for error in errors], -1)

    def codebook_of(self, level: int) -> Tensor:
        """(K, C), the codes of a level; the first is 0."""
        return self.codebook[level * self.num_codes : (level + 1) * self.num_codes]

    @property
    def _books_QKC(self) -> Tensor:
        return self.codebook.unflatten(0, (self.num_levels, -1))

    def _tokens(self, rows_BLX: Tensor, valid_BL: Tensor, sample_key_B: Tensor | None) -> Tokens:
        # Images without a key are numbered through the step, across its micro-batches.
        before = self._assignments.num_images if self._assignments is not None else 0
        # A row that is not finite would make its code so, for ever.
        usable_BL = valid_BL & finite_rows(rows_BLX)
        return Tokens(rows_BLX, valid_BL, usable_BL, image_numbers(sample_key_B, rows_BLX, before))

    @torch.no_grad()
    def awaits_codes(self) -> bool:
        """Whether the next training forward begins by drawing codes from its features. All ranks make the call."""
        if not self._ranks_agree:
            # Ranks that were seeded differently, or of which only one loaded a checkpoint, start alike all the same.
            broadcast_from_first_(list(self.buffers()))
            self._ranks_agree = True
        if self._host_step < 0:
            self._host_step = int(self.step)
            # Codes of one level that have learnt are kept, whatever start they had; several are always drawn.
            drawn = self.config.dictionary_init == "data" and (self.num_levels > 1 or not self.age.any())
            self._host_initialised = int(self.initialised) if drawn else self.num_levels
        # Of the features that became the codes of a level none leaves anything to the next: that draws a step later.
        return self._host_initialised < min(self.num_levels, self._host_step + 1)

    @torch.no_grad()
    def _prepare_update(self, tokens: Tokens) -> None:
        if self.awaits_codes():
            self._offered = tokens.draw(self.num_codes, _SEED, self._host_step)
            self.draw_codes()

    @torch.no_grad()
    def offer(self, feat_BLC: Tensor, valid_BL: Tensor, sample_key_B: Tensor | None) -> None:
        """Features among which `draw_codes` draws, as `forward` takes them, without gradient; after `awaits_codes`."""
        tokens = self._tokens(self.rows(feat_BLC), valid_BL, sample_key_B)
        drawn = tokens.draw(self.num_codes, _SEED, self._host_step)
        self._offered = joined(self._offered, drawn, self.num_codes)

    @torch.no_grad()
    def draw_codes(self) -> None:
        """Draws the codes of the first level that has none, from what all ranks were offered."""
        offered, self._offered = self._offered, None
        assert offered is not None, "nothing was offered"
        level, num = self._host_initialised, self.num_codes
        rows_KX = codes_from_features(offered, self._books_QKC[:level], num, _SEED)
        # No rank had a usable feature: the next step tries again.
        if rows_KX is None:
            return
        # What was counted so far was of the zero codes that these replace.
        replaced_QK = torch.arange(len(self.usage), device=self.usage.device).div(num, rounding_mode="floor") == level
        self.replace(replaced_QK, rows_KX.repeat(self.num_levels, 1))
        self._host_initialised += 1
        self.initialised.fill_(self._host_initialised)

    @torch.no_grad()
    def assigned_to_codes(
        self, feat_BLC: Tensor, index_BL: Tensor, usable_BL: Tensor, num_texts_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """How many features are assigned to each code (K,) and their sums (K, C) in a forward, on this rank."""
        return ops.codebook_stats(feat_BLC, index_BL, self.num_codes, valid=usable_BL)

    @torch.no_grad()
    def _gather(self, tokens: Tokens, index_BLQ: Tensor, num_texts_B: Tensor | None) -> None:
        """Adds a forward's assignments to those of its step."""
        self.count_non_finite(tokens.valid_BL, tokens.usable_BL)
        rests_of_levels = rests(tokens.feat_BLC, index_BLQ, self._books_QKC)
        parts = [
            self.assigned_to_codes(rest_BLC, index_BLQ[..., level], tokens.usable_BL, num_texts_B)
            for level, rest_BLC in enumerate(rests_of_levels)
        ]
        # One level, as in the paper, is spared the copy.
        counts_QK, sums_QKX = (part[0] if len(parts) == 1 else torch.cat(part) for part in zip(*parts, strict=True))
        if self._assignments is None:
            self._assignments = _Assignments(counts_QK, sums_QKX, len(tokens.feat_BLC))
        else:
            self._assignments.counts_QK += counts_QK
            self._assignments.sums_QKX += sums_QKX
            self._assignments.num_images += len(tokens.feat_BLC)
        # The number that the step has once it is applied: all its micro-batches draw by the same one.
        step, limit = self._host_step + 1, self._num_resettable
        if self.config.code_reset_threshold > 0:
            # One draw for all levels: a feature and what the levels leave of it are one row, X = Q * C.
            rests_BLX = rests_of_levels[0] if self.num_levels == 1 else torch.cat(rests_of_levels, -1)
            key_R, rests_RX = replace(tokens, feat_BLC=rests_BLX).draw(limit, _SEED, step)
            drawn = key_R, rests_RX.view(len(key_R), self.num_levels, -1)
            self._assignments.candidates = joined(self._assignments.candidates, drawn, limit)

    def _reset_unused(self, candidates: Candidates) -> None:
        unused_QK = self.unbiased_usage() < self.config.code_reset_threshold
        unused_QK &= self.age >= _PATIENCE
        self.replace(*new_codes(candidates, unused_QK, self.num_levels, self._num_resettable))
