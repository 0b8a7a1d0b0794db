"""A cheap contrastive stage for retrieval: a vector of each image and each text, made by the Transformer from it alone.
Pre-training can learn it too.

The paper leaves open how early fusion could be made fast enough to search with (appendix A.4), since it reads every
image with every text. The same Transformer reads an image's visual tokens without a text, or a text without an image; a
projection of either, trained beside matching by a contrastive loss, gives vectors whose inner products choose the few
pairs that are worth reading together. Ours.

B images, T texts, A and U those of all ranks, S words, L visual tokens, D channels, E channels of a vector.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from ..config import SohoConfig
from ..distributed import gather_with_grad
from ..heads import LossSum
from ..inputs import Texts, check_text_length
from ..outputs import VisualTokens
from ..pair_encoder import PairMatching
from ..whole_step import StepVectors, Vectors, WholeStep


class ContrastiveHead(nn.Module):
    """Projections of an image's and of a text's own hidden states to unit vectors, and the scale of the loss."""

    # As in CLIP (Radford et al. 2021, section 2.5): logits are inner products over a temperature that starts at 0.07
    # and never falls below 0.01.
    INITIAL_SCALE = math.log(1 / 0.07)
    LARGEST_SCALE = math.log(100.0)
    NUM_CHANNELS = 256

    def __init__(self, config: SohoConfig) -> None:
        super().__init__()
        self.image_projection = nn.Linear(config.hidden_size, self.NUM_CHANNELS)
        self.text_projection = nn.Linear(config.hidden_size, self.NUM_CHANNELS)
        # One number, with a dimension: DeepSpeed views each parameter as bytes, which one without has not.
        self.log_scale = nn.Parameter(torch.full((1,), self.INITIAL_SCALE))

    def reset(self) -> None:
        """The initial scale; its layers have the initial values of their kinds."""
        init.constant_(self.log_scale, self.INITIAL_SCALE)

    def image_vectors(self, hidden_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """(B, E) of length 1, from the mean over an image's valid tokens."""
        return F.normalize(self.image_projection(mean_of(hidden_BLD, valid_BL)).float(), dim=-1)

    def text_vectors(self, state_TD: Tensor) -> Tensor:
        """(T, E) of length 1."""
        return F.normalize(self.text_projection(state_TD).float(), dim=-1)

    def loss(
        self, image_BE: Tensor, text_TE: Tensor, own_image_T: Tensor, whole_step: WholeStep | None = None
    ) -> LossSum:
        """Cross-entropies of each text choosing its image and of each image choosing its texts, halved; and how many.

        An image with several texts is asked for any of them; one without is not asked. The images and texts of all
        ranks are to choose from.

        Args:
            image_BE, text_TE: vectors of images and texts.
            own_image_T: int64, the image that each text describes; -100 of a text that is left out.
            whole_step: where there are several micro-batches: the images and texts of all of them are to choose from.
                Each forward then gives its equal part of the step's sum, and its own vectors' gradients of all of it.
        """
        if whole_step is not None and whole_step.vectors is not None:
            return self._part_of_step(image_BE, text_TE, whole_step, whole_step.vectors)
        image_AE, image = gather_with_grad(image_BE)
        text_UE, text = gather_with_grad(text_TE)
        # Images are numbered among those of all ranks; -100 stays, which cross_entropy leaves out.
        own_image_T = torch.where(own_image_T < 0, own_image_T, own_image_T + image)
        own_image_U, _ = gather_with_grad(own_image_T)
        logits_AU = self.scale() * (image_AE @ text_UE.T)
        images, texts = slice(image, image + len(image_BE)), slice(text, text + len(text_TE))
        return self._choices(logits_AU, own_image_U, images, texts)

    def _part_of_step(self, image_BE: Tensor, text_TE: Tensor, step: WholeStep, vectors: StepVectors) -> LossSum:
        image, text = vectors.places.pop(0)

        def with_own(all_XE: Tensor, own_YE: Tensor, begin: int) -> Tensor:
            return torch.cat([all_XE[:begin], own_YE, all_XE[begin + len(own_YE) :]])

        image_AE, text_UE = with_own(vectors.image_AE, image_BE, image), with_own(vectors.text_UE, text_TE, text)
        scale = self.scale()
        # Each forward has the scale's whole gradient, of which one is wanted in all.
        scale = scale.detach() + (scale - scale.detach()) / step.num_parts
        every = slice(None)
        total, count = self._choices(scale * (image_AE @ text_UE.T), vectors.own_image_U, every, every)
        return total - total.detach() + total.detach() / step.num_parts, count

    def scale(self) -> Tensor:
        """What cosines are multiplied by to be logits, (1,)."""
        return self.log_scale.clamp(max=self.LARGEST_SCALE).exp()

    def _choices(self, logits_AU: Tensor, own_image_U: Tensor, images: slice, texts: slice) -> LossSum:
        """`loss` of these rows of both directions: the sum over the ranks has each once."""
        own_image_T = own_image_U[texts]
        of_texts = F.cross_entropy(logits_AU.T[texts], own_image_T, reduction="sum")
        # A text that is left out is none that an image could choose.
        logits_BU = logits_AU[images].masked_fill(own_image_U < 0, float("-inf"))
        image_A1 = torch.arange(len(logits_AU), device=own_image_U.device).unsqueeze(1)
        right_BU = image_A1[images] == own_image_U
        asked_B = right_BU.any(1)
        # Its texts together: any is right. Without one NaN goes back, but to filled places alone, where it ends.
        right_B = logits_BU.masked_fill(~right_BU, float("-inf")).logsumexp(1)
        of_images = torch.where(asked_B, logits_BU.logsumexp(1) - right_B, 0.0).sum()
        return (of_texts + of_images) / 2, (asked_B.sum() + (own_image_T >= 0).sum()) / 2


