import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from soho_fast.data import processor as processor_module
from soho_fast.data.images import SohoImageProcessor
from soho_fast.data.processor import SohoProcessor


def test_round_trip_gives_the_same_inputs(processor, tmp_path):
    processor.image_processor.size_divisor = 7
    processor.save_pretrained(tmp_path)
    loaded = SohoProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    images = [Image.new("RGB", (50, 40), "red"), Image.new("RGB", (40, 90), "blue")]
    texts = ["a red", "there is a blue painting"]
    first = processor(images=images, text=texts, padding=True, return_tensors="pt")
    second = loaded(images=images, text=texts, padding=True, return_tensors="pt")
    assert set(first) == {"pixel_values", "pixel_mask", "input_ids", "attention_mask"}
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first["pixel_values"].shape[-2] % 7 == 0


def test_text_alone_has_no_token_types(processor):
    assert set(processor(text=["a red"], return_tensors="pt")) == {"input_ids", "attention_mask"}


def test_the_auto_classes_know_what_was_saved(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SohoProcessor
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SohoImageProcessor


def test_a_subfolder_holds_both_parts(processor, tmp_path):
    processor.save_pretrained(tmp_path / "model")
    loaded = SohoProcessor.from_pretrained(tmp_path, subfolder="model")
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_options_of_the_hub_reach_both_parts(processor, tmp_path, monkeypatch):
    processor.save_pretrained(tmp_path)
    asked = {}

    def recorded(part, load):
        def loading(*arguments, **options):
            asked[part] = options
            return load(*arguments, **options)

        return loading

    monkeypatch.setattr(SohoImageProcessor, "from_pretrained", recorded("images", SohoImageProcessor.from_pretrained))
    monkeypatch.setattr(processor_module, "load_tokenizer", recorded("words", processor_module.load_tokenizer))
    options = {"revision": "v1", "token": "secret", "cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    loaded = SohoProcessor.from_pretrained(tmp_path, size_divisor=3, **options)
    assert loaded.image_processor.size_divisor == 3, "other keywords are the image processor's"
    assert asked["words"] == options and asked["images"] == {"size_divisor": 3, **options}
