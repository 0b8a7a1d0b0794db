"""SOHO for the downstream tasks (paper section 4.2): one `SohoModel`, a head on [CLS], a loss.

Each starts from a pre-training checkpoint by `from_pretraining`, which feeds the dictionary's input features to the
Transformer unless told otherwise (the paper found that better), and is saved and loaded as any transformers model.

B images, P texts (in NLVR2: statements, and R = 2 P texts), T texts before each is read with all images, S text tokens,
D channels, E = 2 D, A answers.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn
from transformers import AutoModelForVisualQuestionAnswering
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .auxiliary import ContrastiveHead, ContrastiveVectors
from .config import SohoConfig
from .heads import LossSum, cross_entropy_sum, step_means, total_loss
from .inputs import SohoInputs, Texts, check_labels, check_shape, num_images, read_inputs
from .outputs import SohoForImageTextRetrievalOutput, SohoModelOutput, VisualTokens
from .pretrained import LoadReport, copy_state, state_of
from .soho import SohoForPreTraining, SohoModel, SohoModelWithHeads
from .transformer import Reads
from .whole_step import Vectors


class SohoDownstreamModel(SohoModelWithHeads):
    """What the downstream models share: starting from a pre-training checkpoint, and [CLS] of every text."""

    # Names that begin so are the task's own; all others must be in the checkpoint.
    _new_prefix: ClassVar[str] = "head."

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        if self.soho.mask_token is not None:
            # Nothing is masked here: a parameter without a gradient has no place in an optimiser.
            self.soho.mask_token.requires_grad_(False)
        if isinstance(self.soho.visual_dictionary, nn.Module) and not config.use_dictionary_output:
            self.soho.visual_dictionary.requires_grad_(False)

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
        config, state = state_of(SohoForPreTraining, path_or_name, "from_pretraining")
        values = config.to_dict()
        SohoConfig.check_names(name for name in overrides if name not in values)
        if config.official is not None:
            values["official"] = "fine_tuning"
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

    def first_hidden(self, visual: VisualTokens, texts: Texts, **kwargs: Any) -> tuple[Tensor, SohoModelOutput]:
        """The last hidden state of [CLS] (P, D), and all outputs, of which no other last hidden state is to be read;
        arguments as in `SohoModel.forward`."""
        outputs = self.soho(visual, texts, reads=Reads(), return_dict=True, **kwargs)
        return outputs.last_hidden_state[:, 0], outputs


class SohoClassifier(SohoDownstreamModel):
    """A classifier (`head`) on [CLS], and the loss of its logits."""

    def label_counts(self, visual: VisualTokens | None, **inputs: Any) -> dict[str, Tensor]:
        if (scores := inputs.get("answer_scores")) is not None:
            return {"loss": torch.full((), len(scores), device=scores.device)}
        return {} if (labels := inputs.get("labels")) is None else {"loss": (labels != -100).sum()}

    def read_first_hidden(self, **inputs: Any) -> tuple[Tensor, SohoModelOutput]:
        """`first_hidden` of images and texts, see `SohoInputs`."""
        images, texts, kwargs = read_inputs(**inputs)
        return self.first_hidden(self.soho.encode_images(**images), texts, **kwargs)

    def classified(self, logits: Tensor, loss: LossSum | None, outputs: SohoModelOutput) -> SequenceClassifierOutput:
        """Logits, the mean of the loss (over the batch of all ranks in training), and what else was asked for."""
        return SequenceClassifierOutput(
            loss=None if loss is None else step_means({"loss": loss}, self.training, self.whole_step)["loss"],
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SohoForImageTextRetrieval(ContrastiveVectors, SohoDownstreamModel):
    """Does the text belong to the image? Pre-training's ITM head, trained on all t x t pairs of t aligned ones.

    With `config.contrastive_weight` it also learns vectors of images and of texts that choose the pairs to score.
    """

    soho: SohoModel
    _new_prefix: ClassVar[str] = "contrastive_head."

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.itm_head = self.soho.parts.itm_head()
        self.contrastive_head = ContrastiveHead(config) if config.contrastive_weight else None
        self.post_init()

    @can_return_tuple
    def forward(
        self, *, itm_labels: Tensor | None = None, own_image: Tensor | None = None, **inputs: Unpack[SohoInputs]
    ) -> SohoForImageTextRetrievalOutput:
        """
        Args:
            itm_labels: (P,) int64, 1 = the text belongs to the image, 0 = it does not.
            own_image: (T,) int64, the image that each of the T texts describes, instead of `image_index` and
                `itm_labels`: all B x T pairs are scored, those of image 0 first.
            inputs: images and texts, see `SohoInputs`.

        Raises:
            ValueError: an argument is missing or its shape does not fit.
        """
        if own_image is not None and (itm_labels is not None or inputs.get("image_index") is not None):
            raise ValueError("own_image: expected images, and no image_index or itm_labels, for which it stands")
        images, texts, kwargs = read_inputs(**inputs)
        visual = self.soho.encode_images(**images)
        captions = None
        if own_image is not None:
            check_labels("own_image", own_image, texts.input_ids)
            captions = replace(texts, image_index=own_image)
            texts, itm_labels = every_pair(captions, num_images=len(visual.valid))
        losses: dict[str, LossSum] = {}
        if captions is not None and self.contrastive_head is not None:  # not the paper's
            # Here, where a survey of the step has the same random state.
            losses["contrastive_loss"] = self.contrastive_loss(visual, captions)
        first_PD, outputs = self.first_hidden(visual, texts, **kwargs)
        logits_P2 = self.itm_head(first_PD)
        if itm_labels is not None:
            check_labels("itm_labels", itm_labels, logits_P2)
            losses["itm_loss"] = cross_entropy_sum(logits_P2, itm_labels)
        return SohoForImageTextRetrievalOutput(
            itm_logits=logits_P2,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **total_loss(losses, self.config, self.training, self.whole_step),
        )

    def surveys_images(self) -> bool:
        return self.contrastive_head is not None

    def label_counts(self, visual: VisualTokens | None, **inputs: Any) -> dict[str, Tensor]:
        own_image, labels = inputs.get("own_image"), inputs.get("itm_labels")
        if own_image is not None:
            return {"itm_loss": torch.full((), num_images(inputs) * len(own_image), device=own_image.device)}
        return {} if labels is None else {"itm_loss": (labels != -100).sum()}

    def vectors_of(self, visual: VisualTokens | None, **inputs: Any) -> Vectors | None:
        if visual is None or inputs.get("own_image") is None:
            return None
        captions = Texts(inputs["input_ids"], inputs.get("attention_mask"), inputs["own_image"])
        return self.contrastive_vectors(visual, captions)


def every_pair(captions: Texts, num_images: int) -> tuple[Texts, Tensor]:
    """Each image with each of T texts, those of image 0 first, and whether they belong together, int64 (B * T,)."""
    own_image_T = captions.image_index
    assert own_image_T is not None, "captions tell their images"
    image_index_P = torch.arange(num_images, device=own_image_T.device).repeat_interleave(len(own_image_T))
    mask_TS = captions.attention_mask
    mask_PS = None if mask_TS is None else mask_TS.repeat(num_images, 1)
    texts = Texts(captions.input_ids.repeat(num_images, 1), mask_PS, image_index_P)
    return texts, (image_index_P == own_image_T.repeat(num_images)).long()


class SohoForQuestionAnswering(SohoClassifier):
    """A question about an image, answered from a list of answers: `config.id2label`, which travels with the model."""

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None, "transformers sets it where it is not given"
        self.head = self.soho.parts.classification_head(config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def from_pretraining(  # type: ignore[override]  # here it needs the answers
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
    def forward(self, *, answer_scores: Tensor | None = None, **inputs: Unpack[SohoInputs]) -> SequenceClassifierOutput:
        """
        Args:
            answer_scores: (P, A) in [0, 1], how right each answer is: the targets of a binary cross-entropy, summed
                over the answers, averaged over the questions.
            inputs: images and questions, see `SohoInputs`.

        Returns:
            `logits` (P, A), `loss` ().
        """
        first_PD, outputs = self.read_first_hidden(**inputs)
        logits_PA = self.head(first_PD)
        loss = None
        if answer_scores is not None:
            check_shape("answer_scores", answer_scores, logits_PA.shape)
            total = nn.functional.binary_cross_entropy_with_logits(
                logits_PA.float(), answer_scores.float(), reduction="sum"
            )
            loss = total, torch.full_like(total, float(len(logits_PA)))
        return self.classified(logits_PA, loss, outputs)


class SohoForVisualReasoning(SohoClassifier):
    """NLVR2: is a statement about two images true? The text is read with each, and both [CLS] decide together."""

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(with_labels(config, 2))
        self.head = self.soho.parts.classification_head(2 * config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(self, *, labels: Tensor | None = None, **inputs: Unpack[SohoInputs]) -> SequenceClassifierOutput:
        """
        Args:
            labels: (P,) int64, 1 = true, 0 = false.
            inputs: images and statements, see `SohoInputs`, but for `image_index`: (P, 2) int64, the left and the right
                image of each statement; `None`: B == 2 P, left and right of the first statement, then of the second,
                and so on.

        Returns:
            `logits` (P, 2), index 1 is "true", and `loss` ().
        """
        first_RD, outputs = self.read_first_hidden(**_with_either_image(**inputs))
        # Texts 2 i and 2 i + 1 are statement i with its left and its right image.
        first_PE = first_RD.unflatten(0, (-1, 2)).flatten(1)
        logits_P2 = self.head(first_PE)
        return self.classified(logits_P2, labels_loss(logits_P2, labels), outputs)


class SohoForVisualEntailment(SohoClassifier):
    """SNLI-VE: three classes on [CLS] of an image and a hypothesis, by one linear layer; their order is the task's."""

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(with_labels(config, 3))
        self.head = nn.Linear(config.hidden_size, 3)
        self.post_init()

    @can_return_tuple
    def forward(self, *, labels: Tensor | None = None, **inputs: Unpack[SohoInputs]) -> SequenceClassifierOutput:
        """
        Args:
            labels: (P,) int64, 0 to 2.
            inputs: images and hypotheses, see `SohoInputs`.

        Returns:
            `logits` (P, 3), `loss` ().
        """
        first_PD, outputs = self.read_first_hidden(**inputs)
        logits_P3 = self.head(first_PD)
        return self.classified(logits_P3, labels_loss(logits_P3, labels), outputs)


