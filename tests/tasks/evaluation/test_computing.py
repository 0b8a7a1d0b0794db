"""In which precision a model is measured."""

from types import SimpleNamespace

import pytest
import torch

from soho_fast.tasks.evaluation.computing import Computing


def model_on(device: str, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """What is asked of a model: its first weight."""
    return SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(device), dtype=dtype)]))


@pytest.mark.parametrize(
    ("device", "has_bf16", "dtype", "expected"),
    [
        ("cpu", True, torch.float32, "float32"),
        ("cuda", True, torch.float32, "bf16"),
        ("cuda", False, torch.float32, "float32"),
        ("cuda", True, torch.float16, "fp16"),
    ],
)
def test_auto_takes_bf16_where_a_gpu_has_it(monkeypatch, device, has_bf16, dtype, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    assert Computing(model_on(device, dtype)).precision == expected
    assert Computing(model_on(device, dtype), "float32").precision == "float32"


def test_products_alone_are_cast():
    layer = torch.nn.Linear(4, 4)
    for precision, dtype in (("auto", torch.float32), ("bf16", torch.bfloat16)):
        with Computing(layer, precision)():
            assert layer(torch.ones(1, 4)).dtype == dtype
    assert layer(torch.ones(1, 4)).dtype == torch.float32 == layer.weight.dtype


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_tf32_is_allowed_while_a_model_is_called(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    before = torch.get_float32_matmul_precision()
    for precision, during in (("auto", "high"), ("float32", before)):
        with Computing(model_on("cuda"), precision)():
            assert torch.get_float32_matmul_precision() == during
        assert torch.get_float32_matmul_precision() == before


def test_a_batch_goes_to_the_device_and_what_is_no_tensor_stays():
    with torch.device("meta"):
        computing = Computing(torch.nn.Linear(1, 1))
    moved = computing.on_device({"pixel_values": torch.ones(2), "pixel_mask": None})
    assert moved["pixel_values"].device.type == "meta" and moved["pixel_mask"] is None


def test_a_prepared_model_has_its_own_precision():
    """It is called without autocast, results are known by how it was prepared, and another precision is refused."""
    model = torch.nn.Linear(2, 2)
    model.prepared = {"precision": "bf16", "compile": False}
    for asked in ("auto", "bf16"):
        computing = Computing(model, asked)
        with computing():
            assert model(torch.zeros(1, 2)).dtype == torch.float32
        assert computing.precision == "prepared bf16"
    with pytest.raises(ValueError, match="precision: the model is prepared in bf16; expected auto or bf16, got 'fp16'"):
        Computing(model, "fp16")
