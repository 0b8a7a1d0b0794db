"""SOHO for the downstream tasks (paper section 4.2): one `SohoModel`, a head on [CLS], a loss.

Each starts from a pre-training checkpoint by `from_pretraining`, which feeds the dictionary's input features to the
Transformer unless told otherwise (the paper found that better), and is saved and loaded as any transformers model.

B images, P texts (pairs in NLVR2: statements), S text tokens, D channels, A answers.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .auxiliary.contrastive import ContrastiveHead
from .config import SohoConfig
from .heads import MatchingHead, cross_entropy_sum, global_means
from .outputs import SohoForImageTextRetrievalOutput, SohoModelOutput, VisualTokens
from .pair_encoder import PairMatching
from .pretrained import LoadReport, copy_state
from .soho import SohoForPreTraining, SohoModel, SohoPreTrainedModel


class SohoDownstreamModel(SohoPreTrainedModel):
    """What the downstream models share: starting from a pre-training checkpoint, and [CLS] of every text."""

    # Names that begin so are the task's own; all others must be in the checkpoint.
    _new_prefix: ClassVar[str] = "head."

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.soho = SohoModel(config)
        if self.soho.mask_token is not None:
            # Nothing is masked here: a parameter without a gradient has no place in an optimiser.
            self.soho.mask_token.requires_grad_(False)

    @classmethod
    def from_pretraining(
        cls, path_or_name: str, *, use_dictionary_output: bool = False, **overrides: Any
    ) -> tuple[Self, LoadReport]:
        """The model of this task with the weights of a pre-trained one, in float32.

        Args:
            path_or_name: what `SohoForPreTraining.save_pretrained` wrote, or its name on the hub.
            use_dictionary_output: feed f(v), eq. 3, to the Transformer, instead of the dictionary's input features.
            overrides: other fields of the configuration, such as `hidden_dropout_prob`, or `id2label`.

        Returns:
            The model, and which of its tensors were loaded, are new, and which of the checkpoint's were not used.

        Raises:
            FileNotFoundError: nothing could be loaded from there.
            ValueError: the checkpoint lacks a tensor that this model shares with pre-training, a size differs, or a
                field is unknown.
        """
        try:
            source, info = SohoForPreTraining.from_pretrained(
                path_or_name, dtype=torch.float32, output_loading_info=True
            )
        except OSError as error:
            raise FileNotFoundError(
                f"from_pretraining: no model could be loaded from {path_or_name!r}: give a directory with config.json "
                f"and model.safetensors, or a hub name this machine can reach. transformers said: {error}"
            ) from error
        absent = set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}
        state = {name: tensor for name, tensor in source.state_dict().items() if name not in absent}
        values = source.config.to_dict()
        unknown = sorted(name for name in overrides if name not in values)
        if unknown:
            raise ValueError(f"from_pretraining: SohoConfig has no field {', '.join(unknown)}")
        values |= {**overrides, "use_dictionary_output": use_dictionary_output}
        model = cls(SohoConfig.from_dict(values))
        report = copy_state(model, state, f"from_pretraining({path_or_name!r})")
        lost = [name for name in report.missing if not name.startswith(cls._new_prefix)]
        if lost:
            raise ValueError(
                f"from_pretraining: {path_or_name!r} lacks {len(lost)} tensors of a pre-trained SOHO "
                f"({', '.join(lost[:3])}); expected a checkpoint of SohoForPreTraining"
            )
        return model, report

    def encode_images(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> VisualTokens:
        """As `SohoModel.encode_images`; its result can be given to `forward` as `visual_tokens`."""
        return self.soho.encode_images(pixel_values, pixel_mask)

    def first_hidden(self, input_ids: Tensor | None, **inputs: Any) -> tuple[Tensor, SohoModelOutput]:
        """The last hidden state of [CLS] (P, D), and all outputs; `inputs` as in `SohoModel.forward`."""
        if self.training and input_ids is not None:
            # Nothing but [CLS] is read, which spares the last layer most of its work.
            read_PS = torch.zeros_like(input_ids, dtype=torch.bool)
            read_PS[:, 0] = True
            inputs |= {"read_text": read_PS, "read_masked": torch.zeros_like(read_PS[:, 0])}
        outputs = self.soho(input_ids=input_ids, return_dict=True, **inputs)
        return outputs.last_hidden_state[:, 0], outputs

    def _mean(self, total_and_count: tuple[Tensor, Tensor]) -> Tensor:
        """The mean of a loss over the batch of all ranks in training (`global_means`), else over this batch."""
        return global_means([total_and_count], synchronise=self.training)[0]


class ClassificationHead(nn.Sequential):
    """Linear, activation, dropout, linear: the MLP of VQA (768-3072-answers in the paper), used for all three."""

    def __init__(self, config: SohoConfig, in_features: int, num_labels: int) -> None:
        super().__init__(
            nn.Linear(in_features, config.intermediate_size),
            ACT2FN[config.hidden_act],
            nn.Dropout(config.hidden_dropout_prob),
            nn.Linear(config.intermediate_size, num_labels),
        )


class SohoForImageTextRetrieval(PairMatching, SohoDownstreamModel):
    """Does the text belong to the image? Pre-training's matching head, trained on all t x t pairs of t aligned ones.

    With `config.contrastive_weight` it also learns vectors of images and of texts that choose the pairs to score.
    """

    _new_prefix: ClassVar[str] = "contrastive_head."

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.itm_head = MatchingHead(config)
        self.contrastive_head = ContrastiveHead(config) if config.contrastive_weight else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        itm_labels: Tensor | None = None,
        own_image: Tensor | None = None,
        visual_tokens: VisualTokens | None = None,
        **kwargs: Any,
    ) -> SohoForImageTextRetrievalOutput:
        """
        Args:
            pixel_values, pixel_mask, input_ids, attention_mask, image_index, visual_tokens: as in
                `SohoModel.forward`; each image is encoded once, however many texts `image_index` gives it.
            itm_labels: (P,) int64, 1 = the text belongs to the image, 0 = it does not.
            own_image: (T,) int64, the image that each of the T texts describes, instead of `image_index` and
                `itm_labels`: all B x T pairs are scored, those of image 0 first.
        """
        if visual_tokens is None and pixel_values is not None:
            visual_tokens, pixel_values, pixel_mask = self.encode_images(pixel_values, pixel_mask), None, None
        texts = (input_ids, attention_mask)
        if own_image is not None:
            if image_index is not None or itm_labels is not None or visual_tokens is None:
                raise ValueError("own_image: expected images, and no image_index or itm_labels, for which it stands")
            num_images, num_texts = len(visual_tokens.valid), len(_checked(own_image, input_ids))
            image_index = torch.arange(num_images, device=own_image.device).repeat_interleave(num_texts)
            itm_labels = (image_index == own_image.repeat(num_images)).long()
            input_ids, attention_mask = (None if x is None else x.repeat(num_images, 1) for x in texts)
        inputs = _inputs(pixel_values, pixel_mask, attention_mask, image_index, visual_tokens)
        first_PD, outputs = self.first_hidden(input_ids, **inputs, **kwargs)
        logits_P2 = self.itm_head(first_PD)
        losses = {}
        if itm_labels is not None:
            losses["itm_loss"] = cross_entropy_sum(logits_P2, _checked(itm_labels, first_PD))
        if own_image is not None and self.contrastive_head is not None:
            vectors = self.image_vectors(self.embed_images(visual_tokens), visual_tokens.valid)
            losses["contrastive_loss"] = self.contrastive_head.loss(vectors, self.text_vectors(*texts), own_image)
        means = {}
        if losses:
            means = dict(zip(losses, global_means(list(losses.values()), synchronise=self.training), strict=True))
        weights = {"contrastive_loss": self.config.contrastive_weight}
        return SohoForImageTextRetrievalOutput(
            loss=sum(weights.get(name, 1.0) * mean for name, mean in means.items()) if means else None,
            itm_logits=logits_P2,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **means,
        )

    def image_vectors(self, visual_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """(B, E) of length 1: images alone, from what `embed_images` gave.

        Raises:
            ValueError: the model has no contrastive head.
        """
        valid_BL = torch.ones_like(visual_BLD[..., 0], dtype=torch.bool) if valid_BL is None else valid_BL
        return self.required_contrastive_head().image_vectors(self._alone(visual_BLD, valid_BL), valid_BL)

    def text_vectors(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(T, E) of length 1: texts alone.

        Raises:
            ValueError: the model has no contrastive head.
        """
        words_TSD = self.soho.text_embeddings(input_ids=input_ids)
        mask_TS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.required_contrastive_head().text_vectors(self._alone(words_TSD, mask_TS.bool()))

    def _alone(self, states: Tensor, real: Tensor) -> Tensor:
        return self.soho.encoder(states, attention_mask=self.soho._attention_mask(states, real))[0]

    def required_contrastive_head(self) -> ContrastiveHead:
        """The contrastive head. Raises ValueError: the model has none."""
        if self.contrastive_head is None:
            raise ValueError(
                "contrastive_weight: this model has no contrastive head; fine-tune it with a weight above 0, or score every "
                "pair"
            )
        return self.contrastive_head


