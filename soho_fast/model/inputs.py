"""What goes into the model: the keywords of a forward, the texts among them as one object, and their checks.

B images, P texts, S tokens of a text, H x W pixels, C x h x w features of the CNN, X whatever stands for an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from soho_fast.common.spelling import did_you_mean

from .outputs import VisualTokens

IMAGES = ("pixel_values", "pixel_mask", "visual_tokens", "backbone_features", "backbone_mask")
"""The keywords that stand for images."""


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


_KNOWN = tuple(SohoInputs.__annotations__)


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
        check_shape("attention_mask", self.attention_mask, self.input_ids.shape, " as input_ids has")
        check_shape("image_index", self.image_index, self.input_ids.shape[:1])

    def without(self, left_out_PS: Tensor) -> "Texts":
        """The same texts, some words of which count as padding, `left_out_PS` (P, S) bool; those that would have no
        other word keep them."""
        real_PS = torch.ones_like(self.input_ids) if self.attention_mask is None else self.attention_mask
        keeps_some_P = (self.words() & ~left_out_PS).any(1, keepdim=True)
        return Texts(self.input_ids, real_PS * ~(left_out_PS & keeps_some_P), self.image_index)

    def words(self) -> Tensor:
        """(P, S) bool, the real tokens between [CLS] and [SEP], which are the first and the last of them."""
        real_PS = torch.ones_like(self.input_ids) if self.attention_mask is None else self.attention_mask
        # The first real token is number 1 from the front, the last one number 1 from the back.
        return (real_PS.cumsum(1) > 1) & (real_PS.flip(1).cumsum(1).flip(1) > 1) & (real_PS != 0)

    def of_images(self, value_BX: Tensor) -> Tensor:
        """What each image has to what each text has with its image: (B, ..) to (P, ..)."""
        return value_BX if self.image_index is None else value_BX.index_select(0, self.image_index)

    def per_image(self, num_images: int) -> Tensor | None:
        """How many texts are read with each image, float32 (B,); `None`: one with each."""
        if self.image_index is None:
            return None
        ones_P = torch.ones(self.image_index.shape, device=self.image_index.device)
        return ones_P.new_zeros(num_images).index_add_(0, self.image_index, ones_P)


def read_inputs(**inputs: Any) -> tuple[dict[str, Any], Texts, dict[str, Any]]:
    """The keywords of `SohoInputs` as those of `SohoModel.encode_images`, texts, and what is left.

    Raises:
        ValueError: an argument is unknown, the shape of a text's does not fit, or not one thing alone stands for
            the images.
    """
    for name in [name for name in inputs if name not in _KNOWN]:
        if inputs.pop(name) is not None:  # peft gives names of other models, without a value
            raise ValueError(f"{name}: there is no such argument{did_you_mean(name, _KNOWN)}")
    texts = Texts(*(inputs.pop(name, None) for name in ("input_ids", "attention_mask", "image_index")))
    images = {name: inputs.pop(name, None) for name in IMAGES}
    check_one_source(**images)
    if images["visual_tokens"] is None:
        images["num_texts"] = texts.per_image(num_images(images))
    return images, texts, inputs


def num_images(inputs: Mapping[str, Any]) -> int:
    """How many images these keywords have, as pixels or features."""
    pixels = inputs.get("pixel_values")
    return len(inputs["backbone_features"] if pixels is None else pixels)


def check_one_source(
    pixel_values: Tensor | None,
    pixel_mask: Tensor | None,
    backbone_features: Tensor | None,
    backbone_mask: Tensor | None,
    visual_tokens: VisualTokens | None = None,
) -> None:
    """Raises ValueError: images are given twice or not at all, or a mask without what it belongs to."""
    if sum(given is not None for given in (pixel_values, visual_tokens, backbone_features)) != 1:
        raise ValueError("expected exactly one of pixel_values, visual_tokens and backbone_features")
    # The mask of the source that was not given.
    of_other = backbone_mask if backbone_features is None else pixel_mask
    if visual_tokens is None and of_other is not None:
        raise ValueError("expected pixel_mask with pixel_values, or backbone_mask with backbone_features")


def check_pixels(pixel_values: Tensor, pixel_mask: Tensor | None) -> None:
    """Raises ValueError: the images are of another shape or not normalised, or the mask is not of their shape."""
    if pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
        raise ValueError(f"pixel_values: expected (images, 3, height, width), got {_shape(pixel_values)}")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values: expected normalised images, floating point, got {pixel_values.dtype}; "
            "SohoImageProcessor.normalised makes these of its bytes"
        )
    _check_mask("pixel_mask", pixel_mask, "pixel_values", pixel_values)


def check_backbone_features(features: Tensor, mask: Tensor | None, channels: int) -> None:
    """Raises ValueError: the features have another shape, or the mask is not of theirs."""
    if features.dim() != 4 or features.shape[1] != channels:
        raise ValueError(f"backbone_features: expected (images, {channels}, h, w), got {_shape(features)}")
    _check_mask("backbone_mask", mask, "backbone_features", features)


def check_images_of_texts(num_images: int, texts: Texts) -> None:
    """Raises ValueError: it is not said which text is read with which image."""
    if texts.image_index is None and num_images != len(texts.input_ids):
        raise ValueError(f"image_index: needed to map {len(texts.input_ids)} texts to {num_images} images")


def check_text_length(input_ids: Tensor, longest: int) -> None:
    """Raises ValueError: texts have no token (what the heads read stands at the first), or more than positions."""
    if not 1 <= input_ids.shape[1] <= longest:
        raise ValueError(
            f"input_ids: expected texts of 1 to {longest} tokens (max_position_embeddings), got {input_ids.shape[1]}"
        )


def refuse_gradient(*values: Any) -> None:
    """Raises ValueError: one of these is a tensor whose gradient would be asked of a model prepared for inference."""
    if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values):
        raise ValueError(
            "this model was prepared for inference and gives no gradients; expected inputs that require none, or the "
            "model as it was loaded"
        )


def _check_mask(name: str, mask: Tensor | None, of_name: str, of: Tensor) -> None:
    check_shape(name, mask, (of.shape[0], *of.shape[2:]), f" to match {of_name} {_shape(of)}")


def check_shape(name: str, tensor: Tensor | None, expected: Sequence[int], why: str = "") -> None:
    """Raises ValueError: a tensor that is given has another shape than expected, for which `why` is the reason."""
    if tensor is not None and tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}{why}, got {_shape(tensor)}")


def check_labels(name: str, labels: Tensor | None, rows: Tensor) -> None:
    """Raises ValueError: labels that are given are not one for each row of what is labelled."""
    check_shape(name, labels, rows.shape[:1], ", one for each text")


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
