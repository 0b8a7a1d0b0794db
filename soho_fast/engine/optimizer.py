"""The optimiser, which has one rule for the backbone and one for everything else, and the learning rate over time.

DeepSpeed wraps exactly one `torch.optim.Optimizer`, and ZeRO replaces the parameters of its groups by flat float32
partitions and calls `step` with some or all groups emptied (stage 3: once per sub-group). The rule therefore belongs to
the group (`kind`), the state to the tensor, and no step count is shared between tensors. The learning-rate factor is a
pure function of the step, so that a resumed run needs no schedule state.
"""

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from soho_fast.common.errors import UserError
from soho_fast.common.import_path import is_import_path, load_imported
from soho_fast.engine.muon import muon_update
from soho_fast.engine.settings import OptimSettings, ScheduleSettings


class SgdAdamW(torch.optim.Optimizer):
    """SGD with momentum, AdamW, BERT's AdamW or an optimiser of torch or of a user, chosen by each group's `kind`.

    `kind="sgd"`: g += weight_decay * p; buf = momentum * buf + g; p -= lr * buf (torch.optim.SGD, no dampening).
    `kind="adamw"`: decoupled weight decay (Loshchilov and Hutter, 2019), as torch.optim.AdamW.
    `kind="bert_adamw"`: as the first BERT code in PyTorch (transformers.AdamW, which transformers 5 has no more):
    p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), then p -= lr * weight_decay * p. So eps stands beside
    the uncorrected root, where at the first step it weighs 1 / sqrt(1 - b2) = 32 times more, and the decay is that of
    the new value.
    `kind="muon"`: matrices, by `muon_update`, with the decay of AdamW.
    `kind="torch.optim:Adagrad"`, or another import path: an optimiser of that class, for the group's tensors. Under
    ZeRO these are partitions in one dimension, so that it must treat each element alike to train as without.

    A group whose `lr` is 0 is left alone wholly, state included: ZeRO hands zero gradients for frozen parameters and
    runs a trial step at construction, and neither must decay weights, move momentum or count a step.

    Args:
        params: parameter groups; each may hold `kind` (sgd, adamw, bert_adamw, muon or an import path), `lr`,
            `weight_decay` (L2 for SGD, decoupled for the others), `momentum` (SGD only), `betas` and `eps` (both AdamW
            only), `shapes` (muon only, where ZeRO cuts them).

    Raises:
        UserError: there is no such optimiser, or it does not take its keywords, the tensors or a weight decay.
    """

    def __init__(self, params: Iterable[dict]) -> None:
        plain = {"kind": "adamw", "lr": 1e-4, "weight_decay": 1e-2, "momentum": 0.9, "betas": (0.9, 0.999), "eps": 1e-6}
        super().__init__(params, plain)
        # Each steps whatever tensors the groups of its kind have then, with the state that is here.
        self._others = {
            _key(group): self._make_other(group, group["params"])
            for group in self.param_groups
            if is_import_path(group["kind"])
        }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure would be the engine's
        """Update every parameter that has a gradient and sits in a group with lr > 0."""
        for group in self.param_groups:
            if group["lr"] == 0:
                continue
            params = [param for param in group["params"] if param.grad is not None]
            if params and _key(group) in self._others:
                self._step_other(group, params)
            elif params:
                getattr(self, f"_step_{group['kind']}")(group, params)

    def _make_other(self, group: dict, params: list[Tensor]) -> torch.optim.Optimizer:
        place = "optim.backbone_rule" if group.get("backbone") else "optim.rule"
        kind = load_imported(group["kind"], place, torch.optim.Optimizer)
        decay = {"weight_decay": group["weight_decay"]}
        if "weight_decay" not in inspect.signature(kind).parameters:
            if group["weight_decay"]:
                raise UserError(f"{place}: {group['kind']} has no weight decay, got {group['weight_decay']:g}; give 0")
            decay = {}
        closure = inspect.signature(kind.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise UserError(
                f"{place}: {group['kind']} asks for the loss several times a step; expected one that does not"
            )
        try:
            # Groups start with lr 0, which not every optimiser takes; `_step_other` sets the true one before a step.
            return kind(params, lr=group["lr"] or 1e-4, **decay)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{place}: {group['kind']} can't be made of tensors and a rate alone: {reason}") from error

    def _step_other(self, group: dict, params: list[Tensor]) -> None:
        other = self._others[_key(group)]
        # Some begin their state when they are made, others at the first step; ZeRO has put other tensors here since.
        if begun := [param for param in params if param not in self.state]:
            self.state.update(self._make_other(group, begun).state)
        values: dict[str, Any] = {name: group[name] for name in ("lr", "weight_decay") if name in other.defaults}
        # New in each step: ZeRO may have emptied or exchanged the group's tensors, and the rate has moved on.
        other.param_groups = [{**other.defaults, **values, "params": params}]
        other.state = self.state
        other.step()

    def _momentum(self, params: list[Tensor]) -> list[Tensor]:
        for param in params:
            if "momentum_buffer" not in self.state[param]:
                # From zeros SGD's first step has buf = g, as torch's without a buffer (there is no dampening).
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        return [self.state[param]["momentum_buffer"] for param in params]

    def _step_muon(self, group: dict, params: list[Tensor]) -> None:
        grads = [param.grad for param in params if param.grad is not None]
        update = muon_update(self._momentum(params), grads, [torch.Size(shape) for shape in group.get("shapes", ())])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, update, alpha=-group["lr"])

    def _step_sgd(self, group: dict, params: list[Tensor]) -> None:
        sgd(
            params,
            [param.grad for param in params if param.grad is not None],
            list[Tensor | None](self._momentum(params)),
            fused=True,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def _step_bert_adamw(self, group: dict, params: list[Tensor]) -> None:
        # Beside the uncorrected root eps is what eps / sqrt(1 - b2^t) is beside the corrected one. Tensors count their
        # steps by themselves.
        by_count: dict[int, list[Tensor]] = {}
        for param in params:
            by_count.setdefault(int(self.state[param].get("step", 0)) + 1, []).append(param)
        for count, alike in by_count.items():
            eps = group["eps"] / math.sqrt(1 - group["betas"][1] ** count)
            # Its own decay is left out: here it comes after the step, on the new value.
            self._step_adamw({**group, "eps": eps, "weight_decay": 0.0}, alike)
        for param in params if group["weight_decay"] else ():
            param.mul_(1 - group["lr"] * group["weight_decay"])

    def _step_adamw(self, group: dict, params: list[Tensor]) -> None:
        states = []
        for param in params:
            state = self.state[param]
            if "exp_avg" not in state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
            states.append(state)
        beta1, beta2 = group["betas"]
        # The counts of the state are whole numbers; torch counts on in tensors, which go from here in one copy, from
        # pinned memory, since a GPU makes the host wait for any other.
        counts = torch.tensor([float(state["step"]) for state in states], pin_memory=params[0].is_cuda)
        counts = counts.to(params[0].device, non_blocking=True)
        adamw(
            params,
            [param.grad for param in params if param.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            list(counts.unbind()),
            fused=True,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        for state in states:
            state["step"] = int(state["step"]) + 1


def _key(group: dict) -> tuple[str, bool]:
    return group["kind"], bool(group.get("backbone"))


def optimizer_groups(model: Any, settings: OptimSettings) -> list[dict]:
    """Give each of the model's own groups its rule and values, for `SgdAdamW`.

    `model.parameter_groups()` says which parameters are the backbone's ("kind") and, where the model has phases, which
    wait together for theirs ("part"). Groups that differ by part share a name. Every group starts with lr 0 and keeps
    its own rate in `base_lr`: the schedule sets `lr` before each step. A recipe's numbers are of jsonargparse's types;
    here they are plain ones, as checkpoints hold no others.
    """
    groups = []
    of_matrices, of_rest = settings.rules()
    for group in model.parameter_groups(matrices=True) if of_matrices != of_rest else model.parameter_groups():
        of_backbone = group["kind"] == "backbone"
        rule = of_matrices if group.get("matrices") else of_rest
        groups.append(
            {
                "params": group["params"],
                "name": group["kind"],
                "backbone": of_backbone,
                "part": group.get("part", ""),
                "kind": settings.backbone_rule if of_backbone else rule,
                # Of matrices as the rule sees them, however ZeRO cuts them.
                **({"shapes": [list(param.shape) for param in group["params"]]} if rule == "muon" else {}),
                "lr": 0.0,
                "base_lr": float(settings.backbone_lr if of_backbone else settings.lr),
                "weight_decay": float(settings.backbone_weight_decay if of_backbone else settings.weight_decay),
                # The released code's, as the first of the betas.
                "momentum": 0.9,
                "betas": (0.9, float(settings.beta2)),
                "eps": float(settings.eps),
            }
        )
    return groups


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then step, cosine, linear or no decay; the backbone's span without a rate, and its way back.

    Args:
        settings: the recipe's schedule.
        steps_per_epoch: optimiser steps in one epoch, >= 1.
        total_steps: optimiser steps of the whole run, >= 1.
        optim: the recipe's optimiser, for when the backbone is frozen.
    """

    settings: ScheduleSettings
    steps_per_epoch: int
    total_steps: int
    optim: OptimSettings = field(default_factory=OptimSettings)

    def __post_init__(self) -> None:
        s = self.settings
        self.optim.frozen_span()  # refuses what is no span
        if sorted(s.step_epochs) != list(s.step_epochs):
            raise UserError(f"schedule.step_epochs: expected ascending epochs, got {s.step_epochs}")

    def factor(self, step: int, elapsed: float = 0.0) -> float:
        """Factor for the optimiser step number `step` (0 is the first).

        `elapsed` in [0, 1] is the used share of a time limit, if the run has one: `cosine` and `linear` follow
        whichever of steps and time is further on, so that a run cut by its clock still ends at `end_factor`.
        """
        s = self.settings
        if step < s.warmup_steps:
            return s.warmup_start + (1 - s.warmup_start) * step / s.warmup_steps
        return self._decay(step, s.warmup_steps, elapsed)

    def is_frozen(self, step: int) -> bool:
        """Whether the backbone is frozen in that step."""
        begin, end = self._frozen_steps()
        return begin <= step < end

    def advice(self, step: int) -> str:
        """What to set so that the rates of that step are lower."""
        begin, end = self._frozen_steps()
        if begin <= step < end:
            return "lower optim.lr, or give schedule.warmup_steps more"
        if begin < end <= step:
            return "lower optim.backbone_lr or optim.lr, or give optim.backbone_warmup_steps more"
        return "lower optim.lr or optim.backbone_lr, or give schedule.warmup_steps more"

    def backbone_factor(self, step: int, elapsed: float = 0.0) -> float:
        """`factor` for the backbone: 0 while it is frozen. From where it is unfrozen it is `thawed_backbone_factor`
        times a warm-up of its own, of `backbone_warmup_steps` from `warmup_start` on; `cosine` and `linear` begin again
        there, so that its rate is the same however long the run was before, and falls over the steps that are left. (A
        time limit is counted from the start.)"""
        if self.is_frozen(step):
            return 0.0
        begin, end = self._frozen_steps()
        # Never frozen, or not yet: with the rest of the model. An end at infinity is never reached.
        if not begin < end <= step:
            return self.factor(step, elapsed)
        s, past, steps = self.settings, step - end, self.optim.backbone_warmup_steps
        warmup = s.warmup_start + (1 - s.warmup_start) * past / steps if past < steps else 1.0
        return self.optim.thawed_backbone_factor * warmup * self._decay(step, end, elapsed)

    def _frozen_steps(self) -> list[float]:
        return [epoch * self.steps_per_epoch for epoch in self.optim.frozen_span()]

    def _decay(self, step: int, begin: float, elapsed: float) -> float:
        s = self.settings
        if s.decay == "constant":
            return 1.0
        if s.decay == "step":
            return self.step_decay(step)
        # A floor of 1 step: a warm-up, or a frozen span, may last until the end of the run.
        progress = min(max((step - begin) / max(self.total_steps - begin, 1), elapsed), 1.0)
        shape = 0.5 * (1 + math.cos(math.pi * progress)) if s.decay == "cosine" else 1 - progress
        return s.end_factor + (1 - s.end_factor) * shape

    def step_decay(self, step: int) -> float:
        """What the decays by `step` have made of the rate so far; 1 under another `decay`."""
        s = self.settings
        epoch = step / self.steps_per_epoch
        return s.step_factor ** sum(epoch >= at for at in s.step_epochs) if s.decay == "step" else 1.0