class SohoForQuestionAnswering(SohoDownstreamModel):
    """A question about an image, answered from a list of answers: `config.id2label`, which travels with the model."""

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.head = ClassificationHead(config, config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def from_pretraining(
        cls, path_or_name: str, *, answers: Sequence[str], use_dictionary_output: bool = False, **overrides: Any
    ) -> tuple[Self, LoadReport]:
        """As `SohoDownstreamModel.from_pretraining`, with the answers to choose from, each once.

        Raises:
            ValueError: also when an answer comes twice, or there are fewer than two.
        """
        if isinstance(answers, str) or len(answers) < 2 or len(set(answers)) != len(answers):
            raise ValueError(
                f"answers: expected at least two answers, each once, got {len(answers)} with {len(set(answers))} "
                "different ones"
            )
        names = {"id2label": dict(enumerate(answers)), "label2id": {answer: n for n, answer in enumerate(answers)}}
        return super().from_pretraining(path_or_name, use_dictionary_output=use_dictionary_output, **names, **overrides)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        answer_scores: Tensor | None = None,
        visual_tokens: VisualTokens | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """
        Args:
            pixel_values, pixel_mask, input_ids, attention_mask, image_index, visual_tokens: as in
                `SohoModel.forward`.
            answer_scores: (P, A) in [0, 1], how right each answer is: the targets of a binary cross-entropy, summed
                over the answers, averaged over the questions.

        Returns:
            `logits` (P, A), `loss` ().
        """
        inputs = _inputs(pixel_values, pixel_mask, attention_mask, image_index, visual_tokens)
        first_PD, outputs = self.first_hidden(input_ids, **inputs, **kwargs)
        logits_PA = self.head(first_PD)
        loss = None
        if answer_scores is not None:
            if answer_scores.shape != logits_PA.shape:
                raise ValueError(
                    f"answer_scores: expected shape {tuple(logits_PA.shape)}, got {tuple(answer_scores.shape)}"
                )
            total = nn.functional.binary_cross_entropy_with_logits(
                logits_PA.float(), answer_scores.float(), reduction="sum"
            )
            loss = self._mean((total, torch.full_like(total, float(len(logits_PA)))))
        return _classified(loss, logits_PA, outputs)


class SohoForVisualReasoning(SohoDownstreamModel):
    """NLVR2: is a statement about two images true? The text is read with each, and both [CLS] decide together."""

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.head = ClassificationHead(config, 2 * config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        labels: Tensor | None = None,
        visual_tokens: VisualTokens | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """
        Args:
            pixel_values, pixel_mask, visual_tokens: as in `SohoModel.forward`.
            input_ids, attention_mask: (P, S), one row a statement.
            image_index: (P, 2) int64, the left and the right image of each statement; `None`: B == 2 P, left and right
                of the first statement, then of the second, and so on.
            labels: (P,) int64, 1 = true, 0 = false.

        Returns:
            `logits` (P, 2), index 1 is "true", and `loss` ().
        """
        if image_index is not None:
            if input_ids is None or tuple(image_index.shape) != (input_ids.shape[0], 2):
                raise ValueError(f"image_index: expected (statements, 2), got {tuple(image_index.shape)}")
            image_index = image_index.flatten()
        twice = [None if x is None else x.repeat_interleave(2, dim=0) for x in (input_ids, attention_mask)]
        inputs = _inputs(pixel_values, pixel_mask, twice[1], image_index, visual_tokens)
        first_RD, outputs = self.first_hidden(twice[0], **inputs, **kwargs)
        first_PE = first_RD.unflatten(0, (-1, 2)).flatten(1)
        logits_P2 = self.head(first_PE)
        loss = None if labels is None else self._mean(cross_entropy_sum(logits_P2, _checked(labels, logits_P2)))
        return _classified(loss, logits_P2, outputs)


class SohoForVisualEntailment(SohoDownstreamModel):
    """SNLI-VE: three classes on [CLS] of an image and a hypothesis; their order is the task's."""

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.head = ClassificationHead(config, config.hidden_size, 3)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        labels: Tensor | None = None,
        visual_tokens: VisualTokens | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """
        Args:
            pixel_values, pixel_mask, input_ids, attention_mask, image_index, visual_tokens: as in
                `SohoModel.forward`.
            labels: (P,) int64, 0 to 2.

        Returns:
            `logits` (P, 3), `loss` ().
        """
        inputs = _inputs(pixel_values, pixel_mask, attention_mask, image_index, visual_tokens)
        first_PD, outputs = self.first_hidden(input_ids, **inputs, **kwargs)
        logits_P3 = self.head(first_PD)
        loss = None if labels is None else self._mean(cross_entropy_sum(logits_P3, _checked(labels, logits_P3)))
        return _classified(loss, logits_P3, outputs)


def _inputs(
    pixel_values: Tensor | None,
    pixel_mask: Tensor | None,
    attention_mask: Tensor | None,
    image_index: Tensor | None,
    visual_tokens: VisualTokens | None,
) -> dict[str, Any]:
    return {
        "pixel_values": pixel_values,
        "pixel_mask": pixel_mask,
        "attention_mask": attention_mask,
        "image_index": image_index,
        "visual_tokens": visual_tokens,
    }


def _checked(labels: Tensor, rows: Tensor) -> Tensor:
    if tuple(labels.shape) != (len(rows),):
        raise ValueError(f"labels: expected shape ({len(rows)},), one for each text, got {tuple(labels.shape)}")
    return labels


def _classified(loss: Tensor | None, logits: Tensor, outputs: SohoModelOutput) -> SequenceClassifierOutput:
    return SequenceClassifierOutput(
        loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
    )
