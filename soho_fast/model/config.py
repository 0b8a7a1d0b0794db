"""Configuration of SOHO.

Source of every preset value: "Seeing Out of tHe bOx: End-to-End Pre-training for Vision-Language Representation
Learning" (CVPR 2021), called "the paper" in this package. Values the paper does not give are marked "ours". Those of
presets `official` and `official_vqa` are the authors' released code's (github.com/researchmm/soho, 95824a8).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from soho_fast.common.checksums import check_checksums
from soho_fast.common.import_path import is_import_path
from soho_fast.common.spelling import did_you_mean

# All else that the paper gives is the default of its field. The text says "MLP" only: these are the released code's.
_PAPER = {"head_act": "relu", "head_dropout": 0.5}

# The authors' released pre-training (ResNet-18, 3 layers), in what it computes; docs/paper.md has its values beside the
# paper's.
_OFFICIAL = {
    **_PAPER,
    "backbone": "resnet18",
    "backbone_frozen_stages": 1,
    "num_hidden_layers": 3,
    "visual_encoder": "official",
    "recomputed_batch_norm": True,
    "visual_dropout_prob": 0.0,
    "dictionary": "official",
    "ema_decay": 0.4,
    "ema_variant": "vqvae",
    "fusion": "gate",
    "mvm_masking": "position",
    "mlm_head": "tied",
    "mvm_head": "cosine",
    "itm_bias": False,
    "losses_on": "all",
    "initial_values": "official",
}

# Its question answering, where features go to the Transformer as they are.
_OFFICIAL_VQA = {
    **_OFFICIAL,
    "recomputed_batch_norm": False,
    "use_dictionary": False,
    "num_labels": 3129,
}

PRESETS = {"paper": _PAPER, "official": _OFFICIAL, "official_vqa": _OFFICIAL_VQA}

# Where the stages of each backbone end, in pixels between features.
BACKBONE_STRIDES = (4, 8, 16, 32)

TIMM = "timm/"
"""How the names of timm's backbones begin."""


def is_other_backbone(name: str) -> bool:
    """Whether it names a network of timm, or a user's own by import path."""
    return name.startswith(TIMM) or is_import_path(name)


# What a field chooses from; of the parts in which the released code departs from the paper the first is the paper's.
_CHOICES: dict[str, tuple[str, ...]] = {
    "backbone": ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"),
    "ema_variant": ("paper", "vqvae"),
    "dictionary_init": ("random", "data"),
    "visual_encoder": ("paper", "official"),
    "dictionary": ("paper", "official"),
    "fusion": ("none", "gate", "features"),
    "mvm_masking": ("label", "lift", "position"),
    "mlm_head": ("bert", "tied"),
    "mvm_head": ("linear", "cosine"),
    "losses_on": ("matched", "all"),
    "contrastive_reads": ("transformer", "embeddings"),
    "initial_values": ("bert", "official"),
    "hidden_act": tuple(ACT2FN),
    "head_act": tuple(ACT2FN),
}

# The least and the largest value. No model has larger sizes: they are a mistake, and would be built until the memory is
# full.
_SIZES = (
    "num_codes", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings",
    "type_vocab_size", "contrastive_size",
)  # fmt: skip
_SHARES = (
    "ema_decay", "usage_decay", "head_dropout", "visual_dropout_prob", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "backbone_dropout_prob",
)  # fmt: skip
_NOT_NEGATIVE = (
    "mvm_weight", "commitment_weight", "bag_of_words_weight", "contrastive_weight", "code_reset_threshold",
    "code_reset_patience", "active_threshold", "dictionary_init_std", "initializer_range", "layer_norm_eps",
    "visual_layer_norm_eps", "laplace_eps",
)  # fmt: skip
_LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_SIZES, (1, 10_000_000)),
    **dict.fromkeys(("visual_pool", "num_hidden_layers"), (1, 1000)),
    "num_levels": (1, 64),
    "mvm_margin": (0, 1000),
    **dict.fromkeys(_SHARES, (0, 1)),
    **dict.fromkeys(("code_reset_interval", "code_reset_limit"), (1, math.inf)),
    **dict.fromkeys(_NOT_NEGATIVE, (0, math.inf)),
}


