"""Backbones of timm and transformers by name, and a user's own by import path, whose code knows nothing of padding.

Of torchvision's networks `backbones.py` hands each layer the mask of the real positions. Here hooks do: what reads
neighbours (convolutions, pools) is given zero at padding, as beyond the border of an image that stands alone, and
BatchNorm leaves padding out. The mask is found by the size of the feature map. What looks at all positions in another
way (squeeze-and-excitation) still sees the padding, unless it is a `Tower`; `padding_leak` measures that.

B images, C channels, H x W positions; x is always (B, C, H, W).
"""

import copy
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soho_fast.common.errors import listed
from soho_fast.common.extras import from_extra
from soho_fast.common.import_path import load_imported
from soho_fast.common.spelling import did_you_mean

from .normalization import BatchNorm2d
from .towers import Tower, timm_tower, transformers_tower
from .values import TIMM, TRANSFORMERS

# More than rounding makes of the same image in another batch.
_LEAK = 1e-3


class Masks:
    """The masks of the running forward, (B, 1, H, W) by (H, W); empty where nothing is padded."""

    def __init__(self) -> None:
        self.by_size: dict[tuple[int, ...], Tensor] = {}

    def apply(self, x: Any) -> Any:
        """Features with zero at padding; whatever is none stays."""
        mask = self.by_size.get(tuple(x.shape[-2:])) if isinstance(x, Tensor) and x.dim() == 4 else None
        return x if mask is None else x * mask.to(x.dtype)


