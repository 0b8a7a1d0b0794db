"""The training forward of the VisualDictionary layer: lookup, straight-through, statistics, moving average.

vector-quantize-pytorch runs with its straight-through gradient, so that all do the same; `accelerated` is its layer on
our ops (soho_fast/adapters).

B images of L tokens, N = B * L features, C channels, K codes.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.lookup_baselines import inputs, installed, product_work, real_inputs
from benchmarks.ops.shapes import DICTIONARY_BLC, DICTIONARY_K, text
from benchmarks.short import first_by_default
from soho_fast.model import SohoConfig
from soho_fast.model.visual_dictionary import VisualDictionary

IMAGES, TOKENS, CHANNELS = DICTIONARY_BLC
NUM_CODES = DICTIONARY_K
SHAPE = (IMAGES * TOKENS, NUM_CODES, CHANNELS)
DECAY = 0.9


def soho_fast(feat_BLC: Tensor, codebook_KC: Tensor):
    config = SohoConfig.from_preset("paper", num_codes=NUM_CODES, hidden_size=CHANNELS, ema_decay=DECAY)
    layer = VisualDictionary(config).train()
    layer.codebook.copy_(codebook_KC)
    valid_BL = torch.ones(feat_BLC.shape[:2], dtype=torch.bool)
    return lambda: (*layer(feat_BLC, valid_BL), layer.codebook)


def torch_eager(feat_BLC: Tensor, codebook_KC: Tensor):
    codebook_KC = codebook_KC.clone()

    def call():
        features_NC = feat_BLC.flatten(0, 1)
        with torch.no_grad():
            index_N = torch.cdist(features_NC, codebook_KC).argmin(-1)
            quantized_NC = codebook_KC[index_N]
        embed_NC = features_NC + (quantized_NC - features_NC).detach()
        with torch.no_grad():
            counts_K = torch.bincount(index_N, minlength=NUM_CODES)[:, None]
            sums_KC = torch.zeros_like(codebook_KC).index_add_(0, index_N, features_NC)
            moved_KC = codebook_KC * DECAY + sums_KC / counts_K.clamp(min=1) * (1 - DECAY)
            codebook_KC.copy_(torch.where(counts_K > 0, moved_KC, codebook_KC))
        return embed_NC.view_as(feat_BLC), index_N.view(feat_BLC.shape[:2]), codebook_KC

    return call


def vector_quantize_pytorch(feat_BLC: Tensor, codebook_KC: Tensor, accelerated: bool = False):
    library = installed("vector_quantize_pytorch", "vector-quantize-pytorch")
    layer = library.VectorQuantize(dim=CHANNELS, codebook_size=NUM_CODES, decay=DECAY, rotation_trick=False).train()
    layer.codebook = codebook_KC
    layer._codebook.embed_avg.copy_(layer._codebook.embed)
    if accelerated:
        from soho_fast.adapters import accelerate

        accelerate(layer)
    return lambda: (*layer(feat_BLC)[:2], None)  # its moving average is another one: not compared


def accelerated_layer(feat_BLC: Tensor, codebook_KC: Tensor):
    return vector_quantize_pytorch(feat_BLC, codebook_KC, accelerated=True)


METHODS = {
    "soho_fast": soho_fast,
    "soho_fast in vector-quantize-pytorch": accelerated_layer,
    "torch eager": torch_eager,
    "vector-quantize-pytorch": vector_quantize_pytorch,
}


INPUTS = {"normal noise": lambda: inputs(SHAPE, torch.float32), "real": lambda: real_inputs("mobilenet_v2", SHAPE)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", first_by_default(INPUTS))
def test_training_forward(kind, method, time_checked):
    features_NC, codebook_KC, exact_N = INPUTS[kind]()
    feat_BLC = features_NC.view(IMAGES, TOKENS, CHANNELS).clone().requires_grad_()

    def share_wrong(result) -> float:
        embed_BLC, index_BL, moved_KC = result
        index_N = index_BL.flatten()
        wrong = (index_N != exact_N).double().mean().item()
        embed_NC = embed_BLC.detach().flatten(0, 1)
        wrong = max(wrong, (~torch.isclose(embed_NC, codebook_KC[index_N], atol=1e-5)).double().mean().item())
        if moved_KC is not None:
            counts_K = torch.bincount(index_N, minlength=NUM_CODES)[:, None]
            sums_KC = torch.zeros(NUM_CODES, CHANNELS, dtype=torch.float64).index_add_(0, index_N, features_NC.double())
            average_KC = codebook_KC.double() * DECAY + sums_KC / counts_K.clamp(min=1) * (1 - DECAY)
            expected_KC = torch.where(counts_K > 0, average_KC, codebook_KC.double())
            wrong = max(wrong, (~torch.isclose(moved_KC.double(), expected_KC, atol=1e-5)).double().mean().item())
        return wrong

    time_checked(
        "VisualDictionary",
        f"training forward, {kind} {text(SHAPE)}",
        SHAPE,
        method,
        METHODS[method](feat_BLC, codebook_KC),
        share_wrong,
        max_wrong=1e-3,
        work=product_work(SHAPE),
    )
