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
from transformers.models.bert.modeling_bert import BertEncoder

from ...base import SohoPreTrainedModel
from ...config import is_other_backbone
from ...heads import TokenHead, classify
from ...inputs import refuse_gradient
from ...transformer import Pairs, TransformerParts
from ...visual_dictionary import VisualDictionary
from ...visual_encoder import VisualEncoder
from ..cpu import speed_up_on_cpu
from ..cpu.packed_encoder import PackedTransformer
from ..gpu import speed_up_on_gpu
from .dictionary import PackedCodes
from .int8 import to_int8
from .layers import FusedConv2d, FusedLinear, counted
from .visual_encoder import FusedBackbone, PreparedCnn

__all__ = ["PRECISIONS", "prepare_for_inference", "prepared_type"]

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
        found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        needed = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": (), "int8": ("avx512_vnni", "amx_int8")}
        has = {name: any(found.get(one, False) for one in any_of) for name, any_of in needed.items()}
    if precision == "auto":
        return "bf16" if has["bf16"] else "float32"
    if not has.get(precision, True):
        raise ValueError(
            f"precision: {precision} has no fast instructions on this {device.type}; expected float32 or auto"
        )
    return precision


def prepare_for_inference(
    model: Model,
    precision: str = "auto",
    *,
    compile: bool = False,
    calibration: Iterable[Mapping[str, Any]] | None = None,
) -> Model:
    """Makes the model answer faster, in place and for good: it can't be trained, cast or saved any more.

    BatchNorm becomes a part of the convolutions, weights get the type and the layout that is computed in, the
    codebook is packed for lookups. The model is called as before, with inputs and results in float32; the
    dictionary's lookup stays exact for the features that it gets. It may be copied, and moved to a device of the
    same kind. What is packed of weights that are written to later is packed again. A second call like the first changes
    nothing.

    Args:
        model: any of the models; it is a method of theirs.
        precision: of the CNN and the Transformer: "float32"; "bf16", where the processor or the GPU has
            instructions for it; "fp16" on a GPU; or "auto": bf16 if it is there, else float32.
            "int8" on a CPU with VNNI: convolutions and linear layers in eight bits, the rest as in "auto".
        compile: let torch.compile compile CNN and Transformer at their first call, which then takes minutes.
        calibration: for "int8", batches of images and texts as the model is called with, by which the range of each
            layer's input is chosen; some dozens of images do. From batches without texts the CNN alone becomes
            int8.

    Returns:
        The same object, in evaluation mode.

    Raises:
        ValueError: a precision that is unknown or that the device lacks, calibration without "int8" or the
            other way round, the model is prepared otherwise, or has adapters that are not merged.
    """
    precision = prepared_type(precision, model.device)
    if (precision == "int8") != (calibration is not None):
        raise ValueError(
            "calibration: expected batches with precision='int8', and none otherwise, got "
            f"{'none' if calibration is None else 'some'} with precision={precision!r}"
        )
    if compile and precision == "int8":
        raise ValueError("compile: int8 layers call their kernels themselves; expected compile=False with int8")
    if precision == "int8" and is_other_backbone(model.config.backbone):
        raise ValueError(f"precision: int8 is for torchvision's backbones, not {model.config.backbone}; expected auto")
    wanted = {"precision": precision, "compile": compile}
    if model.prepared is not None:
        if model.prepared != wanted:
            raise ValueError(
                f"prepare_for_inference: the model is prepared with {_said(model.prepared)}, and can't be again with "
                f"{_said(wanted)}; load it again"
            )
        return model
    adapted = next((name for name, module in model.named_modules() if hasattr(module, "base_layer")), None)
    if adapted is not None:  # as peft has it; only the weight below it would be read
        raise ValueError(
            f"prepare_for_inference: {adapted} has an adapter, which would be lost; merge it before (merge_and_unload)"
        )
    model.eval().requires_grad_(False).float()
    base = model.base()
    (speed_up_on_cpu if base.device.type == "cpu" else speed_up_on_gpu)(model)
    # Ranges are found in float32.
    dtype = torch.float32 if precision == "int8" else PRECISIONS[precision]
    # A compiler lays out the weights itself.
    pack = not compile and torch.backends.mkldnn.is_available()
    _prepare_visual_encoder(base.visual_encoder, partial(FusedConv2d, dtype=dtype, pack=pack), dtype)
    _prepare_encoder(base.encoder, partial(FusedLinear, dtype=dtype, pack=pack))
    if base.device.type != "cpu":
        # On a CPU LayerNorm takes states of one type and weights of another, and computes in float32 either way.
        base.encoder.to(dtype)
    dictionary = base.visual_dictionary
    if isinstance(dictionary, VisualDictionary):
        # By the codebook's version `PackedCodes` sees when to pack again.
        searched = dictionary.searched
        setattr(dictionary, searched, counted(getattr(dictionary, searched)))
        dictionary.pack = PackedCodes()
    base.transformer = PreparedTransformer()
    _keep_heads_float32(model, base.encoder)
    # Where the calibration fails it stays what it is by then.
    base.prepared = model.prepared = wanted if calibration is None else {**wanted, "precision": "float32"}
    if calibration is not None:
        dtype = PRECISIONS[prepared_type("auto", model.device)]
        to_int8(base.visual_encoder.backbone, base.encoder, calibration, partial(_compute, model), dtype)
        base.visual_encoder.cnn = PreparedCnn(dtype)
        base.prepared = model.prepared = wanted
    if compile:
        base.visual_encoder.backbone.compile(dynamic=True)
        model.compile_transformer()
    return model


