"""What the released code has in the place of the paper's parts; `model/__init__.py` hands them to the model."""

from collections.abc import Callable
from typing import Any

from .batch_norm import AllTokenBatchNorm
from .dictionary import OfficialDictionary
from .fusion import GatedFusion
from .heads import TiedHead, cosine_logits
from .masking import label_at_place
from .visual_encoder import OfficialVisualEncoder

PARTS: dict[str, dict[str, Callable[..., Any]]] = {
    "visual_encoder": {"official": OfficialVisualEncoder},
    "feature_norm": {"official": lambda config: AllTokenBatchNorm(config.hidden_size)},
    "dictionary": {"official": OfficialDictionary},
    "fusion": {"gate": GatedFusion},
    "mlm_head": {"tied": TiedHead},
    "code_logits": {"cosine": cosine_logits},
    "mvm_masking": {"position": label_at_place},
}
"""As `parts.py: PARTS`."""
