"""An accelerated VectorQuantize in a graph for ONNX: onnxruntime gives what it gives."""

import copy

import pytest
import torch
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from soho_fast.adapters import accelerate

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CASES = {
    "plain": lambda: VectorQuantize(dim=8, codebook_size=32),
    "cosine": lambda: VectorQuantize(dim=8, codebook_size=32, use_cosine_sim=True),
    "projected heads": lambda: VectorQuantize(dim=8, codebook_size=32, heads=2, codebook_dim=6),
    "residual": lambda: ResidualVQ(dim=8, codebook_size=32, num_quantizers=3),
}


@pytest.mark.parametrize("name", CASES)
def test_in_onnxruntime(tmp_path, name):
    quantizer, features = accelerate(CASES[name]()).eval(), torch.randn(5, 20, 8)
    expected = quantizer(features)
    path, example = tmp_path / "quantizer.onnx", (features[:2, :7],)
    sizes = {0: torch.export.Dim("rows", min=2), 1: torch.export.Dim("tokens", min=2)}
    with torch.no_grad():  # the original's own switch of gradients is no operation then
        torch.onnx.export(
            copy.deepcopy(quantizer), example, path, input_names=["features"], dynamic_shapes=(sizes,), dynamo=True,
            verbose=False,
        )  # fmt: skip
    got = onnxruntime.InferenceSession(path).run(None, {"features": features.numpy()})
    torch.testing.assert_close(torch.from_numpy(got[0]), expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.from_numpy(got[1]), expected[1])
