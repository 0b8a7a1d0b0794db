"""Small models with random weights, and the float64 evaluation that their codes are held against.

Letters: B sequences or images, T steps in time, N features, K codes, C channels, Q levels.
"""

import contextlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from soho_fast.adapters.swapping import ResidualStack


@contextlib.contextmanager
def stand_in(*names):
    """Empty modules for packages that are not installed, and that quantisers do not need, while others are imported."""
    missing = [name for name in names if name not in sys.modules and find_spec(name) is None]
    sys.modules.update({name: ModuleType(name) for name in missing})
    yield
    for name in missing:
        del sys.modules[name]


def library(name, module):
    """A module of an installed library, past what its packages import besides (players, downloads, training)."""
    if module in sys.modules:
        return sys.modules[module]
    spec = find_spec(name)
    if spec is None:
        pytest.skip(f"needs {name}")
    for end in re.finditer(r"\.", module):
        bare = ModuleType(module[: end.start()])
        bare.__path__ = [str(Path(spec.submodule_search_locations[0]).parent / bare.__name__.replace(".", "/"))]
        sys.modules[bare.__name__] = bare
    return import_module(module)


def brute_force(features_NC, codebook_KC):
    """argmin of the squared distance in float64 on the vectors as they are; the lowest of equally near codes."""
    distance_NK = (features_NC.double()[:, None] - codebook_KC.double()).square().sum(-1)
    nearest_NK = distance_NK == distance_NK.amin(-1, keepdim=True)
    return nearest_NK.int().argmax(-1)  # the first


def most_similar(features_NC, codebook_KC, cosine):
    """argmax of the dot product in float64, of `cosine` over the code's length; the lowest of equally similar codes."""
    similar_NK = (features_NC.double()[:, None] * codebook_KC.double()).sum(-1)
    if cosine:
        similar_NK = similar_NK / codebook_KC.double().norm(dim=-1)
    return (similar_NK == similar_NK.amax(-1, keepdim=True)).int().argmax(-1)


def encodec():
    from transformers import EncodecConfig, EncodecModel

    return EncodecModel(
        EncodecConfig(
            hidden_size=16, num_filters=4, codebook_size=64, codebook_dim=16, num_lstm_layers=1,
            upsampling_ratios=[4, 2], target_bandwidths=[24.0], sampling_rate=8_000, norm_type="time_group_norm",
        )
    )  # fmt: skip


def mimi():
    from transformers import MimiConfig, MimiModel

    return MimiModel(
        MimiConfig(
            hidden_size=16, num_filters=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, intermediate_size=16, codebook_size=64, codebook_dim=8, vector_quantization_hidden_dimension=8,
            upsampling_ratios=[4, 2], num_quantizers=4, sliding_window=20, upsample_groups=16,
        )
    )  # fmt: skip


def dac():
    from transformers import DacConfig, DacModel

    return DacModel(
        DacConfig(
            encoder_hidden_size=4, downsampling_ratios=[4, 2], upsampling_ratios=[2, 4], decoder_hidden_size=16,
            n_codebooks=4, codebook_size=64, codebook_dim=8,
        )
    )  # fmt: skip


def xcodec():
    from transformers import XcodecConfig
    from transformers.models.xcodec.modeling_xcodec import XcodecResidualVectorQuantization

    return XcodecResidualVectorQuantization(XcodecConfig(codebook_size=64, codebook_dim=16, target_bandwidths=[4.0]))


def higgs():
    from transformers import HiggsAudioV2TokenizerConfig

    config = HiggsAudioV2TokenizerConfig(codebook_size=64, codebook_dim=16, target_bandwidths=[2.0])
    with stand_in("torchaudio"):
        modeling = import_module("transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer")
    return modeling.HiggsAudioV2TokenizerVectorQuantization(config)


def wavtokenizer():
    from transformers import WavTokenizerConfig
    from transformers.models.wavtokenizer.modeling_wavtokenizer import WavTokenizerVectorQuantization

    return WavTokenizerVectorQuantization(WavTokenizerConfig(hidden_size=16, codebook_size=64, codebook_dim=16))


