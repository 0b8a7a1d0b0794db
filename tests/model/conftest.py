"""Tiny models and batches; every test of this folder builds on them."""

import pytest
import torch

from soho_fast.model import SohoConfig, SohoForPreTraining
from soho_fast.model.fast.cpu import packed_encoder

TINY = {
    "backbone": "resnet10", "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "num_codes": 12, "visual_pool": 1, "dictionary_init": "data",
}  # fmt: skip

# What a small model of another preset takes of it.
SIZES = ("backbone", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SIZES += ("max_position_embeddings", "hidden_dropout_prob", "attention_probs_dropout_prob", "num_codes")


@pytest.fixture(autouse=True)
def _seeded_and_on_one_thread():
    # Convolutions this small lose far more to waiting for a second thread than they gain by it.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def tiny_config():
    return lambda **overrides: SohoConfig(**{**TINY, **overrides})


@pytest.fixture
def tiny_model(tiny_config):
    def build(**overrides):
        torch.manual_seed(1)
        return SohoForPreTraining(tiny_config(**overrides))

    return build


@pytest.fixture
def tiny_official():
    """Builds a small model of preset `official`, each time with the same weights."""

    def build(kind=SohoForPreTraining, **overrides):
        sizes = {name: TINY[name] for name in SIZES}
        config = SohoConfig.from_preset("official", **{**sizes, **overrides})
        torch.manual_seed(1)
        return kind(config)

    return build


@pytest.fixture
def packed(monkeypatch):
    """The packed forwards that were made, so that no test compares the plain path with itself."""
    calls, encode = [], packed_encoder.packed_encode
    monkeypatch.setattr(packed_encoder, "packed_encode", lambda *args: calls.append(args) or encode(*args))
    return calls


@pytest.fixture
def batch():
    return make_batch


def make_batch(num_images: int = 3, texts_per_image: int = 4, size: tuple[int, int] = (96, 64)) -> dict:
    """Half of each image's texts are matched; one word of each matched text is masked and labelled."""
    generator = torch.Generator().manual_seed(5)
    pixel_values = torch.randn(num_images, 3, *size, generator=generator)
    mask_uniform = torch.rand(num_images, dtype=torch.float64, generator=generator)
    num_texts = num_images * texts_per_image
    input_ids = torch.randint(5, 60, (num_texts, 7), generator=generator)
    matched = (torch.arange(num_texts) % 2 == 0).long()
    mlm_labels = torch.full((num_texts, 7), -100)
    mlm_labels[:, 3] = input_ids[:, 3].where(matched == 1, -100)
    input_ids[:, 3] = 4
    attention_mask = torch.ones(num_texts, 7, dtype=torch.int64)
    attention_mask[1::2, 5:] = 0
    return {
        "pixel_values": pixel_values,
        "pixel_mask": torch.ones(num_images, *size, dtype=torch.int64),
        "input_ids": input_ids, "attention_mask": attention_mask,
        "image_index": torch.arange(num_images).repeat_interleave(texts_per_image),
        "mlm_labels": mlm_labels, "itm_labels": matched, "mask_uniform": mask_uniform,
    }  # fmt: skip
