"""SOHO: pixels and words to hidden states, and the pre-training losses (paper section 3).

image -> features -> index -> embedding -> Transformer -> losses; B images, P image-text pairs, H x W pixels,
S text tokens, L visual tokens, D channels, K codes, M labelled positions.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertLayer, BertSelfAttention
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from soho_fast import ops

from .auxiliary.caption_words import CaptionWordHead, caption_word_loss, caption_word_targets
from .auxiliary.contrastive import ContrastiveHead
from .config import SohoConfig
from .cpu.packed_encoder import can_pack, packed_encode
from .embeddings import VisualEmbeddings, sine_position
from .heads import MatchingHead, TokenHead, cross_entropy_sum, global_means
from .normalization import TokenBatchNorm
from .outputs import SohoForPreTrainingOutput, SohoModelOutput, VisualTokens
from .pair_encoder import PairMatching
from .pretrained import LoadReport, backbone_state, bert_state, copy_state
from .visual_dictionary import VisualDictionary
from .visual_encoder import VisualEncoder


class SohoPreTrainedModel(PreTrainedModel):
    """What every SOHO model shares: initial values, precision, and the switches an engine turns."""

    config_class = SohoConfig
    base_model_prefix = "soho"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["BertEmbeddings", "BertLayer"]
    _can_record_outputs: ClassVar[dict] = {"hidden_states": BertLayer, "attentions": BertSelfAttention}
    # Loading in half precision must not round what stays float32 under `.half()`.
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = [
        "running_mean",
        "running_var",
        *(f"visual_dictionary.{name}" for name in ("codebook", "usage", "age", "cluster_size", "cluster_sum")),
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            # He et al. 2015 for the convolutions before a ReLU, as torchvision; the 1x1 projection has none behind it.
            if module.bias is None:
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                init.xavier_uniform_(module.weight)
                init.zeros_(module.bias)
        elif isinstance(module, TokenBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        elif isinstance(module, VisualDictionary):
            module.reset()
        elif isinstance(module, SohoModel):
            if module.mask_token is not None:
                init.normal_(module.mask_token, std=self.config.initializer_range)
        elif isinstance(module, CaptionWordHead):
            init.constant_(module.bias, CaptionWordHead.PRIOR_LOGIT)
        elif isinstance(module, ContrastiveHead):
            init.constant_(module.log_scale, ContrastiveHead.INITIAL_SCALE)
        elif isinstance(module, BertEmbeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))
            init.zeros_(module.token_type_ids)
        else:
            super()._init_weights(module)

    def base(self) -> "SohoModel":
        """The `SohoModel` inside (itself, for one)."""
        return getattr(self, self.base_model_prefix, self)

    def freeze_backbone(self, frozen: bool = True) -> None:
        """Cold start of the paper; see `VisualEncoder.freeze_backbone` (learning rate 0 is the optimiser's part)."""
        self.base().visual_encoder.freeze_backbone(frozen)

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Holds every BatchNorm in eval while the rest trains, so that nothing depends on who shares a batch."""
        self.base().visual_encoder.freeze_batch_norm(frozen)
        self.base().batch_norm_frozen = frozen
        self.train(self.training)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The ResNet's parameters (the paper trains them by SGD); the 1x1 projection belongs to the rest."""
        return self.base().visual_encoder.backbone.parameters()

    def parameter_groups(self, *, exclude_from_decay: bool = False) -> list[dict]:
        """Who is trained how (paper section 4.1): SGD for the backbone, AdamW for the rest.

        Args:
            exclude_from_decay: put biases and norms (parameters of fewer than two dimensions) into groups of their own
                with `decay=False`. The paper names no exclusion.

        Returns:
            dicts with `params`, `names`, `kind` ("backbone" or "rest") and `decay` (bool); no group is empty, and
            parameters that need no gradient are in none. Holds under ZeRO-3 too (`ds_shape` is asked where it exists).
        """
        backbone = {id(parameter) for parameter in self.backbone_parameters()}
        groups: dict[tuple[str, bool], dict] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            kind = "backbone" if id(parameter) in backbone else "rest"
            decay = not (exclude_from_decay and len(getattr(parameter, "ds_shape", parameter.shape)) < 2)
            group = groups.setdefault((kind, decay), {"params": [], "names": [], "kind": kind, "decay": decay})
            group["params"].append(parameter)
            group["names"].append(name)
        return [groups[key] for key in sorted(groups)]

    def init_text_encoder_from(self, path_or_name: str) -> LoadReport:
        """Fills word embeddings and Transformer layers from a BERT (paper section 3.3: BERT-base).

        Args:
            path_or_name: a directory with a BERT, or its name on the hub. With fewer layers here than there, the
                first ones are taken.

        Raises:
            FileNotFoundError: nothing could be loaded from there.
            ValueError: no BERT, other sizes, or more layers here than there. Nothing was changed then.
        """
        state, bert_config = bert_state(path_or_name)
        for name in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "hidden_act"):
            if getattr(bert_config, name) != getattr(self.config, name):
                raise ValueError(
                    f"init_text_encoder_from: {path_or_name!r} has {name}={getattr(bert_config, name)!r}, this model "
                    f"{getattr(self.config, name)!r}. Set it in SohoConfig, or choose another BERT."
                )
        if bert_config.num_hidden_layers < self.config.num_hidden_layers:
            raise ValueError(
                f"init_text_encoder_from: {path_or_name!r} has num_hidden_layers={bert_config.num_hidden_layers}, "
                f"fewer than this model's {self.config.num_hidden_layers}"
            )
        target = nn.ModuleDict({"embeddings": self.base().text_embeddings, "encoder": self.base().encoder})
        return copy_state(target, state, f"init_text_encoder_from({path_or_name!r})")

    def init_backbone_from(self, source: str) -> LoadReport:
        """Fills the ResNet from `"imagenet"` (downloaded by torchvision) or from a file of weights.

        Raises:
            FileNotFoundError, ConnectionError, ValueError: see `pretrained.backbone_state`; nothing was changed then.
        """
        state = backbone_state(self.config.backbone, source)
        return copy_state(self.base().visual_encoder.backbone, state, f"init_backbone_from({source!r})")


