"""Lookups in graphs for ONNX, by both exporters of torch: run by onnxruntime they give what the ops give."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from soho_fast import ops

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

N, K, C = 40, 24, 6


def in_onnxruntime(path, module, features, dynamo):
    """What the module's graph gives of other features, as many of another number."""
    axes = (
        {"dynamic_shapes": ({0: torch.export.Dim("rows", min=2)},)}
        if dynamo
        else {"dynamic_axes": {"rows": {0: "rows"}}}
    )
    example = features[: len(features) // 2].clone()
    torch.onnx.export(
        module, (example,), path, input_names=["rows"], dynamo=dynamo, opset_version=18, verbose=False, **axes
    )
    session = onnxruntime.InferenceSession(path)
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, {"rows": features.numpy()})]


class Lookup(nn.Module):
    """Index, distance and codes, in a codebook or what was prepared of it."""

    def __init__(self, codebook, metric="euclidean", prepared=False):
        super().__init__()
        self.register_buffer("codebook", codebook)
        self.metric, self.prepared = metric, ops.prepare_codebook(codebook, metric=metric) if prepared else None

    def forward(self, features):
        codes = self.codebook if self.prepared is None else self.prepared
        index, value = ops.codebook_lookup(features, codes, metric=self.metric, return_distance=True)
        return index, value, ops.straight_through(features, self.codebook, index)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codebooks", torch.randn(3, K, C))

    def forward(self, features):
        return ops.residual_lookup(features, self.codebooks, return_residual=True)


class Finite(nn.Module):
    def forward(self, features):
        return *ops.fsq(features, [8, 5, 2, 4, 3, 7]), *ops.lfq(features)


def case():
    """Features with ties, near-ties, a copied code, NaN and infinity."""
    codebook = torch.randn(K, C).round(decimals=1)
    codebook[7], codebook[9, 2] = codebook[3], torch.inf
    features = torch.cat(
        [torch.randn(N, C), codebook[:8], (codebook[:8] + codebook[10:18]) / 2, torch.full((2, C), 1e-30)]
    )
    features[1, 3], features[2, 0] = torch.nan, -torch.inf
    return features, codebook


LOOKUPS = ["euclidean", "cosine", "dot", "prepared", "residual", "quantizer"]


# The TorchScript exporter loses a dimension of `fsq`'s result.
@pytest.mark.parametrize(
    ("name", "dynamo"), [*((name, True) for name in [*LOOKUPS, "fsq and lfq"]), *((name, False) for name in LOOKUPS)]
)
def test_in_onnxruntime(tmp_path, name, dynamo):
    features, codebook = case()
    module: nn.Module
    if name == "residual":
        module = Residual()
    elif name == "fsq and lfq":
        module = Finite()
    elif name == "quantizer":
        module = ops.nn.VectorQuantizer(C, K).eval()
        features = features[3:]
    else:
        module = Lookup(codebook, "euclidean" if name == "prepared" else name, prepared=name == "prepared")
    expected = module(features)
    got = in_onnxruntime(tmp_path / "graph.onnx", copy.deepcopy(module), features, dynamo)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        if one.dtype == torch.int64:
            assert torch.equal(one, other)
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_topk_is_refused():
    class Nearest(nn.Module):
        def forward(self, features):
            return ops.codebook_lookup(features, torch.ones(4, C), topk=2)

    with pytest.raises(Exception, match="topk: expected None in a graph for ONNX"):
        torch.onnx.export(Nearest(), (torch.ones(3, C),), dynamo=False)
