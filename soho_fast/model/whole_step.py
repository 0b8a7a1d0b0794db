"""What the losses of an optimiser step ask of all its micro-batches, before the first backward.

A mean over labels is one over the labels of the whole step, and a contrastive loss chooses among all its images and
texts; a micro-batch knows its own alone. So the step is surveyed first, without gradients: words and pairs are counted
by their labels, masked visual tokens after a lookup, and vectors are kept (Gao et al. 2021, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup"). Ranks are summed over likewise.

B images, L visual tokens, P pairs, T texts, E channels of a vector; A images and U texts of the whole step.
"""

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .distributed import all_reduce_sum_, gather_with_grad, world_size
from .inputs import SohoInputs, read_inputs
from .outputs import VisualTokens


class MicroBatches(Sized, Iterable[Mapping[str, Any]], Protocol):
    """The keywords of each forward of a step. They can be gone through again and again; each time the random state is
    the one that the forward will have."""


Vectors = tuple[Tensor, Tensor, Tensor]
"""Of a forward: of images (B, E), of texts (T, E), and the image of each text, int64 (T,), -100 of one left out."""


@dataclass
class StepVectors:
    """Vectors of all ranks and micro-batches, without gradient.

    Args:
        image_AE, text_UE, own_image_U: as in `Vectors`, numbered through the step.
        places: where the images and the texts of each of this rank's micro-batches begin, in the order of the forwards.
    """

    image_AE: Tensor
    text_UE: Tensor
    own_image_U: Tensor
    places: list[tuple[int, int]]

    def count(self) -> Tensor:
        """How many choices there are, of both directions halved: texts that choose an image, and images that have a
        text to choose; float32 ()."""
        own_U = self.own_image_U[self.own_image_U >= 0]
        return torch.full((), (own_U.unique().numel() + own_U.numel()) / 2, device=own_U.device)


@dataclass
class WholeStep:
    """A survey's result.

    Args:
        num_parts: forwards of the step, over all ranks.
        counts: of losses by name, what their sums are divided by: labels of the whole step, float32 ().
        vectors: for the contrastive loss; `None` without.
    """

    num_parts: int
    counts: dict[str, Tensor] = field(default_factory=dict)
    vectors: StepVectors | None = None


class Surveyed(Protocol):
    """What `survey` asks of a model with heads."""

    whole_step: WholeStep | None

    def base(self) -> Any: ...

    def begin_step(self) -> None: ...

    def surveys_images(self) -> bool:
        """Whether images are to be encoded for what the losses of this phase ask."""

    def label_counts(self, visual: VisualTokens | None, **inputs: Any) -> dict[str, Tensor]:
        """Of a forward's losses that `global_means` takes, by name, how many labels it has, each ()."""

    def vectors_of(self, visual: VisualTokens | None, **inputs: Any) -> Vectors | None:
        """What the contrastive loss of a forward compares; `None` without that loss."""


@torch.no_grad()
def survey(model: Surveyed, micro_batches: MicroBatches) -> None:
    """Sets `model.whole_step`, after `begin_step` and before the first forward. All ranks make the call.

    A dictionary that moves in each forward (the released code's) makes each a step of its own: nothing is surveyed.
    """
    base = model.base()
    dictionary = base.visual_dictionary
    if getattr(dictionary, "moves_in_forward", False):
        return
    encodes = model.surveys_images()
    # Their BatchNorm's running statistics are moved by the forwards that are trained by, not by these.
    normed = [part for part in (base.visual_encoder, base.fusion) if part is not None and encodes]
    statistics = [(buffer, buffer.clone()) for part in normed for buffer in part.buffers()]
    draws = encodes and base.config.use_dictionary_output and hasattr(dictionary, "awaits_codes")
    if draws and dictionary.awaits_codes():
        for inputs in micro_batches:
            feat_BLD, grid_mask_BHW = base.encode_features(**_images(inputs))
            dictionary.offer(feat_BLD, grid_mask_BHW.flatten(1), inputs.get("mask_uniform"))
        dictionary.draw_codes()
    whole, vectors = WholeStep(len(micro_batches) * world_size()), []
    # In evaluation mode they look up as in training, and gather nothing.
    watched = [part for part in (dictionary, base.feature_watch) if part is not None and part.training]
    for part in watched:
        part.eval()
    for inputs in micro_batches:
        visual = base.encode_images(**_images(inputs), sample_key=inputs.get("mask_uniform")) if encodes else None
        for name, count in model.label_counts(visual, **inputs).items():
            whole.counts[name] = whole.counts.get(name, 0) + count.float()
        vectors.append(model.vectors_of(visual, **inputs))
    for part in watched:
        part.train()
    for buffer, value in statistics:
        buffer.copy_(value)
    # The BatchNorm before the dictionary has gathered.
    model.begin_step()
    if whole.counts:
        counts = all_reduce_sum_(torch.stack(list(whole.counts.values())))
        whole.counts = dict(zip(whole.counts, counts.unbind(), strict=True))
    if kept := [each for each in vectors if each is not None]:
        whole.vectors = _joined(kept)
        whole.counts["contrastive_loss"] = whole.vectors.count()
    model.whole_step = whole


def _images(inputs: Mapping[str, Any]) -> dict[str, Any]:
    images, *_ = read_inputs(**{name: value for name, value in inputs.items() if name in SohoInputs.__annotations__})
    del images["visual_tokens"]  # What trains the encoder is no image that is encoded already.
    return images


def _joined(vectors: list[Vectors]) -> StepVectors:
    images, texts, owns = zip(*vectors, strict=True)
    starts, num_images, num_texts = [], 0, 0
    for image_BE, text_TE, _ in vectors:
        starts.append((num_images, num_texts))
        num_images, num_texts = num_images + len(image_BE), num_texts + len(text_TE)
    image_AE, image = gather_with_grad(torch.cat(images))
    text_UE, text = gather_with_grad(torch.cat(texts))
    own = [torch.where(own_T < 0, own_T, own_T + image + start) for own_T, (start, _) in zip(owns, starts, strict=True)]
    own_image_U, _ = gather_with_grad(torch.cat(own))
    return StepVectors(image_AE, text_UE, own_image_U, [(image + i, text + t) for i, t in starts])
