"""What every task has: the processor, a trained model, and what the engine's `Task` asks."""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from soho_fast.common.checksums import write_checksums
from soho_fast.common.errors import print_line
from soho_fast.common.hub import loading_options
from soho_fast.common.import_path import load_imported
from soho_fast.common.processes import Processes
from soho_fast.data.batches.sample import Sample, usable_samples
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.overlap import in_words
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import ImageRef
from soho_fast.data.text import describe_fit, load_tokenizer
from soho_fast.engine.changes import TaskIdentity
from soho_fast.model import SohoConfig, SohoPreTrainedModel
from soho_fast.model.added_losses import add_losses
from soho_fast.model.config import is_other_backbone
from soho_fast.model.fast.cpu import speed_up_on_cpu
from soho_fast.model.fast.gpu import speed_up_on_gpu
from soho_fast.model.heads import WEIGHTS
from soho_fast.model.other_backbones import padding_leak
from soho_fast.model.pretrained import LoadReport, check_finite, check_vocabulary
from soho_fast.model.visual_encoder import cut_features, pad_features
from soho_fast.tasks import describe
from soho_fast.tasks.card import CARD, model_card
from soho_fast.tasks.contents import output_identity, weights_identity, words_identity
from soho_fast.tasks.evaluation.sharing import ReportProgress, Sharing
from soho_fast.tasks.identity import EVALUATED_BY, FIXED, NOT_COMPARED, PLACES, STARTING