class SohoModel(SohoPreTrainedModel):
    """Visual encoder, visual dictionary and cross-modal Transformer without heads."""

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        config.check()
        self.visual_encoder = VisualEncoder(config)
        self.feature_norm = TokenBatchNorm(config.hidden_size) if config.dictionary_batch_norm else None
        self.visual_dictionary = VisualDictionary(config) if config.use_dictionary else None
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size)) if config.use_dictionary else None
        self.visual_embeddings = VisualEmbeddings(config)
        self.text_embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.batch_norm_frozen = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_embeddings.word_embeddings = value

    def train(self, mode: bool = True) -> "SohoModel":
        super().train(mode)
        if mode and self.batch_norm_frozen and self.feature_norm is not None:
            self.feature_norm.eval()
        return self

    def encode_features(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images to the dictionary's input: features (B, L, D), zero at padding, and the grid mask bool (B, h, w)."""
        if pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values: expected (images, 3, height, width), got {tuple(pixel_values.shape)}")
        feat_BLD, grid_mask_BHW = self.visual_encoder(pixel_values, pixel_mask)
        if self.feature_norm is not None:
            valid_BL = grid_mask_BHW.flatten(1)
            feat_BLD = self.feature_norm(feat_BLD, valid_BL).masked_fill(~valid_BL.unsqueeze(-1), 0.0)
        return feat_BLD, grid_mask_BHW

    def encode_images(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, sample_key: Tensor | None = None
    ) -> VisualTokens:
        """Images to visual tokens: each image goes through the CNN and the dictionary once.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            pixel_mask: (B, H, W), 1 at real pixels; `None`: no padding.
            sample_key: (B,) float64, see `VisualDictionary.forward`; matters only in training.
        """
        feat_BLD, grid_mask_BHW = self.encode_features(pixel_values, pixel_mask)
        valid_BL = grid_mask_BHW.flatten(1)
        embed_BLD = index_BL = None
        if self.visual_dictionary is not None and self.config.use_dictionary_output:
            embed_BLD, index_BL = self.visual_dictionary(feat_BLD, valid_BL, sample_key)
        return VisualTokens(
            features=feat_BLD,
            valid=valid_BL,
            position=sine_position(grid_mask_BHW, self.config.hidden_size),
            embedding=embed_BLD,
            index=index_BL,
        )

    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        mask_uniform: Tensor | None = None,
        visual_tokens: VisualTokens | None = None,
        read_text: Tensor | None = None,
        read_masked: Tensor | None = None,
        **kwargs,
    ) -> SohoModelOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; or give `visual_tokens`.
            pixel_mask: (B, H, W), 1 at real pixels; `None`: no padding.
            input_ids: (P, S) int64.
            attention_mask: (P, S), 1 at real words; `None`: no padding.
            image_index: (P,) int64, the image of each text; `None`: P == B, each text its own image.
            mask_uniform: (B,) float64 in [0, 1). Where given, one label per image is picked by it from the labels that
                are there, and all tokens of that label are replaced by the mask vector (paper section 3.4), alike for
                all texts of the image. No effect without a dictionary.
            visual_tokens: what `encode_images` gave, instead of pixels.
            read_text, read_masked: (P, S) bool, the text positions whose last hidden state is read, and (P,) bool, the
                pairs whose masked visual tokens are. Where both are given, a training forward on a CPU may leave all
                other last hidden states zero instead of computing them (`packed_encoder.py`).

        Raises:
            ValueError: an argument is missing or its shape does not fit.
        """
        if input_ids is None or input_ids.dim() != 2:
            raise ValueError(f"input_ids: expected (texts, tokens), got {getattr(input_ids, 'shape', None)}")
        if (pixel_values is None) == (visual_tokens is None):
            raise ValueError("expected exactly one of pixel_values and visual_tokens")
        if visual_tokens is None:
            visual_tokens = self.encode_images(pixel_values, pixel_mask, mask_uniform)
        valid_BL, position_BLD = visual_tokens.valid, visual_tokens.position
        use_output = visual_tokens.embedding is not None
        visual_BLD = visual_tokens.embedding if use_output else visual_tokens.features
        num_images, num_texts = visual_BLD.shape[0], input_ids.shape[0]
        if image_index is None and num_images != num_texts:
            raise ValueError(f"image_index: needed to map {num_texts} texts to {num_images} images")
        if image_index is not None and tuple(image_index.shape) != (num_texts,):
            raise ValueError(f"image_index: expected shape ({num_texts},), got {tuple(image_index.shape)}")

        mvm_labels_BL = None
        if mask_uniform is not None and visual_tokens.index is not None:
            target_B = ops.sample_group(visual_tokens.index, valid=valid_BL, uniform=mask_uniform)
            visual_BLD, mvm_labels_BL = ops.group_mask(
                visual_BLD, visual_tokens.index, self.mask_token.to(visual_BLD.dtype), target_B, valid=valid_BL
            )

        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        valid_PL = valid_BL if image_index is None else valid_BL.index_select(0, image_index)
        mask_PT = torch.cat([attention_mask.bool(), valid_PL], dim=1)
        word_table_VD = None
        if read_text is not None and read_masked is not None and can_pack(self.encoder, **kwargs):
            if image_index is None:
                image_index = torch.arange(num_texts)
            read_PL = torch.zeros_like(valid_PL)
            if mvm_labels_BL is not None:
                read_PL = (mvm_labels_BL != -100).index_select(0, image_index) & read_masked.unsqueeze(1)
            hidden_PTD, word_table_VD = packed_encode(
                self.encoder,
                self.text_embeddings,
                self.visual_embeddings(visual_BLD, position_BLD),
                input_ids,
                image_index,
                mask_PT,
                torch.cat([read_text, read_PL], dim=1),
            )
        else:
            if image_index is not None:
                visual_BLD, position_BLD = (x.index_select(0, image_index) for x in (visual_BLD, position_BLD))
            visual_PLD = self.visual_embeddings(visual_BLD, position_BLD)
            text_PSD = self.text_embeddings(input_ids=input_ids)
            joint_PTD = torch.cat([text_PSD, visual_PLD.to(text_PSD.dtype)], dim=1)
            hidden_PTD = self.encoder(joint_PTD, attention_mask=self._attention_mask(joint_PTD, mask_PT), **kwargs)[0]
        return SohoModelOutput(
            last_hidden_state=hidden_PTD,
            text_length=input_ids.shape[1],
            index=visual_tokens.index,
            valid=valid_BL,
            mvm_labels=mvm_labels_BL,
            features=visual_tokens.features,
            word_table=word_table_VD,
        )

    def _attention_mask(self, joint_PTD: Tensor, mask_PT: Tensor) -> Tensor | None:
        # Whether the mask can be left out is a question to the device; only on a CPU its answer costs no wait.
        skip = joint_PTD.device.type == "cpu"
        return create_bidirectional_mask(self.config, joint_PTD, mask_PT, allow_is_bidirectional_skip=skip)


class SohoForPreTraining(PairMatching, SohoPreTrainedModel):
    """SOHO with the heads and losses of pre-training: L = L_MLM + L_MVM + L_ITM (paper section 3.4, eq. 9)."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "mlm_head.decoder.weight": "soho.text_embeddings.word_embeddings.weight"
    }

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.soho = SohoModel(config)
        self.mlm_head = TokenHead(config, config.vocab_size)
        self.mvm_head = TokenHead(config, config.num_codes) if config.use_dictionary else None
        self.itm_head = MatchingHead(config)
        self.caption_word_head = None
        if config.caption_word_weight:
            self.caption_word_head = CaptionWordHead(config)
            tied = {"caption_word_head.decoder.weight": "soho.text_embeddings.word_embeddings.weight"}
            self._tied_weights_keys = {**self._tied_weights_keys, **tied}
        self.caption_words_only = False
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.mlm_head.decoder = value

    def encode_images(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> VisualTokens:
        """As `SohoModel.encode_images`; its result can be given to `forward` as `visual_tokens`."""
        return self.soho.encode_images(pixel_values, pixel_mask)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        itm_labels: Tensor | None = None,
        mask_uniform: Tensor | None = None,
        visual_tokens: VisualTokens | None = None,
        **kwargs,
    ) -> SohoForPreTrainingOutput:
        """
        Args:
            pixel_values, pixel_mask, input_ids, attention_mask, image_index, mask_uniform, visual_tokens: as in
                `SohoModel.forward`.
            mlm_labels: (P, S) int64, the word at masked positions of matched pairs, -100 elsewhere.
            itm_labels: (P,) int64, 1 = the text belongs to the image, 0 = it does not. Masked visual modelling counts
                matched pairs only; without labels all pairs are taken as matched.

        While `caption_words_only` is set, training computes the loss of `caption_words.py` alone: neither dictionary
        nor Transformer runs.

        In training under torch.distributed the losses are those of the batch of all ranks (see `global_means`), so all
        ranks must make the call, with the same arguments given.
        """
        if self.caption_words_only and self.training:
            feat_BLD, grid_mask_BHW = self.soho.encode_features(pixel_values, pixel_mask)
            texts = (input_ids, attention_mask, mlm_labels, itm_labels, image_index)
            loss = self._caption_word_loss(feat_BLD, grid_mask_BHW.flatten(1), *texts)
            (mean,) = global_means([loss], synchronise=True)
            return SohoForPreTrainingOutput(loss=self.config.caption_word_weight * mean, caption_word_loss=mean)
        outputs = self.soho(
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_index=image_index,
            mask_uniform=mask_uniform,
            visual_tokens=visual_tokens,
            return_dict=True,
            **self._read_positions(input_ids, mlm_labels, itm_labels),
            **kwargs,
        )
        result = SohoForPreTrainingOutput(
            index=outputs.index,
            valid=outputs.valid,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        losses: dict[str, tuple[Tensor, Tensor]] = {}
        result.itm_logits = self.itm_head(outputs.last_hidden_state[:, 0])
        if itm_labels is not None:
            losses["itm_loss"] = cross_entropy_sum(result.itm_logits, itm_labels)
        if mlm_labels is not None:
            labelled_PS = mlm_labels != -100
            result.mlm_targets = mlm_labels[labelled_PS]
            tied = self.mlm_head.decoder.weight is self.soho.text_embeddings.word_embeddings.weight
            word_table_VD = outputs.word_table if tied else None
            result.mlm_logits = self.mlm_head(outputs.text_hidden[labelled_PS], word_table_VD)
            losses["mlm_loss"] = cross_entropy_sum(result.mlm_logits, result.mlm_targets)
        if outputs.mvm_labels is not None:
            labels_PL = outputs.mvm_labels if image_index is None else outputs.mvm_labels.index_select(0, image_index)
            if itm_labels is not None:
                labels_PL = labels_PL.masked_fill((itm_labels != 1).unsqueeze(1), -100)
            masked_PL = labels_PL != -100
            result.mvm_targets = labels_PL[masked_PL]
            result.mvm_logits = self.mvm_head(outputs.visual_hidden[masked_PL])
            losses["mvm_loss"] = cross_entropy_sum(result.mvm_logits, result.mvm_targets)
        if self.caption_word_head is not None and self.training and visual_tokens is None:
            texts = (input_ids, attention_mask, mlm_labels, itm_labels, image_index)
            losses["caption_word_loss"] = self._caption_word_loss(outputs.features, outputs.valid, *texts)
        if losses:
            means = global_means(list(losses.values()), synchronise=self.training)
            for name, mean in zip(losses, means, strict=True):
                result[name] = mean
            weights = {"mvm_loss": self.config.mvm_weight, "caption_word_loss": self.config.caption_word_weight}
            result.loss = sum(weights.get(name, 1.0) * result[name] for name in losses)
        if self.soho.visual_dictionary is not None:
            result.perplexity, result.live_codes, result.usage = self.soho.visual_dictionary.statistics()
        return result

    def _read_positions(
        self, input_ids: Tensor | None, mlm_labels: Tensor | None, itm_labels: Tensor | None
    ) -> dict[str, Tensor]:
        """Whose last hidden states the losses read: [CLS], labelled words, masked visual tokens of matched pairs."""
        if not self.training or input_ids is None:
            return {}
        read_PS = torch.zeros_like(input_ids, dtype=torch.bool) if mlm_labels is None else mlm_labels != -100
        read_PS[:, 0] = True
        read_P = torch.ones_like(input_ids[:, 0], dtype=torch.bool) if itm_labels is None else itm_labels == 1
        return {"read_text": read_PS, "read_masked": read_P}

    def _caption_word_loss(
        self,
        feat_BLD: Tensor,
        valid_BL: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        mlm_labels: Tensor | None,
        itm_labels: Tensor | None,
        image_index: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        logits_BV = self.caption_word_head(feat_BLD, valid_BL)
        words_BV = caption_word_targets(
            input_ids, attention_mask, mlm_labels, itm_labels, image_index, *logits_BV.shape
        )
        return caption_word_loss(logits_BV, words_BV)
