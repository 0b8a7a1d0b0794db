"""A model's two stages as functions of tensors alone, for torch.export; and the exact lookup in plain torch.

B images, H x W pixels, L visual tokens, D channels, P texts, S tokens of a text, T = S + L, A labels; N features, K
codes, U of them different, C channels, R candidates.
"""

from typing import Any

import torch
from torch import Tensor, nn

from soho_fast.model.visual_dictionary import VisualDictionary
from soho_fast.model.words_dictionary import WordsDictionary
from soho_fast.ops.codebook_lookup import reference

# So many codes of each feature are compared to the last bit: those which rounding could confuse are fewer.
_CANDIDATES = 16


class PlainLookup(nn.Module):
    """`ops.codebook_lookup` of a frozen codebook, in operations that torch has itself.

    The nearest codes by a product in float64, whose rounding may exchange those that are equally near to 13 digits, are
    compared by the distance in the order of summation that all backends have. Codes that are equal are one, that of the
    lowest index. The index is then that of the op, unless more than `_CANDIDATES` codes that differ are the nearest
    ones within that rounding.
    """

    codes: Tensor
    half_square: Tensor
    number: Tensor

    def __init__(self, codebook_KC: Tensor) -> None:
        super().__init__()
        codes_UC, code_K = codebook_KC.unique(dim=0, return_inverse=True)
        number_U = torch.full((len(codes_UC),), len(codebook_KC))
        number_U = number_U.scatter_reduce(0, code_K, torch.arange(len(codebook_KC)), "amin")
        self.num_codes = len(codebook_KC)
        self.register_buffer("codes", codes_UC.double())
        self.register_buffer("half_square", codes_UC.double().square().sum(-1) / 2)
        self.register_buffer("number", number_U)

    def forward(self, feat_BLC: Tensor) -> Tensor:
        """Index of the nearest code, int64 (B, L); 0 for a feature that is not finite."""
        feat_NC = feat_BLC.flatten(0, 1).double()
        usable_N = feat_NC.isfinite().all(-1)
        feat_NC = torch.where(usable_N.unsqueeze(1), feat_NC, 0.0)
        score_NU = feat_NC @ self.codes.T - self.half_square
        code_NR = score_NU.topk(min(_CANDIDATES, len(self.codes)), dim=-1).indices
        pair_PC = feat_NC.unsqueeze(1).expand(-1, code_NR.shape[1], -1).flatten(0, 1)
        distance_P = reference.metric_value(pair_PC, self.codes[code_NR.flatten()], "euclidean")
        distance_NR = distance_P.unflatten(0, (-1, code_NR.shape[1]))
        nearest_NR = distance_NR == distance_NR.amin(-1, keepdim=True)
        index_N = torch.where(nearest_NR, self.number[code_NR], self.num_codes).amin(-1)
        return torch.where(usable_N, index_N, 0).view(feat_BLC.shape[:2])


class PlainDictionary(nn.Module):
    """A `VisualDictionary` in evaluation mode, by `PlainLookup`s, one for each level."""

    def __init__(self, dictionary: VisualDictionary) -> None:
        super().__init__()
        levels = [dictionary.codebook_of(level) for level in range(dictionary.num_levels)]
        by_words = dictionary if isinstance(dictionary, WordsDictionary) else None
        self.words = None if by_words is None else by_words.words
        searched = levels if by_words is None else [by_words.places]
        self.lookups = nn.ModuleList(PlainLookup(codes_KX) for codes_KX in searched)
        for level, codebook_KC in enumerate(levels):
            self.register_buffer(f"codebook{level}", codebook_KC)

    def forward(
        self,
        feat_BLC: Tensor,
        valid_BL: Tensor,
        sample_key_B: Tensor | None = None,
        num_texts_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As of `VisualDictionary`."""
        rest_BLC, embed_BLC, first_BL = feat_BLC.float(), torch.zeros_like(feat_BLC.float()), None
        for level, lookup in enumerate(self.lookups):
            index_BL = lookup(rest_BLC if self.words is None else self.words(rest_BLC))
            first_BL = index_BL if first_BL is None else first_BL
            code_BLC = getattr(self, f"codebook{level}")[index_BL]
            rest_BLC, embed_BLC = rest_BLC - code_BLC, embed_BLC + code_BLC
        assert first_BL is not None, "there is a level"
        return embed_BLC.to(feat_BLC.dtype), first_BL.masked_fill(~valid_BL, -1)


class EncodeImages(nn.Module):
    """The first stage, once for each image."""

    def __init__(self, model: Any) -> None:
        """`model` is changed: a `VisualDictionary` becomes a `PlainDictionary`; any other is exported as it is."""
        super().__init__()
        self.soho = model.base()
        if isinstance(self.soho.visual_dictionary, VisualDictionary):
            self.soho.visual_dictionary = PlainDictionary(self.soho.visual_dictionary)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            pixel_values: float32 (B, 3, H, W), normalised, zero at padding; H and W multiples of 32.
            pixel_mask: bool (B, H, W), True on the image.

        Returns:
            visual float32 (B, L, D), valid bool (B, L); of a model with a dictionary also codes int64 (B, L), -1 at
            padding.
        """
        visual = self.soho.encode_images(pixel_values, pixel_mask)
        embedded_BLD = self.soho.visual_embeddings(visual.tokens, visual.position)
        if self.soho.visual_dictionary is None:
            return embedded_BLD, visual.valid
        index_BL = visual.index
        if index_BL is None:  # Fine-tuned models read the features themselves.
            index_BL = self.soho.visual_dictionary(visual.features, visual.valid)[1]
        return embedded_BLD, visual.valid, index_BL


class ReadTexts(nn.Module):
    """The second stage, for each text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.soho = model.base()
        self.head = model.itm_head if hasattr(model, "itm_head") else model.head

    def forward(
        self, visual: Tensor, valid: Tensor, input_ids: Tensor, attention_mask: Tensor, image_index: Tensor
    ) -> Tensor:
        """
        Args:
            visual, valid: what the first stage gave of B images.
            input_ids: int64 (P, S).
            attention_mask: int64 (P, S), 1 at real tokens.
            image_index: int64 (P,), the image of each text; (P, 2), left and right, of a model that compares.

        Returns:
            logits float32 (P, A).
        """
        compares = image_index.dim() == 2
        if compares:
            input_ids, attention_mask = (x.repeat_interleave(2, dim=0) for x in (input_ids, attention_mask))
            image_index = image_index.flatten()
        visual_PLD, valid_PL = visual[image_index], valid[image_index]
        states_PTD = torch.cat([self.soho.text_embeddings(input_ids=input_ids), visual_PLD], dim=1)
        real_PT = torch.cat([attention_mask.bool(), valid_PL], dim=1)
        hidden_PTD = self.soho.encoder(states_PTD, attention_mask=real_PT[:, None, None, :])[0]
        first_PD = hidden_PTD[:, 0]
        return self.head(first_PD.unflatten(0, (-1, 2)).flatten(1) if compares else first_PD)
