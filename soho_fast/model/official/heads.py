"""The released code's classifiers of words and of codes, which have no parameters of their own.

M positions, D channels, V words, K codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SohoConfig
from ..heads import TokenHead


class TiedHead(TokenHead):
    """The word table alone: no transform, no bias. The model ties `decoder` to the word embeddings."""

    def __init__(self, config: SohoConfig, num_classes: int) -> None:
        super(TokenHead, self).__init__()
        self.transform = nn.Identity()
        self.decoder = nn.Linear(config.hidden_size, num_classes, bias=False)


def cosine_logits(hidden_MD: Tensor, codebook_KD: Tensor) -> Tensor:
    """The cosine of each state to each code, float32 (M, K), without a temperature.

    A code that is the zero vector has logit 0. A codebook that is a buffer gets no gradient.
    """
    with torch.autocast(hidden_MD.device.type, enabled=False):
        return F.normalize(hidden_MD.float(), dim=-1) @ F.normalize(codebook_KD.float(), dim=-1).T
