"""Forward-mode derivatives (`torch.func.jvp`, `torch.autograd.forward_ad`).

torch.library gives an op a backward and no forward derivative: a tangent that enters it is dropped without a word. The
public functions look for tangents and take plain torch then, which is differentiable in every mode.
"""

from torch import Tensor
from torch.autograd import forward_ad


def has_tangent(*tensors: Tensor) -> bool:
    """Whether one of the tensors is being differentiated in forward mode."""
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
