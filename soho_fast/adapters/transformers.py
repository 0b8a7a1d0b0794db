"""Exact lookups under the quantisers of transformers' codecs and image tokenisers.

Letters: B images or sequences, T steps in time, L levels, H and W rows and columns, N features, K codes, C channels.
"""

from collections.abc import Callable
from importlib import import_module

from torch import Tensor, nn
from torch.nn import functional

from soho_fast.adapters import swapping
from soho_fast.adapters.swapping import Accelerated, Keeping, ResidualStack, SummedCodebook, needs

with needs(__name__, "transformers>=5.23"):
    from transformers.integrations.accelerate import force_accelerate_hooks


class EuclideanCodebook(Accelerated):
    """Encodec's codebook and the ones shaped like it: `quantize((N, C)) -> int64 (N,)` in the buffer `embed`."""

    codebook_at = "embed"
    replaces = ("quantize",)
    embed: Tensor

    def quantize(self, hidden_states: Tensor) -> Tensor:
        return self.nearest_code(hidden_states, self.embed)


class MimiCodebook(SummedCodebook, EuclideanCodebook):
    """Mimi's, whose `embed` is made of two buffers."""

    codebook_at = "embed_sum"
    made_at = "_embed"
    embed_sum: Tensor
    cluster_usage: Tensor
    epsilon: float

    @property
    def embed(self) -> Tensor:  # type: ignore[override]
        return self.centroids(self.embed_sum, self.cluster_usage, self.epsilon)


