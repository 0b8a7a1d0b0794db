"""SOHO: pixels and words to hidden states, and the pre-training losses (paper section 3).

image -> features -> index -> embedding -> Transformer -> losses; B images, P image-text pairs, H x W pixels, S text
tokens, L visual tokens, T = S + L places of a pair, D channels, V words, K codes, M labelled positions.
"""

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForPreTraining
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from soho_fast import ops

from .auxiliary import BagOfWordsHead, ContrastiveHead, ContrastiveVectors, captions_of
from .base import SohoPreTrainedModel
from .config import SohoConfig
from .embeddings import sine_position
from .heads import (
    LossSum,
    at_places,
    cross_entropy_sum,
    labelled_places,
    total_loss,
)
from .inputs import (
    IMAGES,
    SohoInputs,
    Texts,
    check_backbone_features,
    check_images_of_texts,
    check_labels,
    check_one_source,
    check_shape,
    check_text_length,
    num_images,
    read_inputs,
)
from .masking import margin, masked_in_some_pairs
from .outputs import SohoForPreTrainingOutput, SohoModelOutput, VisualTokens
from .parts import parts_of, visual_dictionary
from .pretrained import LoadReport, init_from
from .transformer import Pairs, Reads, TransformerBackend
from .whole_step import Vectors


