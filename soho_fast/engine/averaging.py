"""An average of the weights, in the place of the weights while these are evaluated or exported.

`SgdAdamW` keeps it in its state, beside the moments: so it is partitioned, saved, resumed and resharded as these are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from deepspeed import DeepSpeedEngine

from soho_fast.engine.optimizer import AVERAGE
from soho_fast.engine.resharding import written_tensors
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


def _exchange(engine: DeepSpeedEngine) -> None:
    state = engine.basic_optimizer.state
    with written_tensors(engine) as tensors:
        for tensor in tensors:
            if (average := state.get(tensor, {}).get(AVERAGE)) is not None:
                # Exchanged, not replaced: the state holds the weights meanwhile, so the second call puts them back to
                # the bit.
                weights = tensor.clone()
                tensor.copy_(average)
                average.copy_(weights)
