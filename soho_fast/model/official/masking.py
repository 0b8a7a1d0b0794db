"""What the released code masks of an image: the label at a place drawn from the whole grid. B images, L visual tokens.

In the paper one of the image's labels is drawn.
"""

import torch
from torch import Tensor


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
    # The product may round up to L.
    place_B1 = (uniform * num_places).long().clamp(max=num_places - 1).unsqueeze(1)
    return torch.where(valid.gather(1, place_B1), index_BL.gather(1, place_B1), -1).squeeze(1)