def chameleon():
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    return ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=16, num_embeddings=64, latent_channels=16, base_channels=32, channel_multiplier=[1, 1],
            num_res_blocks=1, resolution=16, attn_type="none",
        )
    )  # fmt: skip


def janus():
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    return JanusVQVAE(
        JanusVQVAEConfig(
            embed_dim=16, num_embeddings=64, latent_channels=16, base_channels=32, channel_multiplier=[1, 1],
            num_res_blocks=1, num_patches=8,
        )
    )  # fmt: skip


def glm_image():
    from transformers.models.glm_image.configuration_glm_image import GlmImageVQVAEConfig
    from transformers.models.glm_image.modeling_glm_image import GlmImageVQVAEVectorQuantizer

    return GlmImageVQVAEVectorQuantizer(GlmImageVQVAEConfig(embed_dim=16, num_embeddings=64))


def emu3():
    from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAEVectorQuantizer

    return Emu3VQVAEVectorQuantizer(Emu3VQVAEConfig(embed_dim=16, codebook_size=64))


def apertus():
    from transformers import Apertus1p5VisionTokenizerConfig
    from transformers.models.apertus1p5.modeling_apertus1p5 import Apertus1p5VisionTokenizerVectorQuantizer

    return Apertus1p5VisionTokenizerVectorQuantizer(Apertus1p5VisionTokenizerConfig(embed_dim=16, codebook_size=64))


