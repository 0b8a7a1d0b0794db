"""SOHO's pre-training step as one would write it first: eager float32 torch, nothing shared, nothing packed.

The mathematics and the weights are those of a `SohoForPreTraining`; every choice below is what the released SOHO code
does or what a first version of the paper's equations looks like, and none is there to make it slow:

- the CNN runs once per image (as the paper says) in torch's ordinary NCHW layout;
- its features are repeated for each text at once, so dictionary, masking and position see (texts, tokens, channels),
  as in the released code, whose neck and dictionary run per pair;
- eq. 2 is `torch.cdist(...).argmin(-1)`; eq. 3 and the members' counts and sums of eq. 4 are products with one-hot
  matrices (tokens x codes), as in the released code's VQ-VAE quantiser; eq. 4 itself is plain tensor arithmetic;
- masked visual modelling draws a label and applies `torch.where` pair by pair;
- texts are padded to the recipe's `max_text_length` (the released code pads to a fixed length);
- transformers' BERT runs with eager attention and an additive mask;
- MLM and MVM logits are computed at every position and the loss ignores unlabelled ones;
- `torch.optim` in its per-parameter form (`foreach=False`).

Repeating the features leaves eq. 4 as it is: every member counts as often as its image has texts, in the sum and in
the count. Left out, in this pipeline's favour: perplexity, active codes and the dead-code reset
(the codebooks agree as long as no code was reset). Images must fill their tensor (no pixel mask).

B images, P texts, S text tokens, L visual tokens, N = P*L, C channels, K codes, V words.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from soho_fast.engine.settings import OptimSettings
from soho_fast.model import SohoForPreTraining
from soho_fast.model.codebook.usage import USAGE_DECAY
from soho_fast.model.embeddings import sine_position


@dataclass
class EagerLosses:
    """The losses of one step, each (); `bag_of_words` is None without that head."""

    loss: Tensor
    mlm: Tensor
    mvm: Tensor
    itm: Tensor
    bag_of_words: Tensor | None


class EagerPretraining(nn.Module):
    """The straightforward pipeline with a copy of a model's weights.

    Args:
        model: with a dictionary whose output is used, without dropout (which would make losses incomparable) and with
            equation 4 as its update.

    Raises:
        ValueError: a model this pipeline does not compute.
    """

    def __init__(self, model: SohoForPreTraining) -> None:
        super().__init__()
        config = model.config
        if not (config.dictionary != "none" and config.use_dictionary_output and config.official is None):
            raise ValueError("model: expected a dictionary whose output is used, and the paper's parts")
        if config.hidden_dropout_prob or config.attention_probs_dropout_prob:
            raise ValueError("model: expected dropout 0, so that losses can be compared")
        # The copy serves as a container of modules and weights; its forward is never called.
        self.parts = copy.deepcopy(model)
        self.parts.set_attn_implementation("eager")
        soho = self.parts.soho
        self.config = self.parts.config
        self.visual_encoder = soho.visual_encoder
        self.feature_norm = soho.feature_norm
        self.codebook, self.usage, self.age = (
            getattr(soho.visual_dictionary, name) for name in ("codebook", "usage", "age")
        )

    def forward(self, batch: Mapping[str, Tensor]) -> EagerLosses:
        """One training forward, codebook update included; the batch holds the keywords of SohoForPreTraining."""
        if batch.get("pixel_mask") is not None and not bool(batch["pixel_mask"].all()):
            raise ValueError("pixel_mask: expected images that fill their tensor")
        soho, image_index_P = self.parts.soho, batch["image_index"]
        feat_BCHW = self._features(batch["pixel_values"])
        B, C, H, W = feat_BCHW.shape
        feat_BLC = feat_BCHW.flatten(2).transpose(1, 2)
        if self.feature_norm is not None:
            feat_BLC = self._normalised(feat_BLC.flatten(0, 1)).view(B, H * W, C)
        feat_PLC = feat_BLC[image_index_P]
        P = len(feat_PLC)

        embed_PLC, index_PL = self._dictionary(feat_PLC)
        if soho.fusion is not None:
            embed_PLC = self._gated(embed_PLC, feat_PLC)
        visual_PLC, mvm_labels_PL, read_PL = self._mask(embed_PLC, index_PL, batch["mask_uniform"][image_index_P], W)
        grid_mask_PHW = torch.ones(P, H, W, dtype=torch.bool)
        visual_PLC = soho.visual_embeddings(visual_PLC, sine_position(grid_mask_PHW, C))

        text_PSC = soho.text_embeddings(input_ids=batch["input_ids"])
        S = text_PSC.shape[1]
        joint_PTC = torch.cat([text_PSC, visual_PLC], dim=1)
        mask_PT = torch.cat([batch["attention_mask"].float(), read_PL.float()], dim=1)
        additive_P11T = (1.0 - mask_PT)[:, None, None, :] * torch.finfo(torch.float32).min
        hidden_PTC = soho.encoder(joint_PTC, attention_mask=additive_P11T)[0]

        matched_P = batch["itm_labels"] == 1
        mlm_logits_PSV = self.parts.mlm_head(hidden_PTC[:, :S])
        mvm_logits_PLK = self.parts.mvm_head(hidden_PTC[:, S:])
        mvm_labels_PL = torch.where(matched_P[:, None], mvm_labels_PL, -100)
        mlm = F.cross_entropy(mlm_logits_PSV.flatten(0, 1), batch["mlm_labels"].flatten(), ignore_index=-100)
        mvm = F.cross_entropy(mvm_logits_PLK.flatten(0, 1), mvm_labels_PL.flatten(), ignore_index=-100)
        itm = F.cross_entropy(self.parts.itm_head(hidden_PTC[:, 0]), batch["itm_labels"])
        loss, bag_of_words = mlm + self.config.mvm_weight * mvm + itm, None
        if self.parts.bag_of_words_head is not None:
            bag_of_words = self._bag_of_words(feat_BLC, batch)
            loss = loss + self.config.bag_of_words_weight * bag_of_words
        return EagerLosses(loss, mlm, mvm, itm, bag_of_words)

    def freeze_batch_norm(self, frozen: bool) -> None:
        """Holds the CNN's BatchNorm in eval."""
        self.visual_encoder.freeze_batch_norm(frozen)

    def gradients(self) -> dict[str, Tensor]:
        """By the names of the model's parameters."""
        return gradients_of(self.parts)

    def _features(self, pixels_B3HW: Tensor) -> Tensor:
        net = self.visual_encoder.backbone
        if isinstance(net, torchvision.models.MobileNetV2):
            x = net.features(pixels_B3HW)
        else:
            x = net.maxpool(net.relu(net.bn1(net.conv1(pixels_B3HW))))
            for number in range(1, 5):
                x = getattr(net, f"layer{number}", nn.Identity())(x)
        x = self.visual_encoder.projection(x)
        return F.max_pool2d(x, self.visual_encoder.pool, ceil_mode=True) if self.visual_encoder.pool > 1 else x

    def _normalised(self, feat_NC: Tensor) -> Tensor:
        """Batch renormalisation, by the running statistics, which are the first batch's before there are any."""
        norm = self.feature_norm
        with torch.no_grad():
            var_C, mean_C = torch.var_mean(feat_NC, 0)
            biased_var_C = feat_NC.var(0, correction=0)
            if not norm.num_batches_tracked:
                norm.running_mean.copy_(mean_C)
                norm.running_var.copy_(biased_var_C)
            std_C = torch.sqrt(norm.running_var + norm.eps)
            ratio_C = torch.sqrt(biased_var_C + norm.eps) / std_C
            shift_C = (mean_C - norm.running_mean) / std_C
            norm.num_batches_tracked += 1
            momentum = max(norm.momentum, 1 / float(norm.num_batches_tracked))
            norm.running_mean.lerp_(mean_C, momentum)
            norm.running_var.lerp_(var_C, momentum)
        by_batch_NC = F.batch_norm(feat_NC, None, None, training=True, eps=norm.eps)
        return (by_batch_NC * ratio_C + shift_C) * norm.weight + norm.bias

    def _dictionary(self, feat_PLC: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 2, 3 and 5 with the codebook as it stands, then eq. 4."""
        feat_NC = feat_PLC.flatten(0, 1)
        with torch.no_grad():
            index_N = torch.cdist(feat_NC, self.codebook).argmin(-1)
            onehot_NK = F.one_hot(index_N, self.config.num_codes).float()
            embed_NC = onehot_NK @ self.codebook
        output_NC = feat_NC + (embed_NC - feat_NC).detach()
        with torch.no_grad():
            count_K1 = onehot_NK.sum(0)[:, None]
            mean_KC = (onehot_NK.T @ feat_NC) / count_K1.clamp(min=1.0)
            moved_KC = self.config.ema_decay * self.codebook + (1.0 - self.config.ema_decay) * mean_KC
            self.codebook.copy_(torch.where(count_K1 > 0, moved_KC, self.codebook))
            self.usage.lerp_(count_K1[:, 0] * (self.config.num_codes / len(index_N)), 1.0 - USAGE_DECAY)
            self.age += 1
        return output_NC.view_as(feat_PLC), index_N.view(feat_PLC.shape[:2])

    def _gated(self, embed_PLC: Tensor, feat_PLC: Tensor) -> Tensor:
        """The released code's gate, BatchNorm over all tokens of all pairs."""
        gate = self.parts.soho.fusion
        aligned_PLC, norm = gate.align(embed_PLC), gate.norm
        logits_PL2 = gate.gate(torch.cat([aligned_PLC, feat_PLC], dim=-1))
        running, scale = (norm.running_mean, norm.running_var), (norm.weight, norm.bias)
        logits_N2 = F.batch_norm(logits_PL2.flatten(0, 1), *running, *scale, True, norm.momentum, norm.eps)
        share_PL2 = logits_N2.view_as(logits_PL2).softmax(-1)
        return share_PL2[..., :1] * aligned_PLC + share_PL2[..., 1:] * feat_PLC

    def _mask(
        self, embed_PLC: Tensor, index_PL: Tensor, uniform_P: Tensor, columns: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of which one label's are masked, their labels, and which tokens are read."""
        masked, labels, read = [], [], []
        place_L = torch.arange(index_PL.shape[1])
        row_L, column_L = place_L // columns, place_L % columns
        for embed_LC, index_L, uniform in zip(embed_PLC, index_PL, uniform_P, strict=True):
            present, counts = index_L.unique(return_counts=True)
            weights = torch.ones(len(present), dtype=torch.float64)
            if self.config.mvm_masking == "lift":
                usage = self.usage[present] / (1.0 - USAGE_DECAY ** self.age[present])
                weights = (counts / usage.clamp(min=0.05)).square().double()
            ends = weights.cumsum(0)
            chosen_L = index_L == present[int((ends <= uniform * ends[-1]).sum())]
            masked.append(torch.where(chosen_L[:, None], self.parts.soho.mask_token, embed_LC))
            labels.append(torch.where(chosen_L, index_L, -100))
            away_LL = torch.maximum((row_L[:, None] - row_L).abs(), (column_L[:, None] - column_L).abs())
            read.append(chosen_L | (away_LL[:, chosen_L].amin(1) > self.config.mvm_margin))
        return torch.stack(masked), torch.stack(labels), torch.stack(read)

    def _bag_of_words(self, feat_BLC: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        head, words_VC = self.parts.bag_of_words_head, self.parts.soho.text_embeddings.word_embeddings.weight
        logits_BV = (head.norm(feat_BLC) @ words_VC.T).amax(1) + head.bias
        ids_PS = torch.where(batch["mlm_labels"] != -100, batch["mlm_labels"], batch["input_ids"])
        real_PS = batch["attention_mask"] * (batch["itm_labels"] == 1)[:, None]
        words_PV = (F.one_hot(ids_PS, self.config.vocab_size) * real_PS[..., None]).sum(1)
        words_BV = torch.zeros_like(logits_BV)
        for image, words_V in zip(batch["image_index"].tolist(), words_PV, strict=True):
            words_BV[image] += words_V
        return F.binary_cross_entropy_with_logits(logits_BV, words_BV.clamp(max=1.0), reduction="sum") / len(logits_BV)


class EagerOptimizers:
    """The recipe's rules by `torch.optim`, one loop over the parameters each, with its gradient clipping.

    Args:
        pipeline: whose parameters are trained.
        settings: rules and rates.
        rate_factor: on every learning rate.
    """

    def __init__(self, pipeline: EagerPretraining, settings: OptimSettings, rate_factor: float = 1.0) -> None:
        backbone = list(pipeline.visual_encoder.backbone.parameters())
        known = {id(parameter) for parameter in backbone}
        rest = [parameter for parameter in pipeline.parameters() if id(parameter) not in known]
        betas = (0.9, settings.beta2)
        adamw = {"betas": betas, "eps": settings.eps, "foreach": False}
        self.clip = settings.clip
        self.parameters = [parameter for parameter in [*backbone, *rest] if parameter.requires_grad]
        if settings.backbone_rule == "sgd":
            of_backbone = torch.optim.SGD(
                backbone,
                settings.backbone_lr * rate_factor,
                momentum=0.9,
                weight_decay=settings.backbone_weight_decay,
                foreach=False,
            )
        else:
            of_backbone = torch.optim.AdamW(
                backbone, settings.backbone_lr * rate_factor, weight_decay=settings.backbone_weight_decay, **adamw
            )
        of_rest = torch.optim.AdamW(rest, settings.lr * rate_factor, weight_decay=settings.weight_decay, **adamw)
        self.optimizers = (of_backbone, of_rest)

    def step(self) -> None:
        """Clip, update, forget the gradients."""
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=False)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    """By the parameters' names."""
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def pad_texts(batch: Mapping[str, Tensor], length: int, pad_token_id: int) -> dict[str, Tensor]:
    """The batch with its texts padded at the right to `length` tokens."""
    missing = length - batch["input_ids"].shape[1]
    fill = {"input_ids": pad_token_id, "attention_mask": 0, "mlm_labels": -100}
    return {**batch, **{name: F.pad(batch[name], (0, missing), value=value) for name, value in fill.items()}}
