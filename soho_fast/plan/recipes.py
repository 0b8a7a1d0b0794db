"""From a recipe to a model without values and to batches of its shapes; nothing of the data is read."""

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from soho_fast.common.errors import UserError
from soho_fast.data.images import fitted_size
from soho_fast.data.text import load_tokenizer
from soho_fast.engine.batches import BatchPlan, plan_batches
from soho_fast.model import SohoConfig, SohoPreTrainedModel
from soho_fast.tasks.recipe import read_recipe, with_data_roots

# Height and width of COCO's commonest photograph.
TYPICAL = (480, 640)
BERT_WORDS = 30_522
VQA_ANSWERS = 3_129

# Published sizes: images, and texts of them, by annotation file and split.
_CAPTIONS = {
    ("dataset_coco.json", "train"): (82_783, 5),
    ("dataset_coco.json", "restval"): (30_504, 5),
    ("dataset_flickr30k.json", "train"): (29_000, 5),
}
_CAPTIONS_FROM = "Karpathy and Fei-Fei 2015: COCO 82,783 + 30,504 images, Flickr30K 29,000, five captions each"
# 108,077 images, of which 51,208 are COCO's; of those the share that COCO's val and test have, 10,000 of 123,287.
_VISUAL_GENOME = 108_077 - round(51_208 * 10_000 / 123_287)
_VISUAL_GENOME_FROM = (
    "Krishna et al. 2017: Visual Genome 108,077 images, 51,208 of them COCO's, less COCO's val and test among these"
)
_VQA_FROM = "Goyal et al. 2017: VQA v2 has 443,757 questions in train and 214,354 in val"
# Texts with an answer, and where that is said.
_ANSWERED = {
    "v2_OpenEnded_mscoco_train2014_questions.json": (443_757, _VQA_FROM),
    "v2_OpenEnded_mscoco_val2014_questions.json": (214_354, _VQA_FROM),
    "snli_ve_train.jsonl": (529_527, "Xie et al. 2019: SNLI-VE has 529,527 pairs in train"),
    "train.json": (86_373, "Suhr et al. 2019: NLVR2 has 86,373 statements in train"),
}


@dataclass
class Given:
    """What the command line says of what a recipe does not; None where it says nothing.

    Args:
        samples: Training samples of an epoch.
        words: Words of the tokenizer.
        answers: Answers of question answering.
        text_length: Tokens of the longest text of a batch.
        image: Height and width of a typical image before it is resized.
    """

    samples: int | None = None
    words: int | None = None
    answers: int | None = None
    text_length: int | None = None
    image: tuple[int, int] | None = None


class _Words(list[int]):
    """Stands for a tokenizer, of which only the number of words is asked."""

    pad_token_id = 0