class BaseTask(ABC):
    """What every task has; nothing is read before it is needed.

    A model of `Any` type is one of `model_class`, which each task names. A task outside of this package whose settings
    are others than those of the task that it extends names their dataclasses as `data_type` and `model_type`.

    Args:
        data: What to train and to evaluate on, and how examples are made.
        seed: Seed of everything drawn from the data.
        model: The model and its starting weights.
        say: Called with each line of what was found.
    """

    name: ClassVar[str]
    """The task's name in recipes."""
    example: ClassVar[str] = ""
    """What asks a model of `{run}`, of `python -m soho_fast.ask`; empty where nothing there does."""
    model_class: ClassVar[type[SohoPreTrainedModel]]
    """What it trains."""
    selection: ClassVar[str | None]
    """The metric by which the best model is chosen, larger is better; None keeps only the last."""
    logged: tuple[str, ...] = ()
    """Names of the output's scalars to log beside the loss; those of added losses come behind."""
    corrupt_images: float = 0.01
    """Largest share of unreadable images, as that of `BatchSettings`; here of what indexes of shards call broken."""
    workers: int = 0
    """Loader processes for each process that evaluates; 0 reads in these."""
    precision: str = "auto"
    """Type of the products when evaluating: `auto` takes bf16 on a GPU that has it, and float32 elsewhere."""
    image_batch: int = 32
    """Images (in NLVR2 pairs) encoded at a time when evaluating."""
    pair_batch: int = 256
    """Texts read with their images at a time when evaluating."""
    quick_images: int = 128
    """Held-out images (in NLVR2 pairs) of a quick evaluation."""
    processes: Processes = Processes()
    """Those that read training data together."""

    absent: Mapping[str, Any] = MappingProxyType({})
    """See `TaskIdentity`."""

    _last_metrics: Mapping[str, float] = MappingProxyType({})
    """Those of the last full evaluation, until the next step; for the model card."""

    def __init__(self, data: Any, seed: int = 0, model: Any = None, *, say: Callable[[str], None] = print_line) -> None:
        self.data, self.seed, self._say = data, seed, say
        self.model = model or describe(type(self)).model_type()
        # On the instance: the class keeps its own, against which `added_losses` checks names.
        self.logged = (*self.logged, *self.model.losses)

    @cached_property
    def processor(self) -> SohoProcessor:
        """Image processor and tokenizer."""
        raise NotImplementedError

    @property
    def identity(self) -> TaskIdentity:
        """What is compared when a run is resumed."""
        return TaskIdentity(NOT_COMPARED, FIXED, PLACES, EVALUATED_BY, self.contents, STARTING, self.absent)

    def contents(self) -> dict[str, Any]:
        """What is trained beyond the recipe's fields: contents of what its paths name."""
        return {
            "data.tokenizer": words_identity(self.processor.tokenizer),
            "tokenizer's output": output_identity(self.processor.tokenizer),
            "model.text_encoder": weights_identity(self.model.text_encoder),
            "model.pretrained": weights_identity(self.model.pretrained),
            "model.backbone": weights_identity(self.model.backbone),
        }

    def refuse_shared(self, trained: str, held_out: str, shared: Sequence[tuple[ImageRef, ImageRef]]) -> None:
        """Raises ValueError: there are images that both hold, as `shared_images` gives them."""
        if shared:
            first = in_words(shared)[0]
            raise ValueError(
                f"data: {len(shared)} images are both in {trained} and in {held_out}, as {first}; held-out images must "
                "not be trained on. Leave them out of one of the two; a placeholder, one image in the place of "
                f"missing ones, is left out of both by --data.placeholders '[{first.partition(' (held out as ')[0]}]'"
            )

    @abstractmethod
    def num_trained_on(self, split: str, data: Any, seed: int) -> int:
        """How many images of a split are trained on, under whatever name.

        Args:
            split: The split.
            data: Those settings of the recipe that the model was trained by.
            seed: Its seed.

        Raises:
            ValueError, OSError: what is trained on can't be read.
        """

    @abstractmethod
    def num_missing(self) -> dict[str, int]:
        """How many images of what was read have no file, by name; those that lack none are left out."""

    def load_processor(self, tokenizer: Any) -> SohoProcessor:
        """The image processor of the settings, with a tokenizer."""
        size = {"shortest_edge": self.data.shorter_edge, "longest_edge": self.data.longer_edge}
        return SohoProcessor(SohoImageProcessor(size=size, antialias=self.data.antialias), tokenizer)

    def check_words(self, pretrained: str) -> None:
        """Raises ValueError: `data.tokenizer` has other words than a pre-trained model has learnt."""
        there, here = (load_tokenizer(name).get_vocab() for name in (pretrained, self.data.tokenizer))
        if there != here:
            raise ValueError(
                f"data.tokenizer: {self.data.tokenizer} has other words ({len(here)}) than the pre-trained model "
                f"{pretrained} ({len(there)}) has learnt; give {pretrained} here too, or to fine-tune null"
            )

    def preset_config(self) -> SohoConfig:
        """The preset of the settings with their replacements and the tokenizer's vocabulary.

        Raises:
            ValueError: as `SohoConfig.from_preset`.
        """
        tokenizer = self.processor.tokenizer
        vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        return SohoConfig.from_preset(self.model.preset, **vocabulary, **self.model.changes())

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

    def check_text_length(self, config: SohoConfig) -> None:
        """Raises ValueError: texts may be longer than the model has positions for."""
        length, limit = self.data.max_text_length, config.max_position_embeddings
        if limit < length:
            raise ValueError(f"data.max_text_length: {length} is more than the model's max_position_embeddings {limit}")

    def say_fit(self, texts: Sequence[str]) -> None:
        """Say what the tokenizer does not know of the texts to train on, and whether they are cut."""
        for line in describe_fit(self.processor.tokenizer, texts).warnings(self.data.max_text_length):
            self._say(line)

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

    @property
    @abstractmethod
    def _training_data(self) -> Any:
        """The training samples, made at the first use: says what they hold, refuses what can't be trained on."""

    def training_data(self) -> Any:
        """The training samples: `len`, `[index]`, `set_epoch`."""
        return self._training_data

    @property
    @abstractmethod
    def default_split(self) -> str:
        """The split that is evaluated where none is named."""

    def evaluate(
        self,
        model: Any,
        *,
        quick: bool = False,
        processes: Processes | None = None,
        progress: ReportProgress | None = None,
    ) -> dict[str, float]:
        """Metrics of the split that is evaluated while training; quick: of its first images. Empty without one.

        Args:
            model: The model, in evaluation mode, on the device of `processes`.
            quick: For mid-training.
            processes: Who makes the call and may share the work; this process alone when None.
            progress: Called with what is done of how much.
        """
        metrics = self.metrics_while_training(model, Sharing(processes or Processes(), progress), quick=quick)
        if not quick:
            self._last_metrics = metrics
        return metrics

    @abstractmethod
    def metrics_while_training(self, model: Any, sharing: Sharing, *, quick: bool) -> dict[str, float]:
        """See `evaluate`."""

    @abstractmethod
    def evaluate_split(self, model: Any, split: str, sharing: Sharing) -> Any:
        """Metrics of a split: an object with `metrics`, and `write(folder)`, which returns the names of files and
        deletes what was kept on the way.

        Raises:
            CorruptImageError: an image can't be read: a published metric covers every example.
        """

    def build_model(self, device: torch.device | None = None) -> SohoPreTrainedModel:
        """The model on the CPU in float32, with the starting weights asked for; says what was loaded.

        Args:
            device: Where it will be put: it gets what makes training faster there. None leaves it as it is.
        """
        model = self.new_model()
        self.check_backbone(model)
        add_losses(model, self.added_losses(), {name: each.weight for name, each in self.model.losses.items()})
        if device is not None:
            self.speed_up(model, device)
        return model

    @abstractmethod
    def new_model(self) -> SohoPreTrainedModel:
        """The model with the starting weights asked for; says what was loaded."""

    def speed_up(self, model: SohoPreTrainedModel, device: torch.device) -> None:
        """Chooses and says how the model computes on a device; see `speed_up_on_cpu`, `speed_up_on_gpu`."""
        if device.type == "cpu":
            speed_up_on_cpu(model)
        elif device.type == "cuda":
            speed_up_on_gpu(model)
        self._say(f"computing on {device.type}: {model.base().computed_by}")

    @property
    def samples_together(self) -> tuple[str, int] | None:
        """Any number of samples will do in a forward."""
        return None

    def caches_features(self, model: SohoPreTrainedModel) -> bool:
        """Not where padding is part of the image, as in the released code, or where it changes its features."""
        return not model.base().visual_encoder.padding_leaks

    def collate_images(self, samples: list[Sample]) -> Mapping[str, Any]:
        """Samples of one image each, of which some may be corrupt, to what `image_features` takes."""
        return self.processor.image_processor.collate_bytes([sample.pixels[0] for sample in usable_samples(samples)])

    def on_device(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Images come as bytes, and are normalised on the device."""
        return self.processor.image_processor.normalised(batch)

    def image_features(self, model: SohoPreTrainedModel, images: Mapping[str, Any]) -> list[torch.Tensor]:
        """The CNN's features of each image, (C, h, w), without padding."""
        encoder = model.base().visual_encoder
        return cut_features(*encoder.backbone_output(images["pixel_values"], images["pixel_mask"]))

    def collate_features(self, features: list[torch.Tensor]) -> Mapping[str, Any]:
        """The features of a batch's images, as keywords of the model's forward."""
        features_BChw, mask_Bhw = pad_features(features)
        return {"backbone_features": features_BChw, "backbone_mask": mask_Bhw}

    def before_step(self, model: Any, epoch: float) -> None:
        """Called before each optimiser step with the epochs behind it; what was measured before is not of the model
        that it makes."""
        self._last_metrics = MappingProxyType({})

    def figures(self, model: Any) -> Mapping[str, torch.Tensor]:
        """The forward's own are logged."""
        return {}

    def non_finite(self, model: SohoPreTrainedModel) -> list[str]:
        """Visual tokens with Inf or NaN: the lookup gives them code 0, and the loss stays finite."""
        return [f"visual tokens ({num})"] if (num := model.take_num_non_finite()) else []

    def is_sound(self, model: Any) -> bool:
        """Nothing is watched."""
        return True

    def lost(self, model: Any) -> str:
        """Nothing is watched."""
        return ""

    def warnings(self, model: Any) -> list[str]:
        """Nothing is watched."""
        return []

    def phase(self, epoch: float) -> str:
        """What is trained otherwise than in most of the run, after so many epochs; empty where nothing is."""
        return ""

    def export(self, model: SohoPreTrainedModel, state_dict: Mapping[str, Any], folder: Path) -> None:
        """Write a folder that the model's `from_pretrained` and `SohoProcessor.from_pretrained` load."""
        model.save_pretrained(folder, state_dict=dict(state_dict))
        self.processor.save_pretrained(folder)
        write_checksums(folder)
        # Without a checksum: who publishes the model completes it.
        (folder / CARD).write_text(model_card(self, model, self._last_metrics), encoding="utf-8")

    def at_chance(self, metrics: Mapping[str, float]) -> str:
        """That metrics are no better than chance, in words; empty where they are better, or where none were taken."""
        return ""

    def next_commands(self, folder: Path) -> list[str]:
        """Commands worth trying after the run."""
        run = shlex.quote(str(folder))
        asks = [f"python -m soho_fast.ask {self.example.format(run=run)}"] if self.example else []
        return [*asks, f"tensorboard --logdir {run}"]
