"""The two stages that are exported, in onnxruntime: tokens, codes and logits of the model, for sizes of other calls."""

import copy

import pytest
import torch

from soho_fast.ask.pipeline import load_model
from soho_fast.export.graphs import EncodeImages, ReadTexts
from soho_fast.export.package import write_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("kind", ["rank", "compare"])
def test_in_onnxruntime(folder_of, tmp_path, kind):
    model, _ = load_model(folder_of(kind))
    write_onnx(folder_of(kind), tmp_path)
    pixels, mask = torch.randn(3, 3, 128, 160), torch.ones(3, 128, 160, dtype=torch.bool)
    pixels[1, :, 64:], mask[1, 64:] = 0.0, False
    texts, index = torch.randint(5, 31, (2, 7)), torch.tensor([2, 1])
    index = index if kind == "rank" else torch.stack([index, index.flip(0)], 1)
    with torch.no_grad():
        expected = EncodeImages(copy.deepcopy(model))(pixels, mask)
        answer = ReadTexts(model)(*expected[:2], texts, torch.ones_like(texts), index)
    given = {"pixel_values": pixels, "pixel_mask": mask}
    for stage, outputs in (("encode", expected), ("read", (answer,))):
        session = onnxruntime.InferenceSession(tmp_path / f"{stage}.onnx")
        found = session.run(None, {each.name: given[each.name].numpy() for each in session.get_inputs()})
        for got, value in zip(map(torch.from_numpy, found), outputs, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-4)
        given |= {"visual": expected[0], "valid": expected[1], "input_ids": texts, "image_index": index}
        given["attention_mask"] = torch.ones_like(texts)
