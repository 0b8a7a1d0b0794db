"""Vision towers of timm and transformers: patch tokens of a ViT as the features of an image.

Such a network attends to all positions, and its position embeddings are interpolated to the size of what it is given.
So each image is given without the padding of its batch, together with those of its size: its features are those that
it has alone, whatever the network does within.

B images, C channels, H x W pixels, h x w patches, N tokens of an image.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from soho_fast.common.errors import listed
from soho_fast.common.hub import loading_options

_NORMALISATION = ("image_mean", "image_std")
_MOST_PARAMETERS, _MOST_LAYERS = 10_000_000_000, 1000


class Tower(nn.Module):
    """A network that looks at all positions, given each image without padding.

    Args:
        net: the network.
        features: pixels (B, 3, H, W), multiples of the patch, to tokens (B, N, C), the patches' behind all others, or
            to features (B, C, h, w).
        stride: pixels of a patch's side.
        num_features: C.
        mean, std: by which the network wants colours normalised; `None`: by ImageNet's, as images come here.
    """

    stage_names = ("",)  # one stage
    _z3_leaf = True  # Under ZeRO 3 gathered once a forward: ranks have images of different numbers of sizes.

    def __init__(
        self,
        net: nn.Module,
        features: Callable[[Tensor], Tensor],
        stride: int,
        num_features: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.features, self.stride, self.num_features = net, features, stride, num_features
        to, by = mean or IMAGENET_DEFAULT_MEAN, std or IMAGENET_DEFAULT_STD
        self.scale = [own / other for own, other in zip(IMAGENET_DEFAULT_STD, by, strict=True)]
        self.shift = [(own - other) / by for own, other, by in zip(IMAGENET_DEFAULT_MEAN, to, by, strict=True)]

    def forward(self, x: Tensor, by_stride: dict[int, Tensor]) -> Tensor:
        """Pixels (B, 3, H, W) and masks by stride to features (B, C, h, w), zero at padding.

        Raises:
            ValueError: it is trained under ZeRO 3.
        """
        if torch.is_grad_enabled() and any(hasattr(each, "ds_id") for each in self.parameters()):
            raise ValueError(
                "backbone: a vision tower is not trained under ZeRO 3; freeze it, or take zero_stage 0 to 2"
            )
        mask, stride = by_stride.get(self.stride), self.stride
        x = x if mask is None else x * by_stride[1]
        # A last patch that is partly outside is a token, too.
        x = F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride))
        if mask is None:
            return self._alone(x)
        # The real area is a rectangle at the top left.
        sizes = torch.stack([mask.any(3).sum((1, 2)), mask.any(2).sum((1, 2))], 1).tolist()
        found: dict[int, Tensor] = {}
        for h, w in {(h, w) for h, w in sizes if h}:
            rows = [row for row, size in enumerate(sizes) if size == [h, w]]
            alone = self._alone(x[rows, :, : h * stride, : w * stride])
            padding = (0, mask.shape[3] - w, 0, mask.shape[2] - h)
            found |= dict(zip(rows, F.pad(alone, padding), strict=True))
        nothing = x.new_zeros(self.num_features, *mask.shape[2:])
        return torch.stack([found.get(row, nothing) for row in range(len(sizes))])

    def _alone(self, x: Tensor) -> Tensor:
        scale, shift = (x.new_tensor(values).view(3, 1, 1) for values in (self.scale, self.shift))
        found = self.features(x * scale + shift)
        if found.dim() == 4:
            return found
        h, w = (size // self.stride for size in x.shape[2:])
        return found[:, found.shape[1] - h * w :].transpose(1, 2).unflatten(2, (h, w))


def timm_tower(name: str, **options: Any) -> Tower | None:
    """A tower of timm by its name there; `None`: that network is none, or takes images of one size only.

    Args:
        name: the name.
        options: of `timm.create_model`.
    """
    import timm

    try:
        net: Any = timm.create_model(name, dynamic_img_size=True, num_classes=0, **options)
    except TypeError:
        return None
    if not hasattr(net, "num_prefix_tokens"):
        return None
    colours = (net.pretrained_cfg.get(each) for each in ("mean", "std"))
    return Tower(net, net.forward_features, net.patch_embed.patch_size[0], net.num_features, *colours)


def tower_config(name: str) -> dict[str, Any]:
    """What `transformers_tower` builds: the vision part of the configuration in a folder or of a name on the hub, and
    how its images are normalised.

    Raises:
        FileNotFoundError: nothing could be loaded from there.
    """
    failure = ""
    try:
        options, failure = loading_options(name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # what transformers raises of a damaged file has no common type
        reason = failure or str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"backbone: no configuration could be loaded from {name!r} ({reason}); expected a folder with config.json, "
            "or OWNER/NAME on a hub that this machine can reach"
        ) from error
    try:
        images, _ = ImageProcessingMixin.get_image_processor_dict(name, **options)
    except OSError:
        images = {}
    values = getattr(config, "vision_config", config).to_dict()
    return values | {each: images[each] for each in _NORMALISATION if images.get(each)}


def transformers_tower(values: dict[str, Any]) -> Tower:
    """A tower of transformers with random weights.

    Args:
        values: as `tower_config` gives them.

    Raises:
        ValueError: no such network can be built.
    """
    kind = values.get("model_type")
    try:
        config = AutoConfig.for_model(**{**values, "vision_use_head": False})  # SigLIP's, whose output nobody reads
        stride, channels = config.patch_size, config.hidden_size
        if getattr(config, "num_hidden_layers", 0) > _MOST_LAYERS:
            raise ValueError(f"expected at most {_MOST_LAYERS:,} layers, got {config.num_hidden_layers:,}")
        with torch.device("meta"):
            num = sum(each.numel() for each in _build(config).parameters())
        if num > _MOST_PARAMETERS:
            raise ValueError(f"expected at most {_MOST_PARAMETERS:,} parameters, got {num:,}")
        net = _build(config)
    except Exception as error:  # transformers takes types for granted
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"backbone: expected a vision tower of patches, as of CLIP, SigLIP, DINOv2 or ViT; of transformers' {kind} "
            f"none can be made ({reason})"
        ) from error
    takes = inspect.signature(net.forward).parameters
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def features(x: Tensor) -> Tensor:
        return net(pixel_values=x, **options).last_hidden_state

    side = stride if isinstance(stride, int) else stride[0]
    return Tower(net, features, side, channels, *(values.get(each) for each in _NORMALISATION))


def _build(config: Any) -> Any:
    # A file may name code of the hub as its attention.
    return AutoModel.from_config(config, trust_remote_code=False, attn_implementation="sdpa")


def tower_state(tower: Tower, source: str) -> dict[str, Tensor]:
    """Weights of a tower of transformers, from a folder or a name on the hub, under the names of `Tower`.

    Raises:
        FileNotFoundError, ValueError: nothing could be loaded from there, or it lacks some.
    """
    net: Any = tower.net
    failure = ""
    try:
        options, failure = loading_options(source)
        loaded, info = type(net).from_pretrained(
            source, config=net.config, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # what transformers raises of a damaged file has no common type
        reason = failure or " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"init_backbone_from: no weights of {type(net).__name__} could be loaded from {source!r} ({reason})"
        ) from error
    if absent := sorted(info["missing_keys"]):
        raise ValueError(
            f"init_backbone_from: {source!r} lacks {len(absent)} tensors of {type(net).__name__} ({listed(absent)})"
        )
    # With the buffers that transformers does not save, as `build_other` has them.
    return {f"net.{name}": tensor for name, tensor in {**loaded.state_dict(), **dict(loaded.named_buffers())}.items()}
