"""What a model is made of: the paper's parts, and ours, by the fields of `SohoConfig` that choose them.

Another set of parts, as `official/` has one, is a class of these methods: nothing here knows it but by its name.
"""

from collections.abc import Iterable
from pkgutil import resolve_name
from typing import Any, cast

from torch import Tensor, nn

from soho_fast import ops
from soho_fast.common.import_path import is_import_path, load_imported

from .config import SohoConfig
from .embeddings import VisualEmbeddings
from .fusion import GatedFusion
from .heads import ClassificationHead, ItmHead, TokenHead
from .normalization import TokenBatchNorm
from .outputs import VisualTokens
from .quantiser import Quantiser
from .visual_dictionary import VisualDictionary
from .visual_encoder import VisualEncoder
from .words_dictionary import WordsDictionary


class Parts:
    """The paper's parts, and ours. B images, M positions, K codes, D channels.

    Attributes:
        mask_std: standard deviation of the mask vector at the start.
        only_matched: whether the masked visual tokens of matched pairs alone count (paper section 4.1).
    """

    only_matched = True

    def __init__(self, config: SohoConfig) -> None:
        self.config = config
        self.mask_std = config.initializer_range

    def visual_encoder(self) -> VisualEncoder:
        """Section 3.1: images to features."""
        return VisualEncoder(self.config)

    def feature_norm(self) -> nn.Module | None:
        """What stands before the lookup; the paper has nothing there."""
        return TokenBatchNorm(self.config.hidden_size) if self.config.dictionary_batch_norm else None

    def dictionary(self) -> Quantiser:
        """Section 3.2: features to codes."""
        kind = WordsDictionary if self.config.dictionary == "words" else VisualDictionary
        return cast(Quantiser, kind(self.config))

    def fusion(self) -> nn.Module | None:
        """What makes of codes and features what the Transformer reads; the paper has nothing there."""
        return GatedFusion(self.config) if self.config.fusion == "gate" else None

    def visual_embeddings(self) -> VisualEmbeddings:
        """Visual tokens as the Transformer reads them."""
        return VisualEmbeddings(self.config, self.config.hidden_dropout_prob)

    def label_to_mask(self, dictionary: Quantiser, visual: VisualTokens, uniform_B: Tensor, training: bool) -> Tensor:
        """The label of each image that is masked (section 3.3), int64 (B,), -1 of an image without tokens."""
        assert visual.index is not None, "only a dictionary makes an index"
        if self.config.mvm_masking == "lift":  # not the paper's
            return dictionary.draw_by_lift(visual.index, visual.valid, uniform_B)
        return ops.sample_group(visual.index, valid=visual.valid, uniform=uniform_B)

    def mlm_head(self) -> TokenHead:
        """Eq. 6: hidden states to words."""
        return TokenHead(self.config, self.config.vocab_size)

    def mvm_head(self) -> TokenHead | None:
        """Eq. 7: hidden states to codes; `None`: `code_logits` does without parameters."""
        return TokenHead(self.config, self.config.num_codes)

    def code_logits(self, hidden_MD: Tensor, codebook_KD: Tensor) -> Tensor:
        """Logits of the codes, (M, K), where there is no `mvm_head`."""
        raise NotImplementedError

    def itm_head(self) -> ItmHead:
        """Eq. 8: [CLS] to whether the pair matches."""
        return ItmHead(self.config)

    def classification_head(self, in_features: int, num_labels: int) -> ClassificationHead:
        """The MLP of the fine-tuned models."""
        return ClassificationHead(self.config, in_features, num_labels)


def parts_of(config: SohoConfig) -> Parts:
    """The parts that a configuration chooses."""
    kind = Parts if config.official is None else resolve_name("soho_fast.model.official.parts:OfficialParts")
    return kind(config)


def visual_dictionary(parts: Parts) -> Quantiser | None:
    """From features to codes (section 3.2), or none.

    Raises:
        ValueError: `config.dictionary` is an import path whose module is not imported yet, or names no `Quantiser`; or
            it has another number of codes than the config.
    """
    config, name = parts.config, parts.config.dictionary
    if name == "none":
        return None
    if not is_import_path(name):
        return parts.dictionary()
    # A model's file may name any class: only what is imported already is looked at.
    make = load_imported(name, "dictionary", nn.Module)
    # Before anything is made: another class may do anything.
    _refuse_lacking(name, make, [member for member in vars(Quantiser) if not member.startswith("_")])
    made: Any = make(config)
    # The methods were looked for on the class; attributes are there once it is made.
    _refuse_lacking(name, made, Quantiser.__annotations__)
    if made.num_codes != config.num_codes:
        raise ValueError(f"num_codes: expected {made.num_codes:,}, as {name!r} has, got {config.num_codes:,}")
    return made


def _refuse_lacking(name: str, found: Any, members: Iterable[str]) -> None:
    if missing := ", ".join(member for member in members if not hasattr(found, member)):
        raise ValueError(
            f"dictionary: {name} has no {missing}; expected all that `Quantiser` lists (model/quantiser.py)"
        )
