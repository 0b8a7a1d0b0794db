"""The values that fix a SOHO model, each explained once, here, for readers and for `soho train --help`.

"The paper" is "Seeing Out of tHe bOx: End-to-End Pre-training for Vision-Language Representation Learning" (CVPR 2021);
a value that it does not give is marked "ours". Nothing heavy is imported here, so that a mistake on the command line is
reported at once.
"""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, Literal

CHOICES: dict[str, tuple[str, ...]] = {
    "dictionary_init": ("random", "data"),
    "fusion": ("none", "gate", "features"),
    "mvm_masking": ("label", "lift"),
    "contrastive_reads": ("transformer", "embeddings"),
    "official": ("pretraining", "fine_tuning"),
}
"""What a value of `ModelValues` is chosen from."""

TIMM, TRANSFORMERS = "timm/", "transformers/"
"""How the names of backbones begin that are these libraries'."""

# All else that the paper gives is the default of its field. The text says "MLP" only: these are the released code's.
_PAPER = {"head_act": "relu", "head_dropout": 0.5}

# The authors' released models: ResNet-18 and 3 layers; docs/paper.md has their values beside the paper's.
_OFFICIAL = {
    **_PAPER,
    "backbone": "resnet18",
    "backbone_frozen_stages": 1,
    "num_hidden_layers": 3,
    "ema_decay": 0.4,
    "fusion": "gate",
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "official": {**_OFFICIAL, "official": "pretraining"},
    # Its features go to the Transformer as they are.
    "official_vqa": {**_OFFICIAL, "official": "fine_tuning", "dictionary": "none", "num_labels": 3129},
}
"""What each preset has in the place of the defaults."""

GROUPS = {
    "Visual encoder (section 3.1)": (
        "backbone", "backbone_stride", "backbone_frozen_stages", "backbone_dropout_prob", "visual_pool",
    ),
    "Visual dictionary (section 3.2, eq. 2 to 5)": (
        "dictionary", "num_codes", "num_levels", "ema_decay", "dictionary_init",
        "dictionary_batch_norm", "code_reset_threshold", "fusion",
    ),
    "Cross-modal Transformer (section 3.3), and the classifiers of tasks (section 4.2)": (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dropout_prob",
        "attention_probs_dropout_prob", "head_act", "head_dropout",
    ),
    "Masking and losses (section 3.3, eq. 6 to 9)": (
        "mvm_masking", "mvm_margin", "mvm_weight", "bag_of_words_weight", "contrastive_weight", "contrastive_reads",
    ),
    "The authors' released model": ("official",),
}  # fmt: skip
"""The values of `ModelValues` as the paper is divided."""


