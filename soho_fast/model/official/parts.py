"""What the released code has in the place of the paper's parts; `parts.py: parts_of` takes them by name."""

from typing import cast

from torch import Tensor, nn

from ..all_token_batch_norm import AllTokenBatchNorm
from ..config import SohoConfig
from ..embeddings import VisualEmbeddings
from ..fusion import GatedFusion
from ..heads import ClassificationHead, ItmHead
from ..initial_values import he_fan_in, torchs_own
from ..outputs import VisualTokens
from ..parts import Parts
from ..quantiser import Quantiser
from .dictionary import OfficialDictionary
from .heads import TiedHead, cosine_logits
from .masking import label_at_place
from .released_encoder import OfficialVisualEncoder


class OfficialParts(Parts):
    """As `Parts`."""

    only_matched = False

    def __init__(self, config: SohoConfig) -> None:
        super().__init__(config)
        self.mask_std = 1.0

    def visual_encoder(self) -> OfficialVisualEncoder:
        return OfficialVisualEncoder(self.config)

    def feature_norm(self) -> AllTokenBatchNorm:
        return AllTokenBatchNorm(self.config.hidden_size)

    def dictionary(self) -> Quantiser:
        return cast(Quantiser, OfficialDictionary(self.config))

    def fusion(self) -> nn.Module | None:
        fusion = super().fusion()
        if isinstance(fusion, GatedFusion):
            fusion.align.initial_values = torchs_own  # type: ignore[assignment]  # modules take any attribute
        return fusion

    def visual_embeddings(self) -> VisualEmbeddings:
        return VisualEmbeddings(self.config, dropout=0.0)

    def label_to_mask(self, dictionary: Quantiser, visual: VisualTokens, uniform_B: Tensor, training: bool) -> Tensor:
        """That of a place drawn from all places of the grid, in training one place, the first image's, for all images
        of a forward."""
        assert visual.index is not None, "only a dictionary makes an index"
        if training:
            uniform_B = uniform_B[:1].expand_as(uniform_B)
        return label_at_place(visual.index, valid=visual.valid, uniform=uniform_B)

    def mlm_head(self) -> TiedHead:
        return TiedHead(self.config, self.config.vocab_size)

    def mvm_head(self) -> None:
        return None

    def code_logits(self, hidden_MD: Tensor, codebook_KD: Tensor) -> Tensor:
        return cosine_logits(hidden_MD, codebook_KD)

    def itm_head(self) -> ItmHead:
        head = ItmHead(self.config, bias=False)
        _start_by_he(head)
        return head

    def classification_head(self, in_features: int, num_labels: int) -> ClassificationHead:
        head = super().classification_head(in_features, num_labels)
        _start_by_he(head)
        return head


def _start_by_he(head: nn.Module) -> None:
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            layer.initial_values = he_fan_in  # type: ignore[assignment]  # modules take any attribute
