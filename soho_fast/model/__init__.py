"""The SOHO model. Start at `SohoConfig.from_preset` and `SohoForPreTraining`.

`AutoConfig`, `AutoModel`, `AutoModelForPreTraining` and `AutoModelForVisualQuestionAnswering` know the model once this
package is imported.
"""

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVisualQuestionAnswering

    from .base import SohoPreTrainedModel
    from .codebook.usage import CodeUsage
    from .config import SohoConfig
    from .downstream import (
        SohoForImageTextRetrieval,
        SohoForQuestionAnswering,
        SohoForVisualEntailment,
        SohoForVisualReasoning,
    )
    from .fast.prepared import prepare_for_inference
    from .inputs import SohoInputs, Texts
    from .official.parts import PARTS as OFFICIAL_PARTS
    from .outputs import SohoForImageTextRetrievalOutput, SohoForPreTrainingOutput, SohoModelOutput, VisualTokens
    from .parts import add_parts
    from .pretrained import LoadReport
    from .quantiser import Quantiser
    from .soho import SohoForPreTraining, SohoModel
    from .visual_dictionary import VisualDictionary
    from .visual_encoder import VisualEncoder

add_parts(OFFICIAL_PARTS)
SohoPreTrainedModel.prepare_for_inference = prepare_for_inference
AutoConfig.register("soho", SohoConfig, exist_ok=True)
AutoModel.register(SohoConfig, SohoModel, exist_ok=True)
AutoModelForPreTraining.register(SohoConfig, SohoForPreTraining, exist_ok=True)
AutoModelForVisualQuestionAnswering.register(SohoConfig, SohoForQuestionAnswering, exist_ok=True)

__all__ = [
    "CodeUsage",
    "LoadReport",
    "Quantiser",
    "SohoConfig",
    "SohoForImageTextRetrieval",
    "SohoForImageTextRetrievalOutput",
    "SohoForPreTraining",
    "SohoForPreTrainingOutput",
    "SohoForQuestionAnswering",
    "SohoForVisualEntailment",
    "SohoForVisualReasoning",
    "SohoInputs",
    "SohoModel",
    "SohoModelOutput",
    "SohoPreTrainedModel",
    "Texts",
    "VisualDictionary",
    "VisualEncoder",
    "VisualTokens",
]
