"""What a task weighs: its model, the starting weights, losses of a user's own, and how it computes."""

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from soho_fast.common.hub import loading_options
from soho_fast.common.import_path import load_imported
from soho_fast.common.versions import cautions
from soho_fast.data.processor import SohoProcessor
from soho_fast.model import SohoConfig, SohoPreTrainedModel
from soho_fast.model.added_losses import add_losses
from soho_fast.model.config import is_other_backbone
from soho_fast.model.fast.cpu import speed_up_on_cpu
from soho_fast.model.fast.gpu import speed_up_on_gpu
from soho_fast.model.heads import WEIGHTS
from soho_fast.model.other_backbones import padding_leak
from soho_fast.model.pretrained import LoadReport, check_finite, check_vocabulary
from soho_fast.model.visual_encoder import cut_features
from soho_fast.tasks.learning import LearningTask


class WeighingTask(LearningTask):
    """The model of a task. One of `Any` type is one of `model_class`, which each task names."""

    model_class: ClassVar[type[SohoPreTrainedModel]]
    """What it trains."""
    _last_metrics: Mapping[str, float] = MappingProxyType({})
    """Those of the last full evaluation, until the next step; for the model card."""

    def preset_config(self) -> SohoConfig:
        """The preset of the settings with their replacements and the tokenizer's vocabulary.

        Raises:
            ValueError: as `SohoConfig.from_preset`.
        """
        tokenizer = self.processor.tokenizer
        vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        return SohoConfig.from_preset(self.model.preset, **vocabulary, **self.model.changes())

    def check_text_length(self, config: SohoConfig) -> None:
        """Raises ValueError: texts may be longer than the model has positions for."""
        length, limit = self.data.max_text_length, config.max_position_embeddings
        if limit < length:
            raise ValueError(f"data.max_text_length: {length} is more than the model's max_position_embeddings {limit}")

    @abstractmethod
    def new_model(self) -> SohoPreTrainedModel:
        """The model with the starting weights asked for; says what was loaded."""

    def build_model(self, device: torch.device | None = None) -> SohoPreTrainedModel:
        """The model on the CPU in float32, with the starting weights asked for; says what was loaded.

        Args:
            device: Where it will be put: it gets what makes training faster there. None leaves it as it is.
        """
        for line in cautions(self.model.pretrained, accept_changes=True) if self.model.pretrained else ():
            self._say(line)
        model = self.new_model()
        self.check_backbone(model)
        add_losses(model, self.added_losses(), {name: each.weight for name, each in self.model.losses.items()})
        if device is not None:
            self.speed_up(model, device)
        return model

    def fill_parts(self, model: SohoPreTrainedModel) -> None:
        """Fill the parts of a new model for which the settings name starting weights; says what was loaded."""
        if self.model.text_encoder:
            self._say_loaded(model.init_text_encoder_from(self.model.text_encoder))
        if self.model.backbone:
            self._say_loaded(model.init_backbone_from(self.model.backbone))

    def _say_loaded(self, report: LoadReport) -> None:
        for line in str(report).splitlines():
            self._say(line)

    def added_losses(self) -> dict[str, nn.Module]:
        """Those of the settings `model.losses`, by name, from code that is imported already.

        Raises:
            ValueError: a name that an output has already or that is none, no such class, or other keywords than its.
        """
        losses: dict[str, nn.Module] = {}
        for name, settings in self.model.losses.items():
            place = f"model.losses.{name}"
            if name in ("loss", *type(self).logged, *WEIGHTS) or not name.isidentifier():
                raise ValueError(f"{place}: expected a name of letters, digits and _ that no loss here has")
            kind = load_imported(settings.path, f"{place}.path", nn.Module)
            try:
                losses[name] = kind(**settings.options)
            except TypeError as error:
                raise ValueError(f"{place}.options: {settings.path} does not take them: {error}") from error
        return losses

    def check_backbone(self, model: SohoPreTrainedModel) -> None:
        """Try another's backbone, and say whether the padding of a batch changes what it makes of an image.

        Raises:
            ValueError: as `padding_leak`.
        """
        encoder = model.base().visual_encoder
        if not is_other_backbone(model.config.backbone) or encoder.padding_leaks:
            return
        if leak := padding_leak(encoder):
            encoder.padding_leaks = True
            self._say(
                f"warning: model.config.backbone: {model.config.backbone} looks at all positions at once, padding too: "
                f"the features of an image change by up to {leak:.0%} with the batch that it is in, and are not cached"
            )

    def speed_up(self, model: SohoPreTrainedModel, device: torch.device) -> None:
        """Chooses and says how the model computes on a device; see `speed_up_on_cpu`, `speed_up_on_gpu`."""
        if device.type == "cpu":
            speed_up_on_cpu(model)
        elif device.type == "cuda":
            speed_up_on_gpu(model)
        self._say(f"computing on {device.type}: {model.base().computed_by}")

    def load_model(self, folder: str) -> SohoPreTrainedModel:
        """A model that this task has trained, with its processor, from a run's folder or the hub.

        Raises:
            FileNotFoundError: nothing could be loaded from there.
            ValueError: it is a model of another task, lacks tensors, or has diverged.
        """
        try:
            options, _ = loading_options(folder)  # The hub is asked once.
            config = SohoConfig.from_pretrained(folder, **options)
            processor = SohoProcessor.from_pretrained(folder, **options)
            model, missing = self.load_weights(folder, config)
        except OSError as error:
            raise FileNotFoundError(
                f"checkpoint: no model could be loaded from {folder}; expected a folder with config.json, "
                f"model.safetensors and the processor's files, or a hub name this machine can reach ({error})"
            ) from error
        if missing:
            kind, first = self.model_class.__name__, ", ".join(missing[:3])
            raise ValueError(f"checkpoint: {folder} lacks {len(missing)} tensors of {kind} ({first})")
        check_finite(model, f"checkpoint: {folder}")
        check_vocabulary(processor.tokenizer, model.config, f"checkpoint: {folder}")
        # Takes the place of the cached property: a model is evaluated with the tokenizer that it learnt by.
        self.processor = processor
        return model.eval()

    def load_weights(self, folder: str, config: SohoConfig) -> tuple[SohoPreTrainedModel, list[str]]:
        """The model there, whose configuration is given, and the names of tensors that it lacks."""
        if self.model_class.__name__ not in (config.architectures or ()):
            raise ValueError(
                f"checkpoint: {folder} holds a {', '.join(config.architectures or ['model of unknown kind'])}; "
                f"expected a {self.model_class.__name__}, trained by the task {self.name}"
            )
        return self.model_class.loaded_from(folder)

    def caches_features(self, model: SohoPreTrainedModel) -> bool:
        """Not where padding is part of the image, as in the released code, or where it changes its features."""
        return not model.base().visual_encoder.padding_leaks

    def image_features(self, model: SohoPreTrainedModel, images: Mapping[str, Any]) -> list[torch.Tensor]:
        """The CNN's features of each image, (C, h, w), without padding."""
        encoder = model.base().visual_encoder
        return cut_features(*encoder.backbone_output(images["pixel_values"], images["pixel_mask"]))

    @property
    def samples_together(self) -> tuple[str, int] | None:
        """Any number of samples will do in a forward."""
        return None

    def before_step(self, model: Any, epoch: float) -> None:
        """Called before each optimiser step with the epochs behind it; what was measured before is not of the model
        that it makes."""
        self._last_metrics = MappingProxyType({})
