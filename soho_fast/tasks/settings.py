"""The tasks' part of a recipe: typed, each field explained once, here, for readers and for `--help`.

Nothing heavy is imported here, so that a mistake on the command line is reported at once.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    restricted_number_type,
    restricted_string_type,
)

from soho_fast.model.values import ModelChanges

if TYPE_CHECKING:  # which sees no type in what a function makes
    TextLength = int
    NumPositive = int
    NumNegative = int
    ImportPath = str
else:
    # [CLS], a token, [SEP].
    TextLength = restricted_number_type("TextLength", int, (">=", 3))
    NumPositive = restricted_number_type("NumPositive", int, [(">=", 1), ("<=", 1000)])
    NumNegative = restricted_number_type("NumNegative", int, [(">=", 0), ("<=", 1000)])
    ImportPath = restricted_string_type("ImportPath", r"[^\W\d][\w.]*:[^\W\d]\w*")


def refuse_fields_of_other_formats(source: Any, formats_of: Mapping[str, tuple[str, ...]], where: str = "") -> None:
    """Raises ValueError: a source has a field that its format does not take; `where` names the source.

    `formats_of` has the formats that take a field, by its name.
    """
    for name, formats in formats_of.items():
        if getattr(source, name) and source.format not in formats:
            formats_in_words = " or ".join(formats)
            raise ValueError(
                f"{where}{name}: only for format {formats_in_words}, this is {source.format}; leave it out"
            )


@dataclass
class InputData:
    """How images and texts are read.

    Args:
        tokenizer: Directory of a BERT tokenizer, or its name on the hub.
        shorter_edge: Images are resized so that the shorter edge has so many pixels (paper: 600).
        longer_edge: The longer edge has at most so many pixels (paper: 1000).
        antialias: Shrink images by averaging over the pixels that fall together; false takes the four nearest alone and
            decodes large JPEGs in full, as the released code does.
        missing_images: error refuses a set with missing image files; skip leaves their examples out and counts them.
        max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
    """

    tokenizer: str | None = None
    shorter_edge: PositiveInt = 600
    longer_edge: PositiveInt = 1000
    antialias: bool = True
    missing_images: Literal["error", "skip"] = "error"
    max_text_length: TextLength = 32


@dataclass
class FineTuningData(InputData):
    """Splits, and how images and texts are read.

    Args:
        train: Names of the splits to train on.
        validate: Name of the split to evaluate on while training, and by which the best model is chosen; empty
            evaluates nothing, and the last model is the result.
        tokenizer: Directory of a BERT tokenizer, or its name on the hub; null takes that of the pre-trained model.
    """

    train: list[str] = field(default_factory=lambda: ["train"])
    validate: str = "val"


@dataclass
class AddedLoss:
    """A loss of one's own, in training added to those of the model.

    Args:
        path: Import path of its class, a torch.nn.Module: its forward takes the model's output and the batch and
            returns a scalar. Its parameters are trained with the model's, and are not saved with it.
        weight: What it is multiplied by; the log has it without.
        options: Keywords of its constructor.
    """

    path: str
    weight: NonNegativeFloat = 1.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelSettings:
    """The model and its starting weights.

    Args:
        pretrained: Folder of a pre-trained model (a run's `model`), or its name on the hub, to start from.
        config: Values of the model; null leaves what the preset, or the pre-trained model, has.
        preset: Values to start from: paper, official or official_vqa (docs/official.md).
        text_encoder: A directory with a BERT, or its name on the hub, for the word embeddings and the Transformer; of
            another text encoder, also by import path, what fits, at least its words. null starts from random values.
        backbone: The backbone's weights: imagenet, a file or folder, or a name on the hub; null starts from random
            values.
        losses: Losses of one's own by the names that the log has them under.
    """

    pretrained: str | None = None
    config: ModelChanges = field(default_factory=ModelChanges)
    preset: Literal["paper", "official", "official_vqa"] = "paper"
    text_encoder: str | None = None
    backbone: str | None = None
    losses: dict[str, AddedLoss] = field(default_factory=dict)

    def changes(self) -> dict[str, Any]:
        """The values of `config` that are given, by name."""
        return {name: value for name, value in asdict(self.config).items() if value is not None}


@dataclass
class DownstreamModel(ModelSettings):
    """The model and its starting weights.

    Args:
        pretrained: Folder of a pre-trained model (a run's `model`), or its name on the hub; null starts from scratch,
            that is from `preset`, `text_encoder` and `backbone`.
        config: Values of the model; null leaves what the preset, or the pre-trained model, has.
        use_dictionary_output: Feed the dictionary's output to the Transformer; false feeds its input features, which
            the paper found better in fine-tuning.
    """

    use_dictionary_output: bool = False


@dataclass
class QuestionAnsweringModel(DownstreamModel):
    """The model and its starting weights.

    Args:
        answer_bias: Where each answer's logit starts: zero, or frequency, which is how often the answer is right in
            training. From zero the first hundreds of steps teach little but that most answers are wrong; the paper does
            not say.
    """

    answer_bias: Literal["zero", "frequency"] = "zero"


@dataclass
class AnsweringData(FineTuningData):
    """Splits, and how examples are made.

    Args:
        texts_per_image: A training sample is an image (in NLVR2 a pair) with at most so many of its texts, for which
            it is encoded once; 1 makes each text a sample, as in the paper.
    """

    texts_per_image: PositiveInt = 1


@dataclass(frozen=True)
class TextMasking:
    """How words are masked for MLM.

    Args:
        probability: Share of tokens chosen for prediction (BERT and the paper: 0.15), of which eight of ten become
            [MASK] and one a random token.
        random_special: Random tokens may be special ones too ([PAD], [MASK], ...), as in BERT's first PyTorch code.
    """

    probability: ClosedUnitInterval = 0.15
    random_special: bool = False


@dataclass
class CaptionSource:
    """One set of images with captions on disk.

    Args:
        annotations: Annotation file: dataset_coco.json or dataset_flickr30k.json (karpathy), captions_*.json
            (coco_captions), region_descriptions.json with image_data.json beside it (visual_genome), JSON lines of
            one's own (json_lines); or a data set with the images in it, a folder, file or pattern of .parquet, .arrow
            or .tar (dataset): "{cc3m}/*.tar".
        images: Folders or .zip files with the images; json_lines also looks beside the annotation file, a dataset has
            its own.
        format: Format of the annotation file: as published, or json_lines or dataset (docs/datasets.md); or the import
            path of a reader, my.module:read.
        columns: Of a dataset the column of the images, and those of captions; empty takes the usual ones.
        splits: Splits to use: karpathy's (train, restval, val, test), or those of json_lines; where these name none,
            and of a dataset, val is a fifth of the images (about 5,000 at most) and train the others.
        exclude_held_out_of: Karpathy's files of COCO or Flickr30K whose val and test images are left out, for
            coco_captions and visual_genome (half of Visual Genome is COCO).
        max_captions: Keep only the first so many captions of an image (visual_genome: those of the largest regions);
            null keeps all.
    """

    annotations: str
    images: list[str] = field(default_factory=list)
    format: Literal["karpathy", "coco_captions", "visual_genome", "json_lines", "dataset"] | ImportPath = "karpathy"
    columns: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    exclude_held_out_of: list[str] = field(default_factory=list)
    max_captions: PositiveInt | None = None


@dataclass
class PretrainingData(InputData):
    """What to train on, what to evaluate on, and how examples are made.

    Args:
        sources: Sets to train on.
        heldout: Sets to evaluate on; never trained on.
        num_positive: Captions of the image per image (paper: 2).
        num_negative: Captions of other images per image (paper: 2).
        hard_negative_share: Each of the num_negative captions is with this probability one of the image's own instead,
            with one word exchanged or two in each other's place so that it is false: another side, number, colour or
            object (ours; the paper has none). They begin at mvm_from_epoch: from the first epoch on they keep matching
            at chance for longer.
        replace_probability: Each of the num_positive captions is replaced by a caption of another image with this
            probability, instead of the num_negative ones: by the first one of a random group of the same data set.
            Needs `epoch: caption_groups` and num_negative 0; 0 replaces none.
        epoch: What an epoch holds once: captions (an image with n of them makes n / num_positive samples, rounded up,
            among which they are divided at random), caption_groups (the same, but divided once and for all, in their
            order) or images (each with num_positive captions drawn at random).
        masking: How words are masked.
        mvm_probability: Each pair is read with masked visual tokens with this probability (paper: all of them).
        mvm_from_epoch: Training masks visual tokens, and takes hard negatives, from this epoch on (ours; the paper
            masks them from the first).
        conditional_masking: A text that is read with masked visual tokens has no masked words, as in UNITER (Chen et
            al. 2020), so that each is predicted from the other one whole; the paper masks both.
    """

    sources: list[CaptionSource] = field(default_factory=list)
    heldout: list[CaptionSource] = field(default_factory=list)
    tokenizer: str = "bert-base-uncased"
    num_positive: NumPositive = 2
    num_negative: NumNegative = 2
    hard_negative_share: ClosedUnitInterval = 0.0
    replace_probability: ClosedUnitInterval = 0.0
    epoch: Literal["captions", "caption_groups", "images"] = "captions"
    masking: TextMasking = field(default_factory=TextMasking)
    mvm_probability: ClosedUnitInterval = 1.0
    mvm_from_epoch: NonNegativeInt = 0
    conditional_masking: bool = False

    def __post_init__(self) -> None:
        if self.replace_probability and (self.epoch != "caption_groups" or self.num_negative):
            raise ValueError(
                "data.replace_probability: texts are replaced within data.epoch caption_groups, and data.num_negative "
                f"is then 0; got {self.epoch} and {self.num_negative}"
            )
        if self.hard_negative_share and not self.num_negative:
            raise ValueError(
                "data.hard_negative_share: a share of the data.num_negative captions; expected at least one, got 0"
            )
        if self.conditional_masking and self.mvm_probability == 1:
            raise ValueError("data.conditional_masking: expected data.mvm_probability below 1, or no word is masked")


@dataclass
class PretrainingModel(ModelSettings):
    """The model and its starting weights.

    Args:
        pretrained: Folder of a pre-trained model (a run's `model`), or its name on the hub, to go on from: all that it
            shares with this one is taken from there, whether either has a dictionary.
        bag_of_words_epochs: The first so many epochs train the visual encoder alone, to tell which words the captions
            hold (ours, for small corpora; needs config.bag_of_words_weight).
    """

    bag_of_words_epochs: NonNegativeFloat = 0.0


@dataclass
class VqaSplit:
    """One split on disk.

    Args:
        questions: v2_OpenEnded_mscoco_<split>_questions.json (vqa), questions.json (easy_vqa), JSON lines of one's own
            (json_lines).
        images: Folders or .zip files with the images; json_lines also looks beside the questions.
        annotations: v2_mscoco_<split>_annotations.json, vqa only; null for a split whose answers are not published.
        format: Format: that of VQA v2, of the package easy-vqa, or json_lines (docs/datasets.md); or the import path of
            a reader.
        splits: Splits of a json_lines file (where it names none, val is a fifth of the images and train the others);
            empty takes all lines.
    """

    questions: str
    images: list[str] = field(default_factory=list)
    annotations: str | None = None
    format: Literal["vqa", "easy_vqa", "json_lines"] | ImportPath = "vqa"
    splits: list[str] = field(default_factory=list)


@dataclass
class QuestionAnsweringData(AnsweringData):
    """Splits, and how examples are made.

    Args:
        splits: Splits by name.
        min_answer_count: An answer is in the list when it is the most common one of at least so many training questions
            (9 gives the usual 3,129 answers of VQA v2's train and val).
    """

    splits: dict[str, VqaSplit] = field(default_factory=dict)
    min_answer_count: PositiveInt = 9


@dataclass
class StatementSplit:
    """One split of NLVR2 or SNLI-VE on disk.

    Args:
        annotations: JSON lines: train.json, dev.json or test1.json (NLVR2), snli_ve_train.jsonl, snli_ve_dev.jsonl or
            snli_ve_test.jsonl (SNLI-VE).
        images: Folders or .zip files with the images, those of SNLI-VE being Flickr30K's.
    """

    annotations: str
    images: list[str]


@dataclass
class StatementData(AnsweringData):
    """Splits, and how examples are made.

    Args:
        splits: Splits by name.
    """

    splits: dict[str, StatementSplit] = field(default_factory=dict)


@dataclass
class RetrievalSplit:
    """Some of the splits of an annotation file.

    Args:
        annotations: dataset_coco.json or dataset_flickr30k.json (karpathy), JSON lines of one's own (json_lines).
        images: Folders or .zip files with the images; json_lines also looks beside the annotation file.
        splits: Any of the file's; karpathy: train, restval, val, test. Where json_lines name none, val is a fifth of
            the images and train the others.
        format: Format of the annotation file: as published, or json_lines (docs/datasets.md); or the import path of a
            reader.
    """

    annotations: str
    images: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    format: Literal["karpathy", "json_lines"] | ImportPath = "karpathy"


@dataclass
class RetrievalData(FineTuningData):
    """Splits, and how they are scored.

    Args:
        splits: Splits by name.
        aligned_pairs: So many images with a caption each are in one forward, every image scored with every caption
            (paper: 24); batch sizes that make another number with these processes are refused. 0 takes any.
        folds: Also report the mean over so many equal folds of a split's images (COCO: 5 folds of 1,000, "1K"), but
            not while training; 0 does not.
        scoring: `all` scores every image with every text; `two_stages` only the pairs that contrastive scores choose
            (needs a model fine-tuned with model.config.contrastive_weight); `both` does both and compares.
        epoch: What an epoch holds once: captions, each with its image, or images, each with a caption drawn at random.
    """

    splits: dict[str, RetrievalSplit] = field(default_factory=dict)
    aligned_pairs: NonNegativeInt = 0
    folds: NonNegativeInt = 0
    scoring: Literal["all", "two_stages", "both"] = "all"
    epoch: Literal["captions", "images"] = "captions"
