"""The engine's part of a recipe: typed, each field explained once, here, for readers and for `--help`."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

from soho_fast.common.errors import UserError
from soho_fast.common.import_path import is_import_path
from soho_fast.common.spelling import did_you_mean

if TYPE_CHECKING:  # which sees no type in what a function makes
    ShareBelowOne = float
    Seed = int
    NumProcesses = int
else:
    # Ranks draw with seeds of their own beside it, which are numbers of 64 bits too.
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**62)])
    NumProcesses = restricted_number_type("NumProcesses", int, [(">=", 0), ("<=", 256)])
    ShareBelowOne = restricted_number_type("ShareBelowOne", float, [(">=", 0), ("<", 1)])


@dataclass
class OptimSettings:
    """Optimiser: SGD with momentum 0.9 for the backbone, AdamW for the rest.

    Args:
        lr: Learning rate of all but the backbone (paper, section 4.1).
        weight_decay: Weight decay of all but the backbone, decoupled (paper, section 4.1).
        beta2: Share of AdamW's second moment that stays in a step (the released code's; that of the first is 0.9).
        eps: AdamW's epsilon, added to the root of the second moment (the released code's), under adamw the corrected
            one.
        rule: Rule for all but the backbone (paper, section 4.1: adamw). adamw is torch's; bert_adamw that of BERT's
            first PyTorch code, with epsilon beside the root of the uncorrected second moment, and decay of the new
            value. Or the import path of a torch.optim.Optimizer: torch.optim:Adagrad. It gets lr and weight_decay, and
            no other value here. Two with a / between them are for the Transformer's matrices and for the rest, as
            muon/adamw (ours; steps of AdamW's size, so of the same rate).
        backbone_rule: Rule for the backbone: sgd, with momentum 0.9, adamw, or an import path (paper, section 4.1:
            sgd).
        backbone_lr: Learning rate of the backbone (paper, section 4.1).
        backbone_weight_decay: Weight decay of the backbone (paper, section 4.1); L2 under sgd, decoupled under adamw.
        clip: Largest global gradient norm; 0 switches clipping off (the released code's).
        frozen_backbone_epochs: Epochs [from, until] in which the backbone is kept frozen; `end` is the end of the run,
            [0, 0] never (paper, section 4.1).
        backbone_warmup_steps: Steps in which the backbone's rate warms up again from where it is unfrozen (ours). Its
            decay, if `cosine` or `linear`, begins there too; one that follows `max_minutes` counts from the start.
        thawed_backbone_factor: Factor on the backbone's rate from where it is unfrozen (ours).
    """

    lr: NonNegativeFloat = 1e-4
    weight_decay: NonNegativeFloat = 1e-2
    beta2: ShareBelowOne = 0.999
    eps: NonNegativeFloat = 1e-6
    rule: str = "adamw"
    backbone_rule: str = "sgd"
    backbone_lr: NonNegativeFloat = 1e-2
    backbone_weight_decay: NonNegativeFloat = 5e-4
    clip: NonNegativeFloat = 10.0
    frozen_backbone_epochs: tuple[float, float | Literal["end"]] = (0.0, 0.0)
    backbone_warmup_steps: NonNegativeInt = 0
    thawed_backbone_factor: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        of_matrices, of_rest = self.rules()
        named = ("adamw", "bert_adamw")
        for name, rule, rules in (
            ("rule", of_matrices, (*named, "muon") if "/" in self.rule else named),
            ("rule", of_rest, named),
            ("backbone_rule", self.backbone_rule, ("sgd", "adamw")),
        ):
            if rule not in rules and not is_import_path(rule):
                similar = did_you_mean(rule, rules) or "; one of torch's is written torch.optim:Adagrad"
                similar = "; muon is for matrices: muon/adamw" if rule == "muon" else similar
                raise UserError(f"optim.{name}: expected one of {', '.join(map(repr, rules))}, got {rule}{similar}")

    def rules(self) -> tuple[str, str]:
        """`rule` for the Transformer's matrices, and for the rest of all but the backbone."""
        of_matrices, _, of_rest = self.rule.partition("/")
        return of_matrices, of_rest or of_matrices

    def frozen_span(self) -> tuple[float, float]:
        """`frozen_backbone_epochs` as numbers. Raises UserError: they are no span."""
        begin, until = self.frozen_backbone_epochs
        end = math.inf if until == "end" else until
        if not 0 <= begin <= end:
            raise UserError(f"optim.frozen_backbone_epochs: expected 0 <= from <= until, got [{begin:g}, {end:g}]")
        return begin, end


@dataclass
class ScheduleSettings:
    """Learning rate over time, as a factor on every group's own rate.

    Args:
        warmup_steps: Steps of linear warm-up (the released code's).
        warmup_start: Factor at the first step of the warm-up (the released code's).
        decay: Shape after the warm-up (paper, section 4.1: step). `step` multiplies by `step_factor` at each of
            `step_epochs`; `cosine` and `linear` fall to `end_factor` at the last step; `constant` does not fall.
        step_epochs: Epochs, or parts of them, at which `step` decays (paper, section 4.1).
        step_factor: Multiplier of `step` (paper, section 4.1).
        end_factor: Factor that `cosine` and `linear` end at (ours).
    """

    warmup_steps: NonNegativeInt = 1000
    warmup_start: ClosedUnitInterval = 1 / 3
    decay: Literal["step", "cosine", "linear", "constant"] = "step"
    step_epochs: list[float] = field(default_factory=lambda: [25.0, 35.0])
    step_factor: NonNegativeFloat = 0.1
    end_factor: NonNegativeFloat = 0.0


@dataclass
class BatchSettings:
    """How a global batch is made.

    Args:
        global_batch_size: Images in one optimiser step, over all processes and accumulated micro-batches.
        gradient_accumulation_steps: Micro-batches accumulated per optimiser step. One process sees
            global_batch_size / (gradient_accumulation_steps * processes) images at a time.
        group_by_aspect_ratio: Within a global batch of several micro-batches, put images of like shapes together, which
            saves padding; `orientation` instead makes every micro-batch of images wider than high, or of others, never
            of both. Shapes are read from the images' files when a run starts.
        workers: Loader processes for each training process, and as many while it evaluates; 0 loads in the process
            itself.
        corrupt_images: Largest share of unreadable images among those that were seen, each counted once (and these as
            at least 1000, all processes together), before training stops and lists them.
    """

    global_batch_size: PositiveInt = 16
    gradient_accumulation_steps: PositiveInt = 1
    group_by_aspect_ratio: bool | Literal["orientation"] = True
    workers: NumProcesses = 1
    corrupt_images: ClosedUnitInterval = 0.01


@dataclass
class EngineSettings:
    """DeepSpeed: precision, partitioning, memory.

    Args:
        precision: `auto` takes bf16 on a GPU that has it, else fp16, and float32 on a CPU, the same on every CPU. One
            that the device does not have is emulated, slowly.
        zero_stage: ZeRO stage; 1 partitions optimiser states, 2 gradients too, 3 parameters too. 0 partitions
            nothing: parameters and gradients are float32 then, in bf16 too (autocast); fp16 takes at least 1.
        activation_checkpointing: Compute the Transformer's activations again in the backward pass to save memory.
        freeze_batch_norm: Keep the backbone's BatchNorm in evaluation mode, as it is anyway while the backbone is
            frozen. A backbone that learns by a BatchNorm which nothing centres can carry all features away together.
        timeout_seconds: How long a process waits for another in a collective of gloo or NCCL before all end, as where
            one is suspended or hangs; 0: for good. It must be longer than what one process does alone while the others
            wait (reading the data, writing the model). One that is killed ends the others at once.
        feature_cache_gb: While the backbone is frozen (`optim.frozen_backbone_epochs`) for more than one pass over the
            images, its features of each are computed once and cached in memory, if all of them take at most so many GB
            on each machine; 0 never.
    """

    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 0
    activation_checkpointing: bool = False
    freeze_batch_norm: bool = False
    timeout_seconds: NonNegativeFloat = 1800.0
    feature_cache_gb: NonNegativeFloat = 4.0


@dataclass
class CheckpointSettings:
    """Checkpoints: complete, atomic, pruned.

    Args:
        every_steps: Save every this many steps; 0 leaves it to `every_minutes`.
        every_minutes: Save when this many minutes have passed since the last save; 0 leaves it to `every_steps`.
        keep: Newest checkpoints kept, beside the newest sound one; 0 keeps all.
    """

    every_steps: NonNegativeInt = 0
    every_minutes: NonNegativeFloat = 10.0
    keep: NonNegativeInt = 2


@dataclass
class LogSettings:
    """What is shown and written while training.

    Args:
        every_steps: Steps between records in log.jsonl and TensorBoard.
        trackers: Modules of wandb's shape (wandb, trackio) that get the records too, by their importable names, or
            classes by their import paths, my.module:MyCallback.
    """

    every_steps: PositiveInt = 10
    trackers: list[str] = field(default_factory=list)


@dataclass
class EvaluationSettings:
    """Metrics on held-out data.

    Args:
        at_end: Evaluate when training is done.
        every_epochs: Also evaluate in full every this many epochs, after a checkpoint is saved; 0 never. A task that
            selects the best model then keeps the best one in `best/`, beside the last one in `model/`.
        quick_every_steps: Also take a quick evaluation every this many steps; 0 never.
    """

    at_end: bool = True
    every_epochs: NonNegativeFloat = 0.0
    quick_every_steps: NonNegativeInt = 0


@dataclass
class TrainSettings:
    """The part of a recipe that every task shares.

    Args:
        output: Folder of the run; runs/<recipe> when empty.
        epochs: Passes over the training data.
        max_steps: Stop after this many steps, if fewer than `epochs` gives; 0 for no such limit.
        max_minutes: Stop after this many minutes of training; 0 for no such limit. `cosine` and `linear` schedules
            then end with whichever of steps and time ends first.
        seed: Seed of initialisation, data order, masking and dropout.
        resume: `auto` continues from the newest complete checkpoint where there is one; true demands one; false
            starts again. Settings other than it was trained with are refused; `changed` demands one and goes on from
            it with them, and the log records it.
        optim: Optimiser.
        schedule: Learning-rate schedule.
        batch: Batches and loading.
        engine: DeepSpeed.
        checkpoint: Checkpoints.
        log: Logs.
        evaluation: Evaluation.
    """

    output: str = ""
    epochs: PositiveFloat = 40.0
    max_steps: NonNegativeInt = 0
    max_minutes: NonNegativeFloat = 0.0
    seed: Seed = 0
    resume: bool | Literal["auto", "changed"] = "auto"
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    log: LogSettings = field(default_factory=LogSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        if self.engine.zero_stage == 3 and "muon" in self.optim.rules():
            raise UserError(
                f"optim.rule: {self.optim.rule} needs whole matrices, which engine.zero_stage 3 cuts; expected stage "
                "0, 1 or 2"
            )
