"""An average of the weights, in the place of the weights while these are evaluated or exported.

`SgdAdamW` keeps it in its state, beside the moments: so it is partitioned, saved, resumed and resharded as these are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from soho_fast.engine.optimizer import AVERAGE
from soho_fast.engine.resharding import tensors_of
from soho_fast.engine.settings import OptimSettings


@contextmanager
def averaged_weights(engine: DeepSpeedEngine, optim: OptimSettings) -> Iterator[None]:
    """Within, the model has the average of its weights, where the recipe asks for one; afterwards the weights, to the
    bit. All ranks enter and leave together. What has no average yet, as what was frozen so far, keeps its weights.

    An error within ends the run: the weights are then not put back, since other ranks would have to take part.
    """
    if optim.average_decay:
        _exchange(engine)
    yield
    if optim.average_decay:
        _exchange(engine)


@torch.no_grad()
def _exchange(engine: DeepSpeedEngine) -> None:
    optimizer, stage, state = engine.optimizer, engine.zero_optimization_stage(), engine.basic_optimizer.state
    if stage == 3:
        optimizer.checkpoint_event_prologue()
    for tensor in tensors_of(engine):
        if (average := state.get(tensor, {}).get(AVERAGE)) is not None:
            weights = tensor.clone()
            tensor.copy_(average)
            average.copy_(weights)
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        # Brings the weights of the model's own type in line with these, as in `load_resharded`.
        optimizer.load_state_dict({dist.get_rank(): optimizer.state_dict()})
        optimizer.checkpoint_event_epilogue()