def mean_of(states_BLD: Tensor, valid_BL: Tensor) -> Tensor:
    """The mean over valid places, (B, D)."""
    share_BL = valid_BL / valid_BL.sum(1, keepdim=True)
    return torch.einsum("bl,bld->bd", share_BL.to(states_BLD.dtype), states_BLD)


def better_head(metrics: Mapping[str, float]) -> str:
    """Which head ranks held-out images and texts better, "itm" or "contrastive", by mean reciprocal rank.

    Args:
        metrics: of `soho evaluate`; "itm" where they do not have both heads.
    """
    names = "image_to_text_mrr", "text_to_image_mrr"
    itm, contrastive = (sum(metrics.get(start + name, 0.0) for name in names) for start in ("", "vectors_"))
    return "contrastive" if contrastive > itm else "itm"


class ContrastiveVectors(PairMatching):
    """The vectors and their loss, for models that also have a `ContrastiveHead` or `None` (`contrastive_head`)."""

    contrastive_head: ContrastiveHead | None
    whole_step: WholeStep | None

    def image_vectors(self, visual_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """(B, E) of length 1: images alone, from what `embed_images` gave.

        Raises:
            ValueError: the model has no contrastive head.
        """
        valid_BL = torch.ones_like(visual_BLD[..., 0], dtype=torch.bool) if valid_BL is None else valid_BL
        head = self.required_contrastive_head()
        if self.soho.config.contrastive_reads == "transformer":
            visual_BLD = self.soho.transformer.encode(self.soho, visual_BLD, valid_BL)
        return head.image_vectors(visual_BLD, valid_BL)

    def text_vectors(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(T, E) of length 1: texts alone.

        Raises:
            ValueError: the model has no contrastive head, or texts have no token, or more than positions.
        """
        check_text_length(input_ids, self.soho.config.max_position_embeddings)
        mask_TS = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
        head = self.required_contrastive_head()
        if self.soho.config.contrastive_reads == "embeddings":
            words_TS = Texts(input_ids, mask_TS).words()
            words_TS = torch.where(words_TS.any(1, keepdim=True), words_TS, mask_TS)
            return head.text_vectors(mean_of(self.soho.text_embeddings.word_embeddings(input_ids), words_TS))
        words_TSD = self.soho.text_embeddings(input_ids=input_ids)
        return head.text_vectors(self.soho.transformer.encode(self.soho, words_TSD, mask_TS)[:, 0])

    def contrastive_loss(self, visual: VisualTokens, captions: Texts) -> LossSum:
        """See `ContrastiveHead.loss`, of images and their texts; texts without a real word are left out."""
        vectors = self.contrastive_vectors(visual, captions)
        return self.required_contrastive_head().loss(*vectors, self.whole_step)

    def contrastive_vectors(self, visual: VisualTokens, captions: Texts) -> Vectors:
        """Those of images and of their texts, and the image of each text, -100 of texts without a real word."""
        image_BE = self.image_vectors(self.embed_images(visual), visual.valid)
        ids_TS, mask_TS, own_image_T = captions.input_ids, captions.attention_mask, captions.image_index
        if own_image_T is None:
            own_image_T = torch.arange(len(ids_TS), device=ids_TS.device)
        if mask_TS is not None:
            is_empty_T = ~mask_TS.any(1)
            own_image_T = own_image_T.masked_fill(is_empty_T, -100)
            mask_TS = mask_TS.bool() | is_empty_T.unsqueeze(1)  # or its vector would be NaN
        return image_BE, self.text_vectors(ids_TS, mask_TS), own_image_T

    def required_contrastive_head(self) -> ContrastiveHead:
        """The contrastive head. Raises ValueError: the model has no such head."""
        if self.contrastive_head is None:
            raise ValueError(
                "contrastive_weight: this model has no contrastive head; fine-tune it with a weight above 0, or score "
                "every pair"
            )
        return self.contrastive_head