class Work:
    """What a recipe trains: the model, and the shapes of a micro-batch on each of some GPUs.

    Args:
        arguments: `--recipe` and the recipe's fields, as the training command takes them.
        gpus: Number of processes.
        given: What the command line says.
        flags: Arguments that the command takes beside these.

    Attributes:
        assumed: What is not known and taken as something, by name, with where that comes from.

    Raises:
        UserError: as the training command refuses the recipe, or batch sizes that do not divide.
    """

    def __init__(self, arguments: list[str], gpus: int, given: Given, flags: list[str]) -> None:
        recipe = read_recipe(arguments, flags)
        self.name = recipe.name
        with suppress(UserError):  # Folders that are not given are not looked into either.
            recipe = with_data_roots(recipe)
        self.recipe, self.given = recipe, given
        self.assumed: dict[str, tuple[str, str]] = {}
        self.task = recipe.make_task(lambda line: None)
        self.config = self._config()
        self.samples = given.samples or self._published_samples()
        enough = self.samples or recipe.batch.global_batch_size
        self.batches: BatchPlan = plan_batches(recipe.batch, enough, gpus, recipe.seed, self.task.samples_together)
        data = recipe.data
        self.words_a_text = given.text_length or int(data.max_text_length)
        if given.text_length is None:
            self.assumed["tokens of a text"] = str(self.words_a_text), "data.max_text_length, the longest there can be"
        self.typical = self._padded(*fitted_size(*(given.image or TYPICAL), data.shorter_edge, data.longer_edge))
        self.largest = self._padded(data.shorter_edge, data.longer_edge)
        if given.image is None:
            self.assumed["a typical image"] = (
                "{} x {} pixels".format(*self.typical),
                f"COCO's commonest size, {TYPICAL[0]} x {TYPICAL[1]}, resized and padded; operations and hours are its",
            )
        pixels = "{} x {} pixels".format(*self.largest)
        self.assumed["the largest images"] = pixels, "data.longer_edge; the memory is for these"

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        multiple = self.recipe.data.pad_to_multiple
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def make_model(self) -> SohoPreTrainedModel:
        """The model of the task."""
        return self.task.model_class(self.config)

    def _config(self) -> SohoConfig:
        recipe, model = self.recipe, self.recipe.model
        if self.given.answers and recipe.task != "vqa":
            raise UserError(f"--answers: recipe {self.name} answers no questions (task {recipe.task}); leave it out")
        changes, pretrained = dict(model.config), model.pretrained
        words = self._num_words(recipe.data.tokenizer, pretrained, changes)
        self.task.processor = SimpleNamespace(tokenizer=_Words(range(words)))
        if recipe.task == "pretraining":
            return self.task.model_config
        changes["use_dictionary_output"] = model.use_dictionary_output
        if recipe.task == "vqa":
            answers = self.given.answers or VQA_ANSWERS
            changes["num_labels"] = answers
            if not self.given.answers:
                self.assumed["answers"] = f"{answers:,}", "VQA v2's that come nine times; --answers"
        if pretrained and Path(pretrained, "config.json").is_file():
            values = SohoConfig.from_pretrained(pretrained).to_dict()
            self.assumed["the model"] = pretrained, "its config.json"
        elif pretrained:
            source = self._pretraining_recipe(pretrained)
            values = SohoConfig.from_preset(source.model.preset, **source.model.config).to_dict() | {
                "vocab_size": words
            }
        else:
            values = self.task.preset_config().to_dict()
        names = {"id2label", "label2id", "num_labels"} if "num_labels" in changes else set()
        values = {name: value for name, value in values.items() if name not in names}
        config = SohoConfig.from_dict({**values, **changes})
        self.task.check_text_length(config)
        return config

    def _pretraining_recipe(self, pretrained: str) -> Any:
        """The recipe that leaves a model there: runs/NAME/model is recipe NAME's."""
        parts = Path(pretrained).parts
        name = parts[-2] if len(parts) > 1 else pretrained
        try:
            source = read_recipe(["--recipe", name])
        except UserError as error:
            raise UserError(
                f"model.pretrained: {pretrained} is not here, and no recipe is called {name}; give the folder of a "
                "pre-trained model, or --model.pretrained runs/RECIPE/model"
            ) from error
        self.assumed["the model"] = f"recipe {name}'s", f"model.pretrained, {pretrained}, is not here"
        return source

    def _num_words(self, tokenizer: str | None, pretrained: str | None, changes: dict[str, Any]) -> int:
        if self.given.words:
            return self.given.words
        if "vocab_size" in changes:
            return int(changes["vocab_size"])
        for folder in (pretrained, tokenizer):
            if folder and Path(folder).is_dir():
                return len(load_tokenizer(folder))
        self.assumed["words"] = f"{BERT_WORDS:,}", "bert-base-uncased's; --words"
        return BERT_WORDS

    def _published_samples(self) -> int | None:
        """Samples of an epoch by the published sizes of the sets; None where one is not known."""
        recipe, data = self.recipe, self.recipe.data
        has_captions = recipe.task in ("pretraining", "retrieval")
        if recipe.corpus.folder:
            if not has_captions or data.epoch != "images":
                return None
            self.assumed["samples of an epoch"] = f"{recipe.corpus.num_train:,}", "corpus.num_train"
            return recipe.corpus.num_train
        parts = data.sources if recipe.task == "pretraining" else [data.splits[name] for name in data.train]
        known = [self._captions(part) if has_captions else self._answered(part) for part in parts]
        sizes = [each for each in known if each is not None]
        if not sizes or len(sizes) < len(known):
            return None
        total, sources = sum(size for size, _ in sizes), sorted({source for _, source in sizes})
        self.assumed["samples of an epoch"] = f"{total:,}", f"{'; '.join(sources)}; --samples"
        return total

    def _captions(self, part: Any) -> tuple[int, str] | None:
        """Samples of a set of images with captions, and where that is said."""
        data = self.recipe.data
        limit = getattr(part, "max_captions", None)
        if part.format == "visual_genome":
            images_with_captions, source = [(_VISUAL_GENOME, limit or 50)], _VISUAL_GENOME_FROM
        else:
            names = [(Path(part.annotations).name, split) for split in part.splits]
            if not names or not all(name in _CAPTIONS for name in names):
                return None
            images_with_captions, source = [_CAPTIONS[name] for name in names], _CAPTIONS_FROM
        a_sample = data.num_positive if self.recipe.task == "pretraining" else 1
        samples = (
            images * (1 if data.epoch == "images" else math.ceil(min(captions, limit or captions) / a_sample))
            for images, captions in images_with_captions
        )
        return sum(samples), source

    def _answered(self, part: Any) -> tuple[int, str] | None:
        """The same of a set of texts with answers."""
        if self.recipe.data.texts_per_image != 1:
            return None
        return _ANSWERED.get(Path(getattr(part, "questions", None) or part.annotations).name)

    @property
    def images_a_sample(self) -> int:
        """1, or the two of NLVR2."""
        return 2 if self.recipe.task == "nlvr2" else 1

    def num_labelled(self, size: tuple[int, int], num_images: int) -> int:
        """Masked visual tokens of matched pairs, if the codes of an image are used alike."""
        if self.recipe.task != "pretraining" or not self.config.use_dictionary:
            return 0
        stride = self.config.token_stride
        cells = math.ceil(size[0] / stride) * math.ceil(size[1] / stride)  # visual tokens of an image
        codes = self.config.num_codes
        different = codes * (1 - (1 - 1 / codes) ** cells)
        pairs = num_images * self.recipe.data.num_positive * self.recipe.data.mvm_probability
        return max(1, round(pairs * cells / different))

    def inputs(self, size: tuple[int, int], num_samples: int) -> dict[str, Tensor]:
        """The keywords of the model's forward, of the shapes of a micro-batch.

        Args:
            size: Height and width of the batch's images, some of which are padded.
            num_samples: Samples of the batch.
        """
        task, data, S = self.recipe.task, self.recipe.data, self.words_a_text
        B = num_samples * self.images_a_sample
        if task == "pretraining":
            P = B * (data.num_positive + data.num_negative)
        else:
            P = B if task == "retrieval" else num_samples * data.texts_per_image
        batch = {
            "pixel_values": torch.empty(B, 3, *size),
            "pixel_mask": torch.empty(B, *size, dtype=torch.bool),
            "input_ids": torch.empty(P, S, dtype=torch.int64),
            "attention_mask": torch.empty(P, S, dtype=torch.int64),
        }
        numbers_P = torch.empty(P, dtype=torch.int64)
        if task == "pretraining":
            masked = round(B * data.num_positive * S * data.masking.probability)
            batch |= {
                "image_index": numbers_P,
                "mlm_labels": torch.empty(P, S, dtype=torch.int64),
                "mlm_positions": torch.empty(masked, dtype=torch.int64),
                "itm_labels": torch.empty_like(numbers_P),
                "mask_uniform": torch.empty(B, dtype=torch.float64),
            }
            if self.config.mvm_masking == "position":
                batch["mask_pairs"] = torch.empty(P, dtype=torch.bool)
        elif task == "retrieval":
            batch["own_image"] = numbers_P
        else:
            batch["image_index"] = torch.empty(P, 2, dtype=torch.int64) if task == "nlvr2" else numbers_P
            if task == "vqa":
                assert self.config.num_labels is not None, "a list of answers gives it"
                batch["answer_scores"] = torch.empty(P, self.config.num_labels)
            else:
                batch["labels"] = torch.empty_like(numbers_P)
        return batch