@dataclass(frozen=True)
class Case:
    """A model, an input of it, and where it looks up.

    Attributes:
        run: (model, input) -> everything that comes out, the codes last.
        leaf: name of the class that looks up. method: its method.
        in_float64: that method by `brute_force`.
        spread: of the codes, where the model starts with none.
    """

    build: Callable
    shape: tuple[int, ...]
    run: Callable
    leaf: str
    method: str
    in_float64: Callable
    spread: float = 1.0

    def model(self) -> nn.Module:
        torch.manual_seed(1)
        model = self.build().eval()
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name in ("embed", "embed_sum"):
                    buffer.normal_(std=self.spread)
                elif name == "cluster_usage":
                    buffer.uniform_(0.5, 2)
        return model

    def input(self, seed: int = 2) -> torch.Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))

    def leaves(self, model: nn.Module) -> list[nn.Module]:
        return [module for module in model.modules() if type(module).__name__ == self.leaf]

    def is_prepared(self, model: nn.Module) -> bool:
        """Whether every codebook is, by itself or with the others of its stack."""
        stacks = [
            module for module in model.modules() if isinstance(module, ResidualStack) and module._kept.is_prepared
        ]
        together = {id(part) for stack in stacks for part in stack.modules()}
        return all(leaf._kept.is_prepared or id(leaf) in together for leaf in self.leaves(model))

    def codes(self, model: nn.Module, values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.run(model, values)[-1]

    def given(self, model: nn.Module, values: torch.Tensor) -> torch.Tensor:
        """What the method of the first leaf gets."""
        leaf, given = self.leaves(model)[0], []
        method = getattr(leaf, self.method)
        setattr(leaf, self.method, lambda hidden: (given.append(hidden), method(hidden))[1])
        self.codes(model, values)
        delattr(leaf, self.method)
        return given[0]

    @contextlib.contextmanager
    def exactly(self, model: nn.Module):
        """Within it, the model looks up by `brute_force`."""
        leaves = self.leaves(model)
        for leaf in leaves:
            setattr(leaf, self.method, lambda *given, leaf=leaf: self.in_float64(leaf, *given))
        yield
        for leaf in leaves:
            delattr(leaf, self.method)


def euclidean_codebook(leaf, features_NC):
    return brute_force(features_NC, leaf.embed)


def dac_latents(leaf, hidden_BCT):
    feat_NC = hidden_BCT.transpose(1, 2).flatten(0, 1)
    index_BT = most_similar(feat_NC, leaf.codebook.weight, cosine=True).view(hidden_BCT.shape[0], -1)
    return leaf.codebook(index_BT).transpose(1, 2), index_BT


def image(leaf, hidden_BCHW, normalise=lambda vectors: vectors):
    """(quantised, loss, index) with the published loss: |sg(e) - z|^2 + beta |e - sg(z)|^2."""
    raw_NC = hidden_BCHW.movedim(1, -1).flatten(0, 2)
    index_N = brute_force(raw_NC, leaf.embedding.weight)
    chosen = leaf.embedding.weight[index_N].view(hidden_BCHW.movedim(1, -1).shape).movedim(-1, 1)
    distance = (chosen - hidden_BCHW).square().mean()
    return chosen, distance * (1 + leaf.beta), index_N


def glm(leaf, hidden_BCHW):
    index_N = most_similar(hidden_BCHW.movedim(1, -1).flatten(0, 2), leaf.embedding.weight, cosine=True)
    return None, None, index_N


def apertus_forward(leaf, hidden_BCHW):
    feat = hidden_BCHW.movedim(1, -1)
    return most_similar(feat.flatten(0, 2), leaf.embedding.weight, cosine=False).view(feat.shape[:-1])


def video(leaf, hidden_BTCHW):
    feat = hidden_BTCHW.movedim(2, -1)
    return brute_force(feat.flatten(0, 3), leaf.embedding.weight).view(feat.shape[:-1])


def of_level(name):
    return (lambda model, values: (model.encode(values),)), f"{name}EuclideanCodebook", "quantize", euclidean_codebook


def of_image(function=image):
    return "forward", function


def of_tokeniser(model, pixels):
    output = model.encode(pixels)
    return output.quantized_last_hidden_state, output.embedding_loss, output.image_tokens


CASES = {
    "encodec": Case(encodec, (2, 1, 800), lambda m, x: (m.encode(x).audio_codes,), *of_level("Encodec")[1:], 0.16),
    "mimi": Case(mimi, (2, 1, 1600), lambda m, x: (m.encode(x).audio_codes,), *of_level("Mimi")[1:], 3.0),
    "xcodec": Case(xcodec, (2, 16, 60), *of_level("Xcodec")),
    "higgs": Case(higgs, (2, 1024, 60), *of_level("HiggsAudioV2Tokenizer")),
    "wavtokenizer": Case(wavtokenizer, (2, 16, 60), *of_level("WavTokenizer")),
    "dac": Case(
        dac, (2, 1, 480), lambda m, x: (*m.encode(x, return_dict=False)[1:2], *m.encode(x, return_dict=False)[::2],
        m.encode(x).audio_codes), "DacVectorQuantize", "decode_latents", dac_latents,
    ),
    "chameleon": Case(
        chameleon, (2, 3, 16, 16), of_tokeniser, "ChameleonVQVAEVectorQuantizer", *of_image()
    ),
    "janus": Case(janus, (2, 3, 16, 16), of_tokeniser, "JanusVQVAEVectorQuantizer", *of_image()),
    "glm_image": Case(
        glm_image, (2, 16, 6, 5), lambda m, x: m(x), "GlmImageVQVAEVectorQuantizer", *of_image(glm)
    ),
    "apertus": Case(
        apertus, (2, 16, 6, 5), lambda m, x: (m(x),), "Apertus1p5VisionTokenizerVectorQuantizer",
        *of_image(apertus_forward)
    ),
    "emu3": Case(emu3, (2, 2, 16, 6, 5), lambda m, x: (m(x),), "Emu3VQVAEVectorQuantizer", *of_image(video)),
}  # fmt: skip


def exact_codes(case, model, values):
    """By `brute_force` in place of what looks up."""
    with case.exactly(model):
        return case.codes(model, values)


def thrice(case, model, values):
    """The first call sees the codebook, the second prepares it, the third finds it prepared."""
    codes = [case.codes(model, values) for _ in range(3)]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[1], codes[2])
    return codes[0]


def drawn_anew(model):
    """Other weights of the same shapes."""
    generator = torch.Generator().manual_seed(9)
    return {
        name: torch.rand(value.shape, generator=generator).to(value) + 0.5 if "usage" in name
        else (value + 0.5 * value.std() * torch.randn(value.shape, generator=generator)).to(value)
        if value.is_floating_point() and value.numel() > 1 else value
        for name, value in model.state_dict().items()
    }  # fmt: skip


def in_place(model):
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.mul_(1.5).add_(torch.linspace(-0.2, 0.2, value.numel()).view(value.shape))