class SohoModel(SohoPreTrainedModel):
    """Visual encoder, visual dictionary and cross-modal Transformer without heads.

    Attributes:
        transformer: how the Transformer is run, see `transformer.py`; it holds no weights and may be replaced.
    """

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        config.check()
        self.parts = parts_of(config)
        self.visual_encoder = self.parts.visual_encoder()
        self.feature_norm = self.parts.feature_norm()
        self.visual_dictionary = visual_dictionary(self.parts)
        fuses = self.visual_dictionary is not None and config.use_dictionary_output
        self.fusion = self.parts.fusion() if fuses else None
        # Only a dictionary gives labels to mask by; `post_init` draws the values.
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size)) if config.dictionary != "none" else None
        self.feature_watch = None
        self.visual_embeddings = self.parts.visual_embeddings()
        self.text_embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        # Set by `compile_transformer`: a backend that calls the layers one by one steps aside then (`can_pack`).
        self.encoder_compiled = False
        self.transformer = TransformerBackend()
        self.post_init()

    def base(self) -> "SohoModel":
        return self

    @property
    def computed_by(self) -> str:
        """The backends that are chosen, in words."""
        compiled = ", compiled" if self.encoder_compiled else ""
        return f"Transformer {self.transformer}{compiled}; CNN {self.visual_encoder.cnn}"

    def extra_repr(self) -> str:
        return self.computed_by

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self and self.mask_token is not None:
            init.normal_(self.mask_token, std=self.parts.mask_std)
        super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]  # what transformers gives
        self.text_embeddings.word_embeddings = value

    def encode_features(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        num_texts: Tensor | None = None,
        *,
        backbone_features: Tensor | None = None,
        backbone_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Section 3.1: images to the dictionary's input.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            pixel_mask: (B, H, W), 1 at real pixels; `None`: no padding.
            num_texts: (B,), how many texts each image is read with; `None`: one. The paper's parts do not ask for it.
            backbone_features, backbone_mask: what the CNN gave, instead of pixels, see `SohoInputs`.

        Returns:
            Features (B, L, D), with the paper's parts zero at padding, and the grid mask bool (B, h, w).

        Raises:
            ValueError: not one of both was given, a mask belongs to the other one, or a shape does not fit.
        """
        check_one_source(pixel_values, pixel_mask, backbone_features, backbone_mask)
        if pixel_values is not None:
            feat_BLD, grid_mask_BHW = self.visual_encoder(pixel_values, pixel_mask)
        else:
            assert backbone_features is not None, "check_one_source has seen one"
            check_backbone_features(backbone_features, backbone_mask, self.visual_encoder.backbone.num_features)
            feat_BLD, grid_mask_BHW = self.visual_encoder.tokens(backbone_features, backbone_mask)
        if self.feature_norm is not None:
            feat_BLD = self.feature_norm(feat_BLD, grid_mask_BHW.flatten(1), num_texts)
        return feat_BLD, grid_mask_BHW

    def encode_images(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        sample_key: Tensor | None = None,
        num_texts: Tensor | None = None,
        *,
        visual_tokens: VisualTokens | None = None,
        **backbone_output: Tensor | None,
    ) -> VisualTokens:
        """Sections 3.1 and 3.2: images to visual tokens; each image goes through the CNN and the dictionary once.

        Args:
            pixel_values, pixel_mask: as in `encode_features`.
            sample_key: (B,) float64, see `VisualDictionary.forward`; matters only in training.
            num_texts: as in `encode_features`.
            visual_tokens: what is encoded already, and is returned.
            backbone_output: `backbone_features` and `backbone_mask`, as in `encode_features`.
        """
        if visual_tokens is not None:
            return visual_tokens
        feat_BLD, grid_mask_BHW = self.encode_features(pixel_values, pixel_mask, num_texts, **backbone_output)
        valid_BL = grid_mask_BHW.flatten(1)
        embed_BLD = index_BL = None
        # Without the output (fine-tuning) there is no lookup, and no code moves.
        if self.visual_dictionary is not None and self.config.use_dictionary_output:
            seen_BL = self.visual_encoder.counted(valid_BL)
            embed_BLD, index_BL = self.visual_dictionary(feat_BLD, seen_BL, sample_key, num_texts)
        if self.feature_watch is not None:
            # Where codes do not lie among the features (as FSQ's) their distance from these says nothing.
            near = self.visual_dictionary is not None and self.visual_dictionary.near_features
            self.feature_watch.see(feat_BLD, valid_BL, embed_BLD if near else None)
        if embed_BLD is not None:
            if self.fusion is not None:  # not the paper's
                embed_BLD = self.fusion(embed_BLD, feat_BLD, num_texts)
            elif self.config.fusion == "features":  # nor this
                embed_BLD = feat_BLD
        return VisualTokens(
            features=feat_BLD,
            valid=valid_BL,
            position=sine_position(grid_mask_BHW, self.config.hidden_size),
            embedding=embed_BLD,
            index=index_BL,
            # `valid` is flat: `margin` needs the width of the grid to find neighbours.
            columns=grid_mask_BHW.shape[2],
        )

    # transformers collects states and attentions, where asked for, by hooks on what `_can_record_outputs` names.
    @capture_outputs
    def forward(
        self,
        visual: VisualTokens,
        texts: Texts,
        mask_uniform: Tensor | None = None,
        mask_pairs: Tensor | None = None,
        *,
        reads: Reads | None = None,
        **kwargs: Any,
    ) -> SohoModelOutput:
        """Section 3.3: the Transformer over words and visual tokens.

        Args:
            visual: what `encode_images` gave.
            texts: each with the number of its image among `visual`.
            mask_uniform, mask_pairs: for masked visual modelling; see `mask`.
            reads: the last hidden states that the caller reads; all others may be zero then. `None`: all of them.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and what the attention takes.

        Raises:
            ValueError: it is not said which text is read with which image, texts have no token or too many, or
                attentions are asked for that are not computed.
        """
        if kwargs.get("output_attentions") and self.config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions: attention {self.config._attn_implementation!r} has none to give; call "
                "set_attn_implementation('eager') before"
            )
        check_text_length(texts.input_ids, self.config.max_position_embeddings)
        check_images_of_texts(len(visual.valid), texts)
        # If some pairs read an image masked and others whole, `read` has both forms, and `texts` numbers them.
        read, texts, mvm_labels_PL = self.mask(visual, texts, mask_uniform, mask_pairs)
        # Of `read`, not of `visual`: `mvm_margin` has taken the neighbours of masked tokens out of its `valid`.
        pairs = Pairs(read, texts, real_places(read, texts), mvm_labels_PL, reads)
        return SohoModelOutput(
            last_hidden_state=self.transformer(self, pairs, **kwargs),
            text_length=texts.input_ids.shape[1],
            index=visual.index,
            valid=visual.valid,
            mvm_labels=mvm_labels_PL,
        )

    def mask(
        self, visual: VisualTokens, texts: Texts, mask_uniform: Tensor | None, mask_pairs: Tensor | None = None
    ) -> tuple[VisualTokens, Texts, Tensor | None]:
        """Masked visual modelling: `mask_one_label`, and who reads it.

        Args:
            visual, texts: as in `forward`.
            mask_uniform: as in `mask_one_label`.
            mask_pairs: (P,) bool, the texts whose image is masked; `None`: all, as in the paper.

        Returns:
            Images to read, texts with their numbers among these, and the labels of each text's image (P, L), -100 where
            nothing is masked; `None` where nothing was asked to be masked.

        Raises:
            ValueError: mask_pairs without mask_uniform, or of another shape or type.
        """
        if mask_pairs is not None and mask_uniform is None:
            raise ValueError("mask_pairs: expected mask_uniform with it, by which labels are drawn")
        tokens_BLD, labels_XL = self.mask_one_label(visual, mask_uniform)
        if labels_XL is None:
            return visual, texts, None
        # A `ModelOutput` is a dict of the fields that are not `None`.
        read = VisualTokens(**{**visual, "embedding": tokens_BLD})
        # Neighbours of a masked token have seen much of its pixels in the CNN: they are not read either.
        if reach := self.config.mvm_margin:  # not the paper's
            read["valid"] = visual.valid & ~margin(labels_XL != -100, visual.columns, reach)
        if mask_pairs is not None:
            read, texts, labels_XL = masked_in_some_pairs(visual, read, labels_XL, texts, mask_pairs)
        # X is B, or 2 B after `masked_in_some_pairs`, whose texts are numbered among these.
        return read, texts, texts.of_images(labels_XL)

    def mask_one_label(self, visual: VisualTokens, mask_uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Section 3.3: picks one label j of each image and puts the mask vector in the place of all f^-1(j).

        Args:
            visual: the images.
            mask_uniform: (B,) float64 in [0, 1), by which one of the labels that are there is picked; `None`: nothing
                is masked. No effect without the dictionary's output.

        Returns:
            What the Transformer reads (B, L, D), masked alike for all texts of an image: f(v), eq. 3, or without a
            dictionary's output the features. And int64 (B, L), the label of each token that was masked, -100 elsewhere;
            `None` where nothing was asked to be masked.
        """
        if visual.embedding is None or mask_uniform is None:
            return visual.tokens, None
        assert visual.index is not None and self.mask_token is not None, "only a dictionary makes an embedding"
        embed_BLD, target_B = visual.embedding, self.label_to_mask(visual, mask_uniform)
        # Not in place: `visual` may share this tensor and is read again.
        mask_token = self.mask_token.to(embed_BLD.dtype)
        return ops.group_mask(embed_BLD, visual.index, mask_token, target_B, valid=visual.valid)

    def label_to_mask(self, visual: VisualTokens, mask_uniform: Tensor) -> Tensor:
        """The label of each image that `mask_one_label` masks, int64 (B,), -1 of an image without tokens."""
        assert self.visual_dictionary is not None, "only a dictionary makes labels"
        return self.parts.label_to_mask(self.visual_dictionary, visual, mask_uniform, self.training)


def real_places(visual: VisualTokens, texts: Texts) -> Tensor:
    """Bool (P, T), False at what is not read; a pair's words come first, then its visual tokens."""
    words_PS = torch.ones_like(texts.input_ids) if texts.attention_mask is None else texts.attention_mask
    return torch.cat([words_PS.bool(), texts.of_images(visual.valid)], dim=1)


class SohoModelWithHeads(SohoPreTrainedModel):
    """A `SohoModel` (`soho`) with heads, which are a subclass's part."""

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.soho = SohoModel(config)

    def base(self) -> SohoModel:
        return self.soho

    def encode_images(self, *args: Any, **kwargs: Any) -> VisualTokens:
        """As `SohoModel.encode_images`; its result can be given to `forward` as `visual_tokens`."""
        return self.soho.encode_images(*args, **kwargs)


# The parameters that the bag-of-words loss trains begin so.
_OF_BAG_OF_WORDS = (
    "soho.visual_encoder.", "soho.feature_norm.", "bag_of_words_head.", "soho.text_embeddings.word_embeddings.",
)  # fmt: skip


class SohoForPreTraining(ContrastiveVectors, SohoModelWithHeads):
    """SOHO with the heads and losses of pre-training: L = L_MLM + L_MVM + L_ITM (paper section 3.3, eq. 9).

    Attributes:
        bag_of_words_only: in training compute the bag-of-words loss alone, for which neither dictionary nor Transformer
            runs; needs `config.bag_of_words_weight`.
        masks_visual_tokens: whether training masks visual tokens where `mask_uniform` is given.
    """

    soho: SohoModel
    _tied_weights_keys: dict[str, str] = {  # noqa: RUF012  # A model with `bag_of_words_head` has more.
        "mlm_head.decoder.weight": "soho.text_embeddings.word_embeddings.weight"
    }

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.mlm_head = self.soho.parts.mlm_head()
        self.mvm_head = self.soho.parts.mvm_head() if config.dictionary != "none" else None
        self.itm_head = self.soho.parts.itm_head()
        self.bag_of_words_head = BagOfWordsHead(config) if config.bag_of_words_weight else None
        self.contrastive_head = ContrastiveHead(config) if config.contrastive_weight else None
        self.bag_of_words_only = False
        self.masks_visual_tokens = True
        if self.bag_of_words_head is not None:
            # On the instance: a model without this head must not name a weight that it lacks.
            self._tied_weights_keys = {
                **self._tied_weights_keys,
                "bag_of_words_head.decoder.weight": "soho.text_embeddings.word_embeddings.weight",
            }
        self.post_init()

    def init_from(self, path_or_name: str, rows_V: Tensor | None = None) -> LoadReport:
        """Fills all that a pre-trained model has too; see `pretrained.py: init_from`."""
        return init_from(self, path_or_name, rows_V)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As transformers' own; ValueError: the model was prepared for inference."""
        table = super().resize_token_embeddings(*args, **kwargs)
        if self.bag_of_words_head is not None:
            self.bag_of_words_head.resize(table.num_embeddings)
        return table

    def get_output_embeddings(self) -> nn.Linear:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.mlm_head.decoder = value

    def begin_step(self) -> None:
        self._read_words()
        super().begin_step()

    @property
    def read_by_begin_step(self) -> list[nn.Parameter]:
        head = self.bag_of_words_head
        return list(head.parameters()) if self._looks_up_words and head is not None else []

    @property
    def _looks_up_words(self) -> bool:
        return self.config.dictionary == "words"

    def _read_words(self) -> None:
        if self._looks_up_words:
            dictionary: Any = self.soho.visual_dictionary
            dictionary.read(self.bag_of_words_head)

    def part_of(self, name: str) -> str:
        """ "labels": what masked visual modelling alone uses. "pairs": what the bag-of-words loss does not use; without
        that loss there is no such part."""
        if name.startswith(("mvm_head.", "soho.mask_token")):
            return "labels"
        of_words = name.startswith(_OF_BAG_OF_WORDS) or self.bag_of_words_head is None
        return "" if of_words else "pairs"

    @property
    def waiting_parts(self) -> frozenset[str]:
        """Those that wait while the bag-of-words loss trains alone, or while no visual tokens are masked."""
        if self.bag_of_words_only:
            return frozenset({"pairs", "labels"})
        return frozenset() if self.masks_visual_tokens else frozenset({"labels"})

    def code_logits(self, hidden_MD: Tensor) -> Tensor:
        """Eq. 7: hidden states of masked visual tokens to logits of the codes, (M, K)."""
        if self.mvm_head is not None:
            return self.mvm_head(hidden_MD)
        assert self.soho.visual_dictionary is not None, "without codes no visual token is masked"
        return self.soho.parts.code_logits(hidden_MD, self.soho.visual_dictionary.codebook_of(0))

    @can_return_tuple
    def forward(
        self,
        *,
        mlm_labels: Tensor | None = None,
        mlm_positions: Tensor | None = None,
        itm_labels: Tensor | None = None,
        mask_uniform: Tensor | None = None,
        mask_pairs: Tensor | None = None,
        **inputs: Unpack[SohoInputs],
    ) -> SohoForPreTrainingOutput:
        """
        Args:
            mlm_labels: (P, S) int64, the word at masked positions of matched pairs, -100 elsewhere.
            mlm_positions: (M,) int64, where in the flattened `mlm_labels` there are labels; `None`: looked up, and the
                host waits for a GPU.
            itm_labels: (P,) int64, 1 = the text belongs to the image, 0 = it does not. Masked visual modelling counts
                matched pairs only (with the released code's parts all); without labels all are taken as matched.
            mask_uniform: (B,) float64 in [0, 1), for masked visual modelling; see `SohoModel.mask_one_label`.
            mask_pairs: (P,) bool, the texts whose image is masked; `None`: all.
            inputs: images and texts, see `SohoInputs`.

        In training under torch.distributed the losses are those of the batch of all ranks (see `global_means`), so all
        ranks must make the call, with the same arguments given.

        Raises:
            ValueError: an argument is missing or its shape does not fit.
        """
        images, texts, kwargs = read_inputs(**inputs)
        check_shape("mlm_labels", mlm_labels, texts.input_ids.shape, " as input_ids has")
        check_labels("itm_labels", itm_labels, texts.input_ids)
        if self.bag_of_words_only and self.training:
            return self._bag_of_words_alone(images, captions_of(texts, mlm_labels, itm_labels))
        if self.training:
            self._read_words()
        # Sections 3.1 and 3.2, once for each image; then 3.3.
        # `mask_uniform` is drawn for each image, whatever rank holds it: the dictionary draws by it, too.
        visual = self.soho.encode_images(**images, sample_key=mask_uniform)
        # Here, where a survey of the step has the same random state.
        own_losses = self._own_losses(visual, texts, mlm_labels, itm_labels) if self.training else {}
        # Only now: the dictionary draws by the key in every phase of training.
        mask_uniform, mask_pairs = self._masking(mask_uniform, mask_pairs)
        counted_P = self._counted(texts, itm_labels)
        reads = Reads(words_PS=None if mlm_labels is None else mlm_labels != -100, masked_P=counted_P)
        hidden = self.soho(visual, texts, mask_uniform, mask_pairs, reads=reads, return_dict=True, **kwargs)
        # By the first position, [CLS].
        itm_logits_P2 = self.itm_head(hidden.last_hidden_state[:, 0])
        result = SohoForPreTrainingOutput(
            itm_logits=itm_logits_P2,
            index=visual.index,
            valid=visual.valid,
            hidden_states=hidden.hidden_states,
            attentions=hidden.attentions,
        )
        losses: dict[str, LossSum] = {}
        if itm_labels is not None:  # eq. 8
            asked_P = self._asked(itm_labels, mask_pairs)
            losses["itm_loss"] = cross_entropy_sum(itm_logits_P2, asked_P)
            if self.soho.feature_watch is not None:
                self.soho.feature_watch.see_matching(*losses["itm_loss"], (asked_P == 1).sum())
        if mlm_labels is not None:  # eq. 6
            place_M = labelled_places(mlm_labels) if mlm_positions is None else mlm_positions
            result.mlm_targets = at_places(mlm_labels, place_M)
            decoder = self.mlm_head.decoder  # Where it has an adapter, it is to be called.
            # The packed backend hands back the word table that it has read: both uses then share one gradient.
            is_tied = isinstance(decoder, nn.Linear) and decoder.weight is self.get_input_embeddings().weight
            word_table_VD = reads.word_table if is_tied else None
            result.mlm_logits = self.mlm_head(at_places(hidden.text_hidden, place_M), word_table_VD)
            losses["mlm_loss"] = cross_entropy_sum(result.mlm_logits, result.mlm_targets)
        if hidden.mvm_labels is not None:  # eq. 7
            labels_PL = hidden.mvm_labels.masked_fill(~counted_P.unsqueeze(1), -100)
            # How many there are follows from the lookup, and sizes from that: here the host waits.
            place_M = labelled_places(labels_PL)
            result.mvm_targets = at_places(labels_PL, place_M)
            result.mvm_logits = self.code_logits(at_places(hidden.visual_hidden, place_M))
            losses["mvm_loss"] = cross_entropy_sum(result.mvm_logits, result.mvm_targets)
        # eq. 9, and what is not the paper's
        for name, value in total_loss(losses | own_losses, self.config, self.training, self.whole_step).items():
            result[name] = value
        if self.soho.visual_dictionary is not None:
            result.perplexity, result.active_codes, result.usage = self.soho.visual_dictionary.statistics()
        return result

    def _own_losses(
        self, visual: VisualTokens, texts: Texts, mlm_labels: Tensor | None, itm_labels: Tensor | None
    ) -> dict[str, LossSum]:
        """Those that are not the paper's, of images and the texts that describe them, by name."""
        captions = captions_of(texts, mlm_labels, itm_labels)
        losses = {}
        if self.contrastive_head is not None:
            losses["contrastive_loss"] = self.contrastive_loss(visual, self._read(captions, mlm_labels))
        if self.bag_of_words_head is not None:
            losses["bag_of_words_loss"] = self.bag_of_words_head.loss(visual.features, visual.valid, captions)
        return losses

    def _masking(self, uniform: Tensor | None, pairs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """`mask_uniform` and `mask_pairs` in this phase."""
        return (uniform, pairs) if self.masks_visual_tokens or not self.training else (None, None)

    def _counted(self, texts: Texts, itm_labels: Tensor | None) -> Tensor:
        """Bool (P,), the pairs whose masked visual tokens count."""
        if itm_labels is not None and self.soho.parts.only_matched:
            return itm_labels == 1
        return texts.input_ids.new_ones(len(texts.input_ids), dtype=torch.bool)

    def _asked(self, itm_labels: Tensor, mask_pairs: Tensor | None) -> Tensor:
        """(P,), the labels of the pairs that are asked whether they match, -100 of others."""
        if mask_pairs is None or not self.config.mvm_margin:
            return itm_labels
        return itm_labels.masked_fill(mask_pairs, -100)  # What the margin leaves out may be what the text is about.

    def surveys_images(self) -> bool:
        if self.bag_of_words_only:
            return False
        config = self.config
        masks = self.masks_visual_tokens and config.dictionary != "none" and config.use_dictionary_output
        return masks or self.contrastive_head is not None

    def label_counts(
        self,
        visual: VisualTokens | None,
        *,
        mlm_labels: Tensor | None = None,
        mlm_positions: Tensor | None = None,
        itm_labels: Tensor | None = None,
        mask_uniform: Tensor | None = None,
        mask_pairs: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Tensor]:
        _, texts, _ = read_inputs(**inputs)
        counts: dict[str, Tensor] = {}
        if self.bag_of_words_head is not None:
            counts["bag_of_words_loss"] = torch.full((), num_images(inputs), device=texts.input_ids.device)
        if self.bag_of_words_only:
            return counts
        mask_uniform, mask_pairs = self._masking(mask_uniform, mask_pairs)
        if itm_labels is not None:
            counts["itm_loss"] = (self._asked(itm_labels, mask_pairs) != -100).sum()
        if mlm_labels is not None:
            counts["mlm_loss"] = (mlm_labels != -100).sum()
        if visual is not None and visual.embedding is not None and mask_uniform is not None:
            # Not by masking: the mask vector may lie elsewhere, under ZeRO 3.
            masked_BL = visual.valid & (visual.index == self.soho.label_to_mask(visual, mask_uniform).unsqueeze(1))
            counted_P = self._counted(texts, itm_labels)
            read_P = counted_P if mask_pairs is None else counted_P & mask_pairs
            counts["mvm_loss"] = (texts.of_images(masked_BL.sum(1)) * read_P).sum()
        return counts

    def vectors_of(
        self,
        visual: VisualTokens | None,
        *,
        mlm_labels: Tensor | None = None,
        itm_labels: Tensor | None = None,
        **inputs: Any,
    ) -> Vectors | None:
        if visual is None or self.contrastive_head is None or self.bag_of_words_only:
            return None
        texts = Texts(inputs["input_ids"], inputs.get("attention_mask"), inputs.get("image_index"))
        captions = captions_of(texts, mlm_labels, itm_labels)
        return self.contrastive_vectors(visual, self._read(captions, mlm_labels))

    @staticmethod
    def _read(captions: Texts, mlm_labels: Tensor | None) -> Texts:
        """What the contrastive loss reads: `captions` has the words from before masking; those that were masked are
        left out."""
        return captions if mlm_labels is None else captions.without(mlm_labels != -100)

    def _bag_of_words_alone(self, images: dict[str, Any], captions: Texts) -> SohoForPreTrainingOutput:
        assert self.bag_of_words_head is not None, "bag_of_words_only needs its weight"
        given = {name: images[name] for name in IMAGES if name != "visual_tokens"}
        feat_BLD, grid_mask_BHW = self.soho.encode_features(**given)
        losses = {"bag_of_words_loss": self.bag_of_words_head.loss(feat_BLD, grid_mask_BHW.flatten(1), captions)}
        means: dict[str, Any] = total_loss(losses, self.config, True, self.whole_step)
        return SohoForPreTrainingOutput(**means)


AutoModel.register(SohoConfig, SohoModel, exist_ok=True)
AutoModelForPreTraining.register(SohoConfig, SohoForPreTraining, exist_ok=True)