class DacQuantizer(Accelerated):
    """DAC's, by cosine; the output is the code as it is, not its unit vector."""

    codebook_at = "codebook.weight"
    replaces = ("decode_latents",)
    metric = "cosine"
    codebook: nn.Embedding

    @force_accelerate_hooks("codebook")
    def decode_latents(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        feat_BTC = hidden_states.transpose(1, 2)
        index_BT = self.nearest_code(feat_BTC.flatten(0, 1), self.codebook.weight).view(feat_BTC.shape[:2])
        return self.codebook(index_BT).transpose(1, 2), index_BT


class ImageQuantizer(Accelerated):
    """Chameleon's and Janus': `forward((B, C, H, W)) -> quantised (B, C, H, W), loss, index int64 (B * H * W,)`."""

    codebook_at = "embedding.weight"
    replaces = ("forward",)
    embedding: nn.Embedding
    beta: float

    def forward(self, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feat_BHWC = hidden_state.permute(0, 2, 3, 1).contiguous()
        index_N = self.nearest_code(feat_BHWC.flatten(0, 2), self.embedding.weight)
        return self._with_loss(feat_BHWC, self.embedding(index_N).view(feat_BHWC.shape), index_N)

    def _with_loss(self, feat_BHWC: Tensor, codes_BHWC: Tensor, index_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        commitment = (codes_BHWC.detach() - feat_BHWC).pow(2).mean()
        loss = commitment + self.beta * (codes_BHWC - feat_BHWC.detach()).pow(2).mean()
        quantised_BHWC = feat_BHWC + (codes_BHWC - feat_BHWC).detach()
        return quantised_BHWC.permute(0, 3, 1, 2).contiguous(), loss, index_N


class GlmImageQuantizer(ImageQuantizer):
    """GlmImage's: as Chameleon's, on unit vectors throughout, chosen by cosine."""

    metric = "cosine"

    def forward(self, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raw_BHWC = hidden_state.permute(0, 2, 3, 1).contiguous()
        index_N = self.nearest_code(raw_BHWC.flatten(0, 2), self.embedding.weight)
        codes_KC = functional.normalize(self.embedding.weight, dim=-1)
        feat_BHWC = functional.normalize(raw_BHWC, dim=-1)
        return self._with_loss(feat_BHWC, codes_KC[index_N].view(feat_BHWC.shape), index_N)


class VideoQuantizer(Accelerated):
    """Emu3's: `forward((B, T, C, H, W)) -> index int64 (B, T, H, W)`."""

    codebook_at = "embedding.weight"
    replaces = ("forward",)
    embedding: nn.Embedding

    def forward(self, hidden_state: Tensor) -> Tensor:
        feat_BTHWC = hidden_state.permute(0, 1, 3, 4, 2)
        index_N = self.nearest_code(feat_BTHWC.flatten(0, 3), self.embedding.weight)
        return index_N.view(feat_BTHWC.shape[:-1])


class DotProductQuantizer(Accelerated):
    """Apertus': `forward((B, C, H, W)) -> index int64 (B, H, W)`, of the largest dot product."""

    codebook_at = "embedding.weight"
    replaces = ("forward",)
    metric = "dot"
    embedding: nn.Linear

    @force_accelerate_hooks("embedding")
    def forward(self, hidden_states: Tensor) -> Tensor:
        feat_BHWC = hidden_states.permute(0, 2, 3, 1)
        index_N = self.nearest_code(feat_BHWC.flatten(0, 2), self.embedding.weight)
        return index_N.view(feat_BHWC.shape[:-1])

    @classmethod
    def refusals(cls, module: nn.Module) -> list[str]:
        bias = getattr(module.embedding, "bias", None)
        return [*super().refusals(module), *([] if bias is None else ["embedding.bias: expected None, got one"])]


class BandwidthStack(ResidualStack):
    """Encodec's: `encode((B, C, T), bandwidth) -> int64 (L, B, T)`."""

    get_num_quantizers_for_bandwidth: Callable[[float | None], int]

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        return self.encoded(embeddings, self.get_num_quantizers_for_bandwidth(bandwidth))


class XcodecStack(BandwidthStack):
    """XCodec's, the same in other words."""

    levels_at = "quantizers"


class MimiStack(ResidualStack):
    """Mimi's: `encode((B, C, T), L) -> int64 (L, B, T)`, of what it projects."""

    num_quantizers: int
    input_proj: nn.Module | None

    def encode(self, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
        embeddings = embeddings if self.input_proj is None else self.input_proj(embeddings)
        return self.encoded(embeddings, self.num_quantizers if num_quantizers is None else num_quantizers)


# Model, class, and what is put in front of it.
_CLASSES: dict[str, tuple[str, type[Keeping]]] = {
    "EncodecResidualVectorQuantizer": ("encodec", BandwidthStack),
    "XcodecResidualVectorQuantization": ("xcodec", XcodecStack),
    "MimiResidualVectorQuantizer": ("mimi", MimiStack),
    "EncodecEuclideanCodebook": ("encodec", EuclideanCodebook),
    "XcodecEuclideanCodebook": ("xcodec", EuclideanCodebook),
    "WavTokenizerEuclideanCodebook": ("wavtokenizer", EuclideanCodebook),
    "HiggsAudioV2TokenizerEuclideanCodebook": ("higgs_audio_v2_tokenizer", EuclideanCodebook),
    "MimiEuclideanCodebook": ("mimi", MimiCodebook),
    "DacVectorQuantize": ("dac", DacQuantizer),
    "ChameleonVQVAEVectorQuantizer": ("chameleon", ImageQuantizer),
    "JanusVQVAEVectorQuantizer": ("janus", ImageQuantizer),
    "GlmImageVQVAEVectorQuantizer": ("glm_image", GlmImageQuantizer),
    "Emu3VQVAEVectorQuantizer": ("emu3", VideoQuantizer),
    "Apertus1p5VisionTokenizerVectorQuantizer": ("apertus1p5", DotProductQuantizer),
}


def _home(model: str) -> str:
    return f"transformers.models.{model}.modeling_{model}"


def __getattr__(name: str) -> type[Keeping]:
    """The accelerated class of a quantiser's name, made when it is asked for: the model's module is loaded by then."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    model, base = _CLASSES[name]
    original = getattr(import_module(_home(model)), name)
    contents = {"__module__": __name__, "__doc__": base.__doc__, "original": original}
    globals()[name] = type(name, (base, original), contents)
    return globals()[name]


def _accelerated_of(kind: type) -> type[Keeping] | None:
    name = kind.__name__
    served = name in _CLASSES and kind.__module__ == _home(_CLASSES[name][0])
    return getattr(import_module(__name__), name) if served else None


def find(model: nn.Module) -> tuple[list[swapping.Found], list[str]]:
    """As `swapping.find`."""
    return swapping.find(model, _accelerated_of)