@dataclass
class ModelValues:
    """What a recipe may set of a model, as `model.config`; each is a field of `SohoConfig`.

    Args:
        backbone: CNN: `resnet10`, `resnet18`, `resnet34`, `resnet50`, `resnet101` (paper, section 4.1), `mobilenet_v2`,
            `timm/NAME`, `transformers/FOLDER_OR_NAME` (a vision tower), or the import path of your own,
            `my.module:Net`. `resnet10` is torchvision's class with one block a stage, for small corpora; of
            `mobilenet_v2` ImageNet weights come with a package index; of timm any ViT, or network that gives its
            stages' features.
        backbone_stride: Pixels between the CNN's features, 4, 8, 16 or 32, at each of which a stage ends; later stages
            are left out (paper, section 3.1); of a tower its patch. Smaller tokens see less of the image, and there
            are more of them.
        backbone_frozen_stages: Stages of the CNN, the stem with the first, that never learn, with their BatchNorm in
            eval; 0 trains all (paper, section 4.1).
        backbone_dropout_prob: Share of the CNN's channels that are left out of an image in training, before the 1x1
            convolution (ours, for small corpora; the paper has none).
        visual_pool: Side of the max-pool's window after the 1x1 convolution, in features; 1 does not pool (paper,
            section 3.1).
        dictionary: The quantiser (paper, section 3.2): `paper`; `none`, the ablation of table 7; `words`, which looks a
            feature up by the words that it shows, as the bag-of-words head says (ours, docs/paper_dictionary.md); or a
            class of your own by its import path, `my.module:MyQuantiser`, see `model/quantiser.py`.
        num_codes: Codes, k (paper, section 4.1).
        num_levels: Levels of k codes, each for what the ones before leave of a feature (ours; the paper has one). f(v)
            is the sum of a token's codes, its label the first.
        ema_decay: gamma, the share of a code that stays in an update (eq. 4; the value is ours, the paper says only
            that it lies in [0, 1]).
        dictionary_init: Codes at the start: `random` (normal), or `data`, features of the first batch of all ranks
            (paper, section 3.2: random). Codes that have learnt are kept.
        dictionary_batch_norm: BatchNorm before the lookup, by running statistics of the real tokens of all ranks
            (ours; the paper has none).
        code_reset_threshold: Usage below which a code is reset to a feature of the batch, in units of the uniform share
            1/k; 0 resets none (ours; the paper has none).
        fusion: What the Transformer reads of the dictionary's output: `none`, f(v) itself; `gate`, a sum of it and its
            feature with learned shares; `features`, the feature alone, so that the dictionary only labels what is
            masked (eq. 3: none).
        hidden_size: Channels c of visual tokens, codes, words and the Transformer, a multiple of 4 (paper, section
            4.1).
        num_hidden_layers: Layers of the Transformer (paper, section 4.1).
        num_attention_heads: Heads of each layer (paper, section 4.1: BERT-base).
        intermediate_size: Channels between the two linear layers of each layer (paper, section 4.1: BERT-base).
        hidden_dropout_prob: Dropout on words, visual tokens and after each layer, a share (BERT's; the paper does not
            say).
        attention_probs_dropout_prob: Dropout on attention, a share (BERT's; the paper does not say).
        head_act: Activation within the classifiers of VQA and NLVR2, null: the Transformer's (the released code's; the
            paper does not say).
        head_dropout: Dropout within them, a share, null: hidden_dropout_prob (the released code's; the paper does not
            say).
        mvm_masking: Which label of an image masked visual modelling masks: `label`, one of those that are there, each
            as likely; `lift`, those more often that are more frequent in the image than elsewhere, which is ours
            (paper, section 3.3: label).
        mvm_margin: Tokens up to so many grid positions from a masked one are neither read nor predicted, since they
            show what it is (ours; the paper has 0). Matching is then asked of the other pairs alone.
        mvm_weight: Weight of the loss of masked visual modelling (eq. 9: 1).
        bag_of_words_weight: Weight of the loss by which the visual encoder tells which words the captions hold; 0
            leaves it and its head out (ours, for small corpora).
        contrastive_weight: Weight of the loss of vectors of images and texts, each made alone, which choose the pairs
            to score in retrieval; 0 leaves it and its projections out (ours).
        contrastive_reads: What these vectors are made of: `transformer`, its last hidden states; `embeddings`, the
            means of visual tokens and of word embeddings, which takes few images to learn (ours).
        official: The authors' released model in the place of the paper's, as their `pretraining` or their `fine_tuning`
            computes it; null is the paper's (the released code's; docs/official.md).
    """

    # Sections 4.1 and 3.1 to 3.3: ResNet-101, 2x2 pooling after the 1x1 convolution, 2048 codes of 768 channels, eq. 4
    # for the codebook, 12 BERT-base layers. docs/paper.md goes through all of them.
    backbone: str = "resnet101"
    backbone_stride: int = 32
    backbone_frozen_stages: int = 0
    backbone_dropout_prob: float | int = 0.0
    visual_pool: int = 2

    dictionary: str = "paper"
    num_codes: int = 2048
    num_levels: int = 1
    ema_decay: float | int = 0.9
    dictionary_init: str = "random"
    dictionary_batch_norm: bool = False
    code_reset_threshold: float | int = 0.0
    fusion: str = "none"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    head_act: str | None = None
    head_dropout: float | int | None = None

    mvm_masking: str = "label"
    mvm_margin: int = 0
    mvm_weight: float | int = 1.0
    bag_of_words_weight: float | int = 0.0
    contrastive_weight: float | int = 0.0
    contrastive_reads: str = "transformer"

    official: str | None = None


def _type_of(name: str, kind: Any) -> Any:
    return Literal[CHOICES[name]] if name in CHOICES else kind


if TYPE_CHECKING:  # which sees no type in what a function makes
    ModelChanges = Any
else:
    ModelChanges = make_dataclass(
        "ModelChanges",
        [(each.name, _type_of(each.name, each.type) | None, field(default=None)) for each in fields(ModelValues)],
        namespace={"__doc__": ModelValues.__doc__, "__module__": __name__},
    )
    """`ModelValues` of a recipe; None leaves a value as it is in the preset, or in the pre-trained model."""
