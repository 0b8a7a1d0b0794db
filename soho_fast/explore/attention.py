"""A model that is asked about images and shows their codes, and the attention of each token over an image's patches.

S tokens of a text, L = h x w visual tokens of an image, T = S + L, D layers; an image's pixels are (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from soho_fast.common.extras import from_extra
from soho_fast.explore.sources import digest_of

with from_extra("train"):
    from soho_fast.ask.pipeline import SohoPipeline
    from soho_fast.data.images import ImageLike
    from soho_fast.model.image_tokens import join_images
    from soho_fast.model.outputs import VisualTokens


class SeeingPipeline(SohoPipeline):
    """A `SohoPipeline` that can say which codes an image has, and where a text looked.

    Its scores are those of `SohoPipeline`, up to the rounding of another order of sums: the attention is computed as it
    is written (transformers' "eager"), since the faster forms never have it as a whole.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.model.set_attn_implementation("eager")
        self.dictionary = self.model.base().visual_dictionary

    def warn_of(self, unknown: Sequence[str]) -> None:
        """Does nothing: the app says it where the text was written."""

    def weights(self) -> str | None:
        """`digest_of` the first level's codes, by which a bundle is known; None for a model without a dictionary."""
        return None if self.dictionary is None else digest_of(self.dictionary.codebook_of(0).cpu().numpy())

    @torch.no_grad()
    def see(self, image: ImageLike) -> tuple[np.ndarray, VisualTokens, tuple[float, float]]:
        """An image as the model gets it: pixels uint8 (H, W, 3), resized; its visual tokens; and its height and width
        in patches, fractions included. Raises ValueError: it can't be used."""
        pixels_3HW = self._load(image)
        assert isinstance(pixels_3HW, torch.Tensor), "it is an image, not what `encode` gave of one"
        (visual,) = self._encode([pixels_3HW], 1)
        high, wide = (edge / self.model.config.token_stride for edge in pixels_3HW.shape[-2:])
        return pixels_3HW.permute(1, 2, 0).numpy(), visual, (high, wide)

    @torch.no_grad()
    def codes_of(self, visual: VisualTokens) -> np.ndarray:
        """int64 (h, w): the nearest code (of the first level) of each patch of an image. The model has a dictionary."""
        index_1L = visual.index
        if index_1L is None:  # Fine-tuned models read the features themselves.
            index_1L = self.dictionary(visual.features, visual.valid)[1]
        return index_1L[0].view(-1, visual.columns).cpu().numpy()

    @torch.no_grad()
    def attention(self, text: str, images: Sequence[VisualTokens]) -> tuple[list[str], list[np.ndarray]]:
        """Where the model looks while it reads a text with an image, or a statement with two.

        Returns:
            The text's tokens, [CLS] first, without the closing [SEP]; and of each image float32 (D, S - 1, h, w), the
            share of a token's attention that goes to a patch, mean over the heads. What is missing to 1 in all patches
            goes to the text.

        Raises:
            ValueError: the text can't be used.
        """
        (ids,) = self.token_ids([text])
        index = torch.arange(len(images)).unsqueeze(0)
        output = self.model(
            visual_tokens=join_images(images),
            input_ids=torch.tensor([ids]).to(self.device),
            image_index=(index if len(images) > 1 else index[0]).to(self.device),
            output_attentions=True,
        )
        # As many rows as images: a statement about two is read with each.
        share_DPTT = torch.stack([attention_PHTT.float().mean(1).cpu() for attention_PHTT in output.attentions])
        shares = []
        for number, visual in enumerate(images):
            # Behind the text's tokens stand the image's.
            patches = slice(len(ids), len(ids) + visual.valid.shape[1])
            share_DSL = share_DPTT[:, number, : len(ids) - 1, patches]
            shares.append(share_DSL.unflatten(-1, (-1, visual.columns)).numpy())
        return self.processor.tokenizer.convert_ids_to_tokens(ids)[:-1], shares
