"""The released code's pre-training step as one would write it first: eager float32 torch, nothing shared or packed.

The arithmetic is that of preset `official`, written again from its description in docs/official.md over plain modules
that bear the names of the published checkpoint; what is slow is what the released code does:

- the CNN runs once per image, in torch's NCHW layout; its output is repeated for each text, and max-pool, convolution,
  BatchNorm, dictionary, gate, position and LayerNorm run once per text;
- the lookup is |x|^2 - 2 x e + |e|^2 and argmin; codes, counts and sums are products with a one-hot matrix (tokens x
  codes);
- masked visual modelling goes pair by pair;
- texts are padded to a fixed length; transformers' BERT runs with eager attention and an additive mask;
- word and code logits are computed at every position and the losses ignore unlabelled ones;
- the optimisers go parameter by parameter;
- with `official="pretraining"` each residual block whose input needs a gradient runs again in the backward pass, its
  BatchNorm included, as the released configuration has it to save memory.

Images must fill their tensor and be at least as wide as high, where the released mask is right.

B images, P texts, S text tokens, H x W the grid, L visual tokens, N = P*L, C channels, K codes, V words.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder

from benchmarks.model.eager_pipeline import EagerLosses
from soho_fast.engine.settings import OptimSettings
from soho_fast.model import SohoForPreTraining
from soho_fast.model.embeddings import sine_position
from soho_fast.model.official import keys


class _Neck(nn.Module):
    def __init__(self, in_channels: int, channels: int, num_codes: int) -> None:
        super().__init__()
        self.conv = nn.ModuleDict(
            {"conv": nn.Conv2d(in_channels, channels, 1, bias=False), "bn": nn.BatchNorm2d(channels)}
        )
        self.vq = nn.Module()
        self.vq.register_buffer("embed", torch.zeros(num_codes, channels))
        self.vq.register_buffer("embed_avg", torch.zeros(num_codes, channels))
        self.vq.register_buffer("cluster_size", torch.zeros(num_codes))
        self.vq.register_buffer("cluster_sum", torch.zeros(num_codes))
        self.pos_line = nn.Linear(channels, channels)
        self.gate_fc = nn.ModuleDict({"conv": nn.Conv2d(2 * channels, 2, 1, bias=False), "bn": nn.BatchNorm2d(2)})
        self.mask_emb = nn.Embedding(1, channels)
        self.ln = nn.LayerNorm(channels)


class EagerOfficial(nn.Module):
    """The straightforward pipeline with the weights of a model of preset `official`, in training.

    Raises:
        ValueError: a model this pipeline does not compute.
    """

    def __init__(self, model: SohoForPreTraining) -> None:
        super().__init__()
        config = model.config
        if config.preset != "official" or not config.backbone.startswith("resnet"):
            raise ValueError(f"model: expected preset 'official' with a ResNet, got {config.preset!r}")
        if config.hidden_dropout_prob or config.attention_probs_dropout_prob:
            raise ValueError("model: expected dropout 0, so that losses can be compared")
        self.config = config
        bert = BertConfig(
            **{name: getattr(config, name) for name in (
                "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                "hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
            )},
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager",
        )  # fmt: skip
        self.backbone = _resnet(config.backbone)
        self.neck = _Neck(model.soho.visual_encoder.backbone.num_features, config.hidden_size, config.num_codes)
        self.language = nn.ModuleDict(
            {"bert": nn.ModuleDict({"embeddings": BertEmbeddings(bert), "encoder": BertEncoder(bert)})}
        )
        self.head = nn.ModuleDict({"match_class": nn.Linear(config.hidden_size, 2, bias=False)})
        own, theirs = self.state_dict(), model.state_dict()
        # What is left out is the word table's second name.
        state = {keys.official_name(name): tensor for name, tensor in theirs.items() if keys.official_name(name) in own}
        self.load_state_dict({name: tensor.view(own[name].shape) for name, tensor in state.items()})
        self._our_names = {keys.official_name(name): name for name in theirs}
        self._our_shapes = {name: tensor.shape for name, tensor in theirs.items()}
        self._still = nn.ModuleList([self.backbone.conv1, self.backbone.bn1, self.backbone.layer1])
        self._still.requires_grad_(False)
        self._batch_norm_frozen = False
        self.train()

    @property
    def codebook(self) -> Tensor:
        """(K, C)."""
        return self.neck.vq.embed

    def train(self, mode: bool = True) -> "EagerOfficial":
        super().train(mode)
        self._still.eval()
        if self._batch_norm_frozen:
            self.backbone.eval()
        return self

    def freeze_batch_norm(self, frozen: bool) -> None:
        """Holds the CNN's BatchNorm in eval."""
        self._batch_norm_frozen = frozen
        self.train()

    def gradients(self) -> dict[str, Tensor]:
        """By the names of the model's parameters, in their shapes."""
        named = [(self._our_names[name], p.grad) for name, p in self.named_parameters() if p.grad is not None]
        return {name: gradient.view(self._our_shapes[name]) for name, gradient in named}

    def forward(self, batch: Mapping[str, Tensor]) -> EagerLosses:
        """One training forward, codebook update included; the batch holds the keywords of SohoForPreTraining."""
        if batch.get("pixel_mask") is not None and not bool(batch["pixel_mask"].all()):
            raise ValueError("pixel_mask: expected images that fill their tensor")
        pixels_B3HW, bert = batch["pixel_values"], self.language["bert"]
        if pixels_B3HW.shape[2] > pixels_B3HW.shape[3]:
            raise ValueError("pixel_values: expected images that are at least as wide as high")
        out_PCHW = self._cnn(pixels_B3HW)[batch["image_index"]]
        feat_PCHW = self.neck.conv["bn"](self.neck.conv["conv"](F.max_pool2d(out_PCHW, 2)))
        P, C, H, W = feat_PCHW.shape
        embed_PLC, index_PL = self._dictionary(feat_PCHW.flatten(2).transpose(1, 2))
        aligned_PCHW = self.neck.pos_line(embed_PLC).transpose(1, 2).unflatten(2, (H, W))
        gate_P2HW = self.neck.gate_fc["bn"](self.neck.gate_fc["conv"](torch.cat([aligned_PCHW, feat_PCHW], 1)))
        gate_P2HW = gate_P2HW.softmax(1)
        gated_PCHW = aligned_PCHW * gate_P2HW[:, :1] + feat_PCHW * gate_P2HW[:, 1:]
        visual_PLC, mvm_labels_PL = self._mask(gated_PCHW.flatten(2).transpose(1, 2), index_PL, batch)
        visual_PLC = visual_PLC + sine_position(torch.ones(P, H, W, dtype=torch.bool), C)
        visual_PLC = self.neck.ln(visual_PLC)

        text_PSC = bert["embeddings"](input_ids=batch["input_ids"])
        S = text_PSC.shape[1]
        joint_PTC = torch.cat([text_PSC, visual_PLC], dim=1)
        mask_PT = torch.cat([batch["attention_mask"].float(), torch.ones(P, H * W)], dim=1)
        hidden_PTC = bert["encoder"](joint_PTC, attention_mask=(1.0 - mask_PT)[:, None, None, :] * -10000.0)[0]

        word_logits_PSV = F.linear(hidden_PTC[:, :S], bert["embeddings"].word_embeddings.weight)
        code_logits_PLK = F.linear(F.normalize(hidden_PTC[:, S:], dim=-1), F.normalize(self.codebook, dim=-1))
        mlm = _mean_loss(word_logits_PSV, batch["mlm_labels"])
        mvm = _mean_loss(code_logits_PLK, mvm_labels_PL)
        itm = F.cross_entropy(self.head["match_class"](hidden_PTC[:, 0]), batch["itm_labels"])
        return EagerLosses(mlm + mvm + itm, mlm, mvm, itm, None)

    def _cnn(self, pixels_B3HW: Tensor) -> Tensor:
        net = self.backbone
        x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(pixels_B3HW)))))
        for block in (*net.layer2, *net.layer3, *net.layer4):
            again = self.config.official == "pretraining" and x.requires_grad
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x

    def _dictionary(self, feat_PLC: Tensor) -> tuple[Tensor, Tensor]:
        feat_NC, vq = feat_PLC.flatten(0, 1), self.neck.vq
        with torch.no_grad():
            distance_NK = feat_NC.square().sum(1, keepdim=True) - 2.0 * feat_NC @ vq.embed.T + vq.embed.square().sum(1)
            index_N = distance_NK.argmin(1)
            onehot_NK = F.one_hot(index_N, self.config.num_codes).float()
            decay, eps = self.config.ema_decay, 1e-5
            vq.cluster_size.mul_(decay).add_(onehot_NK.sum(0), alpha=1.0 - decay)
            vq.embed_avg.mul_(decay).add_(onehot_NK.T @ feat_NC, alpha=1.0 - decay)
            total = vq.cluster_size.sum()
            smoothed_K = (vq.cluster_size + eps) / (total + self.config.num_codes * eps) * total
            vq.embed.copy_(vq.embed_avg / smoothed_K[:, None])
            embed_NC = onehot_NK @ vq.embed
        output_NC = feat_NC + (embed_NC - feat_NC).detach()
        return output_NC.view_as(feat_PLC), index_N.view(feat_PLC.shape[:2])

    def _mask(self, gated_PLC: Tensor, index_PL: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        place = int(batch["mask_uniform"][0] * index_PL.shape[1])
        masked, labels = [], []
        for gated_LC, index_L, drawn in zip(gated_PLC, index_PL, batch["mask_pairs"], strict=True):
            chosen_L = (index_L == index_L[place]) & drawn
            masked.append(torch.where(chosen_L[:, None], self.neck.mask_emb.weight, gated_LC))
            labels.append(torch.where(chosen_L, index_L, -100))
        return torch.stack(masked), torch.stack(labels)


def _mean_loss(logits_PLX: Tensor, labels_PL: Tensor) -> Tensor:
    total = F.cross_entropy(logits_PLX.flatten(0, 1), labels_PL.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels_PL != -100).sum() + 1e-6)


