"""Lets a `VectorQuantize` (euclidean, moving average) or `SimVQ` of vector_quantize_pytorch run on soho_fast.ops.

H codebooks (one, or one per head), N features per codebook, K codes, C channels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from soho_fast import ops
from soho_fast.adapters.kept_codebook import Keeping, is_recorded, nearest_code
from soho_fast.adapters.swapping import Swapped
from soho_fast.ops.codebook_lookup.reference import Metric

try:
    import vector_quantize_pytorch as library
    from vector_quantize_pytorch import vector_quantize_pytorch as core
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"soho_fast.adapters needs the package {error.name}: pip install 'vector-quantize-pytorch>=1.32'",
        name=error.name,
    ) from error

# A layer that needs all the distances of a feature, or a gradient of the codes, is not one these ops can serve.
_NEEDS_ALL_DISTANCES = "needs the distance of every feature to every code, which is never made here"
_LEARNT_BY_GRADIENT = "the codes have to learn by moving average, not by gradient"


class Codebook(Keeping, core.Codebook):
    """A `Codebook` whose lookup and statistics are `ops.codebook_lookup` and `ops.codebook_stats`; same state."""

    original = core.Codebook

    def update_ema(self) -> None:
        self._kept.drop()  # the original writes past the version counter
        super().update_ema()

    def init_embed_(self, data: Tensor, mask: Tensor | None = None) -> None:
        """As the original, of finite features alone."""
        if not self.initted and not data.isfinite().all():
            finite_N = data.isfinite().all(-1).all(0)  # as many in each codebook, as the original asks for
            mask = finite_N.expand(data.shape[:-1]) if mask is None else mask & finite_N
        super().init_embed_(data, mask)

    def replace(self, batch_samples: Tensor, batch_mask: Tensor, seq_mask: Tensor | None = None) -> None:
        """As the original; a code that draws a feature which is not finite takes the place of the first code."""
        self._kept.drop()
        finite = batch_samples.isfinite().all(-1, keepdim=True)
        super().replace(torch.where(finite, batch_samples, self.embed[:, :1]), batch_mask, seq_mask)

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        sample_codebook_temp: float | None = None,
        mask: Tensor | None = None,
        freeze_codebook: bool = False,
        codebook_transform_fn: Callable | None = None,
        ema_update_weight: Tensor | Callable | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
        topk: int | None = None,
        update_usage: bool = True,
    ) -> tuple[Tensor, Tensor, None]:
        """As the original, without the distances. `sample_codebook_temp` has no effect, as in the original where codes
        are not sampled."""
        _refuse_arguments(topk=topk, codebook_transform_fn=codebook_transform_fn)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            has_codebook_dim = x.dim() >= 4
            if not has_codebook_dim:
                x = x.unsqueeze(0)
            feat_HNC = x.flatten(1, -2)
            valid_HN = None if mask is None else _valid_of_heads(mask, feat_HNC)
            self.init_embed_(feat_HNC, mask=valid_HN)
            codes_HKC = self.embed.float()
            index_HN = self._nearest(feat_HNC, codes_HKC)
            quantized = ops.straight_through(feat_HNC, codes_HKC, index_HN).reshape(x.shape)
            if self.training and update_usage and not freeze_codebook:
                self.update_codebook(
                    feat_HNC,
                    index_HN,
                    mask=valid_HN,
                    ema_update_weight=ema_update_weight,
                    accum_ema_update=accum_ema_update,
                    ema_update=ema_update,
                )
            index = index_HN.reshape(x.shape[:-1])
        if not has_codebook_dim:
            quantized, index = quantized.squeeze(0), index.squeeze(0)
        return quantized, index, None

    def _nearest(self, feat_HNC: Tensor, codes_HKC: Tensor) -> Tensor:
        """Index int64 (H, N); nothing is kept of codes that train."""
        metric: Metric = "dot" if self.use_cosine_sim else "euclidean"
        if is_recorded(feat_HNC):
            return nearest_code(feat_HNC, codes_HKC, metric)
        if self.training:
            self._kept.drop()
            return nearest_code(feat_HNC, codes_HKC, metric)
        return self._kept.nearest_code(feat_HNC, codes_HKC, metric)

    def track_cluster_size_and_embed_avg(
        self,
        flatten: Tensor,
        embed_onehot: Tensor,
        mask: Tensor | None = None,
        ema_update_weight: Tensor | Callable | None = None,
        accum_ema_update: bool = False,
    ) -> None:
        """As the original, from the index (H, N) in place of its one-hot form, which `update_indices` still brings;
        without features that are not finite."""
        if embed_onehot.is_floating_point():
            embed_onehot = embed_onehot.argmax(-1)
        valid = [None] * flatten.shape[0] if mask is None else mask
        per_codebook = [
            ops.codebook_stats(feat_NC, index_N, self.codebook_size, valid=valid_N)
            for feat_NC, index_N, valid_N in zip(flatten, embed_onehot, valid, strict=True)
        ]
        counts_HK, sums_HKC = (torch.stack(parts) for parts in zip(*per_codebook, strict=True))
        self.all_reduce_fn(counts_HK)
        self.all_reduce_fn(sums_HKC)
        if callable(ema_update_weight):
            ema_update_weight = ema_update_weight(sums_HKC, counts_HK)
        if accum_ema_update:
            core.accum_grad_(self.cluster_size, counts_HK)
            core.accum_grad_(self.embed_avg, sums_HKC)
        else:
            core.ema_inplace(self.cluster_size, counts_HK, self.decay, ema_update_weight)
            core.ema_inplace(self.embed_avg, sums_HKC, self.decay, ema_update_weight)


class VectorQuantize(Swapped, library.VectorQuantize):
    """A `VectorQuantize` over a `Codebook`."""

    original = library.VectorQuantize

    def forward(self, x: Tensor, indices: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the original, except that `indices` (for a cross-entropy loss) and `topk` are refused."""
        _refuse_arguments(indices=indices)
        return super().forward(x, None, *args, **kwargs)


