"""How long a step takes on a card, and what bounds it.

A kernel takes as long as its products, at a share of the card's peak, or as its tensors take through the card's memory,
whichever is longer (Williams et al. 2009). Kernels, the optimiser and collectives follow one another: nothing overlaps.
"""

from soho_fast.plan.cards import MACHINE, Card
from soho_fast.plan.fake import PARTS, StepCost

BOUNDS = ("compute", "memory bandwidth", "interconnect")
Seconds = dict[str, dict[str, float]]
"""Seconds by part and by what bounds them, of `BOUNDS`."""


def kernel_seconds(cost: StepCost, card: Card, times: int = 1) -> Seconds:
    """Those of `times` micro-batches.

    Args:
        cost: What a micro-batch takes, in a precision that the card has.
        card: The GPU.
        times: Micro-batches of a step.
    """
    found: Seconds = {part: dict.fromkeys(BOUNDS, 0.0) for part in PARTS}
    for kernel, number in cost.kernels.items():
        share = card.efficiency["CNN" if kernel.part in ("backbone", "neck") else "Transformer"]
        compute = kernel.operations / (card.peak[kernel.precision] * share)
        moving = kernel.bytes / card.bandwidth
        bound = "compute" if compute > moving else "memory bandwidth"
        found[kernel.part][bound] += times * number * max(compute, moving)
    return found


def optimizer_seconds(states: dict[str, int], card: Card) -> Seconds:
    """Those of a step of the optimiser, which reads and writes what it holds once.

    Args:
        states: Bytes on a rank, as `memory.states` gives them.
        card: The GPU.
    """
    names = ("parameters", "gradients", "float32 copy of the parameters", "moments of the optimiser")
    moved = 2 * sum(states[name] for name in names)
    return {"optimiser": {**dict.fromkeys(BOUNDS, 0.0), "memory bandwidth": moved / card.bandwidth}}


def collective_seconds(collectives: dict[str, int], stage: int, gpus: int, card: Card) -> Seconds:
    """Those of a step's collectives in rings, in which a GPU sends (N - 1) / N of a reduced or gathered part, and of
    what all sum that twice.

    Args:
        collectives: Bytes that a rank gives into them, as `memory.exchanged` and `exchanged_by_model` name them.
        stage: ZeRO stage; stage 3 reduces gradients to those whose they are, DeepSpeed's other stages sum them for all.
        gpus: N, over machines of `MACHINE`.
        card: Each of the GPUs.
    """
    once = {"parameters, gathered"} | ({"gradients, reduced"} if stage == 3 else set())
    sent = sum(value * (1 if name in once else 2) for name, value in collectives.items()) * (gpus - 1) / gpus
    rate = min(card.interconnect, card.network) if gpus > MACHINE else card.interconnect
    return {"collectives": {**dict.fromkeys(BOUNDS, 0.0), "interconnect": sent / rate}}
