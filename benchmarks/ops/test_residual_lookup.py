"""residual_lookup against the loop over codebook_lookup and the inference of vector-quantize-pytorch's ResidualVQ.

N features, L levels, K codes, C channels; codebooks of falling size, as trained ones have.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.ops.lookup_baselines import installed
from benchmarks.ops.shapes import RESIDUAL_NLKC, text
from benchmarks.short import first_by_default
from soho_fast import ops


def _fused(feat_NC: Tensor, books_LKC: Tensor):
    return lambda: ops.residual_lookup(feat_NC, books_LKC)


def _prepared(feat_NC: Tensor, books_LKC: Tensor):
    prepared = ops.prepare_codebook(books_LKC)
    return lambda: ops.residual_lookup(feat_NC, prepared)


def _loop(feat_NC: Tensor, books_LKC: Tensor):
    prepared = [ops.prepare_codebook(book_KC) for book_KC in books_LKC]

    def call():
        residual_NC, quantized_NC, index = feat_NC, torch.zeros_like(feat_NC), []
        for book in prepared:
            index.append(ops.codebook_lookup(residual_NC, book))
            codes_NC = book.codebook[index[-1]]
            residual_NC, quantized_NC = residual_NC - codes_NC, quantized_NC + codes_NC
        return torch.stack(index, -1), quantized_NC

    return call


def _vector_quantize_pytorch(feat_NC: Tensor, books_LKC: Tensor):
    library = installed("vector_quantize_pytorch", "vector-quantize-pytorch")
    num_levels, num_codes, num_channels = books_LKC.shape
    layer = library.ResidualVQ(dim=num_channels, codebook_size=num_codes, num_quantizers=num_levels).eval()
    for one, book_KC in zip(layer.layers, books_LKC, strict=True):
        one.codebook = book_KC

    def call():
        quantized_1NC, index_1NL, _ = layer(feat_NC[None])
        return index_1NL[0], quantized_1NC[0]

    return torch.no_grad()(call)


METHODS = {
    "soho_fast": _fused,
    "soho_fast prepared": _prepared,
    "soho_fast loop prepared": _loop,
    "vector-quantize-pytorch": _vector_quantize_pytorch,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", first_by_default(RESIDUAL_NLKC), ids=text)
def test_residual_lookup(shape, method, time_checked, generator):
    num_rows, num_levels, num_codes, num_channels = shape
    feat_NC = torch.randn(num_rows, num_channels, generator=generator)
    books_LKC = torch.randn(num_levels, num_codes, num_channels, generator=generator)
    books_LKC *= 0.8 ** torch.arange(num_levels)[:, None, None]
    expected_NL = _loop(feat_NC, books_LKC)()[0]
    time_checked(
        "residual_lookup",
        text(shape),
        shape,
        method,
        METHODS[method](feat_NC, books_LKC),
        lambda result: (result[0] != expected_NL).any(-1).double().mean().item(),
        max_wrong=0.02,
    )
