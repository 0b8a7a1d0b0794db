"""The SOHO model. Start at `SohoConfig.from_preset` and `SohoForPreTraining`.

Each name is imported where it is first asked for. `AutoConfig`, `AutoModel`, `AutoModelForPreTraining` and
`AutoModelForVisualQuestionAnswering` know a model once its class is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import SohoPreTrainedModel as SohoPreTrainedModel
    from .codebook.usage import CodeUsage as CodeUsage
    from .config import SohoConfig as SohoConfig
    from .downstream import SohoForImageTextRetrieval as SohoForImageTextRetrieval
    from .downstream import SohoForQuestionAnswering as SohoForQuestionAnswering
    from .downstream import SohoForVisualEntailment as SohoForVisualEntailment
    from .downstream import SohoForVisualReasoning as SohoForVisualReasoning
    from .inputs import SohoInputs as SohoInputs
    from .inputs import Texts as Texts
    from .outputs import SohoForImageTextRetrievalOutput as SohoForImageTextRetrievalOutput
    from .outputs import SohoForPreTrainingOutput as SohoForPreTrainingOutput
    from .outputs import SohoModelOutput as SohoModelOutput
    from .outputs import VisualTokens as VisualTokens
    from .pretrained import LoadReport as LoadReport
    from .quantiser import Quantiser as Quantiser
    from .soho import SohoForPreTraining as SohoForPreTraining
    from .soho import SohoModel as SohoModel
    from .values import ModelValues as ModelValues
    from .visual_dictionary import VisualDictionary as VisualDictionary
    from .visual_encoder import VisualEncoder as VisualEncoder

_HOMES = {
    "CodeUsage": "codebook.usage",
    "LoadReport": "pretrained",
    "ModelValues": "values",
    "Quantiser": "quantiser",
    "SohoConfig": "config",
    "SohoForImageTextRetrieval": "downstream",
    "SohoForImageTextRetrievalOutput": "outputs",
    "SohoForPreTraining": "soho",
    "SohoForPreTrainingOutput": "outputs",
    "SohoForQuestionAnswering": "downstream",
    "SohoForVisualEntailment": "downstream",
    "SohoForVisualReasoning": "downstream",
    "SohoInputs": "inputs",
    "SohoModel": "soho",
    "SohoModelOutput": "outputs",
    "SohoPreTrainedModel": "base",
    "Texts": "inputs",
    "VisualDictionary": "visual_dictionary",
    "VisualEncoder": "visual_encoder",
    "VisualTokens": "outputs",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from soho_fast.common.extras import from_extra

    with from_extra("train"):
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
