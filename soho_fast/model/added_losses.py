"""Losses of a user's own, added to those of a model: each a module with a weight, beside the model's own in its output.

They are of training alone: a saved model holds nothing of them.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from soho_fast.common.errors import UserError


def add_losses(model: Any, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
    """In training, adds `weight * module(outputs, batch)` to the loss of each forward, in place; not while pre-training
    computes the bag-of-words loss alone.

    Args:
        model: any `SohoPreTrainedModel`; its parameters then are those of the modules too.
        losses: by name, under which the forward's output has the value without its weight. A module gets the output of
            the model's forward, and the keywords that it was called with; it returns a floating-point scalar, whose
            mean over the ranks counts.
        weights: by the same names.
    """
    if not losses:
        return
    model.added_losses = nn.ModuleDict(losses)
    state = {f"added_losses.{name}" for name in model.added_losses.state_dict()}
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *state}

    def add(model: Any, args: tuple[Any, ...], batch: dict[str, Any], output: Any) -> None:
        alone = getattr(model, "bag_of_words_only", False)
        if alone or not model.training or getattr(output, "loss", None) is None:
            return
        for name, module in model.added_losses.items():
            value = module(output, batch)
            if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
                came = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"model.losses.{name}: expected a floating-point scalar from its forward, got {came}")
            output[name] = value
            output.loss = output.loss + weights[name] * value

    model.register_forward_hook(add, with_kwargs=True)
