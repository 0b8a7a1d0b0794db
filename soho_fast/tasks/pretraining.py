"""Pre-training (paper section 3.3): what it trains on, the model, and how it is evaluated."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch

from soho_fast.common.errors import print_line
from soho_fast.common.import_path import is_import_path, load_imported
from soho_fast.common.shared_arrays import read_once_a_machine
from soho_fast.common.tables import Table
from soho_fast.data.batches.pretraining import PretrainingDataset, check_negatives
from soho_fast.data.batches.record_table import RecordTable
from soho_fast.data.batches.sample import Collator, Sample
from soho_fast.data.overlap import shared_images
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.captions import (
    held_out_ids,
    read_coco_captions,
    read_karpathy,
    read_visual_genome,
)
from soho_fast.data.readers.dataset import read_dataset
from soho_fast.data.readers.json_lines import read_json_lines
from soho_fast.data.readers.records import ImageRef, ImageTextRecord, ReadReport
from soho_fast.data.text import PackedTexts, encode_texts, load_tokenizer
from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.model.feature_watch import STEPS_UNTIL_LOST
from soho_fast.model.parts import parts_of
from soho_fast.model.visual_encoder import VisualEncoder
from soho_fast.model.words_dictionary import WordsDictionary
from soho_fast.tasks.base import BaseTask
from soho_fast.tasks.contents import images_identity, records_identity, words_identity
from soho_fast.tasks.evaluation.foils import measure_foils
from soho_fast.tasks.evaluation.pointing import measure_pointing
from soho_fast.tasks.evaluation.pretraining import evaluate_pretraining, format_table, nothing_learnt
from soho_fast.tasks.evaluation.sharing import Sharing
from soho_fast.tasks.settings import CaptionSource, PretrainingData, refuse_fields_of_other_formats

# Of more captions the shares of words are taken from so many.
_CAPTIONS_COUNTED = 20_000
# The running usage of codes spans about so many updates (usage_decay 0.99): before, few have had a chance.
_UPDATES_BEFORE_WARNING = 100
# Of all codes; said again only after more than the second share were live.
_FEW_ACTIVE, _ENOUGH_ACTIVE = 0.5, 0.6

_WHAT_TO_DO = (
    "take more images or train longer, or start from a BERT (--model.text_encoder, with its tokenizer and the sizes of "
    "its Transformer as model.config) or from another SOHO model of these sizes (--model.pretrained FOLDER)"
)

HELDOUT: Final = "heldout"
"""The one split of pre-training, by name: the held-out images."""


# The formats that take a field, of those fields that not all sets have.
_FORMATS_OF = {
    "images": ("karpathy", "coco_captions", "visual_genome", "json_lines"),
    "columns": ("dataset",),
    "splits": ("karpathy", "json_lines", "dataset"),
    "exclude_held_out_of": ("coco_captions", "visual_genome"),
}


def read_source(source: CaptionSource, report: ReadReport, where: str, missing_images: str) -> list[ImageTextRecord]:
    """The images with captions of a set, which `where` names; see `read_sources`."""
    if is_import_path(source.format):
        return load_imported(source.format, f"{where}.format")(source, report)
    refuse_fields_of_other_formats(source, _FORMATS_OF, f"{where}.")
    reading: Any = {"max_captions": source.max_captions, "report": report}
    if source.format == "dataset":
        return read_dataset(source.annotations, source.columns, source.splits, **reading)
    reading["missing_images"] = missing_images
    if source.format == "json_lines":
        return read_json_lines(source.annotations, source.images, source.splits, **reading)
    if source.format == "karpathy":
        return read_karpathy(source.annotations, source.images, source.splits, **reading)
    excluded: dict[str, set[int]] = {"COCO": set(), "Flickr30K": set()}
    for name, ids in map(held_out_ids, source.exclude_held_out_of):
        excluded[name] |= ids
    reading["exclude_coco_ids"] = excluded["COCO"]
    if source.format == "coco_captions":
        if excluded["Flickr30K"]:
            raise ValueError(
                f"{where}.exclude_held_out_of: expected Karpathy's file of COCO, whose images coco_captions describes, "
                "got one of Flickr30K"
            )
        return read_coco_captions(source.annotations, source.images, **reading)
    reading["exclude_flickr_ids"] = excluded["Flickr30K"]
    image_data = Path(source.annotations).with_name("image_data.json")
    return read_visual_genome(source.annotations, image_data, source.images, **reading)


def read_sources(
    data: PretrainingData,
    purpose: Literal["sources", "heldout"],
    say: Callable[[str], None] = print_line,
    reports: list[ReadReport] | None = None,
) -> list[ImageTextRecord]:
    """Read sets one after another, and say what each holds.

    Args:
        data: What names the sets.
        purpose: Which of them: "sources" (to train on) or "heldout".
        say: Called with each line.
        reports: Gets what was found of each set.

    Raises:
        ValueError, FileNotFoundError: As the readers; ValueError when no set was given.
    """
    sources: Sequence[CaptionSource] = getattr(data, purpose)
    if not sources:
        raise ValueError(f"data.{purpose}: no data set was given; expected at least one (see --help)")
    found: list[ImageTextRecord] = []
    for number, source in enumerate(sources):
        report = ReadReport()
        found += read_source(source, report, f"data.{purpose}[{number}]", data.missing_images)
        if reports is not None:
            reports.append(report)
        for line in report.lines():
            say(f"{purpose}: {line}")
    return found


@dataclass
class HeldoutEvaluation:
    """Metrics of the held-out images, on the first process; others have none."""

    metrics: dict[str, float]

    def write(self, folder: Path) -> list[str]:
        """Nothing but the metrics is kept. Returns no names of files."""
        return []


class _Read(NamedTuple):
    """What the recipe's annotations hold: the training images, packed, the held-out images, what both are known by,
    which of these are trained on too, and how many of either have no file."""

    training: RecordTable
    heldout: list[ImageTextRecord]
    identity: dict[str, str]
    shared: list[tuple[ImageRef, ImageRef]]
    num_missing: dict[str, int]


class PretrainingTask(BaseTask):
    """Masked language modelling, masked visual modelling and image-text matching on images with captions."""

    name = "pretraining"
    model_class = SohoForPreTraining
    example = 'rank {run} IMAGE "ONE TEXT" "ANOTHER"'
    default_split = HELDOUT
    logged = (
        "mlm_loss", "mvm_loss", "itm_loss", "bag_of_words_loss", "contrastive_loss",
        "step_perplexity", "code_error",
    )  # fmt: skip
    selection = None
    heldout_images = 500
    """Held-out images that are evaluated; 0 takes all."""
    heldout_candidates = 200
    """Images, each with one caption, in zero-shot retrieval; 0 leaves retrieval out."""

    _codebook_collapses = False

    @cached_property
    def processor(self) -> SohoProcessor:
        """Image processor and tokenizer."""
        return self.load_processor(load_tokenizer(self.data.tokenizer))

    @cached_property
    def _records(self) -> _Read:
        return read_once_a_machine(self._read_records, self.processes)

    def _read_records(self) -> _Read:
        reports: dict[str, list[ReadReport]] = {"sources": [], HELDOUT: []}
        records = read_sources(self.data, "sources", self._say, reports["sources"])
        training = RecordTable(records)
        heldout = read_sources(self.data, HELDOUT, self._say, reports[HELDOUT]) if self.data.heldout else []
        # The shuffled-image baseline needs another image.
        if len(heldout) == 1:
            raise ValueError(
                "data.heldout: one image with captions; expected none or at least two, since a text is also scored "
                "with a shuffled image: hold out more"
            )
        if self.data.num_negative:
            check_negatives(training.texts, "data.sources: ")
        if heldout:
            check_negatives(PackedTexts([record.captions for record in heldout]), "data.heldout: ")
        held_out = [record.image for record in heldout]
        identity = {
            "training data": records_identity(records),
            "held-out data": records_identity(heldout),
            "training images": images_identity(training),
            "held-out images": images_identity(held_out),
        }
        shared = shared_images(training, held_out)
        missing = {name: sum(each.num_missing for each in those) for name, those in reports.items()}
        return _Read(training, heldout, identity, shared, missing)

    @property
    def heldout_records(self) -> list[ImageTextRecord]:
        """The held-out images with their captions."""
        return self._records.heldout

    def train_on(self, records: Sequence[ImageTextRecord]) -> None:
        """Train on these images with captions, some of its own, in place of all: a trial."""
        self._records = self._records._replace(training=RecordTable(records))
        vars(self).pop("_training_data", None)

    @cached_property
    def _training_data(self) -> PretrainingDataset:
        training = self._records.training
        self.refuse_shared("sources", HELDOUT, self._records.shared)
        self.say_fit(training.texts.flat)
        # Without a dictionary no visual token is masked: all texts have their masked words and are asked to match.
        mvm_probability = self.data.mvm_probability if self.model_config.dictionary != "none" else 1.0
        dataset = PretrainingDataset(
            training,
            self.processor,
            seed=self.seed,
            num_positive=self.data.num_positive,
            num_negative=self.data.num_negative,
            hard_negative_share=self.data.hard_negative_share,
            hard_negatives_from_epoch=self.data.mvm_from_epoch,
            replace_probability=self.data.replace_probability,
            epoch=self.data.epoch,
            max_text_length=self.data.max_text_length,
            masking=asdict(self.data.masking),
            predict_unmatched=not parts_of(self.model_config).only_matched,
            mvm_probability=mvm_probability,
            unmask_from_epoch=self.data.mvm_from_epoch if self.data.conditional_masking else None,
        )
        texts = f"{self.data.num_positive} positive and {self.data.num_negative} negative texts"
        if self.data.hard_negative_share:
            begin, share = self.data.mvm_from_epoch, f"{100 * self.data.hard_negative_share:g} %"
            texts += f" (from epoch {begin} on, {share} of these foils of the positive ones)"
        if self.data.replace_probability:
            share = f"{100 * self.data.replace_probability:g} %"
            texts = f"{self.data.num_positive} texts, of which another image's replace {share}"
        self._say(
            f"training on {len(training):,} images with {training.texts.counts().sum():,} captions: {len(dataset):,} "
            f"samples an epoch, each an image with {texts}; vocabulary of {len(self.processor.tokenizer):,}"
        )
        return dataset

    def collate(self, samples: list[Sample]) -> Mapping[str, Any]:
        """The keywords of the model's forward, with "skipped" and "sample_ids"."""
        return Collator(self.processor)(samples)

    @cached_property
    def model_config(self) -> SohoConfig:
        """The preset with this task's replacements and the tokenizer's vocabulary."""
        config = self.preset_config()
        if self.model.bag_of_words_epochs and not config.bag_of_words_weight:
            raise ValueError(
                f"model.bag_of_words_epochs: {self.model.bag_of_words_epochs} epochs of the bag-of-words loss need "
                "model.config.bag_of_words_weight above 0"
            )
        if config.mvm_margin and self.data.mvm_probability == 1:
            raise ValueError(
                "model.config.mvm_margin: matching is asked only of pairs that are read without a margin; expected "
                "data.mvm_probability below 1"
            )
        self.check_text_length(config)
        return config

    def contents(self) -> dict[str, Any]:
        """Contents of the data and of the starting weights; the model's configuration with all its fields."""
        config = self.model_config
        # First: what can't be trained on is refused before weights are hashed.
        self.training_data()
        contents = super().contents()
        if self.model.pretrained:
            words = words_identity(load_tokenizer(self.model.pretrained))
            if words != contents["data.tokenizer"]:  # Then they decide which rows are taken.
                contents["model.pretrained"] += f", {words}"
        return {
            **contents,
            **self._records.identity,
            **{f"model.config.{name}": getattr(config, name) for name in SohoConfig.field_names()},
            "model.bag_of_words_head": bool(config.bag_of_words_weight),
            "model.contrastive_head": bool(config.contrastive_weight),
        }

    def new_model(self) -> SohoForPreTraining:
        """The model on the CPU in float32, with the starting weights asked for; says what was loaded."""
        model = SohoForPreTraining(self.model_config)
        if isinstance(dictionary := model.base().visual_dictionary, WordsDictionary):
            dictionary.words.choose(torch.from_numpy(self._shares_of_words()))
        self.fill_parts(model)
        if self.model.pretrained:
            self._say_loaded(model.init_from(self.model.pretrained, self._rows_in(self.model.pretrained)))
            if (dictionary := model.base().visual_dictionary) is not None and dictionary.age.any():
                self._say("model.pretrained: its codes have learnt and are kept, whatever model.config.dictionary_init")
        # Last: its buffers are of this run, and in no starting weights.
        model.watch_features()
        return model

    def encoder_at_start(self, device: torch.device) -> VisualEncoder | None:
        """The visual encoder of a new model, to measure with; None, and said, where its weights are not here.
        Draws of the training stay what they are."""
        say, self._say = self._say, lambda line: None
        try:
            with torch.random.fork_rng(devices=[]):
                return self.new_model().base().visual_encoder.eval().to(device)
        except (OSError, ValueError) as error:
            say(f"k-means of the CNN before training is not measured: {error}")
            return None
        finally:
            self._say = say

    def _shares_of_words(self) -> np.ndarray:
        """The share of captions that hold each token, (V,), of at most so many, evenly spread."""
        texts = self._records.training.texts.flat
        some = np.unique(np.linspace(0, len(texts) - 1, min(_CAPTIONS_COUNTED, len(texts))).round().astype(int))
        encoded = encode_texts(self.processor.tokenizer, [texts[number] for number in some], self.data.max_text_length)
        count_V = np.zeros(self.model_config.vocab_size)
        for text in encoded:
            count_V[np.unique(text.ids)] += 1
        return count_V / len(some)

    def _rows_in(self, pretrained: str) -> torch.Tensor | None:
        """The ids of this tokenizer's tokens in a pre-trained model, -1 of those that it does not know; None where they
        are the same. Says how many those are."""
        there, here = load_tokenizer(pretrained).get_vocab(), self.processor.tokenizer.get_vocab()
        if there == here:
            return None
        known = sum(token in there for token in here)
        self._say(
            f"model.pretrained: knows {known:,} of the {len(here):,} tokens here; the others start from random values"
        )
        # -1: `init_from` leaves the row as it was initialised.
        rows_V = torch.full((self.model_config.vocab_size,), -1)
        # The vocabulary may be larger than the tokenizer's: rows beyond it stay -1.
        rows_V[list(here.values())] = torch.tensor([there.get(token, -1) for token in here])
        return rows_V

    def before_step(self, model: SohoForPreTraining, epoch: float) -> None:
        """The first `bag_of_words_epochs` train the visual encoder alone, by the bag-of-words loss; visual tokens are
        masked from `mvm_from_epoch` on."""
        super().before_step(model, epoch)
        # Phases follow the epoch alone, so a resumed run is in the same one.
        model.bag_of_words_only = epoch < self.model.bag_of_words_epochs
        model.masks_visual_tokens = epoch >= self.data.mvm_from_epoch

    def figures(self, model: SohoForPreTraining) -> Mapping[str, torch.Tensor]:
        """How features and dictionary fare, as they are after the step; nothing while the encoder learns alone."""
        base = model.base()
        figures = {} if base.feature_watch is None else base.feature_watch.figures()
        if base.visual_dictionary is not None and (of_step := base.visual_dictionary.step_statistics()):
            perplexity, active_codes, _ = base.visual_dictionary.statistics()
            figures |= {"perplexity": perplexity, "active_codes": active_codes, **of_step}
        return figures

    def is_sound(self, model: SohoForPreTraining) -> bool:
        """By the rule of `FeatureWatch`."""
        watch = model.base().feature_watch
        return watch is None or watch.is_sound()

    def lost(self, model: SohoForPreTraining) -> str:
        """The visual features have become alike, the codes stand for none of them, or matching is at chance again."""
        watch = model.base().feature_watch
        # A step that was left out has no figures.
        if watch is None or not watch.figures() or (steps := watch.steps_lost()) < STEPS_UNTIL_LOST:
            return ""
        seen = {name: float(value) for name, value in self.figures(model).items()}
        told = (
            f"for {steps} steps the visual features have been lost: they have moved by {seen['feature_drift']:.1f} of "
            f"their deviations, their variance is {seen['feature_spread']:.2g} times what it was"
        )
        if "code_error" in seen:
            told += (
                f", {seen['top_share']:.0%} of them have one code, and the codes' error is {seen['code_error']:.1f} "
                "times their variance"
            )
        now, best = float(watch.matching), float(watch.least_matching)
        return f"{told}; the loss of matching is {now:.2f}, at best {best:.2f} (chance: 0.69)"

    def warnings(self, model: SohoForPreTraining) -> list[str]:
        """Fewer than half of the codes are active; what is on already, or changes nothing, is not advised."""
        dictionary, config = model.base().visual_dictionary, model.config
        if dictionary is None or int(dictionary.step) < _UPDATES_BEFORE_WARNING:
            return []
        perplexity, active_codes, _ = dictionary.statistics()
        num, share = dictionary.num_codes, int(active_codes) / dictionary.num_codes
        # Two thresholds, so that a share that wavers about one of them does not warn again and again.
        if share > _ENOUGH_ACTIVE:
            self._codebook_collapses = False
        if self._codebook_collapses or share >= _FEW_ACTIVE:
            return []
        self._codebook_collapses = True
        few = f"{int(active_codes):,} of {num:,} codes are active (perplexity {float(perplexity):.0f})"
        if is_import_path(config.dictionary):  # Another has no resets.
            return [few]
        off = ["model.config.dictionary_init data"] * (config.dictionary_init != "data" and not self.model.pretrained)
        off += ["model.config.dictionary_batch_norm true"] * (model.base().feature_norm is None)
        return [
            f"{few}; raise model.config.code_reset_threshold (now {config.code_reset_threshold:g}) by --resume changed"
            f"{', or start again with ' * bool(off)}{' and '.join(off)} (docs/paper_dictionary.md)"
        ]

    def phase(self, epoch: float) -> str:
        if epoch < self.model.bag_of_words_epochs:
            return "the visual encoder learns alone, by the bag-of-words loss"
        return "no visual tokens are masked" if epoch < self.data.mvm_from_epoch else ""

    def next_commands(self, folder: Path) -> list[str]:
        """Also what ranks texts by the model, what learns the questions of own images, and what shows the codes."""
        run, annotations = shlex.quote(str(folder)), Path(self.data.sources[0].annotations)
        commands = [f"soho evaluate --run {run}"] if self.data.heldout else []
        if self.data.sources[0].format == "json_lines" and annotations.name == "images.jsonl":  # which own_vqa reads
            images = shlex.quote(str(annotations.parent))
            options = f"--recipe own_vqa --data_roots.images {images} --model.pretrained {run}/model"
            commands.append(f'soho train {options}  # where lines have "questions"')
        if self.model_config.dictionary != "none":
            needs = "" if find_spec("scipy") else '  # needs: pip install "soho_fast[explore]"'
            commands.append(f"soho explore build {run}{needs}")
        return [*commands, *super().next_commands(folder)]

    def metrics_while_training(self, model: SohoForPreTraining, sharing: Sharing, *, quick: bool) -> dict[str, float]:
        """Of held-out images, see `evaluate_pretraining`; quick: of fewer, without retrieval.

        The first process evaluates alone, and only there they are returned. Progress is reported in each of two
        stages: the held-out images, then retrieval.
        """
        # The others return at once, and wait for the first at the end of `Run.evaluate`.
        if sharing.processes.rank or not self.heldout_records:
            return {}
        training = None if quick else self._records.training
        metrics = evaluate_pretraining(
            self, model, quick=quick, training=training, progress=sharing.progress, say=self._say
        )
        if not quick:
            metrics |= measure_pointing(self, model, self._records.training)
            metrics |= measure_foils(self, model, self._records.training.texts.flat)
        if told := nothing_learnt(metrics):
            self._say(f"warning: {told}" if quick else f"warning: {told}; {_WHAT_TO_DO}")
        return metrics

    def num_trained_on(self, split: str, data: Any, seed: int) -> int:
        return len(self._records.shared)

    def num_missing(self) -> dict[str, int]:
        return {name: count for name, count in self._records.num_missing.items() if count}

    def evaluate_split(self, model: SohoForPreTraining, split: str, sharing: Sharing) -> HeldoutEvaluation:
        """The metrics of the held-out images; the first process computes them alone, and keeps nothing on the way."""
        if not self.heldout_records:
            raise ValueError("data.heldout: the recipe names no held-out images to evaluate on")
        return HeldoutEvaluation(self.metrics_while_training(model, sharing, quick=False))

    def at_chance(self, metrics: Mapping[str, float]) -> str:
        return nothing_learnt(metrics) if metrics else ""

    def table(self, metrics: Mapping[str, float]) -> Table:
        """Metrics beside their baselines."""
        title = f"{metrics['num_images']:.0f} held-out images" if metrics else "no held-out images"
        rows = format_table(metrics) if metrics else []
        return Table(title, ["metric", "value", "baseline"], rows)
