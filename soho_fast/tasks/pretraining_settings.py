"""The pre-training part of a recipe: typed, each field explained once, here, for readers and for `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt, restricted_number_type

from soho_fast.data.batches.pretraining import TextMasking

# [CLS], a token, [SEP].
TextLength = restricted_number_type("TextLength", int, (">=", 3))
# A lone image could not be shuffled.
AtLeastTwo = restricted_number_type("AtLeastTwo", int, (">=", 2))


@dataclass
class CaptionSource:
    """One set of images with captions on disk.

    Args:
        annotations: Annotation file: dataset_coco.json or dataset_flickr30k.json (karpathy), captions_*.json
            (coco_captions), region_descriptions.json (visual_genome).
        images: Folders or .zip files with the images.
        format: Published format of the annotation file.
        splits: Splits to use, karpathy only: train, restval, val, test.
        image_data: Visual Genome's image_data.json, visual_genome only.
        exclude_coco_ids_from: A Karpathy COCO file whose val and test images are left out, for coco_captions and
            visual_genome (half of Visual Genome is COCO).
        max_captions: Keep only the first so many captions of an image; null keeps all.
        missing_images: error refuses a set with missing image files; skip leaves those images out and counts them.
        name: Name of the set in messages; null takes it from the file.
    """

    annotations: str
    images: list[str]
    format: Literal["karpathy", "coco_captions", "visual_genome"] = "karpathy"
    splits: list[str] = field(default_factory=list)
    image_data: str | None = None
    exclude_coco_ids_from: str | None = None
    max_captions: PositiveInt | None = None
    missing_images: Literal["error", "skip"] = "error"
    name: str | None = None


@dataclass
class PretrainingData:
    """What to train on, what to measure on, and how examples are made.

    Args:
        sources: Sets to train on.
        heldout: Sets to measure on; never trained on.
        tokenizer: Directory of a BERT tokenizer, or its name on the hub.
        shorter_edge: Images are resized so that the shorter edge has so many pixels (paper: 600).
        longer_edge: The longer edge has at most so many pixels (paper: 1000).
        pad_to_multiple: Height and width of a batch are padded to a multiple of this.
        max_text_length: Longest text in tokens, [CLS] and [SEP] included; longer ones are cut.
        pad_text: Pad every text to max_text_length (fixed shapes) instead of to the longest of the batch.
        num_positive: Captions of the image per image (paper: 2).
        num_negative: Captions of other images per image (paper: 2).
        masking: How words are masked.
        heldout_images: Held-out images measured at the end; 0 takes all.
        heldout_candidates: Images (each with one caption) in zero-shot retrieval; 0 leaves retrieval out.
        quick_images: Held-out images measured in mid-training, without retrieval.
        image_batch: Images encoded at a time when measuring.
        pair_batch: Image-text pairs scored at a time in retrieval.
    """

    sources: list[CaptionSource] = field(default_factory=list)
    heldout: list[CaptionSource] = field(default_factory=list)
    tokenizer: str = "bert-base-uncased"
    shorter_edge: PositiveInt = 600
    longer_edge: PositiveInt = 1000
    pad_to_multiple: PositiveInt = 32
    max_text_length: TextLength = 32
    pad_text: bool = False
    num_positive: PositiveInt = 2
    num_negative: NonNegativeInt = 2
    masking: TextMasking = field(default_factory=TextMasking)
    heldout_images: NonNegativeInt = 500
    heldout_candidates: NonNegativeInt = 200
    quick_images: AtLeastTwo = 128
    image_batch: PositiveInt = 32
    pair_batch: PositiveInt = 256


@dataclass
class PretrainingModel:
    """The model and its starting weights.

    Args:
        preset: Values to start from; see SohoConfig.
        config: Fields of SohoConfig to replace, by name.
        text_encoder: A directory with a BERT, or its name on the hub, for the word embeddings and the Transformer;
            null starts from random values.
        backbone: imagenet, or a file of the backbone's weights; null starts from random values.
        caption_word_epochs: The first so many epochs train the visual encoder alone, to tell which words the captions
            hold (ours, for small corpora; needs config.caption_word_weight).
    """

    preset: str = "paper"
    config: dict[str, Any] = field(default_factory=dict)
    text_encoder: str | None = None
    backbone: str | None = None
    caption_word_epochs: NonNegativeFloat = 0.0
