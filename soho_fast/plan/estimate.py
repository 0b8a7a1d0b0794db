"""A plan: operations, memory, traffic and hours of a recipe on some cards."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from soho_fast.engine.distributed import zero_stage
from soho_fast.plan import memory
from soho_fast.plan.cards import GIB, MACHINE, Card, Rates
from soho_fast.plan.fake import DTYPES, StepCost, fake_model, run_step
from soho_fast.plan.recipes import Work
from soho_fast.plan.roofline import BOUNDS, Seconds, collective_seconds, kernel_seconds, optimizer_seconds

WORKSPACE_SHARE = 0.1
CONTEXT = GIB
PIXEL_BYTES = 4
"""Three colours and the mask; the device makes floats of the colours."""


@dataclass
class Phase:
    """A span of the run in which the same is trained.

    Args:
        gradients: Elements that are reduced over the ranks.
        mfu: The fraction of the peak that its operations reach.
    """

    name: str
    epochs: float
    cost: StepCost
    gradients: int
    seconds: Seconds
    step_seconds: float
    hours: float | None
    mfu: float
    readers: dict[str, float]

    @property
    def by_bound(self) -> dict[str, float]:
        """Seconds of a step by what bounds them."""
        return {bound: sum(part[bound] for part in self.seconds.values()) for bound in BOUNDS}

    @property
    def bound(self) -> str:
        """What bounds most of a step."""
        return most_bounding([self])


def most_bounding(phases: list[Phase]) -> str:
    """What bounds most of the time that phases take."""
    return max(BOUNDS, key=lambda bound: sum(phase.epochs * phase.by_bound[bound] for phase in phases))


@dataclass
class Plan:
    """All figures; bytes, seconds, operations (multiplications and additions)."""

    recipe: str
    card: Card
    gpus: int
    precision: str
    zero_stage: int
    micro_batch: int
    gradient_accumulation_steps: int
    steps_per_epoch: int | None
    parameters: memory.Sizes
    phases: list[Phase]
    memory: dict[tuple[int, bool], dict[str, int]]
    activation_checkpointing: bool
    collectives: dict[str, int]
    changes: list[str] = field(default_factory=list)
    assumed: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def total_memory(self) -> int:
        """Bytes on a rank, as the recipe has it."""
        return self.memory[self.zero_stage, self.activation_checkpointing]["in all"]

    @property
    def fits(self) -> bool:
        """Whether the recipe's step fits the card."""
        return self.total_memory <= self.card.memory

    @property
    def hours(self) -> float | None:
        """Of all epochs; None where the size of an epoch is not known."""
        known = [phase.hours for phase in self.phases if phase.hours is not None]
        return sum(known) if len(known) == len(self.phases) else None


def make_plan(costs: "Costs", card: Card, rates: Rates) -> Plan:
    """The plan of a recipe on some of these cards.

    Args:
        costs: What a micro-batch takes, in a precision that the card has.
        card: Each of the GPUs.
        rates: What is taken of rates.
    """
    work, precision, stage = costs.work, costs.precision, costs.stage
    recipe, gpus = work.recipe, work.batches.world
    checkpointing = bool(recipe.engine.activation_checkpointing)
    sizes = memory.Sizes.of(costs.model)
    micro_batch = work.batches.micro_batch_size
    peaks = {each: costs.of(work.largest, each).peak for each in (False, True)}

    def on_rank(stage: int, checkpointing: bool, images: float = micro_batch) -> dict[str, int]:
        peak = round(peaks[checkpointing] * images / micro_batch)
        found = memory.states(sizes, stage, precision, gpus, backbone_rule=recipe.optim.backbone_rule)
        held, workspace = sum(found.values()), round(WORKSPACE_SHARE * peak)
        found |= {"activations and gradients of them": peak, "workspace": workspace, "context": CONTEXT}
        found["in all"] = held + CONTEXT + max(peak + workspace, memory.step_extra(sizes, stage, gpus))
        return found

    # Stage 0 computes in other types (autocast), of which other activations come.
    stages = [1, 2, 3] if stage else [0]
    table = {(each, ck): on_rank(each, ck) for each in stages for ck in (False, True)}
    steps = work.batches.steps_per_epoch if work.samples else None
    num_losses = {"pretraining": 3 if work.config.use_dictionary else 2}.get(recipe.task, 1)
    times, watched = work.batches.gradient_accumulation_steps, recipe.task == "pretraining"
    of_model = memory.exchanged_by_model(work.config, num_losses, times, watched=watched) if gpus > 1 else {}

    def traffic(gradients: int) -> dict[str, int]:
        return memory.exchanged(sizes, stage, precision, gpus, times, gradients) | of_model

    def beside_kernels(gradients: int) -> Seconds:
        return optimizer_seconds(table[stage, checkpointing], card) | collective_seconds(
            traffic(gradients), stage, gpus, card
        )

    phases = _phases(costs, card, rates, steps, sizes, beside_kernels)
    plan = Plan(
        recipe=work.name,
        card=card,
        gpus=gpus,
        precision=precision,
        zero_stage=stage,
        micro_batch=micro_batch,
        gradient_accumulation_steps=times,
        steps_per_epoch=steps,
        parameters=sizes,
        phases=phases,
        memory=table,
        activation_checkpointing=checkpointing,
        collectives=traffic(phases[-1].gradients),
        assumed=work.assumed,
    )
    plan.changes = _advice(plan, work, on_rank)
    _assume(plan, work, rates)
    return plan