class ResidualVQ(Keeping, library.ResidualVQ):
    """A `ResidualVQ` whose levels are one op in evaluation, with the bits of the loop over them."""

    original = library.ResidualVQ
    layers: nn.ModuleList
    project_in: nn.Module
    project_out: nn.Module
    _num_drops: tuple[int, ...]  # of the levels, when their codebooks were prepared

    def begin(self) -> None:
        super().begin()
        self._num_drops = ()

    def end(self) -> None:
        super().end()
        del self._num_drops

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As the original: (quantized, index, losses), and all codes if asked for."""
        if mask is not None or indices is not None or args or kwargs.get("beam_size") is not None:
            return super().forward(x, mask, indices, return_all_codes, *args, **kwargs)
        if (found := self._at_once(x)) is None:
            return super().forward(x, return_all_codes=return_all_codes, **kwargs)
        index, quantized = found
        losses = torch.zeros(len(self.layers), device=x.device)
        results = self.project_out(quantized), index, losses
        return (*results, self.get_codes_from_indices(index)) if return_all_codes else results

    def _at_once(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.training or x.dim() not in (2, 3) or x.dtype != torch.float32 or is_recorded(x):
            return None
        codebooks: list[Any] = [layer._codebook for layer in self.layers]
        # Hooks, or methods of their own, are to see each level.
        for part in (*self.layers, *codebooks):
            if part.training or part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
                return None
        if self.quant_grad_frac > 0 or not all(codebook.initted for codebook in codebooks):
            return None
        feat = self.project_in(x)
        if feat.dtype != torch.float32:
            return None
        num_drops = tuple(codebook._kept.num_drops for codebook in codebooks)
        if num_drops != self._num_drops:
            self._kept.drop()
            self._num_drops = num_drops
        return self._kept.residual_lookup(feat, [codebook.embed for codebook in codebooks])

    @staticmethod
    def serves(stack: library.ResidualVQ) -> bool:
        """Whether its levels subtract the codes as they are."""
        layers: Any = stack.layers
        return all(
            layer.channel_last
            and not (layer.accept_image_fmap or layer.accept_3d_fmap or layer._codebook.use_cosine_sim)
            for layer in layers
        )


class SimVQ(Swapped, library.SimVQ):
    """A `SimVQ` that makes no matrix of distances. Its codes are a transform of frozen ones, looked up as they come."""

    original = library.SimVQ
    channel_first: bool
    rotation_trick: bool
    input_to_quantize_commit_loss_weight: float
    commitment_weight: float
    codebook: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the original: (quantized, index, loss)."""
        x = x.movedim(1, -1) if self.channel_first else x
        feat_BNC = x.reshape(x.shape[0], -1, x.shape[-1])
        codes_KC = self.codebook
        index_BN = nearest_code(feat_BNC.detach(), codes_KC.detach())
        chosen_BNC = codes_KC[index_BN]
        loss = functional.mse_loss(feat_BNC.detach(), chosen_BNC)
        loss = loss + functional.mse_loss(feat_BNC, chosen_BNC.detach()) * self.input_to_quantize_commit_loss_weight
        if self.rotation_trick:
            quantized_BNC = core.rotate_to(feat_BNC, chosen_BNC)
        else:
            quantized_BNC = (chosen_BNC - feat_BNC).detach() + feat_BNC
        quantized = quantized_BNC.reshape(x.shape)
        quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
        return quantized, index_BN.reshape(x.shape[:-1]), loss * self.commitment_weight