def _with_either_image(
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    image_index: Tensor | None = None,
    **inputs: Any,
) -> dict[str, Any]:
    """Statements about two images as texts with one image each: those of the first statement, then of the second."""
    if image_index is not None:
        if input_ids is None or tuple(image_index.shape) != (len(input_ids), 2):
            raise ValueError(f"image_index: expected (statements, 2), got {tuple(image_index.shape)}")
        image_index = image_index.flatten()
    twice = [None if x is None else x.repeat_interleave(2, dim=0) for x in (input_ids, attention_mask)]
    return {**inputs, "input_ids": twice[0], "attention_mask": twice[1], "image_index": image_index}


def labels_loss(logits_PA: Tensor, labels: Tensor | None) -> LossSum | None:
    """The cross-entropy of labels (P,), where there are some. Raises ValueError: they have another shape."""
    check_labels("labels", labels, logits_PA)
    return None if labels is None else cross_entropy_sum(logits_PA, labels)


def with_labels(config: SohoConfig, num: int) -> SohoConfig:
    """The configuration of a head of fixed size, with as many labels: a copy where it names none, to which transformers
    gives two. Raises ValueError: it names others."""
    if config.num_labels == num:
        return config
    if config.id2label != {0: "LABEL_0", 1: "LABEL_1"}:
        raise ValueError(f"id2label: expected {num} labels, got {config.num_labels}")
    config = copy.deepcopy(config)
    config.num_labels = num
    return config


AutoModelForVisualQuestionAnswering.register(SohoConfig, SohoForQuestionAnswering, exist_ok=True)
