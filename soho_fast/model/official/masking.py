"""What the released code masks of an image: the label at a place drawn from the whole grid, for some pairs alone.

In the paper one of the image's labels is drawn, and nothing is said of pairs. B images, P pairs, L visual tokens.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..inputs import Texts
from ..outputs import VisualTokens


def label_at_place(index_BL: Tensor, *, valid: Tensor, uniform: Tensor) -> Tensor:
    """The label that stands at place floor(u * L) of each image's grid, row by row, as `ops.sample_group` gives one.

    So a label is drawn as often as it has tokens. The released code draws one place for all images of a batch; so does
    `SohoModel.mask_one_label` in training, by giving all the same `uniform`.

    Args:
        index_BL: int64.
        valid: bool (B, L).
        uniform: float64 (B,) in [0, 1).

    Returns:
        int64 (B,); -1 where the place is not valid.
    """
    num_places = index_BL.shape[1]
    place_B1 = (uniform * num_places).long().clamp(max=num_places - 1).unsqueeze(1)
    return torch.where(valid.gather(1, place_B1), index_BL.gather(1, place_B1), -1).squeeze(1)


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
    both: dict[str, Any] = {
        name: torch.cat([visual[name], masked[name]]) for name in ("valid", "position", "embedding")
    }
    own_image_P = texts.image_index
    if own_image_P is None:
        own_image_P = torch.arange(num_texts, device=mask_pairs_P.device)
    texts = replace(texts, image_index=own_image_P + num_images * mask_pairs_P.long())
    return VisualTokens(**both), texts, torch.cat([torch.full_like(labels_BL, -100), labels_BL])