class MaskedBatchNorm(BatchNorm2d):
    """A BatchNorm of another's network, with what timm computes within its own: dropout and activation."""

    def __init__(self, norm: nn.BatchNorm2d, masks: Masks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.masks = masks
        self.drop, self.act = (getattr(norm, name, nn.Identity()) for name in ("drop", "act"))

    def forward(self, input: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
        """As `BatchNorm2d.forward`, by the mask of the input's size."""
        return self.act(self.drop(super().forward(input, self.masks.by_size.get(tuple(input.shape[-2:])))))


def build_other(name: str, stride: int, tower: dict[str, Any] | None = None) -> Any:
    """A backbone of timm or transformers, or of an import path that is imported already, up to the stage that ends at
    this stride.

    Args:
        name: As `SohoConfig.backbone`.
        stride: Pixels between its features.
        tower: What `tower_config` gave, of one of transformers.

    Returns:
        The network with `num_features`, its number of output channels, and what `other_stages` reads.

    Raises:
        ValueError: there is no such network, none of its stages has the stride, or it is of another form.
    """
    if name.startswith(TRANSFORMERS):
        net: Any = transformers_tower(tower or {})
    else:
        net = _of_timm(name, stride) if name.startswith(TIMM) else _of_user(name, stride)
    for parent in list(net.modules()):
        for buffer_name, buffer in list(parent.named_buffers(recurse=False)):
            parent.register_buffer(buffer_name, buffer)  # Saved with a model, which when loaded has no other source.
    if isinstance(net, Tower):
        _stage_at(stride, [net.stride], name)
        return net
    for parent in list(net.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and child.affine and child.running_mean is not None:
                parent.add_module(child_name, MaskedBatchNorm(child, net.masks))
            elif isinstance(child, nn.MaxPool2d | nn.AvgPool2d) or (
                isinstance(child, nn.Conv2d) and child.kernel_size != (1, 1)
            ):
                child.register_forward_pre_hook(partial(_mask_input, net.masks))
    for module, _ in chain.from_iterable(other_stages(net)):
        if hasattr(module, "inplace"):
            module.inplace = False  # Activation checkpointing keeps what each is given.
    return net


def _mask_input(masks: Masks, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (masks.apply(args[0]), *args[1:])


def _of_timm(name: str, stride: int) -> Any:
    """As `build_other`."""
    with from_extra("timm"):
        import timm
    of_timm = name.removeprefix(TIMM)
    if not timm.is_model(of_timm):
        raise ValueError(f"backbone: timm has no {of_timm!r}{did_you_mean(of_timm, timm.list_models())}")
    if (tower := timm_tower(of_timm)) is not None:
        return tower
    with torch.device("meta"):
        info = _features_of(of_timm).feature_info
    index = _stage_at(stride, info.reduction(), name)
    net = _features_of(of_timm, out_indices=(index,))
    stages: list[list[str]] = [[""]]
    if type(net) is timm.models.FeatureListNet:  # Its modules run one after the other.
        ends = [each["module"].replace(".", "_") for each in info.get_dicts()[: index + 1]]
        names = list(net)
        bounds = [0, *(names.index(end) + 1 for end in ends)]
        stages = [names[begin:end] for begin, end in pairwise(bounds)]
    return _with(net, stages, info.channels()[index])


def _with(net: Any, stage_names: list[list[str]], num_features: int) -> Any:
    """The network with the names of the modules of each stage, and the channels of the last one."""
    net.num_features, net.stage_names, net.masks = num_features, stage_names, Masks()
    return net


def _features_of(name: str, **options: Any) -> Any:
    import timm

    try:
        return timm.create_model(name, features_only=True, **options)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"backbone: timm's {name} gives no features of its stages ({error})") from error


def _of_user(path: str, stride: int) -> Any:
    """As `build_other`."""
    net = load_imported(path, "backbone", nn.Module)()
    strides, channels = getattr(net, "strides", ()), getattr(net, "channels", ())
    is_sequence = isinstance(net, nn.Sequential)
    if not strides or len(strides) != len(channels) or len(strides) != (len(net) if is_sequence else 1):
        raise ValueError(
            f"backbone: expected {path}().strides and .channels, pixels between features and their channels, one for "
            f"each stage (each part of an nn.Sequential; any other module is one), got {strides} and {channels}"
        )
    index = _stage_at(stride, strides, path)
    if is_sequence:
        del net[index + 1 :]
    if getattr(net, "alone", False):
        return Tower(net, net, stride, channels[index])
    return _with(net, [[str(number)] for number in range(index + 1)] if is_sequence else [[""]], channels[index])


def _stage_at(stride: int, strides: Any, name: str) -> int:
    """The last stage that ends at a stride."""
    found = [index for index, each in enumerate(strides) if each == stride]
    if not found:
        ends = ", ".join(map(str, dict.fromkeys(strides)))
        raise ValueError(f"backbone_stride: expected one of {ends}, where a stage of {name} ends, got {stride}")
    return found[-1]


def other_stages(net: Any) -> list[list[tuple[Any, Any]]]:
    """Of each stage the modules, each with features (B, C, H, W) and masks by stride to features."""
    if isinstance(net, Tower):
        return [[(net, net)]]
    modules = [[net.get_submodule(name) for name in names] for names in net.stage_names]
    return [[(module, partial(_run, net.masks, module)) for module in stage] for stage in modules]


def _run(masks: Masks, module: nn.Module, x: Tensor, by_stride: dict[int, Tensor]) -> Tensor:
    masks.by_size = {tuple(mask.shape[-2:]): mask for mask in by_stride.values()}
    try:
        x = module(x)
        # timm gives a list with one entry for each stage that was asked for.
        return masks.apply(x[-1] if isinstance(x, list | tuple) else x)
    finally:
        masks.by_size = {}


def timm_state(name: str, path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of timm's network, under the names of `build_other`'s.

    Raises:
        ValueError: it is that of another network; `path` names the file.
    """
    of_timm, given = (
        name.removeprefix(TIMM),
        {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state)}},
    )
    try:
        net = timm_tower(of_timm, **given) or _features_of(of_timm, **given)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"init_backbone_from: {path} has no weights of {name} ({reason})") from error
    # timm leaves what has another name at random values.
    flat = [tensor.flatten() for tensor in state.values()]
    absent = [
        own for own, value in net.named_parameters() if not any(torch.equal(value.flatten(), each) for each in flat)
    ]
    if absent:
        raise ValueError(f"init_backbone_from: {path} lacks {len(absent)} tensors of {name} ({listed(absent)})")
    return net.state_dict()


@torch.no_grad()
def padding_leak(encoder: Any) -> float:
    """How much an image's features change with the padding of its batch, in training too, as a share of the largest.

    Args:
        encoder: a `VisualEncoder`, of which a copy is tried.

    Raises:
        ValueError: its backbone cannot be run, or gives features of another shape than it says.
    """
    tried, stride = copy.deepcopy(encoder).cpu().float().eval(), encoder.strides[-1]
    # In training BatchNorm, too, could let padding in; dropout stays off.
    for module in tried.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    generator = torch.Generator().manual_seed(0)
    for parameter in tried.backbone.parameters():
        if parameter.dim() < 2:
            parameter.normal_(generator=generator)  # Scales that begin at zero would hide what they scale.
    features = []
    images = torch.randn(2, 3, 3 * stride, 3 * stride, generator=generator)
    # The same two images, the second time with one more row and column of padding.
    for size in (3, 4):
        pixels, mask = torch.zeros(2, 3, size * stride, size * stride), torch.zeros(2, size * stride, size * stride)
        for number, edge in enumerate((3 * stride, 2 * stride)):
            pixels[number, :, :edge, :edge] = images[number, :, :edge, :edge]
            mask[number, :edge, :edge] = 1
        try:
            x = tried.backbone_output(pixels, mask)[0]
        except Exception as error:  # Another's code.
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"backbone: it does not take images of {size * stride} pixels ({reason})") from error
        expected = (2, tried.backbone.num_features, size, size)
        if tuple(x.shape) != expected:
            raise ValueError(f"backbone: expected features {expected} of {size * stride} pixels, got {tuple(x.shape)}")
        # Of each image what is real, in units of features.
        features.append(torch.cat([x[0, :, :3, :3].flatten(), x[1, :, :2, :2].flatten()]))
    leak = float((features[0] - features[1]).abs().max() / features[0].abs().max().clamp(min=1e-6))
    return leak if leak > _LEAK else 0.0
