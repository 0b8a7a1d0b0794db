"""Masked visual modelling beside the masking itself: what is not read around it, and which pairs read it.

B images, P pairs, L visual tokens, h x w of the grid.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Texts
from .outputs import VisualTokens


def margin(masked_BL: Tensor, columns: int, reach: int) -> Tensor:
    """Bool (B, L), the tokens up to `reach` grid positions from a masked one, without the masked."""
    # Max-pool takes no bool. With stride 1 it widens each masked token to a square of side 2 * reach + 1; its own
    # padding is minus infinity, so that nothing comes in over the border.
    masked_B1hw = masked_BL.view(len(masked_BL), 1, -1, columns).float()
    near_BL = F.max_pool2d(masked_B1hw, 2 * reach + 1, stride=1, padding=reach).flatten(1) > 0
    return near_BL & ~masked_BL


def masked_in_some_pairs(
    visual: VisualTokens, masked: VisualTokens, labels_BL: Tensor, texts: Texts, mask_pairs_P: Tensor
) -> tuple[VisualTokens, Texts, Tensor]:
    """Each image twice, as it is and masked, and each text with the one that it is read with.

    Their number follows from the batch's shape alone, so that no GPU is asked to count the pairs.

    Args:
        visual, masked: the images as they are, and masked.
        labels_BL: int64, the labels of what is masked.
        texts: each with the number of its image.
        mask_pairs_P: bool, whether a text is read with the masked one.

    Returns:
        2 B images (without `features` and `index`), texts with numbers among these, and their labels (2 B, L), -100
        where nothing is masked.

    Raises:
        ValueError: mask_pairs has another shape or type.
    """
    num_images, num_texts = len(visual.valid), len(texts.input_ids)
    if tuple(mask_pairs_P.shape) != (num_texts,) or mask_pairs_P.dtype != torch.bool:
        raise ValueError(
            f"mask_pairs: expected bool of shape ({num_texts},), one for each text, got {mask_pairs_P.dtype} of shape "
            f"{tuple(mask_pairs_P.shape)}"
        )
    # `position` is the same in both, but one number must choose all three.
    both: dict[str, Any] = {
        name: torch.cat([visual[name], masked[name]]) for name in ("valid", "position", "embedding")
    }
    own_image_P = texts.image_index
    if own_image_P is None:
        own_image_P = torch.arange(num_texts, device=mask_pairs_P.device)
    # Image i is number i as it is, and number i + B masked.
    texts = replace(texts, image_index=own_image_P + num_images * mask_pairs_P.long())
    # A text of an image as it is has labels too: -100 everywhere, so that no loss reads it.
    return VisualTokens(**both), texts, torch.cat([torch.full_like(labels_BL, -100), labels_BL])