@torch.no_grad()
def _compute(model: SohoPreTrainedModel, batch: Mapping[str, Any]) -> None:
    given = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    if given.get("input_ids") is None:
        model.base().encode_images(given["pixel_values"], given.get("pixel_mask"))
    else:
        model(**given)


def _said(prepared: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in prepared.items())


def _prepare_visual_encoder(encoder: VisualEncoder, fuse: Callable[..., FusedConv2d], dtype: torch.dtype) -> None:
    # Of another's network the parts are not known.
    other = hasattr(encoder.backbone, "stage_names")
    encoder.backbone = encoder.backbone.to(dtype) if other else FusedBackbone(encoder.backbone, fuse)
    # Features are float32 from here to the dictionary: a code that is nearest by little stays so.
    encoder.projection = fuse(encoder.projection, None, dtype=torch.float32)
    encoder.cnn = PreparedCnn(dtype)


def _prepare_encoder(encoder: BertEncoder, fuse: Callable[..., FusedLinear]) -> None:
    """BERT's layers in place: constant weights, GELU with the product before it."""
    is_gelu = encoder.config.hidden_act == "gelu"
    for layer in encoder.layer:
        attention, intermediate = layer.attention.self, layer.intermediate
        for name in ("query", "key", "value"):
            setattr(attention, name, fuse(getattr(attention, name)))
        layer.attention.output.dense = fuse(layer.attention.output.dense)
        layer.output.dense = fuse(layer.output.dense)
        intermediate.dense = fuse(intermediate.dense, "gelu" if is_gelu else None)
        if is_gelu:
            intermediate.intermediate_act_fn = nn.Identity()


def _keep_heads_float32(model: SohoPreTrainedModel, encoder: BertEncoder) -> None:
    """All linear layers but the encoder's in their own type, under autocast too."""
    for parent in set(model.modules()) - set(encoder.modules()):
        if isinstance(parent, TokenHead):
            parent.classify = classify
        for name, linear in list(parent.named_children()):
            if type(linear) is nn.Linear:
                setattr(parent, name, Float32Linear(linear))


class Float32Linear(nn.Linear):
    """A linear layer that computes in its own type under autocast too."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class PreparedTransformer(PackedTransformer):
    """The Transformer with constant weights, in their type; float32 goes in and comes out."""

    name = "prepared"

    def __call__(self, soho: TransformerParts, pairs: Pairs, **kwargs: Any) -> Tensor:
        """As `PackedTransformer.__call__`; ValueError: a gradient is asked for."""
        refuse_gradient(pairs.visual.tokens)
        with torch.autocast(pairs.real_PT.device.type, enabled=False):
            hidden_PTD = super().__call__(soho, pairs, **kwargs)
        if pairs.reads is not None:
            pairs.reads.word_table = None  # It serves gradients alone.
        return hidden_PTD.float()

    def encode(self, soho: TransformerParts, states_PTD: Tensor, real_PT: Tensor, **kwargs: Any) -> Tensor:
        """As `TransformerBackend.encode`; ValueError: a gradient is asked for."""
        refuse_gradient(states_PTD)
        dtype = soho.encoder.layer[-1].attention.self.query.weight.dtype
        with torch.autocast(real_PT.device.type, enabled=False):
            return super().encode(soho, states_PTD.to(dtype), real_PT, **kwargs).float()

    def encode_pairs(self, soho: TransformerParts, *states_and_index: Tensor) -> Tensor:
        """As `TransformerBackend.encode_pairs`; ValueError: a gradient is asked for."""
        refuse_gradient(*states_and_index)
        with torch.autocast(states_and_index[0].device.type, enabled=False):
            return super().encode_pairs(soho, *states_and_index)