class Costs:
    """What micro-batches of a recipe take on a card of some precision, by fake tensors; each is run once.

    Args:
        work: The recipe, in which `engine.zero_stage` may have been replaced.
        precision: "auto" or the recipe's own, as the card has it: "float32", "bf16" or "fp16".

    Raises:
        UserError: the stage does not go with other settings.
    """

    def __init__(self, work: Work, precision: str) -> None:
        self.work, self.precision, self._mode = work, precision, FakeTensorMode()
        self.stage = zero_stage(work.recipe.engine, precision)
        self._autocast = precision == "bf16" and not self.stage
        dtype = torch.float32 if self._autocast else DTYPES[precision]
        self.model = fake_model(work.make_model, dtype, self._mode)
        if work.recipe.engine.freeze_batch_norm is True:
            self.model.freeze_batch_norm(True)
        self._known: dict[tuple, StepCost] = {}

    def of(
        self, size: tuple[int, int], checkpointing: bool, *, frozen: bool = False, words_only: bool = False
    ) -> StepCost:
        """What a micro-batch of images of a size takes, with or without activation checkpointing.

        Args:
            size: Height and width.
            checkpointing: Whether activation checkpointing is on.
            frozen: The CNN is not trained.
            words_only: The CNN alone is trained, by the bag-of-words loss.
        """
        key, num_samples = (size, checkpointing, frozen, words_only), self.work.batches.micro_batch_size
        if key in self._known:
            return self._known[key]
        self.model.freeze_backbone(frozen)
        self.model.bag_of_words_only = words_only
        if checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.activation_checkpointing_disable()
        self._known[key] = run_step(
            self.model,
            partial(self.work.inputs, size, num_samples),
            self._mode,
            num_labelled=self.work.num_labelled(size, num_samples),
            autocast=self._autocast,
        )
        return self._known[key]


def _phases(
    costs: Costs,
    card: Card,
    rates: Rates,
    steps: int | None,
    sizes: memory.Sizes,
    beside_kernels: Callable[[int], Seconds],
) -> list[Phase]:
    """Spans of the run, in order; `beside_kernels` is what a step with so many gradients takes beside its kernels."""
    recipe, batches = costs.work.recipe, costs.work.batches
    epochs = float(recipe.epochs)
    if steps and recipe.max_steps:
        epochs = min(epochs, recipe.max_steps / steps)
    begin, end = (min(epoch, epochs) for epoch in recipe.optim.frozen_span())
    words = min(epochs, float(getattr(recipe.model, "bag_of_words_epochs", 0.0)))
    edges = sorted({0.0, words, begin, end, epochs})
    found: list[Phase] = []
    for low, high in pairwise(edges):
        frozen, words_only = begin <= low < end, low < words
        checkpointing, times = bool(recipe.engine.activation_checkpointing), batches.gradient_accumulation_steps
        cost = costs.of(costs.work.typical, checkpointing, frozen=frozen, words_only=words_only)
        # At stage 0 DeepSpeed reduces zeros for what gets no gradient.
        gradients = cost.gradients if costs.stage else sizes.trained
        seconds = kernel_seconds(cost, card, times) | beside_kernels(gradients)
        total = sum(sum(part.values()) for part in seconds.values())
        name = "bag-of-words loss alone" if words_only else "the CNN is frozen" if frozen else "all is trained"
        hours = None if steps is None else (high - low) * steps * total / 3600
        mfu = times * cost.operations / total / card.peak[costs.precision]
        readers = _readers(costs.work, total, rates)
        found.append(Phase(name, high - low, cost, gradients, seconds, total, hours, mfu, readers))
    return found


def _readers(work: Work, step_seconds: float, rates: Rates) -> dict[str, float]:
    """What the loaders must deliver."""
    gpus = work.batches.world
    images = work.recipe.batch.global_batch_size * work.images_a_sample
    a_second = images / step_seconds
    height, width = work.typical
    return {
        "images_a_second": a_second,
        "images_a_second_a_gpu": a_second / gpus,
        "read_mb_a_second": a_second * rates.file_kb / 1e3,
        "to_device_mb_a_second_a_gpu": a_second / gpus * height * width * PIXEL_BYTES / 1e6,
        "workers_a_gpu": math.ceil(a_second / gpus / rates.data_rate),
    }