def find(module: nn.Module) -> tuple[list[tuple[nn.Module, type[Swapped]]], list[str]]:
    """The modules to accelerate, each with its new class, and every reason why one cannot be."""
    found: list[tuple[nn.Module, type[Swapped]]] = []
    reasons: list[str] = []
    parts: list[tuple[str, nn.Module]] = list(module.named_modules())
    for kind, base, refusals in (
        ("ResidualVQ", library.ResidualVQ, _refusals_of_stack),
        ("VectorQuantize", library.VectorQuantize, _refusals),
        ("SimVQ", library.SimVQ, _refusals_of_sim_vq),
    ):
        for name, part in parts:
            if isinstance(part, base) and (why := refusals(part)):
                at = f" at {name!r}" if name else ""
                reasons.append(f"the {kind}{at} cannot be accelerated: {'; '.join(why)}")
    for _, part in parts:
        if type(part) is library.VectorQuantize:
            codebook: Any = part._codebook
            found += [(part, VectorQuantize), (codebook, Codebook)]
        elif type(part) is library.SimVQ:
            found.append((part, SimVQ))
        elif type(part) is library.ResidualVQ and ResidualVQ.serves(part):
            found.append((part, ResidualVQ))
    return found, reasons


def _refusals_of_sim_vq(layer: library.SimVQ) -> list[str]:
    return [] if type(layer) in (library.SimVQ, SimVQ) else [_of_a_subclass(layer)]


def _of_a_subclass(*parts: nn.Module) -> str:
    return f"its forward is that of a subclass ({' over '.join(type(part).__name__ for part in parts)})"


def _refusals_of_stack(stack: library.ResidualVQ) -> list[str]:
    """Every reason why the layers of a `ResidualVQ` cannot run on these ops, by the options of the stack."""
    options = {f"{name}={getattr(stack, name)}": getattr(stack, name) or 0 for name in ("beam_size", "eval_beam_size")}
    reasons = [f"{option}: a beam {_NEEDS_ALL_DISTANCES}" for option, size in options.items() if size > 1]
    if stack.implicit_neural_codebook:
        reasons.append(f"implicit_neural_codebook=True: {_LEARNT_BY_GRADIENT}")
    if stack.diveq:
        reasons.append(f"diveq=True: {_LEARNT_BY_GRADIENT}")
    return reasons


def _refusals(layer: library.VectorQuantize) -> list[str]:
    """Every reason why the layer cannot run on these ops."""
    codebook = layer._codebook
    own = (library.VectorQuantize, VectorQuantize), (core.Codebook, Codebook)
    if type(layer) not in own[0] or type(codebook) not in own[1]:
        return [_of_a_subclass(layer, codebook)]
    sampling = getattr(codebook.gumbel_sample, "keywords", {})
    options = {
        f"learnable_codebook or orthogonal_reg_weight: {_LEARNT_BY_GRADIENT}": codebook.learnable_codebook,
        f"in_place_codebook_optimizer: {_LEARNT_BY_GRADIENT}": layer.in_place_codebook_optimizer is not None,
        "affine_param=True: the codes have to be compared as they are": codebook.affine_param,
        "vq_bridge: the codes have to be compared as they are": codebook.vq_bridge is not None,
        "stochastic_sample_codes=True: codes cannot be sampled": sampling.get("stochastic", False),
        f"straight_through=True: its softmax {_NEEDS_ALL_DISTANCES}": sampling.get("straight_through", False),
        "gumbel_sample: codes cannot be chosen by a function of one's own": (
            getattr(codebook.gumbel_sample, "func", codebook.gumbel_sample) is not core.gumbel_sample
        ),
        f"commitment_use_cross_entropy_loss=True {_NEEDS_ALL_DISTANCES}": layer.commitment_use_cross_entropy_loss,
        f"codebook_diversity_loss_weight > 0 {_NEEDS_ALL_DISTANCES}": layer.has_codebook_diversity_loss,
    }
    return [reason for reason, present in options.items() if present]


def _refuse_arguments(**arguments: object) -> None:
    """ValueError where an argument of forward is given that these ops cannot serve."""
    for name, value in arguments.items():
        if value is not None:
            given = "topk (the beam_size of a ResidualVQ)" if name == "topk" else name
            raise ValueError(
                f"{name}: expected None: to serve {given} an accelerated VectorQuantize {_NEEDS_ALL_DISTANCES}"
            )


def _valid_of_heads(mask_BL: Tensor, feat_HNC: Tensor) -> Tensor:
    """The mask of the tokens as one of the features: (H, N) with N = B * heads per codebook * L."""
    B, L = mask_BL.shape
    num_heads = feat_HNC.shape[1] // (B * L)
    return mask_BL[:, None].expand(B, num_heads, L).reshape(1, -1).expand(feat_HNC.shape[0], -1)
