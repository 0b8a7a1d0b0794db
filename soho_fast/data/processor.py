"""Image and text together, in transformers' form: one object that is saved and loaded beside the model."""

import os
from typing import Any, Self

from transformers import AutoImageProcessor, AutoProcessor, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from soho_fast.common.hub import HUB_OPTIONS, loading_options
from soho_fast.common.images import one_line
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.text import load_tokenizer


class SohoProcessor(ProcessorMixin):
    """`SohoImageProcessor` and a BERT tokenizer.

    `processor(images=..., text=..., return_tensors="pt", padding=True)` gives the keywords of the model's forward:
    pixel_values, pixel_mask, input_ids, attention_mask.
    """

    def __init__(self, image_processor: SohoImageProcessor, tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> None:
        # The model has one kind of text, so token type ids are not among its inputs.
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers' own keywords are among these
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Load what `save_pretrained` wrote, or a hub repository of the same layout.

        Args:
            pretrained_model_name_or_path: Folder, or name on the hub.
            kwargs: revision, token, cache_dir, subfolder and their kin, for both parts; all others replace fields of
                the image processor.
        """
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        # The tokenizer first: it fails quickly where there is no hub.
        tokenizer = load_tokenizer(pretrained_model_name_or_path, **hub_options)
        reachable, _ = loading_options(pretrained_model_name_or_path, **hub_options)
        try:
            images = SohoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs | reachable)
        except OSError:
            raise
        except Exception as error:  # what transformers raises of a damaged file has no common type
            raise ValueError(f"{pretrained_model_name_or_path}: processor_config.json: {one_line(error)}") from error
        return cls(images, tokenizer)


# By convention the key is the configuration's class; `data` knows no model, and loading looks by the class's name.
AutoImageProcessor.register("soho", image_processor_classes={"torchvision": SohoImageProcessor}, exist_ok=True)
AutoProcessor.register("soho", SohoProcessor, exist_ok=True)
