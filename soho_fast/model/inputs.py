"""What goes into the model: the keywords of a forward, and the texts among them as one object.

B images, P texts, S tokens of a text, H x W pixels, C x h x w features of the CNN, X whatever stands for an image.
"""

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from .outputs import VisualTokens


class SohoInputs(TypedDict, total=False):
    """The keywords that every model with heads takes beside its labels: what a processor or a collator gives.

    One of `pixel_values`, `visual_tokens` and `backbone_features` is needed, and `input_ids`. Each image is encoded
    once, however many texts `image_index` gives it.

    Args:
        pixel_values: (B, 3, H, W), normalised.
        pixel_mask: (B, H, W), 1 at real pixels; `None`: no padding.
        visual_tokens: what `encode_images` gave, instead of pixels.
        backbone_features: (B, C, h, w), what the CNN gave (`VisualEncoder.backbone_output`), instead of pixels.
        backbone_mask: bool (B, h, w), True at real features; `None`: no padding.
        input_ids: (P, S) int64.
        attention_mask: (P, S), 1 at real words; `None`: no padding.
        image_index: (P,) int64, the image of each text; `None`: P == B, each text its own image.
        output_hidden_states, output_attentions, return_dict: as everywhere in transformers.
    """

    pixel_values: Tensor | None
    pixel_mask: Tensor | None
    visual_tokens: VisualTokens | None
    backbone_features: Tensor | None
    backbone_mask: Tensor | None
    input_ids: Tensor | None
    attention_mask: Tensor | None
    image_index: Tensor | None
    output_hidden_states: bool | None
    output_attentions: bool | None
    return_dict: bool | None


@dataclass
class Texts:
    """A batch of texts, and the image that each is read with.

    Args:
        input_ids: (P, S) int64.
        attention_mask: (P, S), 1 at real words; `None`: no padding.
        image_index: (P,) int64; `None`: text number i is read with image number i.

    Raises:
        ValueError: a shape does not fit.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    image_index: Tensor | None = None

    def __post_init__(self) -> None:
        if self.input_ids is None or self.input_ids.dim() != 2:
            raise ValueError(f"input_ids: expected (texts, tokens), got {_shape(self.input_ids)}")
        if self.attention_mask is not None and self.attention_mask.shape != self.input_ids.shape:
            expected, got = _shape(self.input_ids), _shape(self.attention_mask)
            raise ValueError(f"attention_mask: expected shape {expected} as input_ids has, got {got}")
        if self.image_index is not None and tuple(self.image_index.shape) != (len(self.input_ids),):
            raise ValueError(f"image_index: expected shape ({len(self.input_ids)},), got {_shape(self.image_index)}")

    def per_image(self, num_images: int) -> Tensor | None:
        """How many texts are read with each image, float32 (B,); `None`: one with each."""
        if self.image_index is None:
            return None
        ones_P = torch.ones(self.image_index.shape, device=self.image_index.device)
        return ones_P.new_zeros(num_images).index_add_(0, self.image_index, ones_P)

    def of_images(self, value_BX: Tensor) -> Tensor:
        """What each image has to what each text has with its image: (B, ..) to (P, ..)."""
        return value_BX if self.image_index is None else value_BX.index_select(0, self.image_index)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
