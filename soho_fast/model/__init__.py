"""The SOHO model. Start at `SohoConfig.from_preset` and `SohoForPreTraining`."""

from .config import SohoConfig
from .outputs import SohoForPreTrainingOutput, SohoModelOutput, VisualTokens
from .pretrained import LoadReport
from .soho import SohoForPreTraining, SohoModel, SohoPreTrainedModel
from .visual_dictionary import VisualDictionary
from .visual_encoder import VisualEncoder

__all__ = [
    "LoadReport",
    "SohoConfig",
    "SohoForPreTraining",
    "SohoForPreTrainingOutput",
    "SohoModel",
    "SohoModelOutput",
    "SohoPreTrainedModel",
    "VisualDictionary",
    "VisualEncoder",
    "VisualTokens",
]
