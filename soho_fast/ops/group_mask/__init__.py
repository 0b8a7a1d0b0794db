"""Grouped masking for masked visual modelling: draw one present label per image, mask all its tokens.

Letters: B images, L tokens per image, C channels.
"""

from typing import Any

import torch
from torch import Tensor

from soho_fast.ops import checks
from soho_fast.ops.backends import define_op, has_gradient, mark_changed, op_for
from soho_fast.ops.group_mask import reference


def sample_group(
    index: Tensor,
    *,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """For each image, one label drawn uniformly from the labels present at its valid positions. No host sync.

    The target is the floor(u * n)-th of the n distinct labels in ascending order, with u uniform in [0, 1).

    Args:
        index: int64 (B, L); negative entries (padding) are not present.
        valid: bool (B, L), True at real positions.
        generator: source of u, on the device of index.
        uniform: float64 (B,) in [0, 1), given instead of drawn; then the result depends on neither rank nor device.
        backend: "reference", "cpu", "triton", "cuda"; None picks the best that supports the call.

    Returns:
        target int64 (B,); -1 where no label is present.

    Raises:
        TypeError, ValueError: types, shapes or devices that do not fit, both generator and uniform, or on a CPU a
            uniform outside [0, 1).
    """
    checks.check_type("index", index, (torch.int64,))
    if index.dim() != 2:
        raise ValueError(f"index: expected 2 dimensions (B, L), got shape {tuple(index.shape)}")
    checks.check_valid(valid, index.shape, "(B, L) like index")
    is_given = uniform is not None
    if uniform is None:
        uniform = torch.rand(index.shape[0], dtype=torch.float64, device=index.device, generator=generator)
    elif generator is not None:
        raise ValueError("uniform: expected either uniform or generator, got both")
    checks.check_type("uniform", uniform, (torch.float64,))
    checks.check_shape("uniform", uniform, index.shape[:1], "(B,)")
    checks.check_same_device(index=index, valid=valid, uniform=uniform)
    if is_given:
        checks.check_uniform(uniform)
    op = op_for("sample_group", backend, index.device)
    return op(index, valid, uniform.detach())


def group_mask(
    features: Tensor,
    index: Tensor,
    mask_token: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace every token of image b whose index equals `target[b]` by `mask_token`.

    Differentiable in features (zero at the masked tokens) and mask_token (the sum over the masked tokens), any
    number of times.

    Args:
        features: (B, L, C) float32, bfloat16 or float16.
        index: int64 (B, L).
        mask_token: (C,), converted to the type of features.
        target: int64 (B,), such as from `sample_group`; a negative one masks nothing in that image.
        valid: bool (B, L), True at real positions; others are never masked.
        inplace: write into features, touching only the masked tokens. Like any in-place operation of torch this is
            refused on a leaf that requires a gradient.
        backend: as in `sample_group`.

    Returns:
        masked (B, L, C), which is features itself if inplace, and labels int64 (B, L): the index at masked tokens, -100
        elsewhere.

    Raises:
        TypeError, ValueError: types, shapes or devices that do not fit; in place also features whose elements share
            memory (an expanded tensor, an overlapping view) and a leaf that requires a gradient.
    """
    checks.check_type("features", features)
    if features.dim() != 3:
        raise ValueError(f"features: expected 3 dimensions (B, L, C), got shape {tuple(features.shape)}")
    checks.check_type("mask_token", mask_token)
    checks.check_index("index", index, features.shape[:2], "(B, L)")
    checks.check_shape("mask_token", mask_token, features.shape[2:], "(C,)")
    checks.check_index("target", target, features.shape[:1], "(B,)")
    checks.check_valid(valid, features.shape[:2], "(B, L) like index")
    checks.check_same_device(features=features, index=index, mask_token=mask_token, target=target, valid=valid)
    # Before the op, so that autograd takes the gradient back through the cast.
    mask_token = mask_token.to(features.dtype)
    if not inplace:
        return op_for("group_mask", backend, features.device)(features, index, mask_token, target, valid)
    checks.check_writable("features", features, "pass inplace=False or a copy")
    op = op_for("group_mask_", backend, features.device)
    differentiable = has_gradient(features, mask_token)
    if differentiable and features.requires_grad and features.is_leaf:
        raise ValueError(
            "features: a leaf that requires a gradient cannot be masked in place; pass inplace=False or a tensor "
            "computed from it"
        )
    if differentiable:
        return _GroupMaskInPlace.apply(features, index, mask_token, target, valid, backend)
    labels = op(features, index, mask_token, target, valid)
    mark_changed(features)
    return features, labels


def _fake(
    features: Tensor, index: Tensor, mask_token: Tensor, target: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), torch.empty_like(index, memory_format=torch.contiguous_format)


def _fake_inplace(features: Tensor, index: Tensor, mask_token: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    return torch.empty_like(index, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, labels_BL = output
    ctx.mark_non_differentiable(labels_BL)
    ctx.save_for_backward(labels_BL)


def _backward(ctx: Any, grad_masked: Tensor, grad_labels: Tensor | None) -> tuple[Tensor | None, ...]:
    (labels_BL,) = ctx.saved_tensors
    # Where nothing was masked the label is -100: labels alone say which tokens were.
    hit_BL1 = (labels_BL >= 0).unsqueeze(-1)
    grad_features = grad_token = None
    if ctx.needs_input_grad[0]:
        grad_features = torch.where(hit_BL1, 0.0, grad_masked)
    if ctx.needs_input_grad[2]:
        # Added in float32 and rounded once, whatever type the features have.
        grad_token = torch.where(hit_BL1, grad_masked, 0.0).float().sum((0, 1)).to(grad_masked.dtype)
    return grad_features, None, grad_token, None, None


class _GroupMaskInPlace(torch.autograd.Function):
    """The in-place form with its gradient; torch.library gives gradients to functional ops only."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        *inputs, backend = others
        labels_BL = op_for("group_mask_", backend, features.device)(features, *inputs)
        # Makes autograd count the write and take the gradient of `features` from here.
        ctx.mark_dirty(features)
        _setup(ctx, (), (features, labels_BL))
        return features, labels_BL

    @staticmethod
    def backward(ctx: Any, grad_masked: Tensor, grad_labels: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, grad_masked, grad_labels), None


define_op(
    "sample_group",
    "(Tensor index, Tensor? valid, Tensor uniform) -> Tensor",
    reference=reference.sample_group,
    fake=lambda index, valid, uniform: index.new_empty(index.shape[:1]),
)
define_op(
    "group_mask",
    "(Tensor features, Tensor index, Tensor mask_token, Tensor target, Tensor? valid) -> (Tensor, Tensor)",
    reference=reference.group_mask,
    fake=_fake,
    backward=_backward,
    setup_context=_setup,
)
define_op(
    "group_mask_",
    "(Tensor(a!) features, Tensor index, Tensor mask_token, Tensor target, Tensor? valid) -> Tensor",
    reference=reference.group_mask_,
    fake=_fake_inplace,
)