@contextmanager
def _types_in_plain_words() -> Iterator[None]:
    try:
        yield
    except StrictDataclassFieldValidationError as error:
        raise ValueError(f"SohoConfig: {error.__cause__ or error}") from error
    except (AttributeError, TypeError) as error:  # transformers takes the types of its own fields for granted
        raise ValueError(f"SohoConfig: a field is of another type than expected ({error})") from error


@strict
class SohoConfig(PreTrainedConfig):
    r"""Everything that fixes the shape and the arithmetic of a SOHO model.

    Args:
        preset (str): name of the preset the values started from; recorded, not read.
        backbone (str): `"resnet10"` (torchvision's ResNet class with one BasicBlock per stage, for small corpora),
            `"resnet18"`, `"resnet34"`, `"resnet50"`, `"resnet101"`, or `"mobilenet_v2"` (ours: ImageNet weights of it
            come with a package index, see `init_backbone_from`). `"timm/NAME"` is any network of timm that gives its
            stages' features (extra `timm`), `"my.module:Net"` one of your own (docs/extending.md).
        backbone_stride (int): pixels between its features: 32 (paper), or 4, 8 or 16, at which an earlier stage
            ends; the stages after it are left out. Smaller tokens see less of the image, and there are more of them.
            Of another network: where one of its stages ends, a power of two.
        backbone_frozen_stages (int): 0 trains all; n >= 1 freezes the stem and the first n stages for good, with
            their BatchNorm in eval.
        backbone_dropout_prob (float): in training, the share of the CNN's channels that are left out of an image, at
            all its places, before the 1x1 convolution. For small corpora; 0 in the paper.
        visual_pool (int): window of the max-pool after the 1x1 convolution; 2 gives tokens of 64 pixels (paper section
            3.1), 1 means no pooling (32 pixels; both times `backbone_stride`/32).
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act,
            hidden_dropout_prob, attention_probs_dropout_prob, max_position_embeddings, type_vocab_size,
            layer_norm_eps, initializer_range, pad_token_id: as in `transformers.BertConfig`.
        visual_layer_norm (bool): LayerNorm on visual embedding plus position before the Transformer, as BERT does for
            words. The paper does not say; the released code has it.
        visual_layer_norm_eps (float): its epsilon.
        visual_encoder (str): `"paper"`, or `"official"`: padding is part of the image, the max-pool stands before the
            1x1 convolution and a BatchNorm after it, and the mask is the released code's; see
            `official/visual_encoder.py: OfficialVisualEncoder`.
        recomputed_batch_norm (bool): the statistics of the backbone's BatchNorm move again in the backward pass, as
            where activation checkpointing runs a block a second time; of `visual_encoder="official"` alone.
        visual_dropout_prob (float): dropout on visual tokens before the Transformer; `None` takes
            `hidden_dropout_prob`.
        use_dictionary (bool): `False` is the paper's ablation without a visual dictionary (table 7).
        use_dictionary_output (bool): feed f(v), eq. 3, to the Transformer; `False` feeds the dictionary's input
            features, which the paper does in fine-tuning. No lookup is made then.
        dictionary (str): the quantiser. `"paper"`. `"official"`: a training forward moves the codes and answers with
            the moved ones; an image counts once for each of its texts; see `official/dictionary.py:
            OfficialDictionary`. Or any class by its import path, `my.module:MyQuantiser`, see `quantiser.py`.
        dictionary_options (dict): keywords of such a class.
        num_codes (int): k of the paper.
        num_levels (int): levels of k codes, each for what the ones before leave of a feature (residual quantisation);
            f(v) is the sum of a token's codes, its label the first. 1 in the paper.
        ema_decay (float): gamma of eq. 4.
        ema_variant (str): `"paper"` is eq. 4: momentum mean of the batch's assigned features, only where a code
            has some.
            `"vqvae"` keeps running counts and sums with Laplace smoothing.
        laplace_eps (float): smoothing of `"vqvae"`.
        dictionary_init (str): `"random"` (normal, paper) or `"data"`: initialised from the features of the first
            training batch, all ranks together, unless codes have learnt before.
        dictionary_init_std (float): standard deviation of the random codes. Ours.
        dictionary_seed (int): seed of every draw inside the dictionary.
        dictionary_batch_norm (bool): BatchNorm before the lookup, by running statistics of the valid tokens of all
            ranks, in training too.
        fusion (str): what the Transformer reads of the dictionary's output: `"none"`: f(v) itself. `"gate"`: a sum of
            it and its feature with learned shares; see `official/fusion.py: GatedFusion`. `"features"`: the feature
            itself, so that the dictionary only labels what masked visual modelling masks (an ablation, ours).
        usage_decay (float): decay of the running usage behind perplexity, active codes and the dead-code reset.
        active_threshold (float): a code is active while its running usage, in units of the uniform share 1/k, is at
            least this.
        code_reset_threshold (float): a code whose running usage (same units) is below this is reset to a feature of
            the batch, the same on all ranks; 0 switches the reset off.
        code_reset_patience (int): a code is left alone for so many updates after its reset.
        code_reset_interval (int): codes are reset at every so many updates.
        code_reset_limit (int): at most so many codes are reset at once (bounds what ranks exchange).
        mvm_masking (str): which label of an image masked visual modelling masks: `"label"`: one of those that are
            there, each as likely (paper section 3.3). `"lift"`: those more often that are more frequent in the image
            than elsewhere, see `VisualDictionary.draw_by_lift` (ours). `"position"`: that of a place drawn from all
            places of the grid, in training one place for all images of a forward (released code).
        mvm_margin (int): the tokens up to so many grid positions from a masked one are left out of what the Transformer
            reads, and not predicted, since the neighbours of a small token show what it is. With `mask_pairs`, matching
            is then asked of the other pairs alone. 0 in the paper.
        mlm_head (str): classifier of words: `"bert"`: transform, word table, bias. `"tied"`: the word table alone.
        mvm_head (str): classifier of codes: `"linear"`: transform and a table of its own. `"cosine"`: the cosine to
            each code, without parameters; see `official/heads.py: cosine_logits`.
        itm_bias (bool): whether the classifier of matching has a bias.
        losses_on (str): the pairs whose masked visual tokens count: `"matched"` (paper section 4.1) or `"all"`. Words
            count where the batch has labels.
        initial_values (str): of mask vector and classifiers that no checkpoint fills: `"bert"`: normal, by
            `initializer_range`. `"official"`: see `base.py: SohoPreTrainedModel`.
        head_act (str): activation within the classifiers of VQA and NLVR2; `None` takes `hidden_act`.
        head_dropout (float): dropout within them; `None` takes `hidden_dropout_prob`.
        mvm_weight (float): weight of the loss of masked visual modelling; 1 in the paper.
        commitment_weight (float): weight of VQ-VAE's commitment loss: the mean square of a feature's distance from
            its code, by which features stay near the codes; the paper does not have it. 0 leaves it out.
        bag_of_words_weight (float): weight of the loss of `auxiliary/bag_of_words.py` (which words do the captions
            hold?), for small corpora; the paper does not have it. 0 leaves it and its head out.
        contrastive_weight (float): in pre-training and image-text retrieval, weight of the loss of
            `auxiliary/contrastive.py` (vectors of images and texts, each made alone, to choose the pairs to score;
            ours); 0 leaves it and its projections out.
        contrastive_size (int): channels of these vectors.
        contrastive_reads (str): what they are made of: `"transformer"`: the Transformer's last hidden states.
            `"embeddings"`: the means of visual tokens and of word embeddings, which takes few images to learn.
    """

    model_type = "soho"

    preset: str = "paper"

    # Sections 4.1 and 3.1 to 3.3: ResNet-101, 2x2 pooling after the 1x1 convolution, 2048 codes of 768 channels, eq. 4
    # for the codebook, 12 BERT-base layers. `ema_decay` is ours (the paper says only that gamma lies in [0, 1]).
    # docs/paper.md goes through all of them.
    backbone: str = "resnet101"
    backbone_stride: int = 32
    backbone_frozen_stages: int = 0
    backbone_dropout_prob: float | int = 0.0
    visual_pool: int = 2

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    # Read by transformers' BertEncoder; SOHO is an encoder without cross-attention.
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    visual_encoder: str = "paper"
    recomputed_batch_norm: bool = False
    visual_layer_norm: bool = True
    visual_layer_norm_eps: float = 1e-5
    visual_dropout_prob: float | int | None = None

    use_dictionary: bool = True
    use_dictionary_output: bool = True
    dictionary: str = "paper"
    dictionary_options: dict[str, Any] | None = None
    num_codes: int = 2048
    num_levels: int = 1
    ema_decay: float = 0.9
    ema_variant: str = "paper"
    laplace_eps: float = 1e-5
    dictionary_init: str = "random"
    dictionary_init_std: float = 1.0
    dictionary_seed: int = 0
    dictionary_batch_norm: bool = False
    usage_decay: float = 0.99
    active_threshold: float = 0.01
    code_reset_threshold: float = 0.0
    code_reset_patience: int = 10
    code_reset_interval: int = 1
    code_reset_limit: int = 256
    fusion: str = "none"

    mvm_masking: str = "label"
    mvm_margin: int = 0
    mlm_head: str = "bert"
    mvm_head: str = "linear"
    itm_bias: bool = True
    losses_on: str = "matched"
    initial_values: str = "bert"
    head_act: str | None = None
    head_dropout: float | int | None = None

    mvm_weight: float | int = 1.0
    commitment_weight: float | int = 0.0
    bag_of_words_weight: float | int = 0.0
    contrastive_weight: float | int = 0.0
    contrastive_size: int = 256
    contrastive_reads: str = "transformer"

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers keeps what is no field as an attribute, and a misspelt weight would weigh nothing.
        self.check_names(name for name in kwargs if name.endswith("_weight"))
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raises ValueError that names the first field whose value can't be used."""
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if name == "dictionary" and is_import_path(value):
                continue
            if name == "backbone" and is_other_backbone(value):
                continue
            if value is not None and value not in allowed:
                similar = did_you_mean(value, allowed)
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}{similar}")
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                limits = f"at least {least}" if most == math.inf else f"{least} to {most:,}"
                raise ValueError(f"{name}: expected {limits}, got {value}")
        self._check_stages()
        is_official, kind, several = self.visual_encoder == "official", self.dictionary, self.num_levels > 1
        given, heads, pad = self.dictionary_options, self.num_attention_heads, self.pad_token_id or 0
        names, labels = self.architectures or [], self.id2label or {}
        are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
        are_numbers = {str(number) for number in range(len(labels))} == set(map(str, labels))
        of_official = "visual_encoder='official'"
        for name, is_wrong, expected in (
            ("dictionary_batch_norm", is_official and self.dictionary_batch_norm, f"False with {of_official}"),
            ("backbone_dropout_prob", is_official and self.backbone_dropout_prob, f"0 with {of_official}"),
            ("num_levels", several and kind == "official", "1 with dictionary='official'"),
            ("num_levels", several and self.dictionary_init != "data", "1, or dictionary_init='data' with it"),
            ("dictionary_options", given and kind in ("paper", "official"), f"none with dictionary={kind!r}"),
            ("recomputed_batch_norm", self.recomputed_batch_norm and not is_official, f"{of_official} with it"),
            ("usage_decay", self.usage_decay == 1.0, "a number below 1 (at 1 the usage would never be measured)"),
            ("pad_token_id", not 0 <= pad < self.vocab_size, "0 to vocab_size - 1"),
            ("architectures", not are_names, "a list of names"),
            ("id2label", not are_numbers, "a name for each number from 0 on"),
            (
                "hidden_size",
                self.hidden_size % 4,
                "a multiple of 4 (the 2-D sine position: sine and cosine of y and x)",
            ),
            ("hidden_size", self.hidden_size % heads, f"a multiple of num_attention_heads={heads}"),
        ):
            if is_wrong:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r:.60}")

    def _check_stages(self) -> None:
        stride, frozen = self.backbone_stride, self.backbone_frozen_stages
        if self.visual_encoder == "official" and stride != 32:
            raise ValueError(f"backbone_stride: expected 32 with visual_encoder='official', got {stride}")
        if is_other_backbone(self.backbone):  # Its stages are known where it is built.
            if stride < 1 or frozen < 0:
                got = f"{stride} and {frozen}"
                raise ValueError(f"backbone_stride, backbone_frozen_stages: expected at least 1 and 0, got {got}")
            return
        if stride not in BACKBONE_STRIDES:
            ends = f"one of {', '.join(map(str, BACKBONE_STRIDES))}, where a stage of {self.backbone} ends"
            raise ValueError(f"backbone_stride: expected {ends}, got {stride}")
        most = BACKBONE_STRIDES.index(stride) + 1
        if not 0 <= frozen <= most:
            stages = f"the stages of {self.backbone} up to backbone_stride={stride}"
            raise ValueError(f"backbone_frozen_stages: expected 0 to {most}, {stages}, got {frozen}")

    @property
    def token_stride(self) -> int:
        """Pixels of an image's side that a visual token stands for; the last token may lie partly beyond it."""
        return self.backbone_stride * self.visual_pool

    @classmethod
    def from_pretrained(  # type: ignore[override]  # its options are keywords here
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> Any:
        """As transformers' own. Raises ValueError: it is damaged, of another model, or a value can't be used."""
        check_checksums(pretrained_model_name_or_path, weights=False)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except ValueError as error:
            raise ValueError(f"{pretrained_model_name_or_path}: config.json: {error}") from error

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As transformers' own. Raises FileNotFoundError: a folder without config.json, which transformers takes for an
        empty one."""
        folder = Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or "")
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: there is no config.json")
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers' own. Raises ValueError: it is that of another model, or a value can't be used."""
        kind = config_dict.get("model_type")
        if kind != cls.model_type:
            raise ValueError(f"model_type: expected '{cls.model_type}', got {kind!r}")
        for name in ("attn_implementation", "_attn_implementation"):
            # Of a name with a / transformers would run code that the hub has.
            if "/" in str(config_dict.get(name)):
                raise ValueError(
                    f"{name}: expected no name of the hub, whose code would be run, got {config_dict[name]!r}"
                )
        with _types_in_plain_words():
            return super().from_dict(config_dict, **kwargs)

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Raises ValueError: one of them is no field."""
        unknown = sorted(name for name in names if name not in cls.__dataclass_fields__)
        if unknown:
            similar = did_you_mean(unknown[0], cls.__dataclass_fields__)
            raise ValueError(f"SohoConfig has no field {', '.join(unknown)}{similar or '; its docstring lists them'}")

    @classmethod
    def from_preset(cls, preset: str = "paper", **overrides: Any) -> "SohoConfig":
        """The configuration of a preset, with some fields replaced.

        Args:
            preset: `"paper"`: the values of the paper's text (sections 3 and 4.1). `"official"`, `"official_vqa"`: what
                the authors' released code computes in pre-training and in question answering, so that their weights
                mean the same here (see `official/`).
            overrides: fields of `SohoConfig` by name.

        Raises:
            ValueError: unknown preset, unknown field or a value that can't be used.
        """
        if preset not in PRESETS:
            similar = did_you_mean(preset, PRESETS)
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}{similar}")
        cls.check_names(overrides)
        with _types_in_plain_words():
            return cls(**{**PRESETS[preset], "preset": preset, **overrides})