def _advice(plan: Plan, work: Work, on_rank: Any) -> list[str]:
    """Changes of the recipe that make it fit, cheapest first; what the readers lack."""
    lines = []
    if not plan.fits:
        tried: list[tuple[list[str], float]] = []
        may_divide = work.task.samples_together is None
        divisors = [n for n in range(2, plan.micro_batch + 1) if may_divide and plan.micro_batch % n == 0]
        more_stages = sorted({each for each, _ in plan.memory if each > plan.zero_stage})
        options = [(plan.zero_stage, True, 1)] if not plan.activation_checkpointing else []
        options += [(plan.zero_stage, plan.activation_checkpointing, n) for n in divisors]
        options += [(each, plan.activation_checkpointing, 1) for each in more_stages]
        options += [(each, True, n) for n in (1, *divisors) for each in (plan.zero_stage, *more_stages)]
        for stage, checkpointing, parts in options:
            total = on_rank(stage, checkpointing, plan.micro_batch / parts)["in all"]
            change = _change(plan, stage, checkpointing, parts)
            if total <= plan.card.memory and not any(set(other) <= set(change) for other, _ in tried):
                tried.append((change, total))
        lines += [f"{' '.join(change)}: {total / GIB:.1f} GiB" for change, total in tried]
        if not tried:
            lines.append("nothing that the recipe can change makes it fit: smaller images, or a smaller model")
    workers = max(phase.readers["workers_a_gpu"] for phase in plan.phases)
    if workers > work.recipe.batch.workers:
        lines.append(f"--batch.workers {workers}: with the recipe's {work.recipe.batch.workers} GPUs wait for images")
    return lines


def _change(plan: Plan, stage: int, checkpointing: bool, parts: int) -> list[str]:
    change = []
    if checkpointing != plan.activation_checkpointing:
        change.append("--engine.activation_checkpointing true")
    if parts > 1:
        change.append(f"--batch.gradient_accumulation_steps {plan.gradient_accumulation_steps * parts}")
    if stage != plan.zero_stage:
        change.append(f"--engine.zero_stage {stage}")
    return change


def _assume(plan: Plan, work: Work, rates: Rates) -> None:
    assumed, card = work.assumed, plan.card
    assumed["peak"] = f"{card.peak[plan.precision] / 1e12:,.0f} TFLOP/s in {plan.precision}", card.source
    shares = ", ".join(f"{part} {share:.0%}" for part, share in card.efficiency.items())
    assumed["efficiency"] = f"{shares} of the peak where memory does not bound", f"{card.efficiency_from}; --efficiency"
    assumed["memory"] = f"{card.bandwidth / 1e9:,.0f} GB/s", "the data sheet; a kernel moves each of its tensors once"
    if plan.gpus > 1:
        links = (
            f"{card.interconnect / 1e9:,.0f} GB/s in a machine of {MACHINE}, {card.network / 1e9:,.4g} beyond, each way"
        )
        assumed["interconnect"] = links, "NVLink, and the InfiniBand of NVIDIA's DGX; --network-gbit"
        overlap = "DeepSpeed's overlap_comm is off at stages 0 to 2; it is on at stage 3, which may be faster"
        assumed["overlap"] = "none: collectives follow the backward pass", overlap
    assumed["a file"] = f"{rates.file_kb:g} KB", "COCO's train2014: 13 GB, 82,783 images (cocodataset.org); --file-kb"
    assumed["images of a loader process"] = f"{rates.data_rate:g} a second", DATA_RATE_FROM
    workspace = "cuDNN's, and what the allocator loses; not measured"
    assumed["workspace"] = f"{WORKSPACE_SHARE:.0%} of the activations", workspace
    assumed["context"] = f"{CONTEXT / GIB:.0f} GiB", "CUDA's and NCCL's own; not measured"
    assumed["gradients"] = "DeepSpeed's default bucket, 500 million of them", "deepspeed/runtime/zero/config.py"
    assumed["attention"] = "memory-efficient, with dropout inside", "what torch takes on a GPU where there is a mask"
    if plan.zero_stage == 3:
        assumed["ZeRO 3"] = "gathered parameters stay", "DeepSpeed's default stage3_max_live_parameters, 1e9"
    if work.recipe.task == "pretraining" and work.config.use_dictionary:
        assumed["codes of an image"] = "used alike", "the number of masked visual tokens follows; it hardly matters"
    if any(phase.name == "the CNN is frozen" for phase in plan.phases):
        less = "where engine.feature_cache_gb caches them it is less"
        assumed["outputs of the backbone while frozen"] = "computed in each epoch", less
    kernels = f"no wait for the host, which starts {sum(plan.phases[-1].cost.kernels.values()):,} kernels a micro-batch"
    assumed["hours"] = "training alone", f"no evaluation, no checkpoints, no start, {kernels}"


DATA_RATE_FROM = (
    "measured: 2.5 ms of one core, AMD EPYC (Zen 5), for a JPEG of 480 x 640 to bytes of 600 x 800, padded "
    "(benchmarks/data); --data-rate"
)
