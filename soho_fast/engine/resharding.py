"""A checkpoint loaded into another number of processes, or another ZeRO stage, than it was saved with.

DeepSpeed's files hold the optimiser's tensors as each rank had them: parameters as they are at stage 0, a rank's part
of all parameters of a group in a row at stages 1 and 2, a rank's part of each parameter at stage 3. DeepSpeed's own way
from one to another, its universal checkpoint, asks for Adam's two moments of every parameter and knows no stage 0.

Each rank therefore saves which elements of which parameters its tensors hold (`fragments_of`). By that, float32 weights
and optimiser state are found by the parameter's name, and a rank reads its own new part of them, from files mapped into
memory.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    BUFFER_NAMES,
    FP32_FLAT_GROUPS,
    FROZEN_PARAM_FRAGMENTS,
    LOSS_SCALER,
    OPTIMIZER_STATE_DICT,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from torch import Tensor

from soho_fast.common.errors import UserError

# Stages 0 to 2 have one mp_rank_00_model_states.pt; other files name the data-parallel rank (zero_pp_rank_3_...).
_RANK = re.compile(r"(?:bf16_)?(?:zero_pp_rank_(\d+)_)?mp_rank_00_")
_LOSS_SCALE = (LOSS_SCALER, "dynamic_loss_scale", "overflow")


class Fragment(NamedTuple):
    """Elements of a parameter, flattened, within one of the optimiser's tensors; a checkpoint holds it as a tuple."""

    name: str
    start: int
    tensor: int
    offset: int
    numel: int


@dataclass(frozen=True)
class _Part:
    """What one rank saved: float32 weights and state of the optimiser's tensors, by their number."""

    weights: list[Tensor]
    state: dict[int, dict[str, Any]]


def fragments_of(engine: DeepSpeedEngine) -> list[Fragment]:
    """Where each parameter lies in the tensors that this rank's optimiser has."""
    names, optimizer, stage = engine.param_names, engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return [Fragment(names[param], 0, number, 0, param.numel()) for number, param in enumerate(tensors_of(engine))]
    fragments = []
    if stage < 3:
        for number, group in enumerate(optimizer.bit16_groups):
            for param in group:
                # None where no element of the parameter lies in this rank's part. DeepSpeed calls the model's weights
                # lp (low precision), the optimiser's float32 ones hp.
                if (mapping := param._hp_mapping) is not None:
                    of_param, in_tensor = mapping.lp_fragment_address, mapping.hp_fragment_address
                    fragments.append(Fragment(names[param], of_param.start, number, in_tensor.start, in_tensor.numel))
        return fragments
    for number, group in enumerate(optimizer.fp16_groups):
        offset = 0
        for param in group:
            # All ranks have equally many elements; the last ones' may be padding.
            size = param.partition_numel()
            start = dist.get_rank() * size
            if start < param.ds_numel:
                numel = min(size, param.ds_numel - start)
                fragments.append(Fragment(names[param], start, number, offset, numel))
            # Padding too: the tensor has room for as many elements on each rank.
            offset += size
    return fragments


def load_resharded(engine: DeepSpeedEngine, folder: Path, load: Callable[[Path], Any]) -> None:
    """Restore weights, buffers, optimiser state and loss scale of a checkpoint. All ranks make the call.

    Args:
        engine: of any number of processes and any stage.
        folder: a complete checkpoint, of any.
        load: reads a file of it, mapped into memory.

    Raises:
        UserError: the checkpoint lacks a part of a parameter.
    """
    # One at stages 0 to 2, else each rank's.
    models = _by_rank(folder, "*model_states.pt", load)
    optim = [file[OPTIMIZER_STATE_DICT] for file in _by_rank(folder, "*optim_states.pt", load)]
    saved, model = _Saved(folder, load, models, optim), models[0]
    with written_tensors(engine) as tensors:
        buffers = dict(engine.module.named_buffers())
        # Any rank's will do: before a save BatchNorm's statistics are averaged over the ranks.
        for name in model[BUFFER_NAMES]:
            buffers[name].copy_(model["module"][name])
        for name, param in engine.module.named_parameters():
            if not param.requires_grad:  # as from the first step on, so no tensor of the optimiser has it
                with deepspeed.zero.GatheredParameters([param], modifier_rank=0):
                    param.copy_(saved.untrained(name, param.shape))
        # Of this run's ranks and stage; `saved` has those of the run that saved.
        of_tensor: dict[int, list[Fragment]] = {}
        for fragment in fragments_of(engine):
            of_tensor.setdefault(fragment.tensor, []).append(fragment)
        for number, tensor in enumerate(tensors):
            state = saved.fill(tensor, of_tensor.get(number, []))
            # Without one, as of a group that was frozen so far, or of padding, the optimiser begins its own.
            if state:
                engine.basic_optimizer.state[tensor] = state
        # Stage 0 has no loss scale, neither to read from nor to set.
        if optim and engine.zero_optimization_stage():
            for name in _LOSS_SCALE:
                setattr(engine.optimizer, name, optim[0][name])
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, model[name])


