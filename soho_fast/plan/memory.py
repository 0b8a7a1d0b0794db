"""Memory of a rank and bytes between ranks, by ZeRO stage: what DeepSpeed 0.19.8 keeps and sends.

P trainable parameters, N ranks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from soho_fast.model import SohoConfig, SohoPreTrainedModel

# DeepSpeed's defaults of reduce_bucket_size and stage3_max_live_parameters, elements: deepspeed/runtime/zero/config.py.
BUCKET = 500_000_000
MOST_LIVE = 1_000_000_000


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model.

    Args:
        backbone, rest: Trainable parameters of the two groups, elements.
        frozen: Parameters that are never trained.
        buffers: Bytes.
    """

    backbone: int
    rest: int
    frozen: int
    buffers: int

    @classmethod
    def of(cls, model: SohoPreTrainedModel) -> "Sizes":
        """Those of a model, each parameter once."""
        groups = {"backbone": 0, "rest": 0}
        for group in model.parameter_groups():
            groups[group["kind"]] += _count(group["params"])
        trained = sum(groups.values())
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
        return cls(**groups, frozen=_count(model.parameters()) - trained, buffers=buffers)

    @property
    def trained(self) -> int:
        """Trainable parameters."""
        return self.backbone + self.rest


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def states(sizes: Sizes, stage: int, precision: str, ranks: int, *, backbone_rule: str) -> dict[str, int]:
    """Bytes on a rank beside activations, by what they are.

    Args:
        sizes: The model's.
        stage: ZeRO stage that runs.
        precision: "float32", "bf16" or "fp16".
        ranks: N.
        backbone_rule: "sgd" (one momentum) or "adamw" (two moments).
    """
    size = element_size(precision, stage)
    trained, everything = sizes.trained, sizes.trained + sizes.frozen
    share = ranks if stage else 1
    parameters = size * everything
    if stage == 3:
        # Gathered parameters stay until twice `MOST_LIVE` others came by, so those of a smaller model stay all.
        parameters = parameters // ranks + size * min(everything, MOST_LIVE)
    moments = (1 if backbone_rule == "sgd" else 2) * sizes.backbone + 2 * sizes.rest
    return {
        "parameters": parameters,
        "buffers": sizes.buffers,
        "gradients": size * trained // (ranks if stage >= 2 else 1),
        "float32 copy of the parameters": 4 * trained // share if stage else 0,
        "moments of the optimiser": 4 * moments // share,
        "DeepSpeed's bucket of gradients": size * BUCKET if stage else 0,
    }


def step_extra(sizes: Sizes, stage: int, ranks: int) -> int:
    """Bytes that the optimiser's step takes for a while, when activations are gone: gradients in float32 of what a rank
    updates, at stage 0 the bucket that they are reduced in."""
    return 4 * sizes.trained // ranks if stage else 4 * min(sizes.trained, BUCKET) * (ranks > 1)


def element_size(precision: str, stage: int) -> int:
    """Bytes of a parameter and of a gradient: at stage 0 bf16 is autocast over float32."""
    return 4 if precision == "float32" or not stage else 2


def exchanged(
    sizes: Sizes, stage: int, precision: str, ranks: int, micro_batches: int, gradients: int | None = None
) -> dict[str, int]:
    """Bytes that a rank gives into collectives in an optimiser step, by what they are; without ranks none.

    Args:
        sizes, stage, precision, ranks: As in `states`.
        micro_batches: Micro-batches that a step accumulates.
        gradients: Elements of the parameters that get a gradient; by default all that are ever trained.
    """
    if ranks == 1:
        return {}
    size, times = element_size(precision, stage), micro_batches if stage >= 2 else 1
    found = {"gradients, reduced": size * (sizes.trained if gradients is None else gradients) * times}
    if stage:
        found["parameters, gathered"] = size * sizes.trained * (micro_batches if stage == 3 else 1)
    return found


def exchanged_by_model(config: SohoConfig, num_losses: int, micro_batches: int, *, watched: bool) -> dict[str, int]:
    """Bytes that the model itself all-reduces in a step: dictionary, statistics of tokens, sums of the losses.

    Args:
        config: The model's.
        num_losses: Losses that are summed over all ranks.
        micro_batches: Micro-batches that a step accumulates.
        watched: Whether `FeatureWatch` is on, as in pre-training.
    """
    C, found = config.hidden_size, {}
    if config.use_dictionary and config.use_dictionary_output:
        found["dictionary"] = 4 * config.num_levels * config.num_codes * (C + 1)
        if config.dictionary_follow != "none":
            found["dictionary"] += 4 * C
    if config.dictionary_batch_norm:
        # C + 1 and C of each micro-batch, forward and backward, and 2 C + 1 of the step.
        found["BatchNorm of the tokens"] = 4 * (2 * (2 * C + 1) * micro_batches + 2 * C + 1)
    if watched:
        found["features, watched"] = 4 * (2 * C + 5)
    if num_losses:
        found["losses"] = 4 * 2 * num_losses * micro_batches
    return found
