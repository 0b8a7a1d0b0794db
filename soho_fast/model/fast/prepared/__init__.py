"""A model made ready to answer, for good: `prepare_for_inference`.

`speed_up_on_cpu` and `speed_up_on_gpu` leave a model what it is: it trains, saves and is saved as before. Here its
weights are given up for others that compute the same: BatchNorm is inside the convolutions, weights are in the type and
the layout that is computed in. Such a model can be asked, and nothing else.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...base import SohoPreTrainedModel
from ...official.visual_encoder import OfficialVisualEncoder
from ...soho import SohoModel
from ..cpu import speed_up_on_cpu
from ..gpu import speed_up_on_gpu
from .dictionary import prepare_dictionary
from .int8 import to_int8
from .layers import FusedConv2d, FusedLinear, refuse_gradient
from .visual_encoder import FusedBackbone, PreparedOfficialVisualEncoder, PreparedVisualEncoder

__all__ = ["PRECISIONS", "prepare", "prepared_type"]

Model = TypeVar("Model", bound=SohoPreTrainedModel)

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The types of a prepared model's weights and features by the name of the precision; there is "int8" besides."""


def prepared_type(precision: str, device: torch.device) -> str:
    """The precision that is meant on a device.

    Args:
        precision: a name of `PRECISIONS`, "int8", or "auto": bf16 where the device has instructions for it, else
            float32.

    Raises:
        ValueError: another name, or one that the device has no instructions for.
    """
    if precision not in ("auto", *PRECISIONS, "int8"):
        raise ValueError(f"precision: expected auto, {', '.join(PRECISIONS)} or int8, got {precision!r}")
    if device.type == "cuda":
        has = {"bf16": torch.cuda.is_bf16_supported(including_emulation=False), "fp16": True, "int8": False}
    else:
        found = getattr(torch.cpu, "get_capabilities", dict)()
        needed = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": (), "int8": ("avx512_vnni", "amx_int8")}
        has = {name: any(found.get(one, False) for one in any_of) for name, any_of in needed.items()}
    if precision == "auto":
        return "bf16" if has["bf16"] else "float32"
    if not has.get(precision, True):
        raise ValueError(
            f"precision: {precision} has no fast instructions on this {device.type}; expected float32 or auto"
        )
    return precision


def prepare(
    model: Model, precision: str, compile: bool, calibration: Iterable[Mapping[str, Any]] | None = None
) -> Model:
    """See `SohoPreTrainedModel.prepare_for_inference`."""
    precision = prepared_type(precision, model.device)
    if (precision == "int8") != (calibration is not None):
        raise ValueError(
            "calibration: expected batches with precision='int8', and none otherwise, got "
            f"{'none' if calibration is None else 'some'} with precision={precision!r}"
        )
    if compile and precision == "int8":
        raise ValueError("compile: int8 layers call their kernels themselves; expected compile=False with int8")
    wanted = {"precision": precision, "compile": compile}
    if model.prepared is not None:
        if model.prepared != wanted:
            raise ValueError(
                f"prepare_for_inference: the model is prepared with {_said(model.prepared)}, and can't be again with "
                f"{_said(wanted)}; load it anew"
            )
        return model
    model.eval().requires_grad_(False).float()
    base = model.base()
    (speed_up_on_cpu if base.device.type == "cpu" else speed_up_on_gpu)(model)
    # Ranges are found in float32.
    dtype = torch.float32 if precision == "int8" else PRECISIONS[precision]
    # A compiler lays out the weights itself.
    pack = not compile and torch.backends.mkldnn.is_available()
    _prepare_visual_encoder(base, partial(FusedConv2d, dtype=dtype, pack=pack), dtype)
    _prepare_encoder(base, partial(FusedLinear, dtype=dtype, pack=pack), dtype)
    if base.visual_dictionary is not None:
        prepare_dictionary(base.visual_dictionary)
    base.transform = partial(_transform, base)
    base.forward = partial(_float32_states, base, base.forward)
    model.forward = partial(_by_itself, base, model.forward)
    # Where the calibration fails it stays what it is by then.
    base.prepared = model.prepared = wanted if calibration is None else {**wanted, "precision": "float32"}
    if calibration is not None:
        dtype = PRECISIONS[prepared_type("auto", model.device)]
        to_int8(base, calibration, partial(_compute, model), dtype)
        base.visual_encoder.features_type = dtype
        base.prepared = model.prepared = wanted
    if compile:
        base.visual_encoder.backbone.compile(dynamic=True)
        model.compile_transformer()
    return model


@torch.no_grad()
def _compute(model: SohoPreTrainedModel, batch: Mapping[str, Any]) -> None:
    given = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    if given.get("input_ids") is None:
        model.encode_images(given["pixel_values"], given.get("pixel_mask"))
    else:
        model(**given)


def _said(prepared: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in prepared.items())


def _prepare_visual_encoder(base: SohoModel, fuse: Callable[..., FusedConv2d], dtype: torch.dtype) -> None:
    encoder = base.visual_encoder
    encoder.backbone = FusedBackbone(encoder.backbone, fuse)
    # Features are float32 from here to the dictionary: a code that is nearest by little stays so.
    encoder.projection = fuse(encoder.projection, None, dtype=torch.float32)
    encoder.features_type = dtype
    official = isinstance(encoder, OfficialVisualEncoder)
    encoder.__class__ = PreparedOfficialVisualEncoder if official else PreparedVisualEncoder


def _prepare_encoder(base: SohoModel, fuse: Callable[..., FusedLinear], dtype: torch.dtype) -> None:
    """BERT's layers in place: constant weights, GELU with the product before it."""
    for layer in base.encoder.layer:
        attention, intermediate = layer.attention.self, layer.intermediate
        for name in ("query", "key", "value"):
            setattr(attention, name, fuse(getattr(attention, name)))
        layer.attention.output.dense = fuse(layer.attention.output.dense)
        layer.output.dense = fuse(layer.output.dense)
        is_gelu = base.config.hidden_act == "gelu"
        intermediate.dense = fuse(intermediate.dense, "gelu" if is_gelu else None)
        if is_gelu:
            intermediate.intermediate_act_fn = nn.Identity()
        if base.device.type != "cpu":
            # On a CPU LayerNorm takes states of one type and weights of another, and computes in float32 either way.
            layer.to(dtype)


def _transform(base: SohoModel, states_PTD: Tensor, real_PT: Tensor, **kwargs: Any) -> Tensor:
    """As `SohoModel.transform`; float32 in and out."""
    dtype = base.encoder.layer[-1].attention.self.query.weight.dtype
    return type(base).transform(base, states_PTD.to(dtype), real_PT, **kwargs).float()


def _float32_states(base: SohoModel, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    """The base model's forward with float32 states for the heads."""
    outputs = forward(*args, **kwargs)
    if isinstance(outputs, tuple):
        return (outputs[0].float(), *outputs[1:])
    outputs.last_hidden_state = outputs.last_hidden_state.float()
    return outputs


def _by_itself(base: SohoModel, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    """A forward in its own types, also under autocast, which makes no graph and refuses inputs that ask for one."""
    refuse_gradient(*args, *kwargs.values())
    with torch.no_grad(), torch.autocast(base.device.type, enabled=False):
        return forward(*args, **kwargs)
