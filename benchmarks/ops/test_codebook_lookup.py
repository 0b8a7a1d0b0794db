"""codebook_lookup against torch.cdist + argmin and the matrix-product form; checked against the float64 rule."""

import pytest
import torch

from soho_fast.ops import codebook_lookup

SHAPES = [(2048, 2048, 768), (8192, 1024, 64), (2048, 8192, 256), (8192, 512, 128)]


def _soho_fast(features, codebook):
    return codebook_lookup(features, codebook)


def _cdist(features, codebook):
    return torch.cdist(features, codebook).argmin(-1)


def _product(features, codebook):
    return torch.addmm(codebook.square().sum(-1), features, codebook.T, alpha=-2).argmin(-1)


CONTENDERS = {"soho_fast": _soho_fast, "torch cdist+argmin": _cdist, "torch addmm+argmin": _product}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_codebook_lookup(shape, contender, time_checked, generator):
    num_rows, num_codes, num_channels = shape
    features = torch.randn(num_rows, num_channels, generator=generator)
    codebook = torch.randn(num_codes, num_channels, generator=generator)
    exact = codebook_lookup(features, codebook, backend="reference")
    time_checked(
        f"codebook_lookup {num_rows}x{num_codes}x{num_channels} float32",
        lambda: CONTENDERS[contender](features, codebook),
        lambda index: (index != exact).double().mean().item(),
        must_be_exact=contender == "soho_fast",
    )


@pytest.mark.parametrize("contender", ["soho_fast", "torch addmm+argmin"])
def test_codebook_lookup_bfloat16(contender, time_checked, generator):
    features = torch.randn(2048, 768, generator=generator).bfloat16()
    codebook = torch.randn(2048, 768, generator=generator).bfloat16()
    exact = codebook_lookup(features, codebook, backend="reference")
    time_checked(
        "codebook_lookup 2048x2048x768 bfloat16",
        lambda: CONTENDERS[contender](features, codebook),
        lambda index: (index != exact).double().mean().item(),
        must_be_exact=contender == "soho_fast",
    )