class _Saved:
    """The parts that the ranks saved, by the parameters that they hold."""

    def __init__(
        self, folder: Path, load: Callable[[Path], Any], models: list[dict[str, Any]], optim: list[dict[str, Any]]
    ) -> None:
        self.folder, self.models = folder, models
        self._found: dict[str, list[tuple[Fragment, _Part]]] = {}
        # At stage 0 all ranks have the same, and the first one's is saved.
        parts: list[dict[str, Any] | None] = list(optim) or [None]
        for rank, optimizer in enumerate(parts):
            fragments = [Fragment(*each) for each in load(folder / f"rank-{rank:05d}.pt")["fragments"]]
            part = _part_of_rank(optimizer) if optimizer else _part_of(models[0], fragments)
            for fragment in fragments:
                self._found.setdefault(fragment.name, []).append((fragment, part))

    def untrained(self, name: str, shape: torch.Size) -> Tensor:
        """A parameter that takes no part in the training."""
        if self.models[0][FROZEN_PARAM_FRAGMENTS] is None:
            return self.models[0]["module"][name]
        # At stage 3 in parts, with padding at the end.
        parts = [model[FROZEN_PARAM_FRAGMENTS][name].flatten() for model in self.models]
        return torch.cat(parts)[: shape.numel()].view(shape)

    def fill(self, tensor: Tensor, fragments: Iterable[Fragment]) -> dict[str, Any]:
        """Put float32 weights into one of the optimiser's tensors; returns its state, empty where it has none.

        Numbers of the state, which count steps, are those of the tensor's oldest parameter: partitioned, a group's
        parameters are stepped together.
        """
        state: dict[str, Any] = {}
        for fragment in fragments:
            num_filled = 0
            for part, other, start, numel in self._overlapping(fragment):
                # Both from element `start` of the parameter on: in this rank's tensor, and in that of the rank that
                # saved.
                to = slice(fragment.offset + start - fragment.start, fragment.offset + start - fragment.start + numel)
                source = slice(other.offset + start - other.start, other.offset + start - other.start + numel)
                _put(tensor, to, part.weights[other.tensor].reshape(-1)[source])
                for key, value in part.state.get(other.tensor, {}).items():
                    if isinstance(value, Tensor) and key != "step":  # which torch's own optimisers have as a tensor
                        held = state.setdefault(key, torch.zeros_like(tensor, dtype=value.dtype))
                        _put(held, to, value.reshape(-1)[source])
                    else:
                        # Files are mapped: without a copy it would keep one of them open.
                        own = value.clone() if isinstance(value, Tensor) else value
                        state[key] = max(state.get(key, own), own)
                num_filled += numel
            if num_filled != fragment.numel:
                raise UserError(
                    f"{self.folder}: {fragment.name} is to have {fragment.numel:,} elements from {fragment.start:,} "
                    f"on, of which it holds {num_filled:,}"
                )
        return state

    def _overlapping(self, wanted: Fragment) -> Iterator[tuple[_Part, Fragment, int, int]]:
        """Saved parts of a parameter's elements: part, its fragment, first element of both, how many."""
        for fragment, part in self._found.get(wanted.name, []):
            start = max(wanted.start, fragment.start)
            end = min(wanted.start + wanted.numel, fragment.start + fragment.numel)
            if start < end:
                yield part, fragment, start, end - start


def _by_rank(folder: Path, pattern: str, load: Callable[[Path], Any]) -> list[Any]:
    """DeepSpeed's files of a kind, in the order of the ranks."""
    paths = {int(match[1] or 0): path for path in folder.glob(pattern) if (match := _RANK.match(path.name))}
    # By number: as texts rank 10 comes before rank 2.
    return [load(paths[rank]) for rank in sorted(paths)]


def _put(tensor: Tensor, to: slice, values: Tensor) -> None:
    """Set elements of a tensor, counted as if it were flattened."""
    if tensor.is_contiguous():
        tensor.view(-1)[to].copy_(values)
    else:  # a convolution's weight with its channels last
        flat = tensor.flatten()
        flat[to].copy_(values)
        tensor.copy_(flat.view(tensor.shape))


def _part_of(model: dict[str, Any], fragments: list[Fragment]) -> _Part:
    """What stage 0 saved."""
    return _Part([model["module"][fragment.name] for fragment in fragments], model["optimizer"]["state"])


def _part_of_rank(optimizer: dict[str, Any]) -> _Part:
    """What a rank's optimiser saved, at stage 3 or before."""
    if FP32_FLAT_GROUPS in optimizer:
        return _Part(optimizer[FP32_FLAT_GROUPS], optimizer[OPTIMIZER_STATE_DICT]["state"])
    return _Part(optimizer[SINGLE_PARTITION_OF_FP32_GROUPS], optimizer[BASE_OPTIMIZER_STATE]["state"])


@contextmanager
def written_tensors(engine: DeepSpeedEngine) -> Iterator[list[Tensor]]:
    """`tensors_of`, to be written to; afterwards the model's weights are those. All ranks enter and leave together."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 3:
        # Lets go of parameters that are gathered, as small ones always are: theirs would be the old values. The
        # epilogue gathers these again.
        optimizer.checkpoint_event_prologue()
    with torch.no_grad():
        yield tensors_of(engine)
        if stage in (1, 2):
            # Copies this rank's part into the model's own type, and gathers the parts of all.
            optimizer.update_lp_params()
        elif stage == 3:
            # Brings the weights of the model's own type in line with these.
            optimizer.load_state_dict({dist.get_rank(): optimizer.state_dict()})
            optimizer.checkpoint_event_epilogue()


def tensors_of(engine: DeepSpeedEngine) -> list[Tensor]:
    """The tensors that this rank's optimiser steps, in the order of its state."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return [param for group in optimizer.param_groups for param in group["params"]]
    return optimizer.single_partition_of_fp32_groups if stage < 3 else optimizer.fp32_partitioned_groups_flat