def _resnet(name: str) -> nn.Module:
    depth = {"resnet10": torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])}
    net = depth[name] if name in depth else getattr(torchvision.models, name)()
    net.fc = nn.Identity()
    return net


class EagerOfficialOptimizers:
    """SGD for the CNN and AdamW as the first BERT code had it for the rest, one loop over the parameters each.

    Args:
        pipeline: whose parameters are trained.
        settings: rules and rates.
        rate_factor: on every learning rate.
    """

    def __init__(self, pipeline: EagerOfficial, settings: OptimSettings, rate_factor: float = 1.0) -> None:
        backbone = [parameter for parameter in pipeline.backbone.parameters() if parameter.requires_grad]
        known = {id(parameter) for parameter in backbone}
        self.settings, self.lr = settings, settings.lr * rate_factor
        self.rest = [p for p in pipeline.parameters() if p.requires_grad and id(p) not in known]
        self.parameters = [*backbone, *self.rest]
        self.sgd = torch.optim.SGD(
            backbone,
            settings.backbone_lr * rate_factor,
            momentum=0.9,
            weight_decay=settings.backbone_weight_decay,
            foreach=False,
        )
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.rest]
        self.num_steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Clip, update, forget the gradients."""
        settings = self.settings
        if settings.clip:
            nn.utils.clip_grad_norm_(self.parameters, settings.clip, foreach=False)
        self.sgd.step()
        self.num_steps += 1
        beta1, beta2 = 0.9, settings.beta2
        rate = self.lr * math.sqrt(1.0 - beta2**self.num_steps) / (1.0 - beta1**self.num_steps)
        for parameter, (mean, square) in zip(self.rest, self.moments, strict=True):
            if parameter.grad is None:
                continue
            mean.mul_(beta1).add_(parameter.grad, alpha=1.0 - beta1)
            square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1.0 - beta2)
            parameter.addcdiv_(mean, square.sqrt().add_(settings.eps), value=-rate)
            parameter.add_(parameter, alpha=-self.lr * settings.weight_decay)
        for parameter in self.parameters:
            parameter.grad = None
