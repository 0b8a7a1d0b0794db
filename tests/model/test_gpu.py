"""What is put on a model for a GPU, seen on a CPU: the layout of features, and that nothing else changes."""

import pytest
import torch
from torch import nn

from soho_fast.model import SohoForPreTraining
from soho_fast.model.fast.cpu import speed_up_on_cpu
from soho_fast.model.fast.gpu import GpuCnn, speed_up_on_gpu
from soho_fast.tasks.pretraining import PretrainingTask
from soho_fast.tasks.settings import PretrainingData


def make(tiny_config, **changes):
    torch.manual_seed(0)
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes)
    return SohoForPreTraining(config).train()


@pytest.mark.parametrize(("backbone", "padded"), [("resnet10", False), ("resnet50", True), ("mobilenet_v2", True)])
def test_features_have_their_channels_last_all_the_way(tiny_config, batch, backbone, padded):
    plain, model = make(tiny_config, backbone=backbone), make(tiny_config, backbone=backbone)
    assert speed_up_on_gpu(model) is model
    inputs = batch()
    inputs["pixel_mask"] = inputs["pixel_mask"].clone() if padded else None
    if padded:
        inputs["pixel_mask"][0, 32:] = 0
    others = []

    def look(module: nn.Module, arguments: tuple) -> None:
        if not arguments[0].is_contiguous(memory_format=torch.channels_last):
            others.append(module)

    for module in model.soho.visual_encoder.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_pre_hook(look)
    loss, expected = model(**inputs).loss, plain(**inputs).loss
    assert not others, "a layout that is lost costs two copies at every layer"
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(p.grad.is_contiguous() for p in model.parameters() if p.grad is not None and p.dim() == 1)


def test_a_task_puts_it_on_for_a_gpu_alone(tiny_config):
    said = []
    task = PretrainingTask(PretrainingData(), say=said.append)
    model, other = make(tiny_config), make(tiny_config)
    task.speed_up(model, torch.device("cuda"))
    assert type(model.soho.visual_encoder.cnn) is type(speed_up_on_gpu(other).soho.visual_encoder.cnn) is GpuCnn
    assert model.soho.transformer.name == "plain", "the packed encoder is the CPU's"
    assert said == ["computing on cuda: Transformer plain; CNN gpu"]


@pytest.mark.parametrize(("fast", "checkpointing"), [(True, False), (False, True)])
def test_a_compiled_transformer_computes_and_is_saved_as_the_plain_one(
    tiny_config, batch, tmp_path, fast, checkpointing
):
    plain, model = make(tiny_config), make(tiny_config)
    calls = []

    def backend(graph, example_inputs):
        calls.append(len(list(graph.graph.nodes)))
        return graph.forward

    if fast:
        speed_up_on_cpu(model)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.compile_transformer(backend=backend)
    for num_images in (2, 3):  # another number of pairs is no other program
        inputs = batch(num_images)
        expected, loss = plain(**inputs).loss, model(**inputs).loss
        torch.testing.assert_close(loss, expected)
        for each in (expected, loss):
            each.backward()
    assert calls and sum(calls) > 20, "compiled, and not passed by"
    for (name, weight), (other_name, other) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert name == other_name
        torch.testing.assert_close(other.grad, weight.grad, rtol=1e-4, atol=1e-6, msg=name)
    model.save_pretrained(tmp_path)
    again = SohoForPreTraining.from_pretrained(tmp_path)
    assert not again.soho.encoder_compiled
    assert list(again.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
