"""Initial values of linear layers that are not BERT's: a layer has them as its attribute `initial_values`.

transformers asks for a module's initial values only where that has tensors of its own, so a layer brings them itself.
"""

import math

from torch import nn
from transformers import initialization as init


def he_fan_in(linear: nn.Linear) -> None:
    """He et al. 2015, by the number of inputs; no bias."""
    init.kaiming_normal_(linear.weight)
    if linear.bias is not None:
        init.zeros_(linear.bias)


def he_fan_out(linear: nn.Linear) -> None:
    """He et al. 2015, by the number of outputs, before a ReLU, for a layer without a bias."""
    init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")


def torchs_own(linear: nn.Linear) -> None:
    """`nn.Linear.reset_parameters`: uniform, by the number of inputs."""
    init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
    bound = 1.0 / math.sqrt(linear.in_features)
    init.uniform_(linear.bias, -bound, bound)


def identity(linear: nn.Linear) -> None:
    """Gives what it gets."""
    init.eye_(linear.weight)
    init.zeros_(linear.bias)
