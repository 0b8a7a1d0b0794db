"""Configuration of SOHO: the values of `values.py`, checked, as transformers saves and loads them."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from soho_fast.common.checksums import check_checksums
from soho_fast.common.import_path import is_import_path
from soho_fast.common.spelling import did_you_mean

from .towers import tower_config
from .values import CHOICES, PRESETS, TIMM, TRANSFORMERS, ModelValues

# Where the stages of each backbone end, in pixels between features.
BACKBONE_STRIDES = (4, 8, 16, 32)


def is_other_backbone(name: str) -> bool:
    """Whether it names a network of timm or transformers, or a user's own by import path."""
    return name.startswith((TIMM, TRANSFORMERS)) or is_import_path(name)


# What a field chooses from.
_CHOICES: dict[str, tuple[str, ...]] = {
    **CHOICES,
    "backbone": ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"),
    "dictionary": ("none", "paper", "words"),
    "hidden_act": tuple(ACT2FN),
    "head_act": tuple(ACT2FN),
}

# The least and the largest value. No model has larger sizes: they are a mistake, and would be built until the memory is
# full.
_SIZES = (
    "num_codes", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings",
    "type_vocab_size",
)  # fmt: skip
_SHARES = (
    "ema_decay", "head_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "backbone_dropout_prob",
)  # fmt: skip
_NOT_NEGATIVE = (
    "mvm_weight", "bag_of_words_weight", "contrastive_weight", "code_reset_threshold", "initializer_range",
    "layer_norm_eps",
)  # fmt: skip
# Of all its matrices: within those above, a model of a few lines takes terabytes.
_MOST_PARAMETERS = 10_000_000_000
_LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_SIZES, (1, 10_000_000)),
    **dict.fromkeys(("visual_pool", "num_hidden_layers"), (1, 1000)),
    "num_levels": (1, 64),
    "mvm_margin": (0, 1000),
    **dict.fromkeys(_SHARES, (0, 1)),
    **dict.fromkeys(_NOT_NEGATIVE, (0, math.inf)),
}

# What config.json may hold that is no field.
_OF_TRANSFORMERS = ("model_type", "transformers_version", "dtype", "torch_dtype", "auto_map", "quantization_config")


@contextmanager
def _types_in_plain_words() -> Iterator[None]:
    try:
        yield
    except StrictDataclassFieldValidationError as error:
        raise ValueError(f"SohoConfig: {error.__cause__ or error}") from error
    except (AttributeError, TypeError) as error:  # transformers takes the types of its own fields for granted
        raise ValueError(f"SohoConfig: a field is of another type than expected ({error})") from error


@strict
class SohoConfig(ModelValues, PreTrainedConfig):
    r"""Everything that fixes the shape and the arithmetic of a SOHO model: `ModelValues`, and what follows from other
    things than a recipe.

    Args:
        preset (str): name of the preset the values started from; recorded, not read.
        backbone_config (dict): of a backbone of transformers its configuration, and how its images are normalised.
        use_dictionary_output (bool): feed f(v), eq. 3, to the Transformer; `False` feeds the dictionary's input
            features, which the paper does in fine-tuning. No lookup is made then.
        vocab_size, hidden_act, max_position_embeddings, type_vocab_size, layer_norm_eps, initializer_range,
            pad_token_id: as in `transformers.BertConfig`.
    """

    model_type = "soho"

    preset: str = "paper"
    backbone_config: dict[str, Any] | None = None
    use_dictionary_output: bool = True

    vocab_size: int = 30522
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    # Read by transformers' BertEncoder; SOHO is an encoder without cross-attention.
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

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
        rows = self.vocab_size + self.max_position_embeddings + self.num_codes * self.num_levels
        rows += self.num_hidden_layers * (4 * self.hidden_size + 2 * self.intermediate_size)
        if rows * self.hidden_size > _MOST_PARAMETERS:
            got = f"{rows * self.hidden_size:,} with the other sizes"
            raise ValueError(f"hidden_size: expected at most {_MOST_PARAMETERS:,} parameters, got {got}")
        official, several = self.official is not None, self.num_levels > 1
        words = self.dictionary == "words"
        heads, pad = self.num_attention_heads, self.pad_token_id or 0
        names, labels = self.architectures or [], self.id2label or {}
        are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
        are_numbers = {str(number) for number in range(len(labels))} == set(map(str, labels))
        of_official = f"official={self.official!r}"
        for name, is_wrong, expected in (
            ("dictionary", official and self.dictionary not in ("none", "paper"), f"'paper' with {of_official}"),
            ("dictionary_batch_norm", official and self.dictionary_batch_norm, f"False with {of_official}"),
            ("backbone_dropout_prob", official and self.backbone_dropout_prob, f"0 with {of_official}"),
            ("num_levels", official and several, f"1 with {of_official}"),
            ("num_levels", several and words, "1 with dictionary='words'"),
            ("dictionary_init", words and self.dictionary_init != "data", "'data' with dictionary='words'"),
            ("bag_of_words_weight", words and not self.bag_of_words_weight, "above 0 with dictionary='words'"),
            ("num_levels", several and self.dictionary_init != "data", "1, or dictionary_init='data' with it"),
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
        if self.official is not None and stride != 32:
            raise ValueError(f"backbone_stride: expected 32 with official={self.official!r}, got {stride}")
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
        known = {*cls().to_dict(), *(each.name for each in fields(PreTrainedConfig)), *_OF_TRANSFORMERS}
        if unknown := [name for name in config_dict if name not in known and not name.startswith("_")]:
            raise ValueError(f"there is no field {', '.join(unknown)}; another version has written it")
        with _types_in_plain_words():
            return super().from_dict(config_dict, **kwargs)

    @classmethod
    def field_names(cls) -> list[str]:
        """The names of SOHO's own fields."""
        return [name for each in (ModelValues, cls) for name in each.__annotations__ if name != "model_type"]

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
            preset: `"paper"`: the values of the paper's text (sections 3 and 4.1). `"official"`, `"official_vqa"`:
                those of the authors' released weights of pre-training and of question answering.
            overrides: fields of `SohoConfig` by name.

        Raises:
            ValueError: unknown preset, unknown field or a value that can't be used.
            FileNotFoundError: see `tower_config`.
        """
        if preset not in PRESETS:
            similar = did_you_mean(preset, PRESETS)
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}{similar}")
        cls.check_names(overrides)
        values = {**PRESETS[preset], "preset": preset, **overrides}
        backbone = str(values.get("backbone"))
        if backbone.startswith(TRANSFORMERS) and "backbone_config" not in values:
            values["backbone_config"] = tower_config(backbone.removeprefix(TRANSFORMERS))
        with _types_in_plain_words():
            return cls(**values)


AutoConfig.register("soho", SohoConfig, exist_ok=True)
